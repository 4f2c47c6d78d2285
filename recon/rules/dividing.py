"""How the contacts of an identity are divided, once it is known into which parts its identifiers fall.

A contact whose own link is cut keeps one of its two identifiers. The other one gets a contact of its own, unless
another contact of its part has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from recon.rules.changes import Change, Loss, New, Part
from recon.rules.journal import BY_AGE, Event, Kind, Record
from recon.rules.links import Identifier, Link, LinkKind, identifiers_of, left_members, links_of, operator_sets
from recon.rules.sides import Group

_BY_DATE = attrgetter("created_at")


@dataclass(slots=True)
class Identity:
    """An identity as it is: its contacts, those that are live oldest first, the events about them, and its links."""

    live: list[Record]
    gone: list[Record]
    events: Sequence[Event]
    links: list[Link]
    root: int


@dataclass(slots=True)
class Division:
    """What separates.

    Attributes
    ----------
    part_of : the number of the part that each identifier is in afterwards; a blocked value is in none.
    cut : the links that end.
    kept : the links that go on. Members may have left.
    lost : what contacts lose, oldest contact first.
    leaving : the members that leave operator links, each with the id of the link's event.
    made : the operator links that hold parts together.
    groups : the parts that are kept apart.
    deleted : the contacts that become soft-deleted.
    """

    part_of: Mapping[Identifier, int]
    cut: list[Link]
    kept: list[Link]
    lost: list[tuple[Record, Identifier]]
    leaving: list[tuple[int, Identifier]]
    made: list[list[Identifier]] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    deleted: list[Record] = field(default_factory=list)


def known(records: Iterable[Record], events: Sequence[Event]) -> Identity:
    """The identity with these contacts, soft-deleted ones included, and with these events about it."""
    ordered = sorted(records, key=BY_AGE)
    live = [record for record in ordered if record.deleted_at is None]
    gone = [record for record in ordered if record.deleted_at is not None]
    root = ordered[0].id if ordered[0].linked_id is None else ordered[0].linked_id
    return Identity(live, gone, events, links_of(live, events), root)


def change_of(identity: Identity, division: Division, apart: bool) -> Change:
    """What a division makes of contacts, roots, marks and events."""
    after = _after(identity.live, division)
    losses, created = _rehomed(after, division)
    everyone: list[Record | New] = [*after, *created]
    everyone.sort(key=_BY_DATE)  # stable: of one date, the new contacts come last, whose ids will be the highest
    part_of = division.part_of
    members: dict[int, list[Record | New]] = {}
    for each in everyone:
        members.setdefault(part_of[_identifier(each)], []).append(each)
    parts = {number: Part(_key(held[0]), held) for number, held in members.items()}
    contacts = {number: [_key(each) for each in held] for number, held in members.items()}
    if parts:  # soft-deleted contacts stay with the old root, or else with the oldest contact
        heir = next((number for number, part in parts.items() if part.root == identity.root), next(iter(parts)))
        contacts[heir] += (record.id for record in (*identity.gone, *division.deleted))
    undone, left = _ended(identity.events, division)
    return Change(
        parts=list(parts.values()),
        losses=losses,
        created=created,
        deleted=[record.id for record in division.deleted],
        roots=[
            (part.root, identity.root, [each for each in contacts[number] if isinstance(each, int)])
            for number, part in parts.items()
            if part.root != identity.root
        ],
        marks=[
            (contact, group, side)
            for group, sides in enumerate(division.groups)
            for side, numbers in enumerate(sides)
            for number in numbers
            for contact in contacts[number]
        ],
        cut=list(dict.fromkeys(link.name for link in division.cut)),
        undone=undone,
        left=left,
        links=division.made,
        about=_about(
            identity.events, division, {number: (parts[number].root, set(contacts[number])) for number in parts}
        ),
        apart=apart,
    )


def _after(live: Iterable[Record], division: Division) -> list[Record]:
    """The live contacts without what they lose."""
    lost = {record.id: identifier for record, identifier in division.lost}
    deleted = {record.id for record in division.deleted}
    return [
        _without(record, lost[record.id]) if record.id in lost else record
        for record in live
        if record.id not in deleted
    ]


def _without(record: Record, identifier: Identifier) -> Record:
    lost_email = identifier.kind == "email"
    return Record(  # `replace` takes three times as long
        record.id,
        record.linked_id,
        None if lost_email else record.email,
        record.phone_number if lost_email else None,
        record.phone_key if lost_email else None,
        record.created_at,
        record.deleted_at,
        record.source,
        record.apart,
    )


def _rehomed(after: Sequence[Record], division: Division) -> tuple[list[Loss], list[New]]:
    """What contacts lose, and the new contacts for what no other contact has."""
    wanted = {identifier for _, identifier in division.lost if identifier in division.part_of}
    holders: dict[Identifier, Record | New] = {}
    if wanted:
        for record in after:
            for identifier in identifiers_of(record):
                if identifier in wanted:
                    holders.setdefault(identifier, record)
    losses: list[Loss] = []
    created: list[New] = []
    for record, identifier in division.lost:
        holder = holders.get(identifier)
        if holder is None and identifier in wanted:
            holder = holders[identifier] = _new(record, identifier)
            created.append(holder)
        text = None if identifier.kind == "email" else record.phone_number
        is_same = holder is not None and holder.phone_number == text
        to = None if holder is None else _key(holder)
        losses.append(Loss(record.id, identifier.kind, to, None if is_same else text))
    return losses, created


def _new(origin: Record, identifier: Identifier) -> New:
    if identifier.kind == "email":
        return New(origin.id, origin.email, None, None, origin.created_at)
    return New(origin.id, None, origin.phone_number, origin.phone_key, origin.created_at)


def _ended(events: Iterable[Event], division: Division) -> tuple[list[int], list[tuple[int, Identifier]]]:
    """The events whose links end, and the members that leave operator links of which something is left."""
    undone = [link.id for link in division.cut if link.kind is LinkKind.MERGE]
    if not division.leaving:
        return undone, []
    touched = {event_id for event_id, _ in division.leaving}
    left_before = left_members(events)
    left = left_before.union(division.leaving)
    ended = {
        event.id
        for event in events
        if event.id in touched
        and all(sum((event.id, each) not in left for each in members) <= 1 for members in operator_sets(event))
    }
    return [*undone, *sorted(ended)], [
        each for each in division.leaving if each[0] not in ended and each not in left_before
    ]


def _about(
    events: Iterable[Event], division: Division, parts: Mapping[int, tuple[int | New, set[int | New]]]
) -> list[tuple[int | New, int]]:
    """The events that hold a part together, or say who left their links, and that name no contact of the part.

    `parts` has the root and all contacts of each part.
    """
    if len(parts) <= 1:
        return []
    leaving = set(division.leaving)
    part_of = division.part_of
    merged: dict[int, int] = {}  # the part that a merge holds together, by the merge's event
    joined: dict[int, set[int]] = {}  # the parts in which an event has an operator link
    for link in division.kept:
        if link.kind is LinkKind.MERGE:
            merged[link.id] = part_of[link.joins[0]]
        elif link.kind is LinkKind.OPERATOR:
            member = next(each for each in link.joins if (link.id, each) not in leaving)
            joined.setdefault(link.id, set()).add(part_of[member])
    found = []
    for event in events:
        if (number := merged.get(event.id)) is not None:
            root, contacts = parts[number]
            if event.primary_id not in contacts and event.other_id not in contacts:
                found.append((root, event.id))
        elif joined:
            numbers = joined.get(event.id, set())
            numbers = numbers.union(*(joined.get(event_id, ()) for event_id, _ in left_members([event])))
            named = _named_contacts(event)
            found += [(parts[number][0], event.id) for number in sorted(numbers) if named.isdisjoint(parts[number][1])]
    return found


def _named_contacts(event: Event) -> set[int]:
    """The contacts by which an event is found, as far as it tells."""
    detail = event.detail or {}
    parts = detail.get("parts", ()) if event.kind in (Kind.SPLIT, Kind.BLOCKED) else ()
    return {each for each in (event.primary_id, event.other_id, *parts) if each is not None}


def _identifier(contact: Record | New) -> Identifier:
    """The first identifier of a contact."""
    if contact.email is not None:
        return Identifier("email", contact.email)
    return Identifier("phoneNumber", str(contact.phone_key))


def _key(contact: Record | New) -> int | New:
    """What stands for a contact in a change: the id of a stored one."""
    return contact if isinstance(contact, New) else contact.id
