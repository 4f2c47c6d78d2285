"""What guards keep apart, as a steward sees it: constraints in force, and withheld links that are open."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from recon.rules.guards import Mark, opposed
from recon.rules.journal import Event


class Limits(NamedTuple):
    """The most emails and phone numbers that requests give an identity; 0 stands for no limit."""

    emails: int
    phones: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What guards know of an identity.

    Attributes
    ----------
    primary_id : its primary; None if no contact is live.
    emails, phones : how many it has of each.
    marks : the sides of keep-apart constraints that its live contacts carry.
    """

    primary_id: int | None
    emails: int
    phones: int
    marks: frozenset[Mark]


@dataclass(frozen=True, slots=True)
class KeptApart:
    """A constraint in force: the event that made it, and the primaries of the identities on the other sides now."""

    event: Event
    contact_ids: list[int]


def is_open(email: Facts | None, phone: Facts | None, limits: Limits) -> bool:
    """Tell whether a guard still withholds a link: a link is recorded once, so not only the guard that did so first.

    `email` and `phone` are the two identities that have its identifiers; None if nobody has one.
    """
    if email is not None and phone is not None and opposed(email.marks, phone.marks):
        return True
    if email is None and phone is None:
        return False
    with_email = email or Facts(None, 1, 0, frozenset())
    with_phone = phone or Facts(None, 0, 1, frozenset())
    return _exceeds(with_email.emails, with_phone.emails, limits.emails) or _exceeds(
        with_email.phones, with_phone.phones, limits.phones
    )


def constraints(own: Iterable[Mark], others: Iterable[Facts], events: Iterable[Event]) -> list[KeptApart]:
    """The constraints of these events that keep an identity with the marks `own` apart from others, by position."""
    own = list(own)
    sides: dict[int, list[int]] = {}
    for facts in others:
        if facts.primary_id is not None:
            for event_id in opposed(own, facts.marks):
                sides.setdefault(event_id, []).append(facts.primary_id)
    found = sorted((event for event in events if event.id in sides), key=lambda event: event.id)
    return [KeptApart(event, sorted(sides[event.id])) for event in found]


def _exceeds(one: int, other: int, limit: int) -> bool:
    """Tell whether two identities with so many identifiers of a kind would grow beyond the limit as one."""
    return 0 < limit < one + other and min(one, other) > 0
