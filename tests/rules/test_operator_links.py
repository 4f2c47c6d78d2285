"""What splits and blocks leave of operator links, by hand."""

from dataclasses import replace

from recon.rules.journal import Kind
from recon.rules.links import links_of
from recon.rules.splits import block, split_links, split_parts
from tests.harness.chronicle import contact
from tests.harness.plans import THREE, TOGETHER, email, operator


def test_cutting_an_operator_link_separates_all_its_members() -> None:
    """Each is a side of its own."""
    change = split_links(THREE, [TOGETHER], ["event:9"])

    assert [part.root for part in change.parts] == [1, 2, 3, 4]
    assert change.marks == [(1, 0, 0), (2, 0, 1), (3, 0, 2), (4, 0, 3)]
    assert (change.cut, change.undone, change.left) == (["event:9"], [9], [])


def test_a_member_that_is_moved_out_leaves_the_operator_link() -> None:
    """The other members stay together, also later."""
    change = split_parts(THREE, [TOGETHER], [[email("b"), email("c")]])

    assert [part.root for part in change.parts] == [1, 2]
    assert change.left == [(9, email("b")), (9, email("c"))]
    assert change.links == [[email("b"), email("c")]]
    assert (change.cut, change.undone) == ([], [])
    later = operator(12, left=change.left)
    [joined] = [link for link in links_of(THREE, [TOGETHER, later]) if link.name == "event:9"]
    assert joined.joins == (email("a"), email("d"))


def test_members_that_are_all_moved_to_one_list_stay_linked() -> None:
    """The event holds the new identity together."""
    records = [*THREE, contact(5, "e", "1", 1)]

    change = split_parts(records, [TOGETHER], [[email(key) for key in "abcd"]])

    assert (change.cut, change.links, change.left) == (["contact:4"], [], [])


def test_an_operator_link_of_which_one_member_is_left_ends() -> None:
    """Its event is undone."""
    pair = operator(9, email("a"), email("b"), kind=Kind.LINKED)

    change = split_parts(THREE[:2], [pair], [[email("a")]])

    assert (change.cut, change.undone, change.left) == (["event:9"], [9], [])


def test_one_event_can_have_several_operator_links() -> None:
    """What this identity has of them is cut; another identity keeps its own."""
    event = operator(9, email("a"), email("b"))
    assert event.detail is not None
    event.detail["links"].append([email("x").stated(), email("y").stated()])

    change = split_links(THREE[:2], [event], ["event:9"])

    assert (change.cut, change.undone) == (["event:9"], [])
    assert change.left == [(9, email("a")), (9, email("b"))]
    later = operator(12, left=change.left)
    assert [link.kind for link in links_of(THREE[:2], [event, later])] == ["unexplained"]


def test_an_undone_event_has_no_operator_link() -> None:
    """A set that an earlier split cut does not count."""
    undone = replace(operator(9, email("a"), email("b")), undone_by=10)

    assert [link.name for link in links_of(THREE[:2], [undone])] == ["unexplained:2"]


def test_an_event_that_members_left_is_found_with_those_that_say_so() -> None:
    """Else the member c, which left the link of event 9, would belong to it again where only event 9 is found."""
    records = [contact(1, "a", "5"), contact(2, "b", None, 1), contact(3, "d", "1", 1)]
    later = operator(12, left=[(9, email("c"))])

    change = split_parts(records, [TOGETHER, later], [[email("a"), email("b"), email("d")]])

    assert change.about == [(change.created[0], 9), (change.created[0], 12)]


def test_a_blocked_value_leaves_operator_links() -> None:
    """The other members stay."""
    change = block(THREE, [TOGETHER], email("a"))

    assert [part.root for part in change.parts] == [2]
    assert (change.cut, change.undone, change.left) == ([], [], [(9, email("a"))])
    assert change.deleted == [1]
