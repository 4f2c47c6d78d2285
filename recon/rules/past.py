"""The past of an identity, derived from its present contacts and its events.

Identities only grow: what is one identity at a position is one identity at every later position. So two contacts are
one identity from the first position at which something bonds them: a request that brought a contact, a merge, or a
repair of rows written by other programs. What is one identity now although nothing bonds it counts as bonded always:
rows that other programs linked, and merges older than the journal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from recon.rules.clusters import Contact, Identity, consolidate
from recon.rules.journal import BY_AGE, Event, Kind, Record
from recon.rules.links import DisjointSets, Identifier, identifiers_of

_ALWAYS = 0  # a position before all others: the ids of a sequence start at 1
_COLUMNS = {"email": "email", "phoneNumber": "phone_number", "phoneKey": "phone_key"}  # by their names in `detail`


class Absence(StrEnum):
    """Why there was no identity."""

    UNKNOWN = "unknown"  # no contact had the id then
    DELETED = "deleted"  # all contacts of the identity were soft-deleted then


class _Entry(NamedTuple):
    """An event after which two contacts are in one identity."""

    event: Event
    primary_id: int
    other_id: int


class _Change(NamedTuple):
    """What another program made of a contact."""

    position: int
    before: Record
    after: Record


class _Bond(NamedTuple):
    """Two contacts, by their ids, that are in one identity from a position on."""

    since: int
    one: int
    other: int


def position_at(records: Iterable[Record], events: Iterable[Event], time: datetime) -> int:
    """The last position of these contacts and events that was written by `time`; 0 if none was."""
    written = [record.id for record in records if record.created_at <= time]
    written += [event.id for event in events if event.at <= time]
    return max(written, default=0)


def as_of(records: Sequence[Record], events: Iterable[Event], contact_id: int, position: int) -> Identity | Absence:
    """The identity of a contact as it was right after a position was written.

    `records` are all contacts of the identity that the contact is part of now, soft-deleted ones included. `events` are
    all events that name one of them as `primary_id` or `other_id`. Both are in any order.

    As in a present answer, a soft-deleted contact leads to its identity. The primary is the contact that the others
    were linked to then or, if that one was soft-deleted, the oldest live one.
    """
    entries = _entries(events)
    changes = _changes(records, entries)
    then = {record.id: record for record in _undone(records, changes, position) if record.id <= position}
    if contact_id not in then:
        return Absence.UNKNOWN
    sets = DisjointSets[int]()
    for bond in _bonds(_undone(records, changes, _ALWAYS), entries, changes):
        if bond.since <= position:
            sets.unite((bond.one, bond.other))
    own = sets.find(contact_id)
    live = [record for record in then.values() if record.deleted_at is None and sets.find(record.id) == own]
    if not live:
        return Absence.DELETED
    return _identity(sorted(live, key=BY_AGE), _roots(records[0], entries, position))


def _entries(events: Iterable[Event]) -> list[_Entry]:
    """The events that say what became one identity, or what was one, oldest first."""
    return [
        _Entry(event, event.primary_id, event.other_id)
        for event in sorted(events, key=lambda event: event.id)
        if event.kind in (Kind.MERGED, Kind.MENDED, Kind.DELETED, Kind.EDITED)
        and event.primary_id is not None
        and event.other_id is not None
    ]


def _changes(records: Iterable[Record], entries: Sequence[_Entry]) -> list[_Change]:
    """What other programs changed, newest first."""
    state = {record.id: record for record in records}
    changes = []
    for event, _, contact_id in reversed(entries):
        if event.kind in (Kind.DELETED, Kind.EDITED) and contact_id in state:
            after = state[contact_id]
            state[contact_id] = _before(event, after)
            changes.append(_Change(event.id, state[contact_id], after))
    return changes


def _before(event: Event, after: Record) -> Record:
    """The contact as it was before another program deleted or edited it."""
    detail = event.detail or {}
    old: dict[str, Any] = {column: detail[name] for name, column in _COLUMNS.items() if name in detail}
    if event.kind is Kind.DELETED:
        old["deleted_at"] = None
    elif "deletedAt" in detail:
        old["deleted_at"] = datetime.fromisoformat(detail["deletedAt"])
    return replace(after, **old)


def _undone(records: Iterable[Record], changes: Iterable[_Change], position: int) -> Iterable[Record]:
    """The contacts without the changes after a position."""
    state = {record.id: record for record in records}
    state.update((change.before.id, change.before) for change in changes if change.position > position)
    return state.values()


def _roots(record: Record, entries: Sequence[_Entry], position: int) -> set[int]:
    """The contacts that others were linked to at a position, one for each identity; `record` is any of the contacts."""
    roots = {record.id if record.linked_id is None else record.linked_id}
    for event, primary_id, other_id in reversed(entries):
        if event.id > position and event.kind in (Kind.MERGED, Kind.MENDED):
            roots.add(other_id)
            if event.kind is Kind.MENDED and not _is_shared(event):
                roots.discard(primary_id)
    return roots


def _identity(records: Sequence[Record], roots: set[int]) -> Identity:
    """What live contacts, oldest first, add up to."""
    contacts = [
        Contact(rank, record.id, None, record.email, record.phone_number, record.phone_key)
        for rank, record in enumerate(records)
    ]
    return consolidate(next((contact for contact in contacts if contact.id in roots), contacts[0]), contacts)


def _bonds(records: Iterable[Record], entries: Sequence[_Entry], changes: Iterable[_Change]) -> list[_Bond]:
    """What bonds contacts, found by replaying all that happened; `records` are as they were created."""
    replay = _Replay(_fates(entries), _primaries(entries))
    change_at = {change.position: change for change in changes}
    steps: list[tuple[int, Record | _Entry]] = [(record.id, record) for record in records]
    steps += [(entry.event.id, entry) for entry in entries]
    for position, step in sorted(steps, key=lambda step: step[0]):
        if isinstance(step, Record):
            replay.create(step)
        else:
            replay.enter(step)
            if position in change_at:
                replay.change(change_at[position])
    replay.count_to_oldest(records)
    return replay.bonds


def _fates(entries: Sequence[_Entry]) -> dict[int, frozenset[int]]:
    """The repairs in which each contact was absorbed, because its identity shared an identifier with an older one.

    After an entry, its two contacts are in one identity, and so are absorbed together. Thus this is known also for
    contacts that were soft-deleted then, which the event of the repair need not list.
    """
    nothing: frozenset[int] = frozenset()
    fates: dict[int, frozenset[int]] = {}
    for event, primary_id, other_id in reversed(entries):
        if primary_id in fates:
            fates[other_id] = fates[primary_id]
        for contact_id in _absorbed(event, other_id):
            fates[contact_id] = fates.get(contact_id, nothing) | {event.id}
    return fates


def _primaries(entries: Iterable[_Entry]) -> set[int]:
    """The contacts that events name as primaries, and that became it by no repair: they were created as such."""
    named: set[int] = set()
    promoted: set[int] = set()
    for event, primary_id, other_id in entries:
        named.add(primary_id)
        if event.kind in (Kind.MERGED, Kind.MENDED):
            named.add(other_id)
        if event.kind is Kind.MENDED and not _is_shared(event):
            promoted.add(primary_id)
    return named - promoted


def _absorbed(event: Event, other_id: int) -> set[int]:
    """The contacts of the identity that was absorbed because it shared an identifier; empty for other events."""
    return {other_id, *(event.detail or {}).get("contacts", ())} if _is_shared(event) else set()


def _is_shared(event: Event) -> bool:
    """Tell whether the event is the repair of two identities that shared an identifier."""
    return event.kind is Kind.MENDED and (event.email is not None or event.phone_key is not None)


class _Replay:
    """All that happened to contacts, step by step from the first; `bonds` is what came of it."""

    def __init__(self, fates: dict[int, frozenset[int]], primaries: set[int]) -> None:
        self.bonds: list[_Bond] = []
        self._sets = DisjointSets[int]()
        self._fates = fates
        self._primaries = primaries  # contacts that were created as such
        self._holders: dict[Identifier, dict[int, None]] = {}  # the live contacts with each identifier

    def create(self, record: Record) -> None:
        """A contact joins the identity that holds one of its identifiers, unless it was created as a primary."""
        for identifier in () if record.id in self._primaries else identifiers_of(record):
            holder = self._holder(identifier)
            if holder is not None and not self._is_parted(record.id, holder):
                self._bond(record.id, record.id, holder)
        self._hold(record)

    def enter(self, entry: _Entry) -> None:
        """An event unites the identities of its two contacts, or says that they are in one."""
        event, primary_id, other_id = entry
        if event.kind is Kind.MERGED:
            self._take_sides(event, primary_id, other_id)
        elif _is_shared(event):
            for contact_id in _absorbed(event, other_id):
                self._count(contact_id, other_id, unless=primary_id)
        else:
            self._count(other_id, primary_id)
        self._bond(event.id, primary_id, other_id)

    def change(self, change: _Change) -> None:
        """A contact gains and loses identifiers, and stays in its identity."""
        for identifier in identifiers_of(change.before):
            self._holders.get(identifier, {}).pop(change.before.id, None)
        self._hold(change.after)

    def count_to_oldest(self, records: Iterable[Record]) -> None:
        """What nothing bonds to the oldest contact counts to its identity."""
        oldest, *others = sorted(records, key=BY_AGE)
        for record in others:
            self._count(record.id, oldest.id)

    def _take_sides(self, event: Event, primary_id: int, other_id: int) -> None:
        """A merge tells of unexplained contacts too: the identifiers of its request were in the two identities."""
        first = self._holder(Identifier("email", event.email or ""))
        second = self._holder(Identifier("phoneNumber", event.phone_key or ""))
        if first is None or second is None:  # edited or erased
            return
        if self._sets.together(first, other_id) or self._sets.together(second, primary_id):
            first, second = second, first
        self._count(first, primary_id, unless=other_id)
        self._count(second, other_id, unless=primary_id)

    def _holder(self, identifier: Identifier) -> int | None:
        """A live contact with the identifier. All such are in one identity until another program adds one."""
        return next(iter(self._holders.get(identifier, ())), None)

    def _hold(self, record: Record) -> None:
        if record.deleted_at is None:
            for identifier in identifiers_of(record):
                self._holders.setdefault(identifier, {})[record.id] = None

    def _is_parted(self, contact_id: int, holder: int) -> bool:
        """Tell whether a later repair found a new contact and the holder of its identifier in two identities."""
        nothing: frozenset[int] = frozenset()
        differing = self._fates.get(contact_id, nothing) ^ self._fates.get(holder, nothing)
        return any(position > contact_id for position in differing)

    def _count(self, contact_id: int, root: int, unless: int | None = None) -> None:
        """Count a contact that nothing bonds to `root` (or to `unless`) to the identity of `root`, always."""
        # A contact that is bonded to `unless` contradicts the journal: no consistent history has one.
        if unless is None or not self._sets.together(contact_id, unless):  # pragma: no branch
            self._bond(_ALWAYS, contact_id, root)

    def _bond(self, since: int, one: int, other: int) -> None:
        if not self._sets.together(one, other):
            self._sets.unite((one, other))
            self.bonds.append(_Bond(since, one, other))
