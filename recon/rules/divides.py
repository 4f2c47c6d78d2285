"""What the journal records of divides: the events that take identities, or their contacts' identifiers, apart.

A split and a block divide identities. A guard that repairs rows written by other programs only takes identifiers away:
that is a `withheld` event. All three list what they changed in `detail`, by contact id (see journal.Event).
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from recon.rules.journal import Event, Kind

_DIVIDING = frozenset({Kind.SPLIT, Kind.BLOCKED, Kind.WITHHELD})
UNITING = frozenset({Kind.MERGED, Kind.MENDED, Kind.LINKED})


class Part(NamedTuple):
    """Contacts that a divide put under a new root.

    Attributes
    ----------
    root : the primary of the part right after the divide.
    before : the root of the identity that was divided.
    contacts : all that the part had then, soft-deleted ones and those that the divide created included.
    """

    root: int
    before: int
    contacts: Sequence[int]


class Loss(NamedTuple):
    """An identifier that a contact lost: `to` has it now, and `phone_number` is the text that the contact had."""

    contact_id: int
    kind: str
    to: int | None
    phone_number: str | None


def is_divide(event: Event) -> bool:
    """Tell whether the event changed what contacts have, or which identity they are in."""
    return event.kind in _DIVIDING and bool(event.detail) and any(map(_list_of(event), ("moved", "deleted", "roots")))


def parts_of(event: Event) -> list[Part]:
    """The parts that got a new root. Contacts of the divided identity that none of them lists kept theirs."""
    return [Part(root, before, contacts) for root, before, contacts in _list_of(event)("roots")]


def losses_of(event: Event) -> list[Loss]:
    """The identifiers that contacts lost."""
    return [Loss(*moved) for moved in _list_of(event)("moved")]


def created_by(event: Event) -> list[int]:
    """The contacts that a divide created. They count at its position, not at those of their ids."""
    return list(_list_of(event)("created")) if event.kind in _DIVIDING else []


def deleted_by(event: Event) -> list[int]:
    """The contacts that a divide soft-deleted."""
    return list(_list_of(event)("deleted"))


def is_as_now(events: Iterable[Event], position: int) -> bool:
    """Tell whether no event after a position united or divided identities.

    Then each identity was the present one, without the contacts that came later.
    """
    return all(event.id <= position or not (event.kind in UNITING or is_divide(event)) for event in events)


def once_together(events: Collection[Event], known: Collection[int], position: int) -> set[int]:
    """The contacts that were in one identity with any of the `known` ones until an event divided it.

    They are needed to tell which were one identity at a position, with identities divided or united later. Also the
    divides before the position: what those left connected, links showed through contacts that are elsewhere now. If
    nothing was divided or united later, the result is empty.
    """
    return set() if is_as_now(events, position) else {each for event in events for each in _divided(event, known)}


def _divided(event: Event, known: Collection[int]) -> set[int]:
    """The contacts of those identities that the event divided of which any contact is known."""
    parts = parts_of(event) if event.kind in _DIVIDING else []
    divided = {part.before for part in parts if part.before in known or part.root in known}
    divided |= {part.before for part in parts if any(contact in known for contact in part.contacts)}
    found = {each for part in parts if part.before in divided for each in (*part.contacts, part.root, part.before)}
    if divided and event.kind is Kind.SPLIT:  # of one identity: the contacts that hold what was moved were in it too
        found |= {each for loss in losses_of(event) for each in (loss.contact_id, loss.to) if each is not None}
        found.update(created_by(event))
    return found


def births(events: Iterable[Event]) -> dict[int, int]:
    """The position at which each contact that a divide created counts as created."""
    return {contact_id: event.id for event in events for contact_id in created_by(event)}


def _list_of(event: Event) -> Any:
    """A function from a member of the event's detail to its list; empty if an erasure took it."""
    detail = event.detail or {}
    return lambda member: detail.get(member) or ()
