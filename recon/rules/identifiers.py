"""Emails and phones: the form they are stored in and the key they are matched by.

An email has one canonical form, which is stored and is its match key: trimmed, composed (NFC), lower-cased. A phone
is stored as it was sent, and its match key is derived from its NFKC form, in which full-width digits are ASCII digits.
ASCII text is in both normalization forms already, so it is never normalized.
"""

import re
from collections.abc import Callable
from typing import NamedTuple
from unicodedata import normalize

# Limits for what the client sends (trimmed) and for what is derived from it, so they bound both the work and the
# size of an index entry. The longest match key, 320 characters of four bytes, is half of PostgreSQL's limit (2,704).
MAX_EMAIL = 320  # characters: 64 for the local part, "@", 255 for the domain (RFC 5321)
MAX_PHONE = 64  # characters: the longest number has 15 digits; the rest is room for marks and odd keys

# What counts as blank around an identifier: Unicode's spaces and the line breaks that pasting leaves
# behind, but not the separators among the control characters (\x1c-\x1f, \x85), which no one types.
# Invisible characters that Unicode does not call spaces (zero-width ones, the byte order mark) belong to the text.
_BLANKS = " \t\n\v\f\r" + "".join(filter(str.isspace, map(chr, range(0xA0, 0x3001))))
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_WITHOUT_MARKS = str.maketrans("", "", "+-.()/ ")


class Identifiers(NamedTuple):
    """What one request says of a person, in normal form: at least one of email and phone.

    `source` is the name of the request's API key; None without API keys.
    """

    email: str | None
    phone: str | None
    phone_key: str | None
    source: str | None = None


def normal_email(email: str) -> str | None:
    """The email as it is stored and matched, or None when it is blank.

    Raises ValueError, without quoting the email, when it cannot be one.
    """
    text = _printable(email.strip(_BLANKS), MAX_EMAIL)
    if text.isascii():
        return text.lower() or None
    # Composed again, since the lower case of some letters composes with the mark behind them, unlike the upper case.
    return _fitting("NFC", normalize("NFC", normalize("NFC", text).lower()), MAX_EMAIL)


def normal_phone(phone: str | int) -> str | None:
    """The phone as it is stored, or None when it is blank; an integer stands for its digits.

    Raises ValueError, without quoting the phone, when it cannot be one.
    """
    text = _printable(str(phone).strip(_BLANKS), MAX_PHONE)
    if not text.isascii():
        _fitting("NFKC", plain_key(text), MAX_PHONE)  # it has up to 18 characters for one
    return text or None


def plain_key(phone: str) -> str:
    """The match key of a phone: its digits, or its lower-cased NFKC form if it has more than digits and marks.

    `contact_phone_key()` in schema.sql gives the same key to rows that recon did not write.
    """
    if phone.isascii() and phone.isdigit():
        return phone
    form = _compatible(phone)
    return _digits(form) or _folded(form)


def regional_key(region: str) -> Callable[[str], str]:
    """A function like `plain_key` that reads numbers of digits and marks as numbers of `region`.

    What the phonenumbers library finds valid there has the digits of its E.164 form as key, so that
    "(201) 555-0123" is "+1 201 555 0123" for a shop in the US. The library never gets a phone with letters or other
    signs: it ignores what it cannot read, and would give two people who share a number with extensions the same key.
    """
    import phonenumbers  # only here: its metadata costs 40 MB and most shops set no region

    def key(phone: str) -> str:
        form = _compatible(phone)
        digits = _digits(form)
        if digits is None:
            return _folded(form)
        try:
            number = phonenumbers.parse(form, region)
        except phonenumbers.NumberParseException:
            return digits
        if not phonenumbers.is_valid_number(number):
            return digits
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164).removeprefix("+")

    return key


def phone_key_for(region: str | None) -> Callable[[str], str]:
    """The function that derives a phone's match key: by the numbering plan of `region`, or plain without a region."""
    return regional_key(region) if region else plain_key


def e164_digits(phone: str, region: str) -> str | None:
    """The digits of the E.164 form that the phonenumbers library reads in `region`, valid or not, or None.

    For keys that are stored already: which numbers are valid changes with the library's version, and earlier versions
    of recon gave it phones with an extension, too.
    """
    import phonenumbers

    try:
        number = phonenumbers.parse(_compatible(phone), region)
    except phonenumbers.NumberParseException:
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164).removeprefix("+")


def check_email_syntax(email: str) -> None:
    """Raise ValueError unless the email-validator library accepts the address (no DNS look-up)."""
    from email_validator import EmailNotValidError, validate_email

    try:
        validate_email(email, check_deliverability=False)
    except EmailNotValidError:
        # The library's own message quotes parts of the address.
        raise ValueError("is not a valid email address") from None


def check_phone_syntax(phone: str, region: str | None) -> None:
    """Raise ValueError unless the phone has only digits and marks and is a valid number (in `region`, if given).

    An extension or a word makes a phone invalid here, since the phonenumbers library would ignore it.
    """
    import phonenumbers

    form = _compatible(phone)
    if _digits(form) is None:
        raise ValueError("is not a valid phone number")
    try:
        valid = phonenumbers.is_valid_number(phonenumbers.parse(form, region))
    except phonenumbers.NumberParseException:
        valid = False
    if not valid:
        hint = "" if region else " with its country code, such as +1 201 555 0123"
        raise ValueError(f"is not a valid phone number{hint}")


def _compatible(phone: str) -> str:
    """The NFKC form of a phone, without the blanks around it (some signs become a space and a mark)."""
    return (phone if phone.isascii() else normalize("NFKC", phone)).strip(_BLANKS)


def _digits(form: str) -> str | None:
    """The digits of an NFKC form that has only ASCII digits (at least one), marks and spaces; otherwise None."""
    rest = form.translate(_WITHOUT_MARKS)
    return rest if rest.isascii() and rest.isdigit() else None


def _folded(form: str) -> str:
    """An NFKC form in lower case, normalized again for the reason given in `normal_email`."""
    return form.lower() if form.isascii() else normalize("NFKC", form.lower())


def _fitting(form: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise ValueError(f"is longer than {limit} characters in the Unicode form {form}")
    return text


def _printable(text: str, limit: int) -> str:
    if len(text) > limit:
        raise ValueError(f"is longer than {limit} characters")
    if not text.isprintable() and _CONTROL.search(text):  # the first is quick, and enough for nearly all
        raise ValueError("contains control characters")
    return text
