"""The links and the past of identities as properties, on random histories."""

from functools import partial
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.rules.links import Identifier, identifiers_of, links_of, path
from recon.rules.past import Absence, as_of
from tests.harness.chronicle import Chronicle
from tests.harness.corrected import Corrected
from tests.harness.parts import parts_without

# Few values, so that they meet often.
SAID = st.tuples(st.sampled_from([None, *"abcde"]), st.sampled_from([None, *"12345"])).filter(any)
PLACE = st.integers(0, 20)  # which row, in order of creation
REQUEST = st.tuples(st.just("request"), SAID)
OTHERS = st.one_of(  # other programs
    st.tuples(st.just("insert"), SAID),
    st.tuples(st.just("delete"), PLACE),
    st.tuples(st.just("restore"), PLACE),
    st.tuples(st.just("edit"), PLACE, SAID, st.booleans()),
)
ATTACH = st.tuples(st.just("attach"), PLACE, SAID)  # another program inserts a secondary
SEED = st.integers(0, 2**16 - 1)  # of the choices of a split
STEWARD = st.one_of(
    st.tuples(st.just("split"), PLACE, SEED, st.booleans()),
    st.tuples(st.just("block"), st.sampled_from([("email", "a"), ("email", "b"), ("phoneNumber", "1")])),
    st.tuples(st.just("link"), PLACE, PLACE),
)
Step = tuple[Any, ...]


def told(steps: list[Step], chronicle: Chronicle | None = None) -> Chronicle:
    """What becomes of an empty table; a row that is not there is not changed."""
    chronicle = chronicle or Chronicle()
    for kind, *values in steps:
        rows = list(chronicle.rows.values())
        if kind == "request":
            chronicle.identify(values[0])
        elif kind == "insert":
            chronicle.insert(values[0], linked_to=None)
        elif rows:
            row = rows[values[0] % len(rows)]
            if kind == "attach":
                chronicle.insert(values[1], linked_to=row.id)
            elif kind == "edit":
                chronicle.edit(row.id, values[1], deleted=values[2])
            else:
                chronicle.edit(row.id, (row.email, row.phone_number), deleted=kind == "delete")
    return chronicle


def corrected(steps: list[Step]) -> Corrected:
    """What becomes of an empty table with the corrections of stewards."""
    chronicle = Corrected()
    for step in steps:
        kind, *values = step
        rows = list(chronicle.rows)
        if kind == "block":
            chronicle.block(Identifier(*values[0]))
        elif kind == "link" and rows:
            chronicle.link(*(rows[place % len(rows)] for place in values))
        elif kind == "split" and rows:
            place, seed, apart = values
            chronicle.split(
                rows[place % len(rows)], partial(_chosen, seed, "leaves"), partial(_chosen, seed), apart=apart
            )
        elif kind not in {"link", "split"}:
            told([step], chronicle)
    return chronicle


def _chosen(*what: object) -> bool:
    """One of two, at random, but always the same for the same arguments."""
    return Random(str(what)).random() < 0.5  # noqa: S311


def check_past(chronicle: Chronicle) -> None:
    """Every contact is, as of every position, part of the identity that it was part of then."""
    for contact_id in chronicle.rows:
        records, events = chronicle.stored(contact_id)
        for position, answers in chronicle.answers.items():
            expected = answers.get(contact_id, Absence.UNKNOWN) or Absence.DELETED
            assert as_of(records, events, contact_id, position) == expected, (contact_id, position)


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=25))
def test_requests_build_a_tree(steps: list[Step]) -> None:
    """Nothing is unexplained, one path joins any two identifiers, and any cut leaves two parts."""
    chronicle = told(steps)

    for root in {row.linked_id or row.id for row in chronicle.rows.values()}:
        records, events = chronicle.stored(root)
        links = links_of(records, events)
        identifiers = {identifier for record in records for identifier in identifiers_of(record)}
        assert {link.kind for link in links} <= {"contact", "merge"}
        assert len(identifiers) == len(links) + 1
        sides = {link: parts_without(records, links, {link.name}) for link in links}
        for parts in sides.values():
            assert len(parts) == 2
            assert set.union(*parts) == identifiers
        for start, end in product(identifiers, repeat=2):
            # The links that part the two when they are cut are those of the only path between them.
            between = {link for link, parts in sides.items() if not any({start, end} <= part for part in parts)}
            way = path(links, start, end)
            assert way is not None
            assert len(way) == len(between)
            assert set(way) == between


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(REQUEST, OTHERS, ATTACH), min_size=1, max_size=25))
def test_links_connect_every_identity(steps: list[Step]) -> None:
    """I8: whatever other programs did, the links connect the identity, and no unexplained link could be left out."""
    chronicle = told(steps)

    for contact_id in chronicle.rows:
        records, events = chronicle.stored(contact_id)
        live = [record for record in records if record.deleted_at is None]
        links = links_of(live, events)
        assert len(parts_without(live, links, ())) == bool(live)
        for link in links:
            if link.kind == "unexplained":
                assert len(parts_without(live, links, {link.name})) == 2


@settings(max_examples=300, deadline=None)
@given(st.lists(REQUEST, min_size=1, max_size=25))
def test_the_past_of_requests_is_what_was_answered(steps: list[Step]) -> None:
    """Requests alone: as of each position, each contact's identity is the one that was answered."""
    check_past(told(steps))


@settings(max_examples=500, deadline=None)
@given(st.lists(st.one_of(REQUEST, OTHERS), min_size=1, max_size=25))
def test_the_past_is_what_was_answered_whatever_others_did(steps: list[Step]) -> None:
    """The same while other programs insert, edit, soft-delete and restore rows, and recon mends what it meets."""
    check_past(told(steps))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(REQUEST, OTHERS, ATTACH), min_size=1, max_size=25))
def test_the_present_is_what_is_answered_now(steps: list[Step]) -> None:
    """As of the last position, each identity is the stored one, also with rows that nothing explains."""
    chronicle = told(steps)

    for contact_id in chronicle.rows:
        expected = chronicle.identity(contact_id) or Absence.DELETED
        assert as_of(*chronicle.stored(contact_id), contact_id, chronicle.last) == expected


def check_divided_past(chronicle: Corrected) -> None:
    """The same with divided identities: what was connected until a later divide is enough, and so is everything."""
    for contact_id in chronicle.rows:
        for position, answers in chronicle.answers.items():
            expected = answers.get(contact_id, Absence.UNKNOWN) or Absence.DELETED
            records, events = chronicle.connected(contact_id, position)
            assert as_of(records, events, contact_id, position) == expected, (contact_id, position)
            everything = list(chronicle.rows.values())
            assert as_of(everything, chronicle.events, contact_id, position) == expected, (contact_id, position)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(REQUEST, REQUEST, STEWARD), min_size=1, max_size=25))
def test_the_past_of_divided_identities_is_what_was_answered(steps: list[Step]) -> None:
    """Whatever stewards divided, blocked and linked: as of each position, each identity is the one answered then."""
    check_divided_past(corrected(steps))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(REQUEST, REQUEST, STEWARD, OTHERS), min_size=1, max_size=25))
def test_the_past_of_divided_identities_whatever_others_did(steps: list[Step]) -> None:
    """The same while other programs change rows, and guards take away what they must not join."""
    check_divided_past(corrected(steps))


# Histories in which only what is elsewhere now tells what was one identity.
SEPARATED: dict[str, list[Step]] = {
    "a link that showed through a contact of the other part": [
        ("request", ("e", "3")), ("request", ("c", "1")), ("split", 17, 3854, True), ("split", 0, 17779, False),
        ("request", ("b", "1")), ("request", ("b", "4")), ("split", 5, 2194, False), ("request", ("e", "1")),
    ],
    "a row that shared an identifier with what was split": [
        ("request", ("e", "4")), ("insert", ("e", "3")), ("request", ("e", "2")), ("insert", ("e", "3")),
        ("split", 0, 20629, True),
    ],
    "a row that shared an identifier with what a block divided": [
        ("insert", ("d", "1")), ("request", ("a", "5")), ("insert", ("c", "5")), ("request", ("a", "1")),
        ("block", ("phoneNumber", "1")),
    ],
    "an edit of what only a moved identifier joined": [
        ("request", ("b", "3")), ("request", ("d", "3")), ("split", 8, 30628, True), ("request", ("d", "5")),
        ("request", ("e", None)), ("insert", ("b", "1")), ("delete", 15),
    ],
    "a new contact of a split that stays, while what it came from leaves and returns": [
        ("request", ("c", "3")), ("request", ("d", None)), ("request", ("a", "3")), ("link", 15, 4),
        ("split", 16, 37390, False), ("split", 7, 51486, False), ("link", 18, 11),
    ],
    "the same of a link": [
        ("request", ("c", "1")), ("request", ("b", "2")), ("link", 0, 1), ("split", 3, 24048, True), ("link", 3, 9),
        ("split", 1, 55213, False),
    ],
    "a primary that an edit names, before a repair makes it the primary of others": [
        ("request", (None, "1")), ("insert", ("b", "3")), ("link", 7, 0), ("insert", ("a", "1")),
        ("edit", 5, ("a", "2"), False), ("request", ("e", "3")), ("request", ("e", "4")), ("split", 14, 6548, False),
        ("request", ("b", "2")), ("request", ("d", "3")), ("insert", ("a", "4")), ("edit", 1, ("a", None), True),
        ("edit", 16, ("a", "3"), True), ("request", ("d", "5")),
    ],
    "a row that a link took in, and a request after it": [
        ("request", ("d", None)), ("request", ("d", "1")), ("request", ("b", "1")), ("request", ("b", "3")),
        ("delete", 15), ("request", ("a", "3")), ("insert", ("c", "3")), ("link", 4, 3),
    ],
    "rows that share an identifier, linked before any request and split": [
        ("insert", ("d", "5")), ("insert", ("d", "5")), ("insert", ("c", "3")), ("insert", ("c", "5")), ("link", 8, 7),
        ("request", ("b", None)), ("edit", 5, ("c", "3"), True), ("split", 18, 9205, False),
    ],
    "a row that brought two identities together, found by a repair": [
        ("request", ("d", "4")), ("insert", ("d", "5")), ("insert", ("c", "5")), ("request", ("d", "3")),
    ],
    "an edit before a merge that a block divides": [
        ("request", ("a", "1")), ("request", ("c", "2")), ("request", (None, "4")), ("edit", 20, ("a", "4"), False),
        ("request", ("a", "2")), ("block", ("email", "a")),
    ],
    "contacts that one split took out of their identity": [
        ("request", (None, "4")), ("request", ("e", "3")), ("link", 6, 17), ("request", ("c", "3")),
        ("split", 18, 49365, False),
    ],
    "a block of what an edit left": [
        ("insert", ("d", "5")), ("request", ("d", "3")), ("request", ("a", "5")), ("edit", 0, ("a", "1"), True),
        ("block", ("email", "a")),
    ],
    "a guard that takes away what an edit brought": [
        ("block", ("phoneNumber", "1")), ("request", ("a", None)), ("edit", 16, ("e", "1"), False),
        ("request", ("e", "5")),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SEPARATED)
def test_the_past_of_what_is_elsewhere_now(name: str) -> None:
    """Each of these needs the contacts of another identity, or the knowledge that two were never one."""
    check_divided_past(corrected(SEPARATED[name]))
