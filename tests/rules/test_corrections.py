"""Splits, blocks and links, one after another, compared with an independent model."""

from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from typing import Any, Literal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recon.rules.changes import Change, New
from recon.rules.journal import Kind, Record
from recon.rules.links import Identifier, LinkKind, links_of
from recon.rules.splits import InvalidParts, NotDivided, block, split_links, split_parts
from tests.harness.parts import parts_without
from tests.harness.splitting import Expected, Held, Model, Node, Table, nodes_of, root_of

Step = tuple[Any, ...]
VALUES = st.tuples(st.sampled_from([None, *"abcdef"]), st.sampled_from([None, *"123456"])).filter(any)
BOTH = st.tuples(st.sampled_from("abcdef"), st.sampled_from("123456"))
PLACE = st.integers(0, 20)
REQUEST = st.tuples(st.just("request"), st.one_of(VALUES, BOTH))
OTHERS = st.one_of(
    st.tuples(st.just("insert"), VALUES),
    st.tuples(st.just("attach"), VALUES, PLACE),
)
LINKS = st.tuples(st.just("links"), PLACE, st.lists(PLACE, min_size=1, max_size=4), st.booleans())
PARTS = st.tuples(
    st.just("parts"),
    PLACE,
    st.lists(st.lists(PLACE, min_size=1, max_size=4), min_size=1, max_size=3),
    st.sampled_from(["links", "together"]),
    st.booleans(),
)
BLOCK = st.tuples(st.just("block"), PLACE, PLACE)
LINK = st.tuples(st.just("link"), PLACE, PLACE)
# First a person or two, since there is little to correct in less.
STEPS = st.builds(
    lambda first, others: first + others,
    st.lists(st.tuples(st.just("request"), BOTH), min_size=4, max_size=10),
    st.lists(st.one_of(REQUEST, OTHERS, LINKS, PARTS, PARTS, LINK, LINK, BLOCK), min_size=3, max_size=20),
)


class Comparison:
    """A table and the model, which go through the same steps."""

    def __init__(self) -> None:
        self.table = Table()
        self.model = Model()
        self.corrections: list[str] = []

    def go(self, step: Step) -> None:
        """One step, after which the two must agree."""
        kind, *values = step
        getattr(self, f"_{kind}")(*values)
        self._learn()
        self._agree()

    def _request(self, said: tuple[str | None, str | None]) -> None:
        before = set(self.table.rows)
        matched = self.table.request(said)
        if matched is not None:
            [created] = set(self.table.rows) - before
            self.model.joins(created, matched)

    def _insert(self, said: tuple[str | None, str | None], place: int | None = None) -> None:
        if {("email", said[0]), ("phoneNumber", said[1])} & self.table.blocked:
            return
        roots = self.table.roots()
        linked_to = roots[place % len(roots)] if roots and place is not None else None
        self.table.insert(said, linked_to=linked_to)
        self.table.mend_all()

    _attach = _insert

    def _links(self, place: int, numbers: list[int], keep: bool) -> None:
        if (root := self._root(place)) is None:
            return
        names = [name for name, _ in sorted(self.model.links(self.table.live_of(root)), key=lambda link: link[0])]
        if not names:
            return
        chosen = list(dict.fromkeys(names[number % len(names)] for number in numbers))
        rows, events = self.table.stored(root)
        expected = self.model.split_links(rows, chosen)
        if expected is None:
            with pytest.raises(NotDivided) as raised:
                split_links(rows, events, chosen, keep)
            first = next(link for link in links_of(self.table.live_of(root), events) if link.name == chosen[0])
            assert not {link.name for link in raised.value.path} & set(chosen)
            assert_path(raised.value.path, *first.joins[:2])
            return
        change = split_links(rows, events, chosen, keep)
        assert sorted(change.cut) == sorted(chosen)
        self._compare(Kind.SPLIT, root, change, expected, keep=keep)

    def _parts(self, place: int, lists: list[list[int]], rest: Literal["links", "together"], keep: bool) -> None:
        if (root := self._root(place)) is None:
            return
        rows, events = self.table.stored(root)
        held = sorted({node for row in self.table.live_of(root) for node in nodes_of(row)})
        named = [list(dict.fromkeys(held[number % len(held)] for number in numbers)) for numbers in lists]
        parts = [[Identifier(*node) for node in members] for members in named]  # type: ignore[arg-type]
        flat = [node for members in named for node in members]
        if len(set(flat)) < len(flat) or (len(named) == 1 and len(flat) == len(held)):
            with pytest.raises(InvalidParts):
                split_parts(rows, events, parts, rest, keep)
            return
        change = split_parts(rows, events, parts, rest, keep)
        expected = self.model.split_parts(rows, named, rest, change.links, self.table.last + len(change.created) + 1)
        self._compare(Kind.SPLIT, root, change, expected, keep=keep)

    def _block(self, place: int, number: int) -> None:
        if (root := self._root(place)) is None:
            return
        rows, events = self.table.stored(root)
        held = sorted({node for row in self.table.live_of(root) for node in nodes_of(row)})
        value = held[number % len(held)]
        change = block(rows, events, Identifier(*value))  # type: ignore[arg-type]
        expected = self.model.block(rows, value)
        self.table.blocked.add(value)
        self._compare(Kind.BLOCKED, root, change, expected, value=value)

    def _link(self, place: int, other_place: int) -> None:
        one, other = self._root(place), self._root(other_place)
        if one is None or other is None or one == other:
            return
        released, joins = self.table.link(one, other)
        assert released == {event for event, *_ in self.model.constraints if event in released}
        self.model.constraints = [each for each in self.model.constraints if each[0] not in released]
        self.model.evidence.append((self.table.last, Kind.LINKED, set(joins)))

    def _compare(
        self,
        kind: Kind,
        root: int,
        change: Change,
        expected: Expected,
        *,
        value: Node | None = None,
        keep: bool = False,
    ) -> None:
        before = {row.id: row for row in self.table.of(root)}
        soft = {row.id for row in before.values() if row.deleted_at is not None}
        event = self.table.correct(kind, root, change, value)
        self.corrections.append(str(kind))
        ids: dict[Held, int] = {contact_id: contact_id for contact_id in before}
        ids |= {("new", new.origin): new.id for new in change.created if new.id is not None}
        rows = self.table.rows
        assert len(change.created) == len([each for each in expected.holds if isinstance(each, tuple)])
        holds = {ids[each]: held for each, held in expected.holds.items()}
        live = {row.id for root in change.parts for row in self.table.live_of(_root(root.root))}
        assert {contact_id: set(nodes_of(rows[contact_id])) for contact_id in live} == holds
        for part, primary in expected.parts.items():
            for contact_id, held in holds.items():
                if held & part:
                    assert root_of(rows[contact_id]) == ids[primary]
        assert set(change.deleted) == expected.gone
        for contact_id in soft | expected.gone:
            if expected.heir is not None:
                assert root_of(rows[contact_id]) == ids[expected.heir]
        for new in change.created:
            self.model.joins(_root(new), new.origin)
        if keep:
            contacts_of = {
                part: {row.id for row in self.table.of(ids[primary])} for part, primary in expected.parts.items()
            }
            self.model.constrain(event, expected, contacts_of)
        assert bool(change.marks) <= keep
        detail = self.table.events[-1].detail
        assert detail is not None
        assert undone(detail, rows, before, value) == before

    def _learn(self) -> None:
        """Merges are evidence."""
        known = {event for event, *_ in self.model.evidence}
        for event in self.table.events:
            if event.kind is Kind.MERGED and event.id not in known and event.undone_by is None:
                assert event.email is not None
                assert event.phone_key is not None
                self.model.evidence.append(
                    (event.id, Kind.MERGED, {("email", event.email), ("phoneNumber", event.phone_key)})
                )

    def _agree(self) -> None:
        table, model = self.table, self.model
        holders: dict[Node, int] = {}
        for root in table.roots():
            live = table.live_of(root)
            assert [row.id for row in live if row.linked_id is None] == [live[0].id], "I1"
            assert all(table.rows[root_of(row)].linked_id is None for row in table.of(root)), "I2"
            for node in (node for row in live for node in nodes_of(row)):
                assert holders.setdefault(node, root) == root, "I3"
                assert node not in table.blocked, "I7"
            assert not table.apart(root, root), "I7"
            rows, events = table.stored(root)
            links = links_of([row for row in rows if row.deleted_at is None], events)
            assert len(parts_without(live, links, ())) == 1, "I8"
            assert by_name((link.name, set(link.joins)) for link in links) == by_name(model.links(live))
        for one, other in combinations(table.roots(), 2):
            assert table.apart(one, other) == model.are_apart(table.live_of(one), table.live_of(other))

    def _root(self, place: int) -> int | None:
        roots = self.table.roots()
        return roots[place % len(roots)] if roots else None


def by_name(links: Any) -> list[tuple[str, list[Node]]]:
    """Links in an order of their own."""
    return sorted((name, sorted(tuple(member) for member in members)) for name, members in links)


def assert_path(path: list[Any], start: Identifier, end: Identifier) -> None:
    """The links lead from the one to the other."""
    reached = {start}
    for link in path:
        assert reached & set(link.joins)
        reached |= set(link.joins)
    assert end in reached


def undone(
    detail: dict[str, Any], rows: dict[int, Record], before: dict[int, Record], value: Node | None
) -> dict[int, Record]:
    """The contacts as they were before a correction, by its detail alone."""
    # Marks are no part of the past.
    then = {contact_id: replace(rows[contact_id], apart=row.apart) for contact_id, row in before.items()}
    for contact_id in detail["deleted"]:
        then[contact_id] = replace(then[contact_id], deleted_at=None)
    for contact_id, kind, holder, text in detail["moved"]:
        if kind == "email":
            email = rows[holder].email if holder is not None else value[1]  # type: ignore[index]
            then[contact_id] = replace(then[contact_id], email=email)
        else:
            key = rows[holder].phone_key if holder is not None else value[1]  # type: ignore[index]
            phone = text if text is not None else rows[holder].phone_number
            then[contact_id] = replace(then[contact_id], phone_number=phone, phone_key=key)
    for _, old, contacts in detail["roots"]:
        for contact_id in set(contacts).difference(detail["created"]):
            then[contact_id] = replace(then[contact_id], linked_id=None if contact_id == old else old)
    return then


def _root(root: int | New) -> int:
    contact_id = root.id if isinstance(root, New) else root
    assert contact_id is not None
    return contact_id


@settings(max_examples=250, deadline=None)
@given(STEPS)
def test_corrections_are_those_of_the_model(steps: list[Step]) -> None:
    """After each step, identities, links and what is kept apart are the same, and the invariants hold."""
    comparison = Comparison()
    for step in steps:
        comparison.go(step)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.one_of(LINKS, PARTS, PARTS))
def test_links_undo_a_split(steps: list[Step], split: Step) -> None:
    """Once its parts are linked again, the identity has the id, the identifiers and the contacts that it had."""
    comparison = Comparison()
    for step in steps:
        comparison.go(step)
    table = comparison.table
    before = {contact_id: table.identity(contact_id) for contact_id in table.rows}
    corrections = len(comparison.corrections)

    comparison.go(split)
    assume(len(comparison.corrections) > corrections)
    detail = table.events[-1].detail
    assert detail is not None
    first, *others = detail["parts"]
    for other in others:
        table.link(root_of(table.rows[first]), other)

    for contact_id, identity in before.items():
        again = table.identity(contact_id)
        if identity is None or again is None or not detail["moved"]:
            assert again == identity
        else:  # of one date, a contact that the split created comes last
            assert again.primary_id == identity.primary_id
            assert sorted(again.emails) == sorted(identity.emails)
            assert sorted(again.phone_numbers) == sorted(identity.phone_numbers)
            assert [each for each in again.secondary_ids if each not in detail["created"]] == identity.secondary_ids


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_a_merge_is_undone_by_a_cut(steps: list[Step]) -> None:
    """Both identities are back as they were, with their ids, whatever the corrections were before.

    Not if pieces of them are unexplained, or for soft-deleted contacts: nothing says of which of the two they were.
    """
    comparison = Comparison()
    table = comparison.table
    for step in steps:
        before = {contact_id: table.identity(contact_id) for contact_id in table.rows}
        last = table.last
        comparison.go(step)
        merge = table.events[-1] if table.events else None
        if merge is None or merge.kind is not Kind.MERGED or merge.id != last + 1 or merge.primary_id is None:
            continue
        rows, events = table.stored(merge.primary_id)
        links = links_of([row for row in rows if row.deleted_at is None], events)
        if any(link.kind is LinkKind.UNEXPLAINED for link in links):
            continue
        trial = deepcopy(table)
        trial.correct(Kind.SPLIT, merge.primary_id, split_links(rows, events, [f"event:{merge.id}"]))
        for row in rows:
            if row.deleted_at is None:
                assert trial.identity(row.id) == before[row.id]
