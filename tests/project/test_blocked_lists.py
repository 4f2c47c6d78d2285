"""The lists of values that identify nobody, which the docs have for `recon block --from`."""

import re
from collections.abc import Callable

import pytest

from recon.rules.guards import COMMON, Kind, is_common
from recon.rules.identifiers import normal_email, normal_phone, plain_key
from tests.harness import ROOT

FOLDER = ROOT / "docs" / "blocked"


def values(name: str) -> list[str]:
    """The values of a list: a line each, without comments and empty lines."""
    lines = (FOLDER / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def phone_key(text: str) -> str | None:
    """The match key of a phone number."""
    phone = normal_phone(text)
    return phone and plain_key(phone)


_, _, _OWN_LIST = (ROOT / "docs" / "identities.md").read_text().partition("**recon's own list**")
_OWN_LIST, _, _ = _OWN_LIST.partition("\n## ")

LISTS: list[tuple[str, Kind, Callable[[str], str | None], int]] = [
    ("emails.txt", "email", normal_email, 200),
    ("phones.txt", "phoneNumber", phone_key, 100),
]


@pytest.mark.parametrize(("name", "kind", "match_key", "least"), LISTS)
def test_each_line_is_an_identifier(name: str, kind: Kind, match_key: Callable[[str], str | None], least: int) -> None:
    """Each is written as its match key, is there once, and is not in recon's own list, which needs no loading."""
    found = values(name)

    assert [match_key(value) for value in found] == found
    assert sorted(found) == sorted(set(found))
    assert [value for value in found if is_common(kind, value)] == []
    assert len(found) >= least


def test_a_reader_tells_emails_from_phone_numbers() -> None:
    """Each email has an @, and each phone number digits only, whatever reads the two files."""
    assert [email for email in values("emails.txt") if email.count("@") != 1 or " " in email] == []
    assert [phone for phone in values("phones.txt") if not (phone.isascii() and phone.isdigit())] == []


def test_the_lists_begin_with_the_obvious() -> None:
    """The lists have what operators expect to find first."""
    assert {"test@test.com", "noreply@gmail.com"} <= set(values("emails.txt"))
    assert {"1234567890", "1111111111", "9999999999"} <= set(values("phones.txt"))


def test_the_page_has_recons_own_list() -> None:
    """docs/identities.md has all its texts, sorted."""
    [shown] = re.findall(r"^```text\n(.*?)^```", _OWN_LIST, flags=re.DOTALL | re.MULTILINE)

    assert re.split(r",\s", shown.rstrip()) == sorted(COMMON)


@pytest.mark.parametrize(
    ("begins", "kinds"), [("phone numbers", ["phoneNumber"]), ("values", ["email", "phoneNumber"])]
)
def test_the_page_has_the_rules_of_recons_own_list(begins: str, kinds: list[Kind]) -> None:
    """What the page says to be on the list is there, for each kind of value, and what it says not to be is not."""
    [row] = re.findall(rf"^\| {begins} [^|]*\|([^|]*)\|([^|]*)\|$", _OWN_LIST, flags=re.MULTILINE)
    on_it, not_on_it = (re.findall("`(.*?)`", cell) for cell in row)

    assert on_it
    assert [value for value in on_it for kind in kinds if not is_common(kind, value)] == []
    assert not_on_it
    assert [value for value in not_on_it for kind in kinds if is_common(kind, value)] == []
