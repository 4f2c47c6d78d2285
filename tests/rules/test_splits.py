"""The plans of splits by links, by hand; tests/rules/test_corrections.py compares them with a model."""

from dataclasses import replace

import pytest

from recon.rules.changes import Loss
from recon.rules.splits import NotDivided, UnknownLink, split_links, split_parts
from tests.harness.chronicle import contact, time_of
from tests.harness.plans import GEORGE_AND_BIFF, THEIR_MERGE, drawn, email, held


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
