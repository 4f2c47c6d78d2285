"""Looking up what stewards divided, kept apart and erased: the past, the history, links and why."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.errors import Erased, NotFound
from recon.identities.batching import coalesced
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify
from recon.identities.lookup import Lookup
from recon.rules.clusters import Identity
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Event
from tests.harness.databases import execute, fetch
from tests.harness.steward import AS_RECON, NOTE, erase, event, split_george_and_biff, withhold


def _request(email: str | None, phone: str | None = None, source: str | None = None) -> Identifiers:
    return Identifiers(email, phone, phone, source)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database of this test's own."""
    async with Database(database_url).opened() as database:
        yield database


@pytest.fixture
async def lookup(database: Database, database_url: str) -> Lookup:
    """George (contact 1) and Biff (2) were merged by event 3, and split and kept apart by event 5."""
    identify = coalesced(Identify(database, identify_response), 100, Deadlines(30))
    await identify(_request("george", "919191", "till"))
    await identify(_request("biff", "717171"))
    await identify(_request("george", "717171", "shop"))
    await split_george_and_biff(database_url)
    return Lookup(database)


GEORGE, BIFF = Identity(1, ["george"], [], []), Identity(2, ["biff"], ["717171", "919191"], [4])
BOTH = Identity(1, ["george", "biff"], ["919191", "717171"], [2])


async def test_before_a_split(lookup: Lookup) -> None:
    """From either side, the identity before the split is shown whole, and without contact 4, which came with it."""
    assert await lookup.show(1) == await lookup.show(1, 5) == GEORGE
    assert await lookup.show(4) == await lookup.show(4, 5) == BIFF
    assert await lookup.show(1, 4) == await lookup.show(2, 3) == BOTH
    assert await lookup.show(2, 2) == Identity(2, ["biff"], ["717171"], [])
    with pytest.raises(NotFound, match="then"):
        await lookup.show(4, 4)


async def test_before_a_split_by_time(lookup: Lookup, database_url: str) -> None:
    """Contact 4 has the date of contact 1, but was not there until the split."""
    await execute(
        database_url,
        "UPDATE contact SET created_at = '2026-11-21 12:00Z' WHERE id IN (1, 4)",
        "UPDATE contact SET created_at = '2026-11-21 13:00Z' WHERE id = 2",
        "UPDATE event SET at = '2026-11-21 14:00Z' WHERE id = 3",
        "UPDATE event SET at = '2026-11-21 15:00Z' WHERE id = 5",
    )
    [noon, one, two, three] = [
        row[0]
        for row in await fetch(
            database_url,
            "SELECT at FROM (SELECT created_at AS at FROM contact UNION SELECT at FROM event) AS a ORDER BY at",
        )
    ]

    assert await lookup.show(1, noon) == Identity(1, ["george"], ["919191"], [])
    assert await lookup.show(2, one) == Identity(2, ["biff"], ["717171"], [])
    assert await lookup.show(2, two) == BOTH
    assert (await lookup.show(1, three)).secondary_ids == []
    with pytest.raises(NotFound, match="then"):
        await lookup.show(4, two)


async def test_before_the_second_of_two_splits(lookup: Lookup, database_url: str) -> None:
    """Contact 4 was split off from Biff later: event 6, which does not name George. The first split is undone, too."""
    detail = {"moved": [], "created": [], "deleted": [], "roots": [[4, 2, [4]]], "parts": [2, 4], "apart": False}
    await execute(
        database_url,
        AS_RECON,
        "UPDATE contact SET linked_id = NULL, link_precedence = 'primary' WHERE id = 4",
        *event(6, "split", detail, about=(2, 4), primary_id=2),
    )

    assert await lookup.show(4) == Identity(4, [], ["919191"], [])
    assert await lookup.show(4, 5) == await lookup.show(2, 5) == BIFF
    assert await lookup.show(1, 3) == await lookup.show(2, 4) == BOTH
    history = await lookup.history(4)
    assert [entry.id for entry in history.entries] == [4, 6]


async def test_before_a_link_after_a_split(lookup: Lookup, database_url: str) -> None:
    """What a steward split and linked again was two identities between."""
    await execute(
        database_url,
        AS_RECON,
        "UPDATE contact SET linked_id = 1, link_precedence = 'secondary' WHERE id = 4",
        "UPDATE contact SET linked_id = 1, link_precedence = 'secondary' WHERE id = 2",
        "UPDATE contact SET apart = NULL",
        *event(6, "linked", {"joins": [], "contacts": [2, 4], "released": [5]}, primary_id=1, other_id=2),
    )

    assert (await lookup.show(2, 6)).secondary_ids == [4, 2]
    assert await lookup.show(1, 5) == GEORGE
    assert await lookup.show(4, 5) == BIFF
    assert await lookup.show(2, 4) == BOTH


async def test_both_sides_show_the_split(lookup: Lookup) -> None:
    """Each part's history has the split, with who made it and why; the pages add up."""
    for contact_id, expected in ((1, [1, 3, 5]), (2, [2, 3, 4, 5])):
        entries: list[Any] = (await lookup.history(contact_id)).entries
        assert [entry.id for entry in entries] == expected
        assert (entries[-1].kind, entries[-1].source, entries[-1].note) == ("split", "desk", NOTE)
        first = await lookup.history(contact_id, limit=2)
        rest = await lookup.history(contact_id, after=first.next or 0, limit=100)
        assert [entry.id for entry in (*first.entries, *rest.entries)] == expected


async def test_links_say_from_whom_it_is_kept_apart(lookup: Lookup) -> None:
    """Either side names the other one's primary, and the event."""
    for contact_id, other in ((1, 2), (4, 1)):
        [kept] = (await lookup.links(contact_id)).kept_apart
        assert (kept.event.id, kept.contact_ids, kept.event.note) == (5, [other], NOTE)
    assert (await lookup.links(1, after=5)).kept_apart == []


async def test_a_side_that_was_split_again(lookup: Lookup, database_url: str) -> None:
    """Contact 4 left Biff: George is kept apart from both."""
    detail = {"roots": [[4, 2, [4]]], "parts": [2, 4], "apart": False}
    await execute(
        database_url,
        AS_RECON,
        "UPDATE contact SET linked_id = NULL, link_precedence = 'primary' WHERE id = 4",
        *event(6, "split", detail, about=(2, 4), primary_id=2),
    )

    [kept] = (await lookup.links(1)).kept_apart

    assert kept.contact_ids == [2, 4]
    assert (await lookup.links(4)).kept_apart[0].contact_ids == [1]
    assert (await lookup.why(4, 2)).kept_apart == []


async def test_released(lookup: Lookup, database_url: str) -> None:
    """Without marks, nothing is kept apart."""
    await execute(database_url, AS_RECON, "UPDATE contact SET apart = NULL")

    assert (await lookup.links(1)).kept_apart == (await lookup.why(1, 2)).kept_apart == []


async def test_why_two_are_kept_apart(lookup: Lookup) -> None:
    """It says who decided it, when and why."""
    why = await lookup.why(_request("george"), _request(None, "919191"))

    assert why.path is None
    assert [(kept.event.id, kept.contact_ids) for kept in why.kept_apart] == [(5, [1, 2])]
    assert why.sentence.startswith("george and 919191 are two people, contact 1 and contact 2: a steward (desk) keeps")
    assert why.sentence.endswith(f"(event 5): {NOTE}.")


async def test_a_link_that_is_withheld_because_two_are_kept_apart(lookup: Lookup, database_url: str) -> None:
    """It is open for both sides, in the review list and in why, until the constraint is lifted."""
    await withhold(database_url, 6, ("george", "717171"), "kept-apart", (1, 2))

    for contact_id in (1, 2, 4):
        assert _ids((await lookup.links(contact_id)).withheld) == [6]
    why = await lookup.why(1, 2)
    assert _ids(why.withheld) == _ids((await lookup.withheld()).entries) == [6]
    assert "recon withheld a link between george and 717171 on " in why.sentence

    await execute(database_url, AS_RECON, "UPDATE contact SET apart = NULL")
    assert (await lookup.links(1)).withheld == (await lookup.why(1, 2)).withheld == []
    assert (await lookup.withheld()).entries == []


async def test_a_link_that_is_withheld_because_of_a_limit(lookup: Lookup, database_url: str) -> None:
    """It is open while the phone number would be too many: not with a higher limit, and not if it is there."""
    await withhold(database_url, 6, ("biff", "555"), "limit", (2, None))
    await execute(database_url, "UPDATE setting SET max_phones = 2")
    assert _ids((await lookup.links(2)).withheld) == _ids((await lookup.withheld()).entries) == [6]
    assert (await lookup.links(1)).withheld == []

    await execute(database_url, "UPDATE setting SET max_phones = 3")
    assert (await lookup.withheld()).entries == []

    await execute(database_url, "UPDATE setting SET max_phones = 2", *_contact_of_biff("555"))
    assert (await lookup.withheld()).entries == []


def _contact_of_biff(phone: str) -> list[str]:
    columns = "phone_number, phone_key, linked_id, link_precedence"
    return [f"INSERT INTO contact ({columns}) VALUES ('{phone}', '{phone}', 2, 'secondary')"]


@pytest.mark.parametrize(
    "closing",
    [
        "UPDATE event SET undone_by = 7 WHERE id = 6",
        "INSERT INTO blocked VALUES ('email', 'george', NULL, 7)",
        "INSERT INTO blocked VALUES ('phoneNumber', '717171', '717171', 7)",
        "UPDATE event SET email = NULL, phone_number = NULL, phone_key = NULL WHERE id = 6",
    ],
    ids=["dismissed", "email blocked", "phone blocked", "erased"],
)
async def test_a_withheld_link_is_closed(closing: str, lookup: Lookup, database_url: str) -> None:
    """A steward dismissed it, or one of the two values was blocked or erased."""
    await withhold(database_url, 6, ("george", "717171"), "kept-apart", (1, 2))
    await execute(database_url, closing)

    assert (await lookup.links(1)).withheld == (await lookup.withheld()).entries == []


async def test_pages_of_the_review_list_add_up(lookup: Lookup, database_url: str) -> None:
    """A page may have fewer than it could, when some are closed."""
    await execute(database_url, "UPDATE setting SET max_phones = 2")
    for number in range(6, 12):
        await withhold(database_url, number, ("biff", f"{number}"), "limit", (2, None))
    await execute(database_url, "UPDATE event SET undone_by = 12 WHERE id = 8")

    found, after = [], 0
    while True:
        page = await lookup.withheld(after, 2)
        found += _ids(page.entries)
        if page.next is None:
            break
        after = page.next

    assert found == [6, 7, 9, 10, 11]


def _ids(events: list[Event]) -> list[int]:
    return [event.id for event in events]


async def test_an_erased_identity(lookup: Lookup, database_url: str) -> None:
    """It is gone, now and for any time, and so are its links, its history and why; the other side stays."""
    await execute(database_url, "UPDATE event SET primary_id = NULL, detail = NULL WHERE id = 5")
    await erase(database_url, 1)

    for position in (None, 1, 3, 5, 99):
        with pytest.raises(Erased):
            await lookup.show(1, position)
    for read in (lookup.links, lookup.history):
        with pytest.raises(Erased):
            await read(1)
    with pytest.raises(Erased):
        await lookup.why(1, 2)
    assert await lookup.show(2) == BIFF
    assert isinstance(await lookup.show(2, 3), Identity)
    assert [entry.id for entry in (await lookup.history(2)).entries] == [2, 3, 4, 5]
