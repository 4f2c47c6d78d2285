"""The plans of splits and blocks, by hand; tests/rules/test_corrections.py compares them with a model."""

from dataclasses import replace
from time import process_time
from typing import Any

import pytest

from recon.rules.changes import Change, Loss, New
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, links_of
from recon.rules.splits import Fault, InvalidParts, NotDivided, UnknownLink, block, split_links, split_parts
from tests.harness.chronicle import contact, entry, time_of

MANY = 10_000


def email(key: str) -> Identifier:
    """An email."""
    return Identifier("email", key)


def phone(key: str) -> Identifier:
    """A phone number."""
    return Identifier("phoneNumber", key)


def operator(position: int, *members: Identifier, left: Any = (), kind: Kind = Kind.SPLIT) -> Event:
    """An event with one operator link, or without, that names contact 1."""
    detail: dict[str, Any] = {"links": [[each.stated() for each in members]] if members else []}
    if kind is Kind.LINKED:
        detail = {"joins": [each.stated() for each in members]}
    return entry(position, kind, 1, 1, detail=detail | {"left": [[event, each.stated()] for event, each in left]})


def held(change: Change) -> list[list[Any]]:
    """The contacts of each part: the id and the identifiers of a stored one, the origin and those of a new one."""
    return [
        [
            (("new", each.origin) if isinstance(each, New) else each.id, each.email, each.phone_number)
            for each in part.records
        ]
        for part in change.parts
    ]


def drawn(change: Change, first: int) -> Change:
    """The change with ids for its new contacts."""
    for new_id, new in enumerate(change.created, first):
        new.id = new_id
    return change


GEORGE_AND_BIFF = [contact(11, "george", "919191"), contact(27, "biffsucks", "717171", 11)]
THEIR_MERGE = entry(28, Kind.MERGED, 11, 27, ("george", "717171"))


def test_cutting_a_merge_gives_both_former_ids_back() -> None:
    """George and Biff are two people again, and the merge is undone."""
    change = split_links(GEORGE_AND_BIFF, [THEIR_MERGE], ["event:28"])

    assert held(change) == [[(11, "george", "919191")], [(27, "biffsucks", "717171")]]
    assert change.roots == [(27, 11, [27])]
    assert change.undone == [28]
    assert change.marks == [(11, 0, 0), (27, 0, 1)]
    assert change.detail() == {
        "cut": ["event:28"],
        "moved": [],
        "created": [],
        "deleted": [],
        "roots": [[27, 11, [27]]],
        "links": [],
        "left": [],
        "parts": [11, 27],
        "apart": True,
    }


def test_a_contact_whose_link_is_cut_keeps_its_email() -> None:
    """It was the first to bring both. The phone number needs no contact of its own, since contact 2 has it."""
    records = [contact(1, "a", "1"), contact(2, "b", "1", 1)]

    change = split_links(records, [], ["contact:1"])

    assert held(change) == [[(1, "a", None)], [(2, "b", "1")]]
    assert change.losses == [Loss(1, "phoneNumber", 2, None)]
    assert not change.created


def test_an_identifier_that_no_other_contact_has_gets_a_contact() -> None:
    """It has the date, the marks and the text of the contact that lost it, and comes right after that."""
    records = [replace(contact(1, "a", "+1"), phone_key="1")]

    change = split_links(records, [], ["contact:1"])

    [new] = change.created
    assert (new.origin, new.email, new.phone_number, new.phone_key, new.created_at) == (1, None, "+1", "1", time_of(1))
    assert held(change) == [[(1, "a", None)], [(("new", 1), None, "+1")]]
    assert change.marks == [(1, 0, 0), (new, 0, 1)]
    assert drawn(change, 9).detail()["moved"] == [[1, "phoneNumber", 9, None]]
    assert change.detail()["parts"] == [1, 9]


def test_a_detail_needs_the_ids_of_new_contacts() -> None:
    """They are drawn when the change is written."""
    change = split_links([contact(1, "a", "1")], [], ["contact:1"])

    with pytest.raises(ValueError, match="before it is drawn"):
        change.detail()


def test_a_contact_keeps_what_it_was_the_first_to_bring() -> None:
    """Contact 2 brought the phone number 2, and contact 3 the email b."""
    records = [contact(1, "a", None), contact(2, "a", "2", 1), contact(3, "b", "2", 1)]

    change = split_links(records, [], ["contact:2", "contact:3"])

    assert held(change) == [[(1, "a", None)], [(2, None, "2")], [(3, "b", None)]]
    assert not change.created


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


def test_a_contact_is_cut_although_another_path_connects_its_identifiers() -> None:
    """Contacts 1 and 2 say the same: only the one whose link is cut loses its phone number."""
    records = [contact(1, "a", "1"), contact(2, "a", "1", 1), contact(3, "c", "1", 1)]

    change = split_links(records, [], ["contact:1", "contact:3"])

    assert held(change) == [[(1, "a", None), (2, "a", "1")], [(3, "c", None)]]
    assert change.marks == [(1, 0, 0), (2, 0, 0), (3, 0, 1)]


def test_the_text_that_a_contact_lost_is_remembered() -> None:
    """The part shows the number as its own contact has it, and the event has the text of contact 1."""
    records = [replace(contact(1, "a", "+1"), phone_key="1"), contact(2, "b", "1", 1)]

    change = split_links(records, [], ["contact:1"])

    assert change.detail()["moved"] == [[1, "phoneNumber", 2, "+1"]]


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


def test_what_is_still_connected_is_not_divided() -> None:
    """The path leads from the one side of the first link to the other."""
    records = [contact(1, "a", "1"), contact(2, "b", "1", 1), contact(3, "b", "2", 1), contact(4, "a", "2", 1)]

    with pytest.raises(NotDivided) as raised:
        split_links(records, [], ["contact:3"])
    assert [link.name for link in raised.value.path] == ["contact:2", "contact:1", "contact:4"]

    assert len(split_links(records, [], ["contact:3", "contact:1"]).parts) == 2
    with pytest.raises(NotDivided) as raised:
        split_links(records, [], [])
    assert raised.value.path == []


def test_only_links_of_the_identity_can_be_cut() -> None:
    """The error names all that there are not."""
    with pytest.raises(UnknownLink) as raised:
        split_links(GEORGE_AND_BIFF, [THEIR_MERGE], ["event:28", "event:27", "contact", "unexplained:11"])

    assert raised.value.names == ["event:27", "contact", "unexplained:11"]


def test_an_unexplained_link_is_cut() -> None:
    """It has nothing to undo."""
    records = [contact(1, "a", "1"), contact(2, "b", "2", 1)]

    change = split_links(records, [], ["unexplained:2"])

    assert held(change) == [[(1, "a", "1")], [(2, "b", "2")]]
    assert (change.cut, change.undone) == (["unexplained:2"], [])


THREE = [contact(1, "a", None), contact(2, "b", None, 1), contact(3, "c", None, 1), contact(4, "d", "1", 1)]
TOGETHER = operator(9, email("a"), email("b"), email("c"), email("d"))


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


def test_soft_deleted_contacts_stay_with_the_old_root() -> None:
    """They are not matched, so their identifiers do not count."""
    records = [*GEORGE_AND_BIFF, contact(30, "biffsucks", "3", 11, deleted=True)]

    change = split_links(records, [THEIR_MERGE], ["event:28"])

    assert change.roots == [(27, 11, [27])]
    assert change.marks == [(11, 0, 0), (30, 0, 0), (27, 0, 1)]


def test_without_the_old_root_soft_deleted_contacts_stay_with_the_oldest() -> None:
    """The primary was soft-deleted, so every part gets a new root."""
    records = [contact(1, "z", None, deleted=True), contact(2, "a", "1", 1), contact(3, "b", "2", 1)]

    change = split_links(records, [], ["unexplained:3"])

    assert change.roots == [(2, 1, [2, 1]), (3, 1, [3])]


def test_an_event_that_names_no_contact_of_a_part_is_found_by_its_root() -> None:
    """Both contacts of the merge stay in the rest, but the part is held together by its request."""
    identifiers = [email("george"), phone("717171")]

    change = split_parts(GEORGE_AND_BIFF, [THEIR_MERGE], [identifiers])

    assert change.undone == []
    assert change.about == [(change.created[0], 28)]


def test_an_event_that_members_left_is_found_with_those_that_say_so() -> None:
    """Else the member c, which left the link of event 9, would belong to it again where only event 9 is found."""
    records = [contact(1, "a", "5"), contact(2, "b", None, 1), contact(3, "d", "1", 1)]
    later = operator(12, left=[(9, email("c"))])

    change = split_parts(records, [TOGETHER, later], [[email("a"), email("b"), email("d")]])

    assert change.about == [(change.created[0], 9), (change.created[0], 12)]


def test_the_marks_of_many_cut_links() -> None:
    """The hub is kept apart from each, by one mark a contact; the others are not kept apart from each other."""
    records = [contact(1, "a", "1"), *(contact(n, f"e{n}", "1", 1) for n in range(2, 6))]

    change = split_links(records, [], [f"contact:{n}" for n in range(2, 6)])

    assert change.marks == [(1, 0, 0), *((n, 0, 1) for n in range(2, 6))]


def test_a_split_need_not_keep_apart() -> None:
    """Then there are no marks."""
    change = split_links(GEORGE_AND_BIFF, [THEIR_MERGE], ["event:28"], keep_apart=False)

    assert (change.marks, change.apart) == ([], False)
    assert split_parts(GEORGE_AND_BIFF, [THEIR_MERGE], [[email("george")]], keep_apart=False).marks == []


def test_a_blocked_value_leaves_its_contacts() -> None:
    """Contact 3 has nothing else: it is soft-deleted and keeps the value. The others come apart, and may meet again."""
    records = [contact(1, "a", "0"), contact(2, "b", "0", 1), contact(3, None, "0", 1), contact(4, "b", "4", 1)]
    merge = entry(5, Kind.MERGED, 1, 4, ("a", "4"))

    change = block(records, [merge], phone("0"))

    assert held(change) == [[(1, "a", None), (2, "b", None), (4, "b", "4")]]
    assert (change.deleted, change.marks, change.apart) == ([3], [], False)
    assert change.losses == [Loss(1, "phoneNumber", None, "0"), Loss(2, "phoneNumber", None, "0")]
    assert change.cut == ["contact:1", "contact:2"]


def test_what_a_blocked_value_held_together_separates() -> None:
    """A merge by the value is undone, and the soft-deleted root gives way to the oldest live contact."""
    records = [contact(1, None, "0"), contact(2, "b", "2", 1), contact(3, "c", "3", 1)]
    merges = [entry(4, Kind.MERGED, 1, 2, ("b", "0")), entry(5, Kind.MERGED, 1, 3, ("c", "0"))]

    change = block(records, merges, phone("0"))

    assert held(change) == [[(2, "b", "2")], [(3, "c", "3")]]
    assert change.roots == [(2, 1, [2, 1]), (3, 1, [3])]
    assert (change.deleted, change.undone) == ([1], [4, 5])


def test_a_blocked_value_that_is_all_leaves_no_identity() -> None:
    """The contact is soft-deleted, and stays its own root."""
    change = block([contact(1, "null", None)], [], email("null"))

    assert (change.parts, change.deleted, change.roots) == ([], [1], [])


def test_a_blocked_value_leaves_operator_links() -> None:
    """The other members stay."""
    change = block(THREE, [TOGETHER], email("a"))

    assert [part.root for part in change.parts] == [2]
    assert (change.cut, change.undone, change.left) == ([], [], [(9, email("a"))])
    assert change.deleted == [1]


def large_identity() -> tuple[list[Record], list[Event]]:
    """10,000 contacts in pairs, which 5,000 merges made one identity."""
    ids = range(2, MANY + 1)
    records = [contact(1, "e1", "1"), *(contact(n, f"e{n}", str(n - n % 2), 1) for n in ids)]
    merges = [entry(MANY + n, Kind.MERGED, 1, n, (f"e{n - 1}", str(n))) for n in range(2, MANY + 1, 2)]
    return records, merges


@pytest.mark.parametrize("division", ["links", "parts", "block"])
def test_large_identities_take_time_in_proportion(division: str) -> None:
    """10,000 contacts take about 0.1 s of CPU; an algorithm that compared all pairs would take a minute."""
    records, merges = large_identity()
    middle = merges[MANY // 4]
    started = process_time()

    if division == "links":
        change = split_links(records, merges, [f"event:{middle.id}"])
    elif division == "parts":
        change = split_parts(records, merges, [[email(f"e{n}") for n in range(2, MANY, 2)]], "together")
    else:
        change = block(records, merges, phone(str(middle.phone_key)))

    assert len(change.parts) >= 2
    assert process_time() - started < 3
