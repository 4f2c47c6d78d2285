"""What a page of the change feed says: the identities that its entries touched, and the ids that are gone.

Pure: contacts and events in, identities out. Every change of an identity draws a position, whose contact or event names
contacts of the identity. Wherever these are now, the identities there are those that changed.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from recon.rules.clusters import Cluster, Contact, Identity, consolidate
from recon.rules.journal import BY_AGE, Event, Kind, Record

Entry: TypeAlias = Record | Event
Gone: TypeAlias = tuple[int, int | None]  # an id, and the primary of the identity that it leads to now

_BY_OTHERS = frozenset({Kind.EDITED, Kind.DELETED})


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the change feed.

    Attributes
    ----------
    entries : the contacts and events after the page's start, by position.
    identities : the present state of every identity that they touched, by primary.
    gone : every id that is no longer a primary, with the primary that it leads to; None if the contact was erased, or
        no contact of its identity is live.
    next : the position at which the page ends.
    more : whether more pages follow. Otherwise `identities` and `gone` have all changes that the snapshot shows.
    """

    entries: list[Entry]
    identities: list[Identity]
    gone: list[Gone]
    next: int
    more: bool


def touched(entries: Iterable[Entry]) -> set[int]:
    """The contacts whose identities the entries may have changed."""
    found: set[int] = set()
    for entry in entries:
        if isinstance(entry, Event):
            found |= _named(entry)
            if entry.kind in _BY_OTHERS and entry.other_id is not None:
                found.add(entry.other_id)
        else:
            found.add(entry.id)
    return found


def erasures(entries: Iterable[Entry]) -> list[int]:
    """The events that erased identities."""
    return [entry.id for entry in entries if isinstance(entry, Event) and entry.kind is Kind.ERASED]


def view(
    entries: Collection[Entry], records: Iterable[Record], erased: Iterable[int]
) -> tuple[list[Identity], list[Gone]]:
    """The identities that the entries touched, and the ids that are no longer primaries.

    `records` are all contacts of the identities of the `touched` contacts, soft-deleted ones included. `erased` are the
    contacts that the `erasures` erased.
    """
    members: dict[int, list[Record]] = {}
    for record in records:
        members.setdefault(record.id if record.linked_id is None else record.linked_id, []).append(record)
    identities = {root: identity for root, each in members.items() if (identity := _identity(each)) is not None}
    primaries = {identity.primary_id for identity in identities.values()}
    root_of = {record.id: root for root, each in members.items() for record in each}
    suspects = set(erased).union(*(_named(entry) for entry in entries if isinstance(entry, Event)))
    # While a primary is soft-deleted, the oldest live contact stands in for it. No event says when that ends. So all
    # contacts count of an identity with a soft-deleted contact, and of one that may have had one.
    hiding = touched(entry for entry in entries if _may_hide_stand_ins(entry))
    for each in members.values():
        ids = {record.id for record in each}
        if any(record.deleted_at is not None for record in each) or not hiding.isdisjoint(ids):
            suspects |= ids
    gone = []
    for contact_id in sorted(suspects - primaries):
        identity = identities.get(root_of.get(contact_id, contact_id))
        gone.append((contact_id, None if identity is None else identity.primary_id))
    return sorted(identities.values(), key=lambda identity: identity.primary_id), gone


def _named(event: Event) -> set[int]:
    """The contacts that the event names as primaries: those of the identities before it, and afterwards."""
    detail: Mapping[str, Any] = event.detail or {}
    named = {event.primary_id}
    if event.kind not in {*_BY_OTHERS, Kind.DISMISSED}:  # these name a contact, and an event
        named.add(event.other_id)
    named.update(detail.get("parts") or ())
    if event.kind in {Kind.SPLIT, Kind.BLOCKED, Kind.WITHHELD}:
        named.update(detail.get("deleted") or ())
        for root, before, _ in detail.get("roots") or ():
            named |= {root, before}
    return {each for each in named if each is not None}


def _may_hide_stand_ins(entry: Entry) -> bool:
    """Tell whether the entry may divide a primary from the contact that stood in for it, or restore the primary."""
    if not isinstance(entry, Event):
        return False
    if entry.kind is Kind.EDITED:
        return entry.detail is None or "deletedAt" in entry.detail
    return entry.kind in {Kind.SPLIT, Kind.BLOCKED}


def _identity(records: Iterable[Record]) -> Identity | None:
    """What the contacts of an identity add up to; None if none of them is live."""
    live = sorted((record for record in records if record.deleted_at is None), key=BY_AGE)
    if not live:
        return None
    contacts = [
        Contact(rank, row.id, row.linked_id, row.email, row.phone_number, row.phone_key)
        for rank, row in enumerate(live)
    ]
    cluster = Cluster(None, contacts)
    return consolidate(cluster.primary, cluster.contacts)
