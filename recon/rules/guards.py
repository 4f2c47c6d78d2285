"""Guards: the rules that withhold a link."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Mark(NamedTuple):
    """A side of a keep-apart constraint, which every contact of that side carries.

    Attributes
    ----------
    event : the id of the event that made the constraint.
    group : which of the event's constraints: one for each link that a split cut, otherwise 0.
    side : which of its sides.
    """

    event: int
    group: int
    side: int


def marks_of(apart: Iterable[Sequence[int]] | None) -> set[Mark]:
    """The marks of a contact, as its column `apart` has them."""
    return set() if apart is None else {Mark(*mark) for mark in apart}


def opposed(some: Iterable[Mark], others: Iterable[Mark]) -> set[int]:
    """The events that keep two identities apart: those of which they carry different sides."""
    sides: dict[tuple[int, int], set[int]] = {}
    for event, group, side in some:
        sides.setdefault((event, group), set()).add(side)
    return {event for event, group, side in others if sides.get((event, group), {side}) != {side}}
