"""Guards: the rules that withhold a link. Blocked values, keep-apart constraints and limits."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple, TypeAlias

from recon.rules.identifiers import Identifiers

Kind: TypeAlias = Literal["email", "phoneNumber"]
Value: TypeAlias = tuple[Kind, str]  # an identifier by its match key
Values: TypeAlias = frozenset[Value]
Digest: TypeAlias = Callable[[Value], str]  # of a suppressed identifier

# recon's own list: the texts that programs send for "nothing". docs/identities.md shows it.
COMMON = frozenset(
    {"null", "(null)", "<null>", "none", "(none)", "<none>", "nil", "<nil>", "undefined", "nan", "empty", "blank"}
    | {"n/a", "#n/a", "n.a.", "na", "not applicable", "not available", "not provided", "not set", "missing", "no value"}
    | {"unknown", "unspecified", "anonymous", "guest", "no email", "no phone", "object object", "[object object]"}
)
_FEWEST_ZEROS = 6  # digits of a phone number of zeros alone from which on it is blocked
_ORDINARY = frozenset("abcdefghijklmnopqrstuvwxyz123456789")  # what nearly every email and match key begins with


class Cause(StrEnum):
    """Why a link was withheld."""

    BLOCKED = "blocked"  # the value is one that identifies nobody
    KEPT_APART = "kept-apart"  # it would join two identities that are kept apart
    LIMIT = "limit"  # an identity would have more emails or phone numbers than the limit


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


def freed_pairs(marks: Mapping[int, Collection[Mark]], events: Iterable[int]) -> list[tuple[int, int]]:
    """The pairs of identities that only these events keep apart, each with the lower id first.

    `marks` has those of each identity, by its id.
    """
    freed = set(events)
    kept = {each: frozenset(mark for mark in own if mark.event not in freed) for each, own in marks.items()}
    sides: dict[tuple[int, int], dict[int, set[int]]] = {}
    for each, own in marks.items():
        for event, group, side in own:
            if event in freed:
                sides.setdefault((event, group), {}).setdefault(side, set()).add(each)
    pairs = []
    for one in sorted(marks):
        opposite: set[int] = set()
        for event, group, side in marks[one]:
            if event in freed:
                opposite.update(*(roots for its, roots in sides[event, group].items() if its != side))
        after = sorted(other for other in opposite if one < other)
        if kept[one]:
            after = [other for other in after if not opposed(kept[one], kept[other])]
        pairs += [(one, other) for other in after]
    return pairs


def is_common(kind: Kind, key: str) -> bool:
    """Tell whether recon's own list has a value, given by its match key."""
    if kind == "phoneNumber" and key[:1] == "0" and len(key) >= _FEWEST_ZEROS and not key.strip("0"):
        return True
    return key in COMMON or not (key[:1].isalnum() or any(map(str.isalnum, key)))


def common_among(kind: Kind, keys: Collection[str]) -> list[str]:
    """The match keys among these that recon's own list has; every request's go through here."""
    unusual = [key for key in keys if key[:1] not in _ORDINARY]
    return [*COMMON.intersection(keys).difference(unusual), *(key for key in unusual if is_common(kind, key))]


@dataclass(slots=True)
class Guards:
    """The settings of the database, and the blocked values that matter to a batch. Without arguments: no guards.

    Attributes
    ----------
    max_emails, max_phones : the most that requests give an identity; 0 for no limit.
    block_common : whether recon's own list is in use.
    blocked : the values of the batch that identify nobody: recon's own list has them, if that is in use, or a steward
        blocked them, or suppressed them at an erasure.
    region : the default region by which the stored match keys were derived; None for none.
    """

    max_emails: int = 0
    max_phones: int = 0
    block_common: bool = False
    blocked: Values = frozenset()
    region: str | None = None

    def blocks_value(self, kind: Kind, key: str) -> bool:
        """Tell whether a value identifies nobody; of those that are not the batch's, only recon's own list counts."""
        return (self.block_common and is_common(kind, key)) or (kind, key) in self.blocked

    def blocks(self, request: Identifiers) -> bool:
        """Tell whether the request has a value that identifies nobody."""
        email, _, phone_key, _ = request
        return ("email", email) in self.blocked or ("phoneNumber", phone_key) in self.blocked
