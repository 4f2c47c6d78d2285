"""The past of an identity, derived from its present contacts and its events.

What was one identity at a position is found by replaying everything from the first contact on: each request, merge,
link and repair bonds contacts from its position on, and each split or block takes the contacts out of an identity that
its `detail` lists. What contacts had at a position is found from the newest position backwards: each later change by
another program, and each later divide, is undone by its `detail`, and a contact that a divide created counts from the
divide's position on. What is one identity now although nothing bonds it counts as bonded always, or since the divide
that took it out of another identity: rows that other programs linked, and merges older than the journal. The primary
is found backwards too: each merge gave up a root, and each divide gave new ones to the parts that left. For a position
before a divide, this takes the contacts and events of all identities that the divide left.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from recon.rules.clusters import Contact, Identity, consolidate
from recon.rules.divides import Loss, births, deleted_by, is_as_now, is_divide, losses_of, parts_of
from recon.rules.journal import BY_AGE, Event, Kind, Record
from recon.rules.replay import Change, Replay, is_shared

_ALWAYS = 0  # a position before all others: the ids of a sequence start at 1
_COLUMNS = {"email": "email", "phoneNumber": "phone_number", "phoneKey": "phone_key"}  # by their names in `detail`


class Absence(StrEnum):
    """Why there was no identity."""

    UNKNOWN = "unknown"  # no contact had the id then
    DELETED = "deleted"  # all contacts of the identity were soft-deleted then


def position_at(records: Iterable[Record], events: Iterable[Event], time: datetime) -> int:
    """The last position of these contacts and events that was written by `time`; 0 if none was.

    A contact that a divide created was written with the divide, although it has the date of the contact that it came
    from.
    """
    events = list(events)
    born = births(events)
    written = [record.id for record in records if record.created_at <= time and record.id not in born]
    written += [event.id for event in events if event.at <= time]
    return max(written, default=0)


def as_of(records: Sequence[Record], events: Iterable[Event], contact_id: int, position: int) -> Identity | Absence:
    """The identity of a contact as it was right after a position was written.

    `records` are all contacts of the identity that the contact is part of now, soft-deleted ones included, and of the
    identities that were one with it until a later divide. `events` are all events about any of them. Both are in any
    order.

    As in a present answer, a soft-deleted contact leads to its identity. The primary is the contact that the others
    were linked to then or, if that one was soft-deleted, the oldest live one.
    """
    events = sorted(events, key=lambda event: event.id)
    born = births(events)
    changes = _changes(records, events)
    then = {each.id: each for each in _undone(records, changes, position) if born.get(each.id, each.id) <= position}
    if contact_id not in then:
        return Absence.UNKNOWN
    present = {record.id: record.id if record.linked_id is None else record.linked_id for record in records}
    if is_as_now(events, position):
        group = {each for each, root in present.items() if root == present[contact_id]}
    else:
        created = list(_undone(records, changes, _ALWAYS))
        group = Replay(created, present, events, changes, born).group(contact_id, position)
    live = [record for record in then.values() if record.deleted_at is None and record.id in group]
    if not live:
        return Absence.DELETED
    return _identity(sorted(live, key=BY_AGE), _roots(set(present.values()), events, position))


def _changes(records: Iterable[Record], events: Sequence[Event]) -> list[Change]:
    """What other programs and divides changed, newest first."""
    state = {record.id: record for record in records}
    changes = []
    for event in reversed(events):
        for before in _befores(event, state):
            changes.append(Change(event.id, before, state[before.id]))
            state[before.id] = before
    return changes


def _befores(event: Event, state: Mapping[int, Record]) -> Iterator[Record]:
    """The contacts that an event changed, as they were before; `state` is as after the event, and follows."""
    if event.kind in (Kind.DELETED, Kind.EDITED) and event.other_id is not None and event.other_id in state:
        yield _before(event, state[event.other_id])
    if is_divide(event):
        yield from (replace(state[each], deleted_at=None) for each in deleted_by(event) if each in state)
        for loss in losses_of(event):
            if loss.contact_id in state:
                yield _with(state[loss.contact_id], loss, None if loss.to is None else state.get(loss.to), event)


def _with(after: Record, loss: Loss, holder: Record | None, event: Event) -> Record:
    """The contact with the identifier that it lost: that of the contact that has it now, or else of the event."""
    if loss.kind == "email":
        return replace(after, email=event.email if holder is None else holder.email)
    key, text = (event.phone_key, event.phone_number) if holder is None else (holder.phone_key, holder.phone_number)
    return replace(after, phone_key=key, phone_number=key and (loss.phone_number or text))


def _before(event: Event, after: Record) -> Record:
    """The contact as it was before another program deleted or edited it."""
    detail = event.detail or {}
    old: dict[str, Any] = {column: detail[name] for name, column in _COLUMNS.items() if name in detail}
    if event.kind is Kind.DELETED:
        old["deleted_at"] = None
    elif "deletedAt" in detail:
        old["deleted_at"] = event.at  # the date in the detail may be one that Python has not
    return replace(after, **old)


def _undone(records: Iterable[Record], changes: Iterable[Change], position: int) -> Iterable[Record]:
    """The contacts without the changes after a position."""
    state = {record.id: record for record in records}
    state.update((change.before.id, change.before) for change in changes if change.position > position)
    return state.values()


def _roots(present: set[int], events: Sequence[Event], position: int) -> set[int]:
    """The contacts that others were linked to at a position, one for each identity; `present` are those now."""
    roots = set(present)
    for event in reversed(events):
        if event.id <= position:
            break
        if event.kind in (Kind.MERGED, Kind.MENDED, Kind.LINKED) and event.other_id is not None:
            roots.add(event.other_id)
            if event.kind is Kind.MENDED and not is_shared(event) and event.primary_id is not None:
                roots.discard(event.primary_id)
        elif is_divide(event):
            parts = parts_of(event)
            roots.difference_update(part.root for part in parts)
            roots.update(part.before for part in parts)
    return roots


def _identity(records: Sequence[Record], roots: set[int]) -> Identity:
    """What live contacts, oldest first, add up to."""
    contacts = [
        Contact(rank, record.id, None, record.email, record.phone_number, record.phone_key)
        for rank, record in enumerate(records)
    ]
    return consolidate(next((contact for contact in contacts if contact.id in roots), contacts[0]), contacts)
