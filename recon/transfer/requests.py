"""From the values of a record to requests: the same validation as by the API."""

from collections.abc import Callable, Sequence
from typing import Any

from recon.rules.identifiers import (
    Identifiers,
    check_email_syntax,
    check_phone_syntax,
    normal_email,
    normal_phone,
    phone_key_for,
)
from recon.transfer.records import Invalid


class Maker:
    """Makes requests of the values of records.

    Parameters
    ----------
    source : what the contacts have in the place of the name of an API key.
    region : the default region of phone numbers, if any.
    strict : whether invalid emails and phone numbers are refused.
    """

    def __init__(self, source: str, region: str | None, *, strict: bool) -> None:
        self._source = source
        self._region = region
        self._strict = strict
        self._phone_key: Callable[[str], str] = phone_key_for(region)

    def requests(self, emails: Sequence[Any], phones: Sequence[Any]) -> list[Identifiers]:
        """The first email with each phone number, and each further email with the first phone number.

        With only emails or only phone numbers, each is a request of its own. Raises Invalid.
        """
        if len(emails) == len(phones) == 1 and emails[0] and phones[0] and not self._strict:  # nearly always
            request = self._pair(emails[0], phones[0])
            if request is not None:
                return [request]
        found, numbers = self._emails(emails), self._phones(phones)
        if not found and not numbers:
            raise Invalid("has neither an email nor a phone number")
        source = self._source
        if not numbers:
            return [Identifiers(email, None, None, source) for email in found]
        if not found:
            return [Identifiers(None, phone, key, source) for key, phone in numbers.items()]
        requests = [Identifiers(found[0], phone, key, source) for key, phone in numbers.items()]
        if len(found) > 1:
            key, phone = next(iter(numbers.items()))
            requests += [Identifiers(email, phone, key, source) for email in found[1:]]
        return requests

    def _pair(self, email: str, phone: str | int) -> Identifiers | None:
        """The request of two plain values; None if they need a closer look."""
        try:
            found, number = normal_email(email), normal_phone(phone)
        except ValueError:
            return None
        if found is None or number is None or not (found.isascii() and number.isascii()):
            return None
        return Identifiers(found, number, self._phone_key(number), self._source)

    def _emails(self, values: Sequence[Any]) -> list[str]:
        found: dict[str, None] = {}
        for value in values:
            if not value:
                continue
            try:
                email = normal_email(value)
                if email is None:
                    continue
                if not email.isascii():
                    _require_characters(email)
                if self._strict:
                    check_email_syntax(email)
            except ValueError as error:
                raise Invalid(f"email {error}") from None
            found[email] = None
        return [*found]

    def _phones(self, values: Sequence[Any]) -> dict[str, str]:
        """The phone numbers by their match keys."""
        found: dict[str, str] = {}
        for value in values:
            if value == "":
                continue
            try:
                phone = normal_phone(value)
                if phone is None:
                    continue
                if not phone.isascii():
                    _require_characters(phone)
                if self._strict:
                    check_phone_syntax(phone, self._region)
            except ValueError as error:
                raise Invalid(f"phone number {error}") from None
            found.setdefault(self._phone_key(phone), phone)
        return found


def _require_characters(text: str) -> None:
    """Raise ValueError if the text has what is no character: bytes that the encoding does not have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("has bytes that are no text in this encoding") from None
