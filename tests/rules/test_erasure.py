"""What an erasure looks for, and what it leaves of events."""

from datetime import UTC, datetime
from typing import Any

import pytest

from recon.rules.digests import digest
from recon.rules.erasure import Quotes, Traces, candidates, scrubbed
from recon.rules.identifiers import plain_key, regional_key
from recon.rules.journal import Event, Kind
from recon.rules.links import Identifier

EMAIL, PHONE = Identifier("email", "george@hillvalley.edu"), Identifier("phoneNumber", "12015550123")
TRACES = Traces(
    frozenset({1, 2}),
    frozenset({EMAIL, PHONE, Identifier("email", "john doe")}),
    frozenset({EMAIL.key, PHONE.key, "(201) 555-0123", "john doe"}),
)


def event(kind: Kind, **members: Any) -> Event:
    """An event of which only these members are set."""
    empty = dict.fromkeys(
        ("primary_id", "other_id", "email", "phone_number", "phone_key", "source", "note", "detail", "undone_by")
    )
    return Event(9, datetime(2026, 1, 1, tzinfo=UTC), kind, **{**empty, **members})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "note",
    [
        "not george@hillvalley.edu.",
        "GEORGE@HILLVALLEY.EDU called",
        "called from (201) 555-0123",
        "called from +1 201 555 0123, twice",
        "<george@hillvalley.edu>",
        "called himself John Doe",
        "see george@hillvalley.edu/biff@hillvalley.edu",
        "mail=George@hillvalley.edu",
        "“george@hillvalley.edu”",
        "*george@hillvalley.edu*",
        "support-george@hillvalley.edu",
        "12125550199 2015550123",
        "2 0 1 5 5 5 0 1 2 3",
        "(201)555-0123/7",
        "\uff12\uff10\uff11\uff15\uff15\uff15\uff10\uff11\uff12\uff13",
    ],
)
def test_notes_that_quote_the_person(note: str) -> None:
    """Any form of an identifier counts."""
    assert Quotes(TRACES, regional_key("US")).found_in(note)


@pytest.mark.parametrize(
    "note", ["", "not george@hillvalley.education", "555-0123", "Doe, John", "12015550123456", "agent 99 201"]
)
def test_notes_that_do_not(note: str) -> None:
    """A longer value that contains an identifier is another one."""
    assert not Quotes(TRACES, plain_key).found_in(note)


@pytest.mark.parametrize(
    ("note", "is_quoted"),
    [("call 3141592653", True), ("call 314-159-2653 x", True), ("31415926535", True), ("ext. 5", False), ("44", False)],
)
def test_notes_that_quote_a_number_without_its_letters(note: str, is_quoted: bool) -> None:
    """The number before an extension counts, and all its digits together; not the few digits of a name."""
    values = frozenset({Identifier("phoneNumber", "314-159-2653 ext. 5"), Identifier("phoneNumber", "desk 44")})

    quotes = Quotes(Traces(frozenset({1}), values, frozenset(value.key for value in values)), plain_key)

    assert quotes.found_in(note) is is_quoted


def test_what_a_contact_had_before_an_edit() -> None:
    """The event of an edit states what was there until then: either, or both."""
    edits = [
        event(Kind.EDITED, primary_id=1, other_id=1, detail={"email": EMAIL.key}),
        event(Kind.DELETED, primary_id=1, other_id=1, detail={"phoneKey": PHONE.key, "phoneNumber": "(201) 555-0123"}),
    ]

    assert candidates([], edits) == {EMAIL: {EMAIL.key}, PHONE: {PHONE.key, "(201) 555-0123"}}


def test_an_event_about_the_person_alone() -> None:
    """Only what it was, when, and the ids of the contacts stay."""
    merged = event(Kind.MERGED, primary_id=1, other_id=2, email=EMAIL.key, phone_number="x", phone_key="y", note="n")

    assert scrubbed(merged, TRACES, names=True) == event(Kind.MERGED, primary_id=1, other_id=2)


def test_an_event_about_others_too() -> None:
    """What it says of others stays, with what is needed to undo it for them."""
    split = event(
        Kind.SPLIT,
        primary_id=1,
        note="two people",
        detail={
            "cut": ["event:3"],
            "moved": [[7, "phoneNumber", 2, "(201) 555-0123"], [7, "phoneNumber", 8, "5"], [7, "email", 8, None]],
            "created": [2, 8],
            "deleted": [],
            "roots": [[7, 1, [7, 8]], [2, 1, [2]], [8, 1, [1, 8]]],
            "links": [[{"email": EMAIL.key}, {"email": "biff"}]],
            "left": [[4, {"phoneNumber": PHONE.key}], [4, {"email": "biff"}]],
            "parts": [1, 7],
            "apart": True,
        },
    )

    left = scrubbed(split, TRACES, names=True)

    assert left == event(
        Kind.SPLIT,
        primary_id=1,
        detail={
            "cut": ["event:3"],
            "moved": [[7, "phoneNumber", 8, "5"], [7, "email", 8, None]],
            "created": [8],
            "deleted": [],
            "roots": [[7, 1, [7, 8]], [8, 1, [8]]],
            "links": [[{"email": "biff"}]],
            "left": [[4, {"email": "biff"}]],
            "parts": [1, 7],
            "apart": True,
        },
    )


def test_an_event_about_others_alone() -> None:
    """It is the same object."""
    other = event(Kind.KEPT_APART, primary_id=7, other_id=8, note="two people")

    assert scrubbed(other, TRACES, names=False) is other


def test_a_blocked_value_stays() -> None:
    """It identifies nobody, so it is no person's."""
    blocked = event(Kind.BLOCKED, primary_id=1, email="noreply@shop.example", note="the shop's own")

    assert scrubbed(blocked, TRACES, names=True) is blocked


def test_digests() -> None:
    """A digest depends on the key, the kind and the identifier."""
    found = {
        digest(key, Identifier(kind, text))
        for key in (b"a", b"b")
        for kind in ("email", "phoneNumber")
        for text in ("1", "2")
    }

    assert len(found) == 8
    assert all(len(each) == 64 for each in found)


def test_a_note_of_many_equal_numbers() -> None:
    """Deriving a match key is slow in a region, so each text gets its key once."""
    derived = []

    def phone_key(phone: str) -> str:
        derived.append(phone)
        return plain_key(phone)

    value = Identifier("phoneNumber", "8881111")
    quotes = Quotes(Traces(frozenset({1}), frozenset({value}), frozenset({value.key})), phone_key)

    assert not quotes.found_in("1 " * 500)
    assert len(derived) < 50
