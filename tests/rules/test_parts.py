"""The plans of splits by parts, by hand; tests/rules/test_corrections.py compares them with a model."""

import pytest

from recon.rules.changes import New
from recon.rules.journal import Kind
from recon.rules.links import Identifier
from recon.rules.splits import Fault, InvalidParts, split_parts
from tests.harness.chronicle import contact, entry
from tests.harness.plans import GEORGE_AND_BIFF, THEIR_MERGE, email, held, phone


def test_a_contact_keeps_what_stays_in_the_rest() -> None:
    """It brought both, but the list names its email."""
    change = split_parts([contact(1, "a", "1")], [], [[email("a")]])

    assert held(change) == [[(1, None, "1")], [(("new", 1), "a", None)]]


def test_what_a_contact_brought_counts_before_what_stays() -> None:
    """Contact 2 brought only the email that the list names, so it moves; contact 1 keeps its phone number anyway."""
    records = [contact(1, None, "1"), contact(2, "a", "1", 1)]

    change = split_parts(records, [], [[email("a")]])

    assert held(change) == [[(1, None, "1")], [(2, "a", None)]]


def test_between_two_lists_a_contact_keeps_its_email() -> None:
    """No identifier of it stays in the rest."""
    change = split_parts([contact(1, "a", "1")], [], [[phone("1")], [email("a")]])

    assert held(change) == [[(1, "a", None)], [(("new", 1), None, "1")]]


def test_new_contacts_of_one_date_are_in_the_order_of_their_origins() -> None:
    """Positions 2 and 3 have one date. The primary of their part is the one that came from contact 2."""
    records = [contact(2, "a", "1"), contact(3, "b", "2", 2)]
    merge = entry(4, Kind.MERGED, 2, 3, ("a", "2"))

    change = split_parts(records, [merge], [[phone("2"), phone("1")]])

    assert held(change) == [
        [(2, "a", None)],
        [(3, "b", None)],
        [(("new", 2), None, "1"), (("new", 3), None, "2")],
    ]
    assert [new.origin for new in change.created] == [2, 3]
    [part] = [part for part in change.parts if isinstance(part.root, New)]
    assert part.root is change.created[0]
    assert change.links == [[phone("1"), phone("2")]]


def test_a_new_contact_comes_after_all_contacts_of_its_date() -> None:
    """Its id will be higher than theirs: contact 3 has the date of contact 2, from which the new one came."""
    records = [contact(2, "a", "1"), contact(3, None, "2", 2)]

    change = split_parts(records, [], [[phone("1"), phone("2")]])

    assert held(change)[1] == [(3, None, "2"), (("new", 2), None, "1")]
    assert change.parts[1].root == 3


def test_every_list_becomes_an_identity_and_the_rest_separates_along_its_links() -> None:
    """The hub moves out, and the rest has nothing in common."""
    records = [contact(1, "a", "1"), contact(2, "b", "1", 1), contact(3, "c", "1", 1)]

    change = split_parts(records, [], [[phone("1")]])

    assert held(change) == [[(1, "a", None)], [(("new", 1), None, "1")], [(2, "b", None)], [(3, "c", None)]]
    sides = {contact_id: side for contact_id, _, side in change.marks if isinstance(contact_id, int)}
    assert sides == {1: 1, 2: 1, 3: 1}
    assert change.links == []


def test_the_rest_stays_together_if_the_steward_says_so() -> None:
    """An operator link has one identifier of each piece."""
    records = [contact(1, "a", "1"), contact(2, "b", "1", 1), contact(3, "c", "1", 1)]

    change = split_parts(records, [], [[phone("1")]], rest="together")

    assert held(change) == [[(1, "a", None), (2, "b", None), (3, "c", None)], [(("new", 1), None, "1")]]
    assert change.links == [[email("a"), email("b"), email("c")]]


@pytest.mark.parametrize(
    ("parts", "number", "fault", "identifier"),
    [
        ([], None, Fault.EMPTY, None),
        ([[email("a")], []], 1, Fault.EMPTY, None),
        ([[email("a")], [phone("1"), phone("9")]], 1, Fault.UNKNOWN, phone("9")),
        ([[email("1")]], 0, Fault.UNKNOWN, email("1")),
        ([[email("a")], [phone("1")], [email("a")]], 2, Fault.REPEATED, email("a")),
        ([[email("a"), email("a")]], 0, Fault.REPEATED, email("a")),
        ([[email("a"), phone("1"), email("b")]], 0, Fault.WHOLE, None),
    ],
)
def test_lists_that_cannot_be_parts(
    parts: list[list[Identifier]], number: int | None, fault: Fault, identifier: Identifier | None
) -> None:
    """The error says which list, and which identifier."""
    records = [contact(1, "a", "1"), contact(2, "b", "1", 1), contact(3, "d", "9", 1, deleted=True)]

    with pytest.raises(InvalidParts) as raised:
        split_parts(records, [], parts)

    assert (raised.value.number, raised.value.fault, raised.value.identifier) == (number, fault, identifier)


def test_two_lists_may_name_everything() -> None:
    """Then there is no rest."""
    parts = [[email("george"), phone("919191")], [phone("717171"), email("biffsucks")]]

    change = split_parts(GEORGE_AND_BIFF, [THEIR_MERGE], parts)

    assert [part.root for part in change.parts] == [11, 27]
    assert change.marks == [(11, 0, 0), (27, 0, 1)]


def test_an_event_that_names_no_contact_of_a_part_is_found_by_its_root() -> None:
    """Both contacts of the merge stay in the rest, but the part is held together by its request."""
    identifiers = [email("george"), phone("717171")]

    change = split_parts(GEORGE_AND_BIFF, [THEIR_MERGE], [identifiers])

    assert change.undone == []
    assert change.about == [(change.created[0], 28)]
