"""Numbers with their nouns."""

import pytest

from recon.quantities import quantity


@pytest.mark.parametrize(
    ("number", "contacts", "people"),
    [(0, "0 contacts", "0 people"), (1, "1 contact", "1 person"), (2, "2 contacts", "2 people")],
)
def test_singular_and_plural(number: int, contacts: str, people: str) -> None:
    """One has the singular; every other number, zero too, has the plural."""
    assert quantity(number, "contact") == contacts
    assert quantity(number, "person", "people") == people
