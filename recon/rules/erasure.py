"""What an erasure looks for, and what it leaves of the events in which it finds that.

Pure: contacts and events in, events without identifiers out.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any
from unicodedata import normalize

from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, identifiers_of

_GROUP = re.compile(r"\d+")
_NUMBERS = re.compile(r"\+?\d[\d\s().+/-]*")
_MOST_GROUPS = 16  # of digits in a phone number: as many as E.164 has digits, and one
_TAIL = 4  # digits
_FEWEST_DIGITS = 7  # of a number without its extension that is taken for a person's: shorter ones are in many texts
# Kinds whose identifiers are those of a request or of rows, and whose detail nothing else needs once the contacts that
# they name are gone.
_PLAIN = {Kind.MERGED, Kind.EDITED, Kind.DELETED, Kind.DISMISSED, Kind.KEPT_APART}
# Kinds that name a value that identifies nobody: as long as it is blocked, it is no person's.
_OF_VALUES = {Kind.BLOCKED, Kind.UNBLOCKED}


@dataclass(frozen=True, slots=True)
class Traces:
    """What an erasure looks for.

    Attributes
    ----------
    contacts : the ids of the erased contacts.
    values : their identifiers, which no other identity has.
    texts : the same as texts, as anything may quote them: emails, match keys, phone numbers.
    """

    contacts: frozenset[int]
    values: frozenset[Identifier]
    texts: frozenset[str]

    def names(self, event: Event) -> bool:
        """Tell whether the event names an erased contact."""
        return event.primary_id in self.contacts or event.other_id in self.contacts


def candidates(records: Iterable[Record], events: Iterable[Event]) -> dict[Identifier, set[str]]:
    """All identifiers that contacts have or had, and those of events about them, each with its texts.

    A value that was blocked and is no longer counts if no other contacts lost it.
    """
    records = list(records)
    contacts = {record.id for record in records}
    found: dict[Identifier, set[str]] = {}
    for record in records:
        for identifier in identifiers_of(record):
            text = record.phone_number if identifier.kind == "phoneNumber" else record.email
            found.setdefault(identifier, set()).update({identifier.key, text or identifier.key})
    for event in events:
        if event.kind not in _OF_VALUES or (event.undone_by is not None and _losers(event) <= contacts):
            for identifier, text in _stated(event):
                found.setdefault(identifier, set()).update({identifier.key, text})
    return found


def _losers(event: Event) -> set[int]:
    """The contacts that lost the value that was blocked."""
    detail = event.detail or {}
    return {entry[0] for entry in detail.get("moved", [])}.union(detail.get("deleted", []))


def _is_of_value(event: Event) -> bool:
    """Tell whether the event names a value that identifies nobody, which may be blocked still."""
    return event.kind is Kind.BLOCKED and event.undone_by is None


def _stated(event: Event) -> Iterator[tuple[Identifier, str]]:
    """The identifiers that an event's columns and its detail state in full."""
    if event.email is not None:
        yield Identifier("email", event.email), event.email
    if event.phone_key is not None:
        yield Identifier("phoneNumber", event.phone_key), event.phone_number or event.phone_key
    detail = event.detail or {}
    if event.kind in {Kind.EDITED, Kind.DELETED}:
        if detail.get("email") is not None:
            yield Identifier("email", detail["email"]), detail["email"]
        if detail.get("phoneKey") is not None:
            yield Identifier("phoneNumber", detail["phoneKey"]), detail.get("phoneNumber") or detail["phoneKey"]
    joins = [detail.get("joins", []), *detail.get("links", []), [member for _, member in detail.get("left", [])]]
    for member in (member for members in joins for member in members):
        for kind, key in member.items():
            yield Identifier(kind, key), key


def is_wiped(event: Event, traces: Traces) -> bool:
    """Tell whether nothing of the event is needed any more but when and what it was."""
    named = {each for each in (event.primary_id, event.other_id) if each is not None}
    return event.kind in _PLAIN and bool(named) and named <= traces.contacts


def scrubbed(event: Event, traces: Traces, names: bool) -> Event:
    """The event without what identifies the erased person; the same object if it has nothing of that.

    `names` tells whether it names an erased contact: then its note is about the person.
    """
    if is_wiped(event, traces):
        return replace(event, email=None, phone_number=None, phone_key=None, note=None, detail=None)
    changes: dict[str, Any] = {}
    if not _is_of_value(event):
        if event.email is not None and Identifier("email", event.email) in traces.values:
            changes["email"] = None
        if event.phone_key is not None and Identifier("phoneNumber", event.phone_key) in traces.values:
            changes |= {"phone_number": None, "phone_key": None}
        if names and (changes or event.kind not in _OF_VALUES):
            changes["note"] = None
    if event.detail is not None:
        changes["detail"] = _detail(event, event.detail, traces)
    changed = {name: value for name, value in changes.items() if getattr(event, name) != value}
    return replace(event, **changed) if changed else event


def _detail(event: Event, detail: Mapping[str, Any], traces: Traces) -> dict[str, Any]:
    """The detail without the erased identifiers, and without what it says of the erased contacts."""
    if event.kind in {Kind.EDITED, Kind.DELETED}:
        return {name: value for name, value in detail.items() if value not in traces.texts}
    return {name: _MEMBERS[name](value, traces) if name in _MEMBERS else value for name, value in detail.items()}


def _joins(members: Sequence[Mapping[str, str]], traces: Traces) -> list[Any]:
    return [member for member in members if not _is_erased(member, traces)]


def _links(sets: Sequence[Sequence[Mapping[str, str]]], traces: Traces) -> list[Any]:
    return [_joins(members, traces) for members in sets]


def _left(entries: Sequence[tuple[int, Mapping[str, str]]], traces: Traces) -> list[Any]:
    return [entry for entry in entries if not _is_erased(entry[1], traces)]


def _moved(entries: Sequence[Sequence[Any]], traces: Traces) -> list[Any]:
    return [
        [contact, kind, to, None if text in traces.texts else text]
        for contact, kind, to, text in entries
        if contact not in traces.contacts and to not in traces.contacts
    ]


def _ids(ids: Sequence[int], traces: Traces) -> list[Any]:
    return [each for each in ids if each not in traces.contacts]


def _roots(entries: Sequence[tuple[int, int, Sequence[int]]], traces: Traces) -> list[Any]:
    left = [[root, old, _ids(contacts, traces)] for root, old, contacts in entries]
    return [entry for entry in left if entry[2]]


_MEMBERS: dict[str, Callable[[Any, Traces], list[Any]]] = {
    "joins": _joins,
    "links": _links,
    "left": _left,
    "moved": _moved,
    "created": _ids,
    "deleted": _ids,
    "roots": _roots,
}


def _is_erased(member: Mapping[str, str], traces: Traces) -> bool:
    return any(Identifier(kind, key) in traces.values for kind, key in member.items())  # type: ignore[arg-type]


class Quotes:
    """Finds erased identifiers in texts that people wrote, in any form: notes, and the keys of requests.

    Parameters
    ----------
    traces : what the erasure looks for.
    phone_key : derives the match key of a phone number.
    """

    def __init__(self, traces: Traces, phone_key: Callable[[str], str]) -> None:
        self._texts = {_folded(text) for text in traces.texts}
        self._lengths = sorted({len(text) for text in self._texts})
        self._phone_key = lru_cache(phone_key)  # a note such as "1 1 1 …" has thousands of equal numbers
        keys = {value.key for value in traces.values if value.kind == "phoneNumber"}
        self._keys = keys.union(*(map(phone_key, _in_digits(key)) for key in keys))
        # Deriving a key keeps the last digits of a number, and costs more than a look at these.
        self._tails = {key[-_TAIL:] for key in self._keys}

    def found_in(self, text: str) -> bool:
        """Tell whether the text quotes one. Letters and digits beside it would make it part of another value."""
        folded = _folded(text)
        edges = [
            place
            for place in range(len(folded) + 1)
            if not (folded[place - 1 : place].isalnum() and folded[place : place + 1].isalnum())
        ]
        ends = set(edges)
        return any(
            start + length in ends and folded[start : start + length] in self._texts
            for start in edges
            for length in self._lengths
        ) or any(map(self._is_quoted, _NUMBERS.findall(normalize("NFKC", text))))

    def _is_quoted(self, numbers: str) -> bool:
        """Tell whether one of the numbers is erased, given groups of digits that marks and spaces separate."""
        groups = list(_GROUP.finditer(numbers))
        for first, group in enumerate(groups):
            start = group.start() - (numbers[group.start() - 1 : group.start()] == "+")
            digits = ""
            for last in groups[first : first + _MOST_GROUPS]:
                digits += last.group()
                if digits[-_TAIL:] in self._tails and self._phone_key(numbers[start : last.end()]) in self._keys:
                    return True
        return False


def _in_digits(key: str) -> list[str]:
    """How a phone number with letters, such as an extension, is quoted without: all its digits, and those before."""
    before = _NUMBERS.match(key)
    forms = ["".join(_GROUP.findall(form)) for form in (key, before.group() if before else "")]
    return [form for form in forms if len(form) >= _FEWEST_DIGITS]


def _folded(text: str) -> str:
    """A text in the form of emails, composed and in lower case."""
    return normalize("NFC", normalize("NFC", text).lower())
