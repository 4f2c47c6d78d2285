"""Emails and phones: the form they are stored in and the key they are matched by."""

import re
from collections.abc import Callable
from typing import NamedTuple

MAX_EMAIL = 320  # characters: 64 for the local part, "@", 255 for the domain (RFC 5321)
MAX_PHONE = 64  # characters: the longest number has 15 digits; the rest is room for marks and odd keys

# What counts as blank around an identifier: Unicode's spaces and the line breaks that pasting leaves
# behind, but not the separators among the control characters (\x1c-\x1f, \x85), which no one types.
_BLANKS = " \t\n\v\f\r" + "".join(filter(str.isspace, map(chr, range(0xA0, 0x3001))))
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_DIGITS_AND_MARKS = re.compile(r"[-+.()/ 0-9]*[0-9][-+.()/ 0-9]*")
_NOT_DIGITS = re.compile(r"[^0-9]")


class Identifiers(NamedTuple):
    """What one request says of a person, in normal form: at least one of email and phone."""

    email: str | None
    phone: str | None
    phone_key: str | None


def normal_email(email: str) -> str | None:
    """The email as it is stored and matched, or None when it is blank.

    Raises ValueError, without quoting the email, when it cannot be one.
    """
    return _printable(email.strip(_BLANKS).lower(), MAX_EMAIL)


def normal_phone(phone: str | int) -> str | None:
    """The phone as it is stored, or None when it is blank; an integer stands for its digits.

    Raises ValueError, without quoting the phone, when it cannot be one.
    """
    return _printable(str(phone).strip(_BLANKS), MAX_PHONE)


def plain_key(phone: str) -> str:
    """The key of a phone in normal form: its digits, or itself when it is more than digits and marks.

    `contact_phone_key()` in schema.sql says the same for rows that recon did not write.
    """
    if phone.isascii() and phone.isdigit():
        return phone
    if _DIGITS_AND_MARKS.fullmatch(phone):
        return _NOT_DIGITS.sub("", phone)
    return phone.lower()


def regional_key(region: str) -> Callable[[str], str]:
    """A function like `plain_key` that first tries to read a phone as a number of `region`.

    What the phonenumbers library finds valid there has the digits of its E.164 form as key, so that
    "(201) 555-0123" is "+1 201 555 0123" for a shop in the US.
    """
    import phonenumbers  # only here: its metadata costs 40 MB and most shops set no region

    def key(phone: str) -> str:
        try:
            number = phonenumbers.parse(phone, region)
        except phonenumbers.NumberParseException:
            return plain_key(phone)
        if not phonenumbers.is_valid_number(number):
            return plain_key(phone)
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164).removeprefix("+")

    return key


def check_email_syntax(email: str) -> None:
    """Raise ValueError unless the email-validator library accepts the address (no DNS look-up)."""
    from email_validator import EmailNotValidError, validate_email

    try:
        validate_email(email, check_deliverability=False)
    except EmailNotValidError:
        # The library's own message quotes parts of the address.
        raise ValueError("is not a valid email address") from None


def check_phone_syntax(phone: str, region: str | None) -> None:
    """Raise ValueError unless the phonenumbers library finds the number valid (in `region`, if given)."""
    import phonenumbers

    try:
        valid = phonenumbers.is_valid_number(phonenumbers.parse(phone, region))
    except phonenumbers.NumberParseException:
        valid = False
    if not valid:
        hint = "" if region else " with its country code, such as +1 201 555 0123"
        raise ValueError(f"is not a valid phone number{hint}")


def _printable(text: str, limit: int) -> str | None:
    if len(text) > limit:
        raise ValueError(f"is longer than {limit} characters")
    if not text.isprintable() and _CONTROL.search(text):  # the first is quick, and enough for nearly all
        raise ValueError("contains control characters")
    return text or None
