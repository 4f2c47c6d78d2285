"""The sides of the keep-apart constraint that a split makes.

A constraint has groups, and a group has sides: parts on different sides of one group are kept apart.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TypeAlias

Group: TypeAlias = list[list[int]]  # the numbers of the parts on each side
_PAIR = 2


def groups_of_parts(sides: Sequence[Iterable[int]]) -> list[Group]:
    """One group that keeps each side apart from all others."""
    return [[sorted(side) for side in sides if side]]


def groups_of_links(parts_of_links: Iterable[Iterable[int]]) -> list[Group]:
    """Groups that keep apart the parts that each cut link joined, given by the numbers of its members' parts.

    A link between two parts is in the group of the part that has more such links, which is alone on its side, with all
    its neighbors on the other side. So a part from which a thousand links were cut has one mark for them, not a
    thousand. A link of more parts has a group of its own, with a side for each part.
    """
    joined = list(dict.fromkeys(frozenset(parts) for parts in parts_of_links))
    pairs = [sorted(parts) for parts in joined if len(parts) == _PAIR]
    count = Counter(part for pair in pairs for part in pair)
    neighbors: dict[int, list[int]] = {}
    for first, second in pairs:
        center, neighbor = (first, second) if count[first] >= count[second] else (second, first)
        neighbors.setdefault(center, []).append(neighbor)
    stars = [[[center], others] for center, others in neighbors.items()]
    return [*stars, *([[part] for part in sorted(parts)] for parts in joined if len(parts) > _PAIR)]
