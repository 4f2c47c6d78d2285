"""What guards keep apart now, by hand."""

import pytest

from recon.rules.guards import Mark
from recon.rules.journal import Kind
from recon.rules.review import Facts, KeptApart, Limits, constraints, is_open
from tests.harness.chronicle import entry

NO_LIMITS, NO_MARKS = Limits(0, 0), frozenset[Mark]()
ONE_SIDE, OTHER_SIDE = frozenset({Mark(31, 0, 0)}), frozenset({Mark(31, 0, 1)})


def facts(emails: int, phones: int, marks: frozenset[Mark] = NO_MARKS, primary_id: int | None = 1) -> Facts:
    """An identity with so many identifiers."""
    return Facts(primary_id, emails, phones, marks)


@pytest.mark.parametrize(
    ("email", "phone", "limits", "expected"),
    [
        (facts(1, 1, ONE_SIDE), facts(1, 1, OTHER_SIDE), NO_LIMITS, True),
        (facts(1, 1, ONE_SIDE), facts(1, 1, ONE_SIDE), NO_LIMITS, False),
        (facts(1, 2), facts(1, 1), Limits(0, 2), True),
        (facts(1, 2), facts(1, 1), Limits(0, 3), False),
        (facts(2, 1), facts(1, 1), Limits(2, 0), True),
        (facts(3, 1), facts(0, 1), Limits(2, 0), False),  # the other one brings no email
        (facts(1, 2), None, Limits(0, 2), True),
        (None, facts(2, 1), Limits(2, 0), True),
        (None, facts(2, 1), Limits(0, 2), False),
        (None, None, Limits(1, 1), False),
    ],
)
def test_whether_a_link_is_withheld_still(
    email: Facts | None, phone: Facts | None, limits: Limits, *, expected: bool
) -> None:
    """By the marks of the two identities, or because one would have more emails or phone numbers than the limit."""
    assert is_open(email, phone, limits) is expected


def test_constraints_in_force() -> None:
    """Each event, by position, with the primaries on the other sides; who has no live contact has no primary."""
    events = [entry(position, Kind.KEPT_APART, 1, 2) for position in (40, 31, 50)]
    own = [Mark(31, 0, 0), Mark(40, 0, 1)]
    others = [
        facts(1, 0, frozenset({Mark(31, 0, 1), Mark(40, 0, 0)}), primary_id=9),
        facts(1, 0, OTHER_SIDE, primary_id=7),
        facts(0, 0, OTHER_SIDE, primary_id=None),
        facts(1, 0, ONE_SIDE, primary_id=8),
    ]

    assert constraints(own, others, events) == [KeptApart(events[1], [7, 9]), KeptApart(events[0], [9])]
