"""The identities of an export, as the contacts that a dry run finds there beforehand."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from recon.errors import ReconError
from recon.rules.clusters import Contact
from recon.rules.guards import Guards
from recon.transfer.text import Text

_TOGETHER = 1024  # identities
_END = {"position"}  # the one member of the last line


class Person(NamedTuple):
    """An identity of an export.

    Attributes
    ----------
    ids : of its contacts, the primary's first.
    emails : its emails.
    phones : its phone numbers, each with its match key.
    """

    ids: list[int]
    emails: list[str]
    phones: list[tuple[str, str]]


@dataclass(slots=True)
class Export:
    """The export of a database, `recon export --format ndjson`.

    Attributes
    ----------
    position : the position of the change feed that it ends with, once all of it was read.
    """

    text: Text
    phone_key: Callable[[str], str]
    position: int | None = None

    def people(self) -> Iterator[list[Person]]:
        """Read the identities, many at a time. Raises ReconError when the file is no complete export."""
        found = self._lines()
        while together := list(islice(found, _TOGETHER)):
            yield together

    def _lines(self) -> Iterator[Person]:
        for number, line in enumerate(self.text, start=1):
            record = _object(line)
            if self.position is not None or record is None:
                raise self._not_an_export(number)
            if record.keys() == _END:
                self.position = record["position"]
                continue
            try:
                yield self._person(record)
            except (KeyError, TypeError, ValueError):
                raise self._not_an_export(number) from None
            if not number % _TOGETHER:
                self.text.mark()  # lets go of the text
        if self.position is None:
            raise ReconError(f"{self.text.name} is not complete: an export ends with a line that has its position")

    def _person(self, record: dict[str, Any]) -> Person:
        emails, numbers = _texts(record["emails"]), _texts(record["phoneNumbers"])
        ids = [record["primaryContactId"], *record["secondaryContactIds"]]
        if not all(type(each) is int for each in ids) or max(len(emails), len(numbers)) > len(ids):
            raise ValueError
        return Person(ids, emails, [(number, self.phone_key(number)) for number in numbers])

    def _not_an_export(self, line: int) -> ReconError:
        return ReconError(
            f"line {line} of {self.text.name} is no identity as `recon export` writes it as NDJSON, without --full"
        )


def _object(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _texts(values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise ValueError
    return values


def contacts_of(people: list[Person], guards: Guards) -> list[Contact]:
    """The contacts of these identities, oldest first, without blocked values.

    An export does not tell which contact brought which identifier, nor when: they are dealt out, and ids tell the age.
    """
    found = []
    for ids, emails, phones in people:
        dealt_emails = iter([email for email in emails if not guards.blocks_value("email", email)])
        dealt_phones = iter([phone for phone in phones if not guards.blocks_value("phoneNumber", phone[1])])
        for id_ in ids:
            linked_id = None if id_ == ids[0] else ids[0]
            found.append(Contact(id_, id_, linked_id, next(dealt_emails, None), *next(dealt_phones, (None, None))))
    found.sort(key=lambda contact: contact.rank)
    return found
