"""The past of an identity, by hand; tests/rules/test_history.py has its properties."""

from dataclasses import replace
from datetime import timedelta
from time import process_time

import pytest

from recon.rules.clusters import Identity
from recon.rules.journal import Event, Kind, Record
from recon.rules.past import Absence, as_of, position_at
from tests.harness.chronicle import START, contact, entry, time_of

GEORGE_AND_BIFF = [contact(11, "george", "919191"), contact(27, "biffsucks", "717171", 11)]
THEIR_MERGE = entry(28, Kind.MERGED, 11, 27, ("george", "717171"))


def ids(identity: Identity | Absence) -> list[int]:
    """The contacts of an identity, the primary first."""
    assert isinstance(identity, Identity)
    return [identity.primary_id, *identity.secondary_ids]


def test_a_merge_is_undone() -> None:
    """George and Biff: two people until the request that made them one."""
    george = Identity(11, ["george"], ["919191"], [])
    biff = Identity(27, ["biffsucks"], ["717171"], [])
    both = Identity(11, ["george", "biffsucks"], ["919191", "717171"], [27])

    for contact_id, position, expected in [
        (11, 11, george),
        (11, 27, george),
        (27, 27, biff),
        (11, 28, both),
        (27, 28, both),
        (27, 99, both),
    ]:
        assert as_of(GEORGE_AND_BIFF, [THEIR_MERGE], contact_id, position) == expected


@pytest.mark.parametrize(("contact_id", "position"), [(27, 26), (11, 10), (11, 0), (28, 99)])
def test_before_its_contact_there_was_no_identity(contact_id: int, position: int) -> None:
    """No contact had the id then; the id of an event is no contact's ever."""
    assert as_of(GEORGE_AND_BIFF, [THEIR_MERGE], contact_id, position) is Absence.UNKNOWN


def test_five_merges_are_undone_one_by_one() -> None:
    """As of each position, the merges until then hold."""
    records = [contact(1, "a", "1"), *(contact(n, "abcdef"[n - 1], str(n), 1) for n in range(2, 7))]
    merges = [entry(5 + n, Kind.MERGED, 1, n, ("abcdef"[n - 2], str(n))) for n in range(2, 7)]

    for position in range(6, 12):
        merged = list(range(1, position - 4))
        assert ids(as_of(records, merges, 1, position)) == merged
        for contact_id in range(position - 4, 7):
            assert ids(as_of(records, merges, contact_id, position)) == [contact_id]


def test_a_soft_delete_is_undone() -> None:
    """A soft-deleted contact leads to its identity, and shows in it as of an earlier position."""
    records = [contact(1, "a", "1"), contact(2, "b", "1", 1, deleted=True)]
    events = [entry(3, Kind.DELETED, 1, 2)]

    assert as_of(records, events, 2, 3) == Identity(1, ["a"], ["1"], [])
    assert as_of(records, events, 2, 2) == Identity(1, ["a", "b"], ["1"], [2])


def test_an_identity_without_a_live_contact_is_deleted() -> None:
    """All contacts are gone: deleted now, and there as of an earlier position."""
    records = [contact(1, "a", "1", deleted=True)]
    events = [entry(2, Kind.DELETED, 1, 1)]

    assert as_of(records, events, 1, 2) is Absence.DELETED
    assert as_of(records, events, 1, 1) == Identity(1, ["a"], ["1"], [])


def test_a_soft_delete_without_an_event_holds_always() -> None:
    """What happened before the journal is not invented."""
    records = [contact(1, "a", "1", deleted=True), contact(2, "a", "2", 1)]

    assert as_of(records, [], 1, 1) is Absence.DELETED
    assert as_of(records, [], 1, 2) == Identity(2, ["a"], ["2"], [])


def test_an_edit_is_undone() -> None:
    """The old email, phone number and match key come back, and the order of several edits counts."""
    records = [contact(1, "c", "2"), contact(2, "a", None, 1)]
    events = [
        entry(4, Kind.EDITED, 1, 1, detail={"email": "b", "phoneNumber": "+1", "phoneKey": "1"}),
        entry(3, Kind.EDITED, 1, 1, detail={"email": "a"}),
    ]

    assert as_of(records, events, 2, 4) == Identity(1, ["c", "a"], ["2"], [2])
    assert as_of(records, events, 2, 3) == Identity(1, ["b", "a"], ["+1"], [2])
    assert as_of(records, events, 2, 2) == Identity(1, ["a"], ["+1"], [2])


def test_a_soft_delete_that_was_taken_back_is_restored() -> None:
    """Between the two events the contact was gone, and a soft delete can change other columns too."""
    records = [contact(1, "a", "1"), contact(2, "c", "1", 1)]
    events = [
        entry(3, Kind.DELETED, 1, 2, detail={"email": "b"}),
        entry(4, Kind.EDITED, 1, 2, detail={"deletedAt": time_of(3).isoformat()}),
    ]

    assert [as_of(records, events, 1, position) for position in (2, 3, 4)] == [
        Identity(1, ["a", "b"], ["1"], [2]),
        Identity(1, ["a"], ["1"], []),
        Identity(1, ["a", "c"], ["1"], [2]),
    ]


def test_an_edit_does_not_part_what_it_once_joined() -> None:
    """The shared email was edited away, but the contacts stay linked."""
    records = [contact(1, "a", "1"), contact(2, "b", "2", 1), contact(4, "c", "3", 1)]
    events = [entry(3, Kind.EDITED, 1, 2, detail={"email": "a"}), entry(5, Kind.MERGED, 1, 4, ("c", "1"))]

    assert ids(as_of(records, events, 2, 4)) == [1, 2]
    assert ids(as_of(records, events, 4, 4)) == [4]


def test_a_repair_of_a_shared_identifier_is_undone() -> None:
    """Another program inserted 3 with an email of 1, and 4 beside it: two identities until recon met them."""
    records = [contact(1, "a", "1"), contact(3, "a", "3", 1), contact(4, "x", None, 1), contact(5, "b", "3", 1)]
    events = [entry(6, Kind.MENDED, 1, 3, ("a", None), detail={"contacts": [3, 4, 5]})]

    assert ids(as_of(records, events, 1, 5)) == [1]
    assert ids(as_of(records, events, 4, 5)) == [3, 4, 5]
    assert ids(as_of(records, events, 4, 6)) == [1, 3, 4, 5]


def test_a_repair_need_not_list_soft_deleted_contacts() -> None:
    """Contact 4 belonged to the absorbed identity when it was deleted, so it did before."""
    records = [contact(1, "a", "1"), contact(3, "a", "3", 1), contact(4, "b", "3", 1, deleted=True)]
    events = [
        entry(5, Kind.DELETED, 3, 4),
        entry(6, Kind.MENDED, 1, 3, ("a", None), detail={"contacts": [3]}),
    ]

    assert ids(as_of(records, events, 4, 4)) == [3, 4]
    assert ids(as_of(records, events, 4, 5)) == [3]


def test_a_repair_of_a_lost_primary_is_undone() -> None:
    """As of the soft delete, the oldest live contact was primary in answers; before, the deleted one was."""
    records = [contact(1, "a", "1", 2, deleted=True), contact(2, "b", "1"), contact(3, "c", "1", 2)]
    events = [entry(4, Kind.DELETED, 1, 1), entry(5, Kind.MENDED, 2, 1)]

    assert [ids(as_of(records, events, 3, position)) for position in (3, 4, 5)] == [[1, 2, 3], [2, 3], [2, 3]]


def test_a_restored_contact_is_no_primary_again() -> None:
    """Contact 1 is the oldest, but the others have been linked to 2 since the repair."""
    records = [contact(1, "a", "1", 2), contact(2, "b", "1")]
    events = [
        entry(3, Kind.DELETED, 1, 1),
        entry(4, Kind.MENDED, 2, 1),
        entry(5, Kind.EDITED, 2, 1, detail={"deletedAt": time_of(3).isoformat()}),
        entry(6, Kind.EDITED, 2, 2, detail={"email": "c"}),
    ]

    assert [ids(as_of(records, events, 1, position)) for position in (2, 4, 5, 6)] == [[1, 2], [2], [2, 1], [2, 1]]


def test_the_present_is_as_it_is_stored() -> None:
    """Another program made the younger contact the primary, and linked what nothing explains."""
    records = [contact(1, "a", "1", 2), contact(2, "b", "2")]

    assert as_of(records, [], 1, 2) == Identity(2, ["b", "a"], ["2", "1"], [1])


def test_what_nothing_explains_counts_to_the_present_identity() -> None:
    """A merge older than the journal is not undone, and a later one is."""
    records = [contact(1, "a", "1"), contact(2, "b", "2", 1), contact(3, "c", "3", 1)]
    events = [entry(4, Kind.MERGED, 1, 3, ("c", "1"))]

    assert ids(as_of(records, events, 2, 2)) == [1, 2]
    assert ids(as_of(records, events, 2, 3)) == [1, 2]
    assert ids(as_of(records, events, 3, 3)) == [3]


@pytest.mark.parametrize("said", [("d", "1"), ("a", "4"), ("d", "2"), ("b", "4")])
def test_a_merge_tells_where_unexplained_contacts_were(said: tuple[str, str]) -> None:
    """Two identities, each of two contacts that nothing bonds: the request names one of each."""
    records = [contact(1, "a", "1"), contact(2, "b", "2", 1), contact(3, "c", "3", 1), contact(4, "d", "4", 1)]
    events = [entry(5, Kind.EDITED, 3, 4, detail={"email": "x"}), entry(6, Kind.MERGED, 1, 3, said)]

    assert ids(as_of(records, events, 1, 5)) == [1, 2]
    assert ids(as_of(records, events, 4, 5)) == [3, 4]


def test_a_merge_tells_where_a_contact_of_the_absorbed_identity_was() -> None:
    """Nothing else says that 4 was with 3: its phone number merged that identity into the one of email a."""
    records = [contact(1, "a", "1"), contact(3, "c", "3", 1), contact(4, "d", "4", 1)]
    events = [entry(5, Kind.MERGED, 1, 3, ("a", "4"))]

    assert ids(as_of(records, events, 1, 4)) == [1]
    assert ids(as_of(records, events, 4, 4)) == [3, 4]


def test_a_merge_is_undone_although_its_identifiers_are_gone() -> None:
    """The ids of the two primaries are enough."""
    records = [contact(1, "a", "1"), contact(2, "b", "2", 1)]

    assert ids(as_of(records, [entry(3, Kind.MERGED, 1, 2, ("x", "y"))], 2, 2)) == [2]
    assert ids(as_of(records, [entry(3, Kind.MERGED, 1, 2)], 2, 2)) == [2]


def test_a_contact_that_is_gone_leaves_its_events() -> None:
    """Another program deleted the rows 3 and 5 for good: the events about them still bond the others."""
    records = [contact(1, "a", "1"), contact(4, "c", "3", 1)]
    events = [entry(6, Kind.EDITED, 3, 5, detail={"email": "x"}), entry(7, Kind.MERGED, 1, 3, ("a", "3"))]

    assert ids(as_of(records, events, 4, 7)) == [1, 4]
    assert ids(as_of(records, events, 4, 6)) == [4]


@pytest.mark.parametrize("kind", [Kind.KEPT_APART, Kind.WITHHELD])
def test_events_that_change_no_identity_change_no_past(kind: Kind) -> None:
    """They name contacts of two identities, or of one."""
    events = [THEIR_MERGE, entry(29, kind, 11, 27, ("george", "717171"))]

    assert ids(as_of(GEORGE_AND_BIFF, events, 27, 27)) == [27]
    assert ids(as_of(GEORGE_AND_BIFF, events, 27, 28)) == [11, 27]


# George and Biff were merged by event 28, and event 31 split them again; contact 30 has what contact 29 lost.
SPLIT = entry(
    31,
    Kind.SPLIT,
    11,
    0,
    detail={
        "moved": [[29, "phoneNumber", 30, "71 71 71"]],
        "created": [30],
        "roots": [[27, 11, [27, 30]]],
        "parts": [11, 27],
    },
)
APART = [
    GEORGE_AND_BIFF[0],
    contact(27, "biffsucks", "717171"),
    contact(29, "griff", None, 11),
    replace(contact(30, None, "1", 27), created_at=time_of(29)),
]


def test_a_split_is_undone() -> None:
    """Before the split, all is one identity, without what the split created, and with what it moved."""
    one = Identity(11, ["george", "biffsucks", "griff"], ["919191", "717171", "71 71 71"], [27, 29])
    for contact_id in (11, 27, 29):
        assert as_of(APART, [THEIR_MERGE, SPLIT], contact_id, 30) == one
        assert as_of(APART, [THEIR_MERGE, SPLIT], contact_id, 29) == one
    assert ids(as_of(APART, [THEIR_MERGE, SPLIT], 27, 28)) == [11, 27]
    assert ids(as_of(APART, [THEIR_MERGE, SPLIT], 27, 27)) == [27]
    assert ids(as_of(APART, [THEIR_MERGE, SPLIT], 29, 31)) == [11, 29]
    assert ids(as_of(APART, [THEIR_MERGE, SPLIT], 30, 31)) == [27, 30]
    assert as_of(APART, [THEIR_MERGE, SPLIT], 30, 30) is Absence.UNKNOWN


def test_the_other_part_of_a_split_is_elsewhere() -> None:
    """What a split created for another part need not be among the contacts."""
    assert ids(as_of([APART[0], APART[2]], [THEIR_MERGE, SPLIT], 29, 30)) == [11, 29]


def test_a_link_after_a_split_is_undone() -> None:
    """A steward put together again what was split: between the two, there were two identities."""
    records = [replace(record, linked_id=None if record.id == 11 else 11) for record in APART]
    events = [THEIR_MERGE, SPLIT, entry(32, Kind.LINKED, 11, 27, detail={"contacts": [27, 30]})]

    assert ids(as_of(records, events, 29, 32)) == [11, 27, 29, 30]
    assert ids(as_of(records, events, 29, 31)) == [11, 29]
    assert ids(as_of(records, events, 30, 31)) == [27, 30]
    assert ids(as_of(records, events, 27, 30)) == [11, 27, 29]


def test_a_block_is_undone() -> None:
    """The value comes back, in the text that each contact had; a contact that had nothing else lives again."""
    records = [
        contact(1, "a", None),
        contact(2, "b", None),
        replace(contact(3, None, "+1", 1, deleted=True), phone_key="1"),
    ]
    detail = {
        "moved": [[1, "phoneNumber", None, "+1"], [2, "phoneNumber", None, None]],
        "deleted": [3],
        "roots": [[2, 1, [2]]],
        "parts": [1, 2],
    }
    block = replace(entry(4, Kind.BLOCKED, 1, 2, (None, "1"), detail=detail), primary_id=None, other_id=None)

    assert as_of(records, [block], 2, 3) == Identity(1, ["a", "b"], ["+1"], [2, 3])
    assert as_of(records, [block], 3, 3) == Identity(1, ["a", "b"], ["+1"], [2, 3])
    assert as_of(records, [block], 3, 4) == Identity(1, ["a"], [], [])
    assert as_of(records, [block], 2, 4) == Identity(2, ["b"], [], [])


def test_what_a_guard_took_from_a_row_of_another_program_comes_back() -> None:
    """Contact 2 was inserted with an email of contact 1, from which it is kept apart."""
    detail = {"reason": "kept-apart", "moved": [[2, "email", None, None]], "deleted": []}
    event = entry(3, Kind.WITHHELD, 1, 2, ("a", None), detail=detail)
    merge = entry(4, Kind.MERGED, 1, 2, ("a", "2"))
    records = [contact(1, "a", "1"), contact(2, None, "2", 1)]

    assert as_of(records, [event, merge], 2, 2) == Identity(2, ["a"], ["2"], [])
    assert as_of(records, [event, merge], 2, 3) == Identity(2, [], ["2"], [])
    assert ids(as_of(records, [event, merge], 1, 3)) == [1]


def test_what_a_guard_took_never_joined() -> None:
    """Contact 4 was inserted into the identity of 3 with an email of 1. A merge made all one, after a release."""
    detail = {"reason": "kept-apart", "moved": [[4, "email", None, None]], "deleted": []}
    events = [entry(5, Kind.WITHHELD, 1, 3, ("a", None), detail=detail), entry(6, Kind.MERGED, 1, 3, ("a", "3"))]
    records = [contact(1, "a", "1"), contact(3, "c", "3", 1), contact(4, None, "3", 1)]

    assert as_of(records, events, 4, 4) == Identity(3, ["c", "a"], ["3"], [4])
    assert ids(as_of(records, events, 1, 5)) == [1]


def test_an_erasure_may_have_taken_the_detail() -> None:
    """What is left of the identity counts to what it is now."""
    erased = replace(SPLIT, detail=None)

    assert ids(as_of(APART[:1], [THEIR_MERGE, erased], 11, 28)) == [11]


def test_a_contact_that_a_split_created_has_no_date_of_its_own() -> None:
    """It has the date of the contact that it came from, and was written with the split."""
    assert position_at(APART, [THEIR_MERGE, SPLIT], time_of(29)) == 29
    assert position_at(APART, [THEIR_MERGE, SPLIT], time_of(31)) == 31


def test_a_time_stands_for_the_last_position_written_by_then() -> None:
    """Two positions share a second here; before the first, it is 0."""
    assert time_of(10) < time_of(27) < time_of(28)
    for time, position in [
        (START, 0),
        (time_of(11), 11),
        (time_of(27), 27),
        (time_of(28) - timedelta(microseconds=1), 27),
        (time_of(28), 28),
        (time_of(99), 28),
    ]:
        assert position_at(GEORGE_AND_BIFF, [THEIR_MERGE], time) == position


def large_identities() -> dict[str, tuple[list[Record], list[Event]]]:
    """Identities of 10,000 contacts on one phone number: from requests, from repairs, edited and deleted."""
    many = range(2, 10_001)
    hub = [contact(1, "e1", "1"), *(contact(n, f"e{n}", "1", 1) for n in many)]
    separate = [contact(1, "e1", "1"), *(contact(2 * n, f"e{n}", "1", 1) for n in many)]
    return {
        "requests": (hub, []),
        "merges": (
            [contact(1, "e1", "1"), *(contact(n, f"e{n}", str(n), 1) for n in many)],
            [entry(10_000 + n, Kind.MERGED, 1, n, (f"e{n - 1}", str(n))) for n in many],
        ),
        "repairs": (
            separate,
            [entry(2 * n + 1, Kind.MENDED, 1, 2 * n, (None, "1"), detail={"contacts": [2 * n]}) for n in many],
        ),
        "edits": (hub, [entry(10_000 + n, Kind.EDITED, 1, n, detail={"email": f"old{n}"}) for n in many]),
        "splits": (
            [contact(1, "e1", "1"), *(contact(n, f"e{n}", None) for n in many)],
            [
                entry(
                    10_000 + n,
                    Kind.SPLIT,
                    1,
                    0,
                    detail={"moved": [[n, "phoneNumber", 1, None]], "roots": [[n, 1, [n]]]},
                )
                for n in many
            ],
        ),
        "deletes": (
            [replace(record, deleted_at=START) for record in hub],
            [entry(10_000 + n, Kind.DELETED, 1, n) for n in many],
        ),
    }


@pytest.mark.parametrize("shape", ["requests", "merges", "repairs", "edits", "splits", "deletes"])
def test_large_identities_take_time_in_proportion(shape: str) -> None:
    """10,000 contacts take about 0.2 s of CPU; an algorithm that undid event by event would take a minute."""
    records, events = large_identities()[shape]
    started = process_time()

    assert isinstance(as_of(records, events, 2 if shape != "repairs" else 4, 10_000), Identity)

    assert process_time() - started < 3
