"""What an erasure looks for, and what it leaves of the events in which it finds that.

Pure: contacts and events in, events without identifiers out.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recon.rules.identifiers import normal_email
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, identifiers_of

_WORD = re.compile(r"[^\s,;:<>()\[\]\"'!?]+")
_NUMBER = re.compile(r"\+?\d[\d\s().+/-]*")
# Kinds whose identifiers are those of a request or of rows, and whose detail nothing else needs once the contacts that
# they name are gone.
_PLAIN = {Kind.MERGED, Kind.EDITED, Kind.DELETED, Kind.DISMISSED, Kind.KEPT_APART}
# Kinds that name a value that identifies nobody: that is no person's.
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
    """All identifiers that contacts have or had, and those of events about them, each with its texts."""
    found: dict[Identifier, set[str]] = {}
    for record in records:
        for identifier in identifiers_of(record):
            text = record.phone_number if identifier.kind == "phoneNumber" else record.email
            found.setdefault(identifier, set()).update({identifier.key, text or identifier.key})
    for event in events:
        if event.kind not in _OF_VALUES:
            for identifier, text in _stated(event):
                found.setdefault(identifier, set()).update({identifier.key, text})
    return found


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
    if event.kind not in _OF_VALUES:
        if names:
            changes["note"] = None
        if event.email is not None and Identifier("email", event.email) in traces.values:
            changes["email"] = None
        if event.phone_key is not None and Identifier("phoneNumber", event.phone_key) in traces.values:
            changes |= {"phone_number": None, "phone_key": None}
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


def mentions(note: str, traces: Traces, phone_key: Callable[[str], str]) -> bool:
    """Tell whether a note quotes an erased identifier, in any form of it; `phone_key` derives match keys."""
    lowered = note.lower()
    if any(text.lower() in lowered for text in traces.texts if " " in text):
        return True
    keys = {value.key for value in traces.values if value.kind == "phoneNumber"}
    for word in _WORD.findall(note):
        if word in traces.texts or word.rstrip(".") in traces.texts or _email(word.rstrip(".")) in traces.texts:
            return True
    return any(phone_key(number.strip(" .-(/")) in keys for number in _NUMBER.findall(note))


def _email(word: str) -> str | None:
    try:
        return normal_email(word)
    except ValueError:
        return None
