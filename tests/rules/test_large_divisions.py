"""Plans for large identities take time in proportion."""

from time import process_time

import pytest

from recon.rules.journal import Event, Kind, Record
from recon.rules.splits import block, split_links, split_parts
from tests.harness.chronicle import contact, entry
from tests.harness.plans import email, phone

MANY = 10_000


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
