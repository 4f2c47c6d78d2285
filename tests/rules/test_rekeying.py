"""New match keys: which key a stored phone number gets, and what becomes of the details of events."""

from typing import Any

import pytest

from recon.rules.identifiers import plain_key, regional_key
from recon.rules.journal import Kind
from recon.rules.rekeying import new_key, old_keys, rekeyed


@pytest.mark.parametrize(
    ("phone", "plain", "american"),
    [
        ("(201) 555-0123", "2015550123", "12015550123"),
        ("+1 201 555 0123", "12015550123", "12015550123"),
        (" 5-5\n", "55", "55"),  # another program stored the blanks
        ("Ext. 5", "ext. 5", "ext. 5"),
        ("5\x005", None, None),
        ("5" * 65, None, None),
        ("  ", None, None),
    ],
)
def test_the_key_of_a_stored_phone_number(phone: str, plain: str | None, american: str | None) -> None:
    """It is that of a request with this number; a text that no request can have gets none."""
    assert (new_key(phone, plain_key), new_key(phone, regional_key("US"))) == (plain, american)


def phone(*keys: str) -> list[dict[str, str]]:
    """Members of an operator link."""
    return [{"phoneNumber": key} for key in keys]


US = "(201) 555-0123"
A: dict[str, str] = {"email": "a"}
KEYS = {"1": ["11"], "2": ["21", "22"], "3": ["11"]}


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (Kind.LINKED, {"joins": [A, *phone("1")], "contacts": [1]}, {"joins": [A, *phone("11")], "contacts": [1]}),
        (Kind.LINKED, {"joins": [A, *phone("9")]}, {"joins": [A, *phone("9")]}),
        (Kind.LINKED, {"joins": [A, *phone("2")]}, {"joins": [A, *phone("21", "22")]}),
        (Kind.LINKED, {"joins": [A, *phone("1", "3")]}, {"joins": [A, *phone("11")]}),
        (
            Kind.SPLIT,
            {"cut": ["event:3"], "links": [phone("1", "2"), [A]], "left": [[4, A], [4, *phone("2")]]},
            {
                "cut": ["event:3"],
                "links": [phone("11", "21", "22"), [A]],
                "left": [[4, A], [4, *phone("21")], [4, *phone("22")]],
            },
        ),
        (Kind.BLOCKED, {"left": [[4, *phone("3")]]}, {"left": [[4, *phone("11")]]}),
        (Kind.EDITED, {"phoneKey": "9", "phoneNumber": US}, {"phoneKey": "12015550123", "phoneNumber": US}),
        (Kind.EDITED, {"phoneKey": "9", "phoneNumber": "\x00"}, {"phoneKey": "9", "phoneNumber": "\x00"}),
        (Kind.EDITED, {"phoneKey": "1"}, {"phoneKey": "11"}),
        (Kind.DELETED, {"phoneKey": "2"}, {"phoneKey": "2"}),
        (Kind.EDITED, {"phoneKey": "9"}, {"phoneKey": "9"}),
        (Kind.EDITED, {"phoneKey": None, "phoneNumber": None}, {"phoneKey": None, "phoneNumber": None}),
    ],
)
def test_the_detail_of_an_event(kind: Kind, before: dict[str, Any], after: dict[str, Any]) -> None:
    """An old key becomes the keys of the contacts that had it; one that none had stays."""
    given = repr(before)

    assert rekeyed(kind, before, KEYS, regional_key("US")) == after
    assert repr(before) == given


def test_the_keys_of_a_detail() -> None:
    """The keys of all members of operator links, and that of a contact before an edit."""
    detail = {"joins": [A, *phone("1")], "links": [phone("2", "3")], "left": [[4, *phone("5")], [4, A]]}

    assert old_keys(detail) == {"1", "2", "3", "5"}
    assert old_keys({"phoneKey": "6"}) == {"6"}
    assert old_keys({"phoneKey": None}) == set()
