"""Looking identities up: now, as they were, their links, their history, and why they are one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recon.api.messages import identify_response
from recon.database.transactions import Connection, Database
from recon.errors import Deleted, NotFound
from recon.identities.batching import coalesced, plain
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify
from recon.identities.lookup import MAX_ID, Lookup
from recon.rules.clusters import Identity
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Kind
from recon.settings import DatabaseSettings
from recon.sql.contacts import LARGE
from tests.harness.databases import execute, fetch

# Few values, so that they meet often.
SAID = st.tuples(st.sampled_from([None, *"abcdef"]), st.sampled_from([None, *"123456"])).filter(any)


def _request(email: str | None, phone: str | None = None, source: str | None = None) -> Identifiers:
    return Identifiers(email, phone, phone, source)


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "plain"])
@pytest.mark.parametrize("at_once", [1, 8], ids=["sequential", "concurrent"])
def test_every_answer_can_be_shown_again(at_once: int, coalesce: bool, lane: bool, database_url: str) -> None:
    """As of its position, the identity of each answer is what the answer said; as of the last one, it is as it is now.

    Proved is, for every answer of a random history: sequentially, it is the identity as of the last position that was
    written when it came. Concurrently nobody can know that position, but one exists: the answer is the identity as of
    some position from the last one before its eight requests began up to the last one when all were answered. Hence no
    state was shown that the journal does not have, and none from before or after the time of the request.
    """

    async def scenario(said: list[tuple[str | None, str | None]]) -> None:
        async with Database(database_url, DatabaseSettings(writer_lane=lane)).opened() as database:
            identify, lookup = Identify(database, identify_response), Lookup(database)
            one = coalesced(identify, 100, Deadlines(30)) if coalesce else plain(identify, 100, Deadlines(30), 8)
            answers: list[tuple[bytes, range]] = []
            before = 0
            for start in range(0, len(said), at_once):
                found = await asyncio.gather(*(one(_request(*each)) for each in said[start : start + at_once]))
                after = await database.reading("test", _last_position)
                answers += [(answer, range(after if at_once == 1 else before, after + 1)) for answer in found]
                before = after
            for answer, positions in answers:
                await _require_shown(lookup, answer, positions)
            for row in await fetch(database_url, "SELECT id FROM contact"):
                assert await lookup.show(row["id"], before) == await lookup.show(row["id"])
        await execute(database_url, "TRUNCATE contact RESTART IDENTITY")

    @settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
    @given(st.lists(SAID, min_size=16, max_size=24))
    def holds(said: list[tuple[str | None, str | None]]) -> None:
        asyncio.run(scenario(said))

    holds()


async def _last_position(connection: Connection) -> int:
    last: int = await connection.fetchval("SELECT max(id) FROM (SELECT id FROM contact UNION ALL SELECT id FROM event)")
    return last


async def _require_shown(lookup: Lookup, answer: bytes, positions: range) -> None:
    """Require that the answer is the identity of its first contact as of one of the positions."""
    contact_id = int(answer.split(b":", 2)[2].split(b",")[0])
    shown = []
    for position in positions:
        try:
            shown.append(identify_response(await lookup.show(contact_id, position)))
        except NotFound:  # not written yet
            continue
    assert answer in shown


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database of this test's own."""
    async with Database(database_url).opened() as database:
        yield database


@pytest.fixture
async def lookup(database: Database) -> Lookup:
    """George is contact 1, Biff contact 2, and a request of the shop makes them one person: event 3."""
    identify = coalesced(Identify(database, identify_response), 100, Deadlines(30))
    await identify(_request("george", "919191", "till"))
    await identify(_request("biff", "717171"))
    await identify(_request("george", "717171", "shop"))
    return Lookup(database)


BOTH = Identity(1, ["george", "biff"], ["919191", "717171"], [2])


async def test_lookup_finds_by_each_identifier(lookup: Lookup) -> None:
    """None, one or two identities hold the identifiers; one that holds both comes once."""
    await lookup._database.serializable(
        "test", lambda connection: connection.execute("INSERT INTO contact (email) VALUES ('marty')")
    )
    marty = Identity(4, ["marty"], [], [])

    assert await lookup.lookup(_request("nobody", "1")) == []
    assert await lookup.lookup(_request("biff")) == [BOTH]
    assert await lookup.lookup(_request("george", "717171")) == [BOTH]
    assert await lookup.lookup(_request("marty", "919191")) == [marty, BOTH]
    assert await lookup.lookup(_request(None, "919191")) == [BOTH]


async def test_show_now_and_then(lookup: Lookup) -> None:
    """Any contact leads to the identity; before the merge there were two; before its contact there was none."""
    assert await lookup.show(2) == await lookup.show(1) == await lookup.show(2, 3) == await lookup.show(1, 99) == BOTH
    assert await lookup.show(1, 2) == Identity(1, ["george"], ["919191"], [])
    assert await lookup.show(2, 2) == Identity(2, ["biff"], ["717171"], [])
    with pytest.raises(NotFound, match="then"):
        await lookup.show(2, 1)


@pytest.mark.parametrize("contact_id", [0, 3, 99, MAX_ID, MAX_ID + 1])
async def test_a_contact_that_never_was(contact_id: int, lookup: Lookup) -> None:
    """An id that no contact has is not found: also that of an event, or one that PostgreSQL could not store."""
    for read in (lookup.show, lookup.links, lookup.history):
        with pytest.raises(NotFound):
            await read(contact_id)
    with pytest.raises(NotFound):
        await lookup.why(1, contact_id)


async def test_an_identity_without_a_live_contact(lookup: Lookup, database_url: str) -> None:
    """It is gone, but its past and its history can be seen. A soft-deleted contact leads to what is left."""
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE id = 1")  # event 4
    left = await lookup.show(1)
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE id = 2")  # event 5

    assert left == Identity(2, ["biff"], ["717171"], [])
    for read in (lookup.show, lookup.links):
        with pytest.raises(Deleted):
            await read(1)
    with pytest.raises(Deleted):
        await lookup.why(1, 2)
    with pytest.raises(Deleted, match="then"):
        await lookup.show(1, 5)
    assert await lookup.show(1, 4) == left
    assert await lookup.show(1, 3) == BOTH
    history = await lookup.history(2)
    assert [entry.id for entry in history.entries] == [1, 2, 3, 4, 5]


async def test_links(lookup: Lookup) -> None:
    """Each contact with two identifiers is a link, and so is the merge; soft-deleted contacts are not."""
    page = await lookup.links(2)

    assert [record.id for record in page.contacts] == [1, 2]
    assert [link.name for link in page.links] == ["contact:1", "contact:2", "event:3"]
    assert [link.source for link in page.links] == ["till", None, "shop"]
    assert page.next is None


async def test_history(lookup: Lookup) -> None:
    """Contacts and events are one list, by position."""
    history = await lookup.history(2)

    assert [(entry.id, entry.source) for entry in history.entries] == [(1, "till"), (2, None), (3, "shop")]
    merge: Any = history.entries[2]
    assert (merge.kind, merge.primary_id, merge.other_id) == (Kind.MERGED, 1, 2)
    assert history.next is None


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_add_up(limit: int, lookup: Lookup, database_url: str) -> None:
    """Pages of each size, walked to the end, have every position once, in order."""
    await execute(
        database_url,
        "INSERT INTO contact (email, linked_id, link_precedence) SELECT 'e' || n, 1, 'secondary' "
        "FROM generate_series(4, 9) AS n",
        "UPDATE contact SET deleted_at = now() WHERE id = 5",  # event 10
    )
    linked, written, after = [], [], 0
    while True:
        page = await lookup.links(1, after, limit)
        linked += [*page.contacts, *page.links]
        assert len({item.id for item in (*page.contacts, *page.links)}) <= limit
        if page.next is None:
            break
        after = page.next
    after = 0
    while True:
        entries = await lookup.history(1, after, limit)
        written += [entry.id for entry in entries.entries]
        if entries.next is None:
            break
        after = entries.next

    assert written == [*range(1, 11)]
    assert sorted({item.id for item in linked}) == [1, 2, 3, 4, 6, 7, 8, 9]
    names = [item.name for item in linked if hasattr(item, "name")]
    assert names == ["contact:1", "contact:2", "event:3", *(f"unexplained:{n}" for n in (4, 6, 7, 8, 9))]


async def test_why_two_identifiers_are_one_person(lookup: Lookup) -> None:
    """The path goes from the one to the other, whatever names them."""
    why = await lookup.why(_request("george"), _request("biff"))
    back = await lookup.why(2, 1)

    assert why.path is not None
    assert back.path is not None
    assert [link.name for link in why.path] == ["event:3", "contact:2"]
    assert [link.name for link in back.path] == ["contact:2", "event:3"]
    assert why.sentence.startswith("george and biff are one person: the request of ")
    assert " by shop gave george with 717171 (event 3, which made two identities one); the request of" in why.sentence
    assert why.sentence.endswith(" gave biff with 717171 (contact 2).")


async def test_why_by_a_phone_number_and_itself(lookup: Lookup) -> None:
    """A phone number is an end like an email; nothing is between an identifier and itself."""
    why = await lookup.why(_request(None, "919191"), 1)
    same = await lookup.why(_request("george"), _request("george"))

    assert why.path is not None
    assert [link.name for link in why.path] == ["contact:1"]
    assert same.path == []


async def test_why_two_people_are_two(lookup: Lookup, database_url: str) -> None:
    """Without a link there is no path, and the sentence names the two."""
    await execute(database_url, "INSERT INTO contact (email) VALUES ('marty')")

    why = await lookup.why(_request("marty"), _request("biff"))

    assert why.path is None
    assert why.sentence == "No link connects marty and biff: they are two people, contact 4 and contact 1."
    with pytest.raises(NotFound):
        await lookup.why(_request("nobody"), _request("biff"))


async def test_a_soft_deleted_contact_stands_for_its_identity(lookup: Lookup, database_url: str) -> None:
    """Its own identifiers are in no link any more."""
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE id = 2")

    why = await lookup.why(2, _request(None, "919191"))

    assert why.path is not None
    assert [link.name for link in why.path] == ["contact:1"]


async def test_the_primary_that_another_program_made(lookup: Lookup, database_url: str) -> None:
    """Where a younger contact is the primary in the table, it is the primary here, too, as in a request's answer."""
    await execute(
        database_url,
        "INSERT INTO contact (email) VALUES ('young')",
        "INSERT INTO contact (email, linked_id, link_precedence, created_at) "
        "VALUES ('old', 4, 'secondary', now() - interval '1 day')",
    )

    assert await lookup.show(5) == await lookup.show(5, 99) == Identity(4, ["young", "old"], [], [5])


async def test_large_identities(lookup: Lookup, database_url: str) -> None:
    """One of more contacts than a batch fetches is shown whole, paged and explained like any other."""
    size = 2 * LARGE
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number, linked_id, link_precedence) "
        f"SELECT 'e' || n, '919191', 1, 'secondary' FROM generate_series(1, {size}) AS n",
    )

    shown, page, why = await asyncio.gather(lookup.show(9), lookup.links(9), lookup.why(_request("biff"), 9))

    assert len(shown.secondary_ids) == size + 1
    assert await lookup.lookup(_request("e7")) == [shown]
    assert (len(page.contacts), page.next) == (99, 100)
    assert why.path is not None
    assert [link.name for link in why.path] == ["contact:2", "event:3", "contact:1", "contact:9"]
