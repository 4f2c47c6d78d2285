"""The plans of blocks, by hand."""

from recon.rules.changes import Loss
from recon.rules.journal import Kind
from recon.rules.splits import block
from tests.harness.chronicle import contact, entry
from tests.harness.plans import email, held, phone


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
