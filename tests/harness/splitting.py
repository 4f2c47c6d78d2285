"""A table that stewards correct, and an independent model of what their splits, blocks and links do to it.

`Table` applies what `recon.rules.splits` plans, in memory. `Model` is written from the design, as simply as possible:
it has its own links, which it keeps by itself, and its own constraints, as pairs of sets of contacts. The two are
compared after each step. Both are quadratic, and meant for small histories.
"""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from recon.rules.changes import Change, New
from recon.rules.guards import marks_of, opposed
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier
from tests.harness.chronicle import Chronicle, Said, entry, time_of

Node = tuple[str, str]  # an identifier: its kind and its key
Held = int | tuple[str, int]  # a contact: its id, or ("new", the id of the contact that it came from)


def nodes_of(row: Record | New) -> list[Node]:
    """The identifiers of a contact, its email first."""
    pairs = (("email", row.email), ("phoneNumber", row.phone_key))
    return [(kind, key) for kind, key in pairs if key is not None]


def root_of(row: Record) -> int:
    """The id of the contact that stands for a contact's identity."""
    return row.id if row.linked_id is None else row.linked_id


class Table(Chronicle):
    """A table with guards: requests and repairs that respect what is kept apart and what is blocked.

    Attributes
    ----------
    found_by : (contact, event) for the events that contacts lead to besides those that name them.
    blocked : the values that identify nobody.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found_by: set[tuple[int, int]] = set()
        self.blocked: set[Node] = set()

    def _answer(self) -> None:
        """Remember no answers: only the present counts here."""

    def roots(self) -> list[int]:
        """The live identities."""
        return sorted({root_of(row) for row in self._live()})

    def of(self, root: int) -> list[Record]:
        """All contacts of an identity, oldest first."""
        return [row for row in self._by_age() if root_of(row) == root]

    def live_of(self, root: int) -> list[Record]:
        """The live contacts of an identity, oldest first."""
        return [row for row in self.of(root) if row.deleted_at is None]

    def stored(self, contact_id: int) -> tuple[list[Record], list[Event]]:
        """All contacts of the identity of a contact, and all events about them."""
        records = self.of(root_of(self.rows[contact_id]))
        ids = {record.id for record in records}
        about = {event_id for contact, event_id in self.found_by if contact in ids}
        events = [event for event in self.events if event.id in about or {event.primary_id, event.other_id} & ids]
        return records, events

    def apart(self, one: int, other: int) -> set[int]:
        """The events that keep two identities apart."""
        marks = [{mark for row in self.live_of(root) for mark in marks_of(row.apart)} for root in (one, other)]
        return opposed(*marks)

    def request(self, said: Said) -> int | None:
        """A request that respects the guards. Returns the contact by which a new contact was matched, if any."""
        email, phone = said
        email = None if ("email", email or "") in self.blocked else email
        phone = None if ("phoneNumber", phone or "") in self.blocked else phone
        self.mend_all()
        holders = [self._holder(("email", email or "")), self._holder(("phoneNumber", phone or ""))]
        if holders[0] and holders[1] and self.apart(root_of(holders[0]), root_of(holders[1])):
            phone = None
        if email is None and phone is None:
            return None
        matched = holders[0] or holders[1]
        before = set(self.rows)
        self.identify((email, phone))
        created = set(self.rows) - before
        if matched is None or not created:
            return None
        self.rows[created.pop()].apart = matched.apart
        return matched.id

    def mend_all(self) -> None:
        """Repair what rows of other programs share with several identities, and identities without a primary."""
        while any(
            self._mend_shared(one, other)
            for one, other in combinations(self._live(), 2)
            if root_of(one) != root_of(other) and set(nodes_of(one)) & set(nodes_of(other))
        ):
            pass
        for root in self.roots():
            self._settled(root)

    def _mend_shared(self, one: Record, other: Record) -> bool:
        shared = next(node for node in nodes_of(one) if node in nodes_of(other))
        if self.apart(root_of(one), root_of(other)):
            self._take(other, shared)  # the younger contact
            self._record(Kind.WITHHELD, root_of(other), root_of(one), _said(shared))
        else:
            winner, loser = sorted((root_of(one), root_of(other)), key=self._rank)
            detail = {"contacts": [row.id for row in self.live_of(loser)]}
            self._absorb(Kind.MENDED, self._settled(winner), loser, _said(shared), detail)
        return True

    def _take(self, row: Record, node: Node) -> None:
        """A contact loses an identifier. If it has nothing else, it is soft-deleted and keeps it."""
        if len(nodes_of(row)) == 1:
            self.rows[row.id] = replace(row, deleted_at=time_of(self.last))
        elif node[0] == "email":
            self.rows[row.id] = replace(row, email=None)
        else:
            self.rows[row.id] = replace(row, phone_number=None, phone_key=None)

    def link(self, one: int, other: int) -> tuple[set[int], list[Identifier]]:
        """A steward makes two identities one. Returns the constraints that this released, and the link's members."""
        released = self.apart(one, other)
        for row in list(self.rows.values()):
            kept = [list(mark) for mark in row.apart or () if mark[0] not in released]
            self.rows[row.id] = replace(row, apart=kept or None)
        winner, loser = sorted((one, other), key=self._rank)
        joins = [Identifier(*nodes_of(self.live_of(root)[0])[0]) for root in (one, other)]  # type: ignore[arg-type]
        detail = {"joins": [member.stated() for member in joins], "released": sorted(released)}
        self._absorb(Kind.LINKED, self._settled(winner), loser, detail=detail)
        return released, joins

    def correct(self, kind: Kind, root: int, change: Change, value: Node | None = None) -> int:
        """Write a planned change and its event, and return the event's id."""
        for new in change.created:
            self.last += 1
            new.id = self.last
        self.last += 1
        detail = json.loads(json.dumps(change.detail()))
        self.events.append(entry(self.last, kind, root, root, _said(value), detail=detail))
        self._write(detail, change)
        for contact, group, side in change.marks:
            row = self.rows[_id(contact)]
            row.apart = [*(row.apart or ()), [self.last, group, side]]
        for number, event in enumerate(self.events):
            if event.id in change.undone:
                self.events[number] = replace(event, undone_by=self.last)
        self.found_by |= {(contact, self.last) for contact in (root, *detail["parts"])}
        self.found_by |= {(_id(contact), event_id) for contact, event_id in change.about}
        for part in change.parts:
            self._check_part(_id(part.root), part.records)
        return self.last

    def _write(self, detail: dict[str, Any], change: Change) -> None:
        """What the detail says of contacts, and the new contacts."""
        for contact_id, kind, _, _ in detail["moved"]:
            node = next(node for node in nodes_of(self.rows[contact_id]) if node[0] == kind)
            self._take(self.rows[contact_id], node)
        for contact_id in detail["deleted"]:
            self.rows[contact_id] = replace(self.rows[contact_id], deleted_at=time_of(self.last))
        for part in change.parts:
            for new in part.records:
                if isinstance(new, New):
                    origin = self.rows[new.origin]
                    identifiers = new.email, new.phone_number, new.phone_key
                    linked_id = None if part.root is new else _id(part.root)
                    self.rows[_id(new)] = Record(
                        _id(new), linked_id, *identifiers, new.created_at, None, origin.source, origin.apart
                    )
        for root, _, contacts in detail["roots"]:
            for contact_id in contacts:
                linked_id = None if contact_id == root else root
                self.rows[contact_id] = replace(self.rows[contact_id], linked_id=linked_id)

    def _check_part(self, root: int, records: Sequence[Record | New]) -> None:
        rows = self.live_of(root)
        assert [row.id for row in rows] == [_id(record) for record in records]
        assert [nodes_of(row) for row in rows] == [nodes_of(record) for record in records]
        assert rows[0].id == root, "the primary is the oldest"

    def _holder(self, node: Node) -> Record | None:
        return next((row for row in self._live() if node in nodes_of(row)), None)


def _id(contact: int | Record | New) -> int:
    contact_id = contact if isinstance(contact, int) else contact.id
    assert contact_id is not None
    return contact_id


def _said(node: Node | None) -> Said:
    if node is None:
        return None, None
    return (node[1], None) if node[0] == "email" else (None, node[1])


@dataclass
class Expected:
    """What a division must come to.

    Attributes
    ----------
    parts : the identifiers of each identity afterwards, and its primary.
    holds : the identifiers of each live contact afterwards.
    gone : the contacts that are soft-deleted by it.
    heir : the primary to which the soft-deleted contacts belong; None if no contact is live.
    apart : the pairs of parts that it keeps apart.
    """

    parts: dict[frozenset[Node], Held]
    holds: dict[Held, set[Node]]
    gone: set[int] = field(default_factory=set)
    heir: Held | None = None
    apart: set[frozenset[frozenset[Node]]] = field(default_factory=set)


@dataclass
class Model:
    """What connects identifiers, and what keeps contacts apart.

    Attributes
    ----------
    evidence : (event, its kind, members) of merges and operator links; members leave.
    constraints : (event, contacts on the one side, contacts on the other side).
    """

    evidence: list[tuple[int, Kind, set[Node]]] = field(default_factory=list)
    constraints: list[tuple[int, set[int], set[int]]] = field(default_factory=list)

    def joins(self, contact_id: int, origin: int) -> None:
        """A new contact is on the sides of the contact that it was matched by, or that it came from."""
        for _, *sides in self.constraints:
            for side in sides:
                if origin in side:
                    side.add(contact_id)

    def are_apart(self, some: Iterable[Record], others: Iterable[Record]) -> set[int]:
        """The events that keep apart two identities, by their live contacts."""
        one, other = {row.id for row in some}, {row.id for row in others}
        return {event for event, a, b in self.constraints if (a & one and b & other) or (b & one and a & other)}

    def links(self, live: Sequence[Record]) -> list[tuple[str, set[Node]]]:
        """The links of an identity, by name. Several can have one name."""
        held = {node for row in live for node in nodes_of(row)}
        found = [(f"contact:{row.id}", set(nodes_of(row))) for row in live if len(nodes_of(row)) == 2]
        found += [(f"event:{event}", members & held) for event, _, members in self.evidence if len(members & held) > 1]
        oldest = nodes_of(live[0])[0]
        for piece in groups(held, [members for _, members in found]):
            if oldest not in piece:
                row = next(row for row in live if piece & set(nodes_of(row)))
                found.append((f"unexplained:{row.id}", {oldest, nodes_of(row)[0]}))
        return found

    def split_links(self, rows: Sequence[Record], names: Collection[str]) -> Expected | None:
        """Cut links. None if everything is still connected, and then nothing changes."""
        live, links = _live(rows), self.links(_live(rows))
        held = {node for row in live for node in nodes_of(row)}
        parts = groups(held, [members for name, members in links if name not in names])
        if len(parts) == 1:
            return None
        for evidence in list(self.evidence):
            if f"event:{evidence[0]}" in names and len(evidence[2] & held) > 1:
                self.evidence.remove(evidence)
        expected = _divided(rows, parts, [row for row in live if f"contact:{row.id}" in names], set())
        for members in (members for name, members in links if name in names):
            touched = [part for part in expected.parts if part & members]
            expected.apart |= {frozenset(pair) for pair in combinations(touched, 2)}
        return expected

    def split_parts(
        self,
        rows: Sequence[Record],
        lists: Sequence[Collection[Node]],
        rest: str,
        made: Sequence[Sequence[Node]],
        event: int,
    ) -> Expected:
        """Move identifiers out. `made` are the operator links that the split made: one member of each piece."""
        live, links = _live(rows), self.links(_live(rows))
        held = {node for row in live for node in nodes_of(row)}
        others = held.difference(*lists)
        sides = [set(members) for members in lists] + [others]
        for evidence in list(self.evidence):
            members = evidence[2] & held
            if len(members) > 1 and not any(members <= side for side in sides):
                if evidence[1] is Kind.MERGED:
                    self.evidence.remove(evidence)
                evidence[2].difference_update(*lists)
        within = [members for name, members in links if not name.startswith("event") and _is_in_one(members, sides)]
        within += [members & held for _, _, members in self.evidence if _is_in_one(members & held, sides)]
        pieces = [groups(side, [members for members in within if members <= side]) for side in sides]
        whole = sides if rest == "together" else sides[:-1]
        fell = [found for side, found in zip(sides, pieces, strict=True) if side in whole and len(found) > 1]
        assert len(fell) == len(made)
        for members in made:
            [found] = [found for found in fell if any(members[0] in piece for piece in found)]
            assert [sum(member in piece for member in members) for piece in found] == [1] * len(found)
            assert len(members) == len(found)
            self.evidence.append((event, Kind.SPLIT, set(members)))
        parts = [side for side in whole if side] + ([] if rest == "together" else pieces[-1])
        crossing = [row for row in live if not _is_in_one(set(nodes_of(row)), sides)]
        expected = _divided(rows, parts, crossing, set().union(*lists))
        for one, other in combinations(expected.parts, 2):
            if not (one <= others and other <= others):
                expected.apart.add(frozenset((one, other)))
        return expected

    def block(self, rows: Sequence[Record], value: Node) -> Expected:
        """Block a value."""
        live = _live(rows)
        held = {node for row in live for node in nodes_of(row)} - {value}
        links = self.links(live)
        for evidence in list(self.evidence):
            if value in evidence[2] and evidence[1] is Kind.MERGED:
                self.evidence.remove(evidence)
            evidence[2].discard(value)
        uncut = [members for name, members in links if not name.startswith("event") and value not in members]
        uncut += [members & held for _, _, members in self.evidence if len(members & held) > 1]
        gone = {row.id for row in live if nodes_of(row) == [value]}
        left = [
            replace(row, **{"email": None} if value[0] == "email" else {"phone_number": None, "phone_key": None})
            if value in nodes_of(row)
            else row
            for row in rows
            if row.id not in gone
        ]
        deleted = [replace(row, deleted_at=row.created_at) for row in rows if row.id in gone]
        expected = _divided(sorted(left + deleted, key=_age), groups(held, uncut), [], set())
        expected.gone = gone
        return expected

    def constrain(self, event: int, expected: Expected, contacts_of: dict[frozenset[Node], set[int]]) -> None:
        """Remember what a split keeps apart: the contacts of each two parts."""
        for one, other in map(tuple, expected.apart):
            self.constraints.append((event, set(contacts_of[one]), set(contacts_of[other])))


def groups(nodes: Iterable[Node], edges: Iterable[Collection[Node]]) -> list[set[Node]]:
    """What edges connect."""
    found = [{node} for node in nodes]
    for edge in edges:
        touched = [group for group in found if group & set(edge)]
        if touched:
            found = [group for group in found if group not in touched] + [set().union(*touched)]
    return found


def _divided(
    rows: Sequence[Record], parts: Sequence[Collection[Node]], cut: Sequence[Record], out: set[Node]
) -> Expected:
    """Rules 1 to 3 of §7.4: what contacts keep, what is created, and the primaries."""
    live = _live(rows)
    holds: dict[Held, set[Node]] = {row.id: set(nodes_of(row)) for row in live}
    brought = {node: row.id for row in reversed(live) for node in nodes_of(row)}
    lost = []
    for row in cut:
        email, phone = nodes_of(row)
        keep = email
        for rule in (
            [brought[node] == row.id for node in (email, phone)],
            [node not in out for node in (email, phone)],
        ):
            if rule[0] != rule[1]:
                keep = email if rule[0] else phone
                break
        holds[row.id] = {keep}
        lost.append((row, phone if keep == email else email))
    age: dict[Held, tuple[object, ...]] = {row.id: (row.created_at, False, row.id) for row in live}
    for row, node in lost:
        if not any(node in held for held in holds.values()):
            holds["new", row.id] = {node}
            age["new", row.id] = (row.created_at, True, row.id)
    primaries = {
        frozenset(part): min((each for each, held in holds.items() if held & set(part)), key=lambda each: age[each])
        for part in parts
    }
    root = root_of(rows[0])
    kept = [each for each in primaries.values() if each == root]
    oldest = min(holds, key=lambda each: age[each]) if holds else None
    heir = kept or [primary for part, primary in primaries.items() if oldest is not None and holds[oldest] & part]
    return Expected(primaries, holds, heir=heir[0] if heir else None)


def _live(rows: Iterable[Record]) -> list[Record]:
    return sorted((row for row in rows if row.deleted_at is None), key=_age)


def _age(row: Record) -> tuple[object, int]:
    return row.created_at, row.id


def _is_in_one(members: set[Node], sides: Iterable[set[Node]]) -> bool:
    return any(members <= side for side in sides)
