"""Splits and blocks: into which parts an identity falls when a steward cuts links, names parts or blocks a value.

Pure: contacts and events in, a `Change` out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Literal

from recon.rules.changes import Change
from recon.rules.dividing import Division, change_of, known
from recon.rules.journal import Event, Record
from recon.rules.links import (
    DisjointSets,
    Identifier,
    Link,
    LinkKind,
    identifiers_of,
    operator_sets,
    path,
)
from recon.rules.sides import groups_of_links, groups_of_parts

_REST = -1  # the number of the part that no list names


class Fault(StrEnum):
    """What is wrong with a list of identifiers."""

    EMPTY = "empty"  # it names nothing
    REPEATED = "repeated"  # it names an identifier that it or an earlier list names too
    UNKNOWN = "unknown"  # it names an identifier that the identity does not have
    WHOLE = "whole"  # it is the only list and names all identifiers: nothing would separate


class NotDivided(Exception):
    """Without the links, the identity is still connected: `path` connects two members of the first of them."""

    def __init__(self, path: list[Link]) -> None:
        super().__init__("other links still connect the identity")
        self.path = path


class UnknownLink(Exception):
    """The identity has no links of these `names`."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"the identity has no link {', '.join(names)}")
        self.names = names


class InvalidParts(Exception):
    """A list of identifiers cannot be a part.

    Attributes
    ----------
    number : which list, from 0; None if there is no list at all.
    identifier : which identifier of the list, for REPEATED and UNKNOWN.
    """

    def __init__(self, number: int | None, fault: Fault, identifier: Identifier | None = None) -> None:
        super().__init__(f"list {number}: {fault}")
        self.number = number
        self.fault = fault
        self.identifier = identifier


def split_links(
    records: Sequence[Record], events: Sequence[Event], names: Collection[str], keep_apart: bool = True
) -> Change:
    """Cut links, by name: what is no longer connected separates.

    `records` are all contacts of the identity, soft-deleted ones included, and `events` are all events about it, both
    in any order. Raises UnknownLink for names that no link of the identity has, and NotDivided if other links still
    connect everything.
    """
    identity = known(records, events)
    cut, kept = _named(identity.links, names)
    part_of = _numbered(identity.live, _connected(kept))
    if max(part_of.values(), default=0) == 0:
        raise NotDivided((path(kept, *cut[0].joins[:2]) or []) if cut else [])
    cut_contacts = {link.id for link in cut if link.kind is LinkKind.CONTACT}
    division = Division(
        part_of,
        cut,
        kept,
        _lost(identity.live, cut_contacts, frozenset()),
        _members(events, [link for link in cut if link.kind is LinkKind.OPERATOR]),
        groups=groups_of_links([[part_of[member] for member in link.joins] for link in cut]) if keep_apart else [],
    )
    return change_of(identity, division, keep_apart)


def split_parts(
    records: Sequence[Record],
    events: Sequence[Event],
    parts: Sequence[Sequence[Identifier]],
    rest: Literal["links", "together"] = "links",
    keep_apart: bool = True,
) -> Change:
    """Move identifiers out: each list of `parts` becomes an identity.

    The rest separates along the links that are left, or stays one identity. `records` and `events` are as for
    `split_links`. Raises InvalidParts for lists that cannot be parts.
    """
    identity = known(records, events)
    list_of = _lists(identity.live, parts)
    cut, kept, leaving = _cut_between(identity.links, list_of)
    sets = _connected(kept, set(leaving))
    made = _pieces(identity.live, list_of, sets, with_rest=rest == "together")
    for pieces in made:
        sets.unite(pieces)
    part_of = _numbered(identity.live, sets)
    out = [{part_of[each] for each in members} for members in parts]
    others = set(part_of.values()).difference(*out)
    division = Division(
        part_of,
        cut,
        kept,
        _lost(identity.live, {link.id for link in cut if link.kind is LinkKind.CONTACT}, list_of),
        leaving,
        made,
        groups_of_parts([*out, others]) if keep_apart else [],
    )
    return change_of(identity, division, keep_apart)


def block(records: Sequence[Record], events: Sequence[Event], value: Identifier) -> Change:
    """Take a value away from an identity: the links of the value are cut, and what they held together separates.

    What separates is not kept apart. `records` and `events` are as for `split_links`.
    """
    identity = known(records, events)
    leaving = _memberships(identity.events, value)
    cut = [link for link in identity.links if value in link.joins and not _goes_on(link, 1)]
    ended = set(map(id, cut))
    kept = [link for link in identity.links if id(link) not in ended]
    holders = [(record, identifiers_of(record)) for record in identity.live]
    holders = [(record, identifiers) for record, identifiers in holders if value in identifiers]
    deleted = [record for record, identifiers in holders if len(identifiers) == 1]
    part_of = _numbered(identity.live, _connected(kept, set(leaving)))
    part_of.pop(value, None)
    lost = [(record, value) for record, identifiers in holders if len(identifiers) > 1]
    return change_of(identity, Division(part_of, cut, kept, lost, leaving, deleted=deleted), apart=False)


def _named(links: Iterable[Link], names: Collection[str]) -> tuple[list[Link], list[Link]]:
    """The links of these names, in the order of the names, and the others. Several operator links can have one name."""
    found: dict[str, list[Link]] = {name: [] for name in names}
    numbers = {name.rpartition(":")[2] for name in names}  # cheaper than to name all links
    others = []
    for link in links:
        if str(link.id) in numbers and link.name in found:
            found[link.name].append(link)
        else:
            others.append(link)
    if unknown := [name for name, called in found.items() if not called]:
        raise UnknownLink(unknown)
    return [link for called in found.values() for link in called], others


def _members(events: Iterable[Event], links: Sequence[Link]) -> list[tuple[int, Identifier]]:
    """All members of operator links, those included that the identity does not have now; each with the event's id."""
    joined = {(link.id, link.joins[0]) for link in links}
    return [
        (event.id, member)
        for event in (events if joined else ())
        for members in operator_sets(event)
        if any((event.id, member) in joined for member in members)
        for member in members
    ]


def _memberships(events: Sequence[Event], value: Identifier) -> list[tuple[int, Identifier]]:
    """The operator links that have the value as a member, each as the event's id and the value."""
    return [
        (event.id, value)
        for event in events
        if event.undone_by is None and any(value in members for members in operator_sets(event))
    ]


def _goes_on(link: Link, out: int) -> bool:
    """Tell whether an operator link still joins members when so many have left."""
    return link.kind is LinkKind.OPERATOR and len(link.joins) - out > 1


def _lists(live: Iterable[Record], parts: Sequence[Sequence[Identifier]]) -> dict[Identifier, int]:
    """The number of the list that each identifier is in; those of the rest are in none."""
    if not parts:
        raise InvalidParts(None, Fault.EMPTY)
    known = {identifier for record in live for identifier in identifiers_of(record)}
    list_of: dict[Identifier, int] = {}
    for number, members in enumerate(parts):
        if not members:
            raise InvalidParts(number, Fault.EMPTY)
        for identifier in members:
            if identifier not in known:
                raise InvalidParts(number, Fault.UNKNOWN, identifier)
            if identifier in list_of:
                raise InvalidParts(number, Fault.REPEATED, identifier)
            list_of[identifier] = number
    if len(parts) == 1 and len(list_of) == len(known):
        raise InvalidParts(0, Fault.WHOLE)
    return list_of


def _cut_between(
    links: Iterable[Link], list_of: Mapping[Identifier, int]
) -> tuple[list[Link], list[Link], list[tuple[int, Identifier]]]:
    """The links that end since they join lists, or a list and the rest; the others; and who leaves operator links.

    A member that is moved out leaves, unless all are moved to one list. If the rest keeps two members, the link goes
    on without those that left.
    """
    cut: list[Link] = []
    kept: list[Link] = []
    leaving: list[tuple[int, Identifier]] = []
    for link in links:
        if len({list_of.get(member, _REST) for member in link.joins}) == 1:
            kept.append(link)
            continue
        out = [member for member in link.joins if member in list_of]
        if link.kind is LinkKind.OPERATOR:
            leaving += [(link.id, member) for member in out]
        (kept if _goes_on(link, len(out)) else cut).append(link)
    return cut, kept, leaving


def _connected(links: Iterable[Link], leaving: Collection[tuple[int, Identifier]] = ()) -> DisjointSets[Identifier]:
    """What links connect without the members that leave."""
    sets = DisjointSets[Identifier]()
    for link in links:
        joins = link.joins
        if leaving and link.kind is LinkKind.OPERATOR:
            joins = tuple(member for member in joins if (link.id, member) not in leaving)
        sets.unite(joins)  # of a link that goes on, at least two members stay
    return sets


def _pieces(
    live: Iterable[Record], list_of: Mapping[Identifier, int], sets: DisjointSets[Identifier], *, with_rest: bool
) -> list[list[Identifier]]:
    """For each list (and the rest) that would fall into pieces, the first identifier of each piece."""
    pieces: dict[int, dict[Identifier, Identifier]] = {}
    for record in live:
        for identifier in identifiers_of(record):
            number = list_of.get(identifier, _REST)
            if with_rest or number != _REST:
                pieces.setdefault(number, {}).setdefault(sets.find(identifier), identifier)
    return [list(found.values()) for found in pieces.values() if len(found) > 1]


def _numbered(live: Iterable[Record], sets: DisjointSets[Identifier]) -> dict[Identifier, int]:
    """The number of the set of each identifier, from 0."""
    numbers: dict[Identifier, int] = {}
    return {
        identifier: numbers.setdefault(sets.find(identifier), len(numbers))
        for record in live
        for identifier in identifiers_of(record)
    }


def _lost(
    live: Sequence[Record], cut_contacts: Collection[int], out: Collection[Identifier]
) -> list[tuple[Record, Identifier]]:
    """What contacts lose whose own links are cut. `out` are the identifiers that lists name.

    A contact keeps the identifier that it was the first to bring, or else that which stays in the rest, or else its
    email.
    """
    if not cut_contacts:
        return []
    first: dict[Identifier, int] = {}
    for record in live:
        for identifier in identifiers_of(record):
            first.setdefault(identifier, record.id)
    lost = []
    for record in live:
        if record.id in cut_contacts:
            email, phone = identifiers_of(record)
            brought = first[email] == record.id, first[phone] == record.id
            stays = email not in out, phone not in out
            keeps_email, keeps_phone = brought if brought[0] != brought[1] else stays
            lost.append((record, email if keeps_phone and not keeps_email else phone))
    return lost
