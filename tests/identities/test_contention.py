"""Rows that another session holds: only the requests that need them wait."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.errors import DeadlineExceeded, RowsHeld
from recon.identities import contention, identify
from recon.identities.batching import Submit, coalesced
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify
from recon.rules.identifiers import Identifiers
from recon.settings import DatabaseSettings
from recon.sql import invariants
from tests.harness.databases import execute, fetch

# Two people; the second has two contacts.
PEOPLE = [
    "INSERT INTO contact (email, phone_number) VALUES ('old', '1'), ('young', '2')",
    "INSERT INTO contact (email, phone_number, linked_id, link_precedence) VALUES ('young-too', '2', 2, 'secondary')",
]


def _request(email: str | None, phone: str | None = None) -> Identifiers:
    return Identifiers(email, phone, phone)


def _contact(answer: bytes) -> dict[str, Any]:
    contact: dict[str, Any] = json.loads(answer)["contact"]
    return contact


@asynccontextmanager
async def asking(url: str, seconds: float = 30, **options: Any) -> AsyncIterator[Submit]:
    """Run recon in this process, with a deadline in seconds for each request."""
    async with Database(url, DatabaseSettings(**options)).opened() as database:
        yield coalesced(Identify(database, identify_response), 1000, Deadlines(seconds), 4)


@asynccontextmanager
async def holding(url: str, *statements: str) -> AsyncIterator[asyncpg.Connection]:
    """Another session, in an open transaction that has run these statements."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            for statement in statements:
                await connection.execute(statement)
            yield connection
    finally:
        await connection.close()


async def sessions_that_wait(connection: asyncpg.Connection) -> int:
    """Count the sessions of this database that wait for a lock."""
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    statement = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    count: int = await connection.fetchval(statement)
    return count


async def somebody_waits(connection: asyncpg.Connection) -> None:
    """Return when a session of this database waits for a lock."""
    async with asyncio.timeout(10):
        while not await sessions_that_wait(connection):
            await asyncio.sleep(0.01)


# Locks of another program: an operator's FOR UPDATE, or an uncommitted update.
HOLDS = [
    "SELECT FROM contact WHERE id = 2 FOR UPDATE",
    "SELECT FROM contact WHERE id = 2 FOR SHARE",
    "UPDATE contact SET updated_at = now() WHERE id = 2",
]


@pytest.mark.parametrize("statement", HOLDS)
async def test_a_request_about_a_held_row_waits_alone(statement: str, database_url: str) -> None:
    """Other requests are answered meanwhile; the waiting request is answered when the row is free."""
    await execute(database_url, *PEOPLE)
    async with asking(database_url) as submit, asyncio.timeout(20):
        async with holding(database_url, statement) as other:
            waiting = submit(_request("new", "2"))
            await somebody_waits(other)
            answers = await asyncio.gather(
                *(submit(_request(f"e{n}", f"9{n}")) for n in range(30)), submit(_request("old-too", "1"))
            )
            assert [_contact(answer)["emails"] for answer in answers] == [
                *([f"e{n}"] for n in range(30)),
                ["old", "old-too"],
            ]
            assert not waiting.done()

        assert _contact(await waiting)["emails"] == ["young", "young-too", "new"]


async def test_they_would_all_wait(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the protection, one held row stops all writers."""
    await execute(database_url, *PEOPLE)
    monkeypatch.setattr("recon.database.transactions._LOCK_TIMEOUT", 60_000)
    async with asking(database_url, seconds=1) as submit, holding(database_url, HOLDS[0]) as other:
        waiting = submit(_request("new", "2"))
        await somebody_waits(other)

        with pytest.raises(DeadlineExceeded):
            await submit(_request("stranger"))

        assert not waiting.done() or waiting.exception()


async def test_a_held_row_is_asked_for_once(database_url: str) -> None:
    """A hundred requests about the row use one connection, and all are answered when it is free."""
    await execute(database_url, *PEOPLE)
    async with asking(database_url) as submit, asyncio.timeout(20):
        async with holding(database_url, HOLDS[0]) as other:
            waiting = [submit(_request(f"new-{n}", "2")) for n in range(50)]
            await somebody_waits(other)
            waiting += [submit(_request(f"new-{n}", "2")) for n in range(50, 100)]
            await submit(_request("stranger"))
            assert await sessions_that_wait(other) == 1

        answers = await asyncio.gather(*waiting)

    assert {len(_contact(answer)["emails"]) for answer in answers} == set(range(3, 103))


async def test_while_a_row_is_waited_for_nothing_piles_up(database_url: str) -> None:
    """No serializable transaction waits: PostgreSQL would have to keep all later reads of other sessions."""
    await execute(database_url, *PEOPLE)
    async with asking(database_url) as submit, holding(database_url, HOLDS[0]) as other:
        waiting = submit(_request("new", "2"))
        await somebody_waits(other)
        await asyncio.gather(*(submit(_request(f"e{n}")) for n in range(30)))

        assert await other.fetchval("SELECT count(*) FROM pg_locks WHERE mode = 'SIReadLock'") == 0
        waiting.cancel()


async def test_who_waits_too_long_is_told_that_nothing_was_changed(database_url: str) -> None:
    """At its deadline, the request is given up with a 503, and it is not executed later."""
    await execute(database_url, *PEOPLE)
    async with asking(database_url, seconds=0.5, statement_timeout=0.2) as submit:
        async with holding(database_url, HOLDS[0]):
            with pytest.raises(DeadlineExceeded):
                await submit(_request("new", "2"))

        assert _contact(await submit(_request("later", "2")))["emails"] == ["young", "young-too", "later"]


HELD_SECONDARY = "SELECT FROM contact WHERE id = 3 FOR UPDATE"


async def test_a_secondary_that_is_held_is_in_the_way_of_merges_alone(database_url: str) -> None:
    """The identity is still read and extended, in one batch with a merge that has to wait."""
    await execute(database_url, *PEOPLE)
    batch = [_request("stranger"), _request("young", "1"), _request("new", "2"), _request("young")]
    async with Database(database_url).opened() as database:
        async with holding(database_url, HELD_SECONDARY):
            outcomes = await Identify(database, identify_response).write(lambda: batch)

        assert outcomes[1] == contention.Held(3)
        assert [_contact(outcomes[n])["emails"] for n in (0, 2, 3)] == [  # type: ignore[arg-type]
            ["stranger"],
            ["young", "young-too", "new"],
            ["young", "young-too", "new"],
        ]
        answer = (await Identify(database, identify_response).write(lambda: batch[1:2]))[0]
        assert _contact(answer)["emails"] == ["old", "young", "young-too", "new"]  # type: ignore[arg-type]
    assert (await invariants.check(database_url))[0] == []


async def test_a_merge_that_nobody_asked_for_waits_too(database_url: str) -> None:
    """Requests that must merge rows of another program wait while one row is held; other requests do not."""
    older = "INSERT INTO contact (email, created_at) VALUES ('young', now() - interval '1 day')"
    await execute(database_url, *PEOPLE, older)
    batch = [_request("stranger"), _request("young", "2"), _request("young", "7")]
    async with Database(database_url).opened() as database:
        async with holding(database_url, HELD_SECONDARY):
            outcomes = await Identify(database, identify_response).write(lambda: batch)

        assert _contact(outcomes[0])["emails"] == ["stranger"]  # type: ignore[arg-type]
        assert outcomes[1:] == [contention.Held(3), contention.Held(3)]


async def test_what_is_answered_around_a_held_row_is_bounded(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch has the usual bound: it ends with the answer that makes it large enough."""
    await execute(database_url, *PEOPLE)
    monkeypatch.setattr(identify, "MOST_ANSWERED", 2)
    batch = [_request("stranger"), _request("new", "2"), _request("old-too", "1"), _request("another")]
    async with Database(database_url).opened() as database, holding(database_url, HOLDS[0]):
        outcomes = await Identify(database, identify_response).write(lambda: batch)

    assert len(outcomes) == 3
    assert outcomes[1] == contention.Held(2)


async def test_a_batch_with_nothing_but_held_rows(database_url: str) -> None:
    """If all rows of a batch are held, there is nothing to decide."""
    await execute(database_url, *PEOPLE)
    async with Database(database_url).opened() as database, holding(database_url, HOLDS[0]):
        outcomes = await Identify(database, identify_response).write(
            lambda: [_request("new", "2"), _request("young", "1")]
        )

    assert outcomes == [contention.Held(2), contention.Held(2)]


async def test_a_table_that_is_locked_is_waited_for(database_url: str) -> None:
    """CREATE INDEX blocks all writers; their requests are answered when it is done."""
    async with asking(database_url) as submit, asyncio.timeout(20):
        async with holding(database_url, "CREATE INDEX another ON contact (created_at)") as other:
            waiting = submit(_request("new"))
            await somebody_waits(other)

        assert _contact(await waiting)["emails"] == ["new"]


async def test_a_lock_that_is_no_row_ends_as_a_503(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """recon cannot identify a lock that a trigger of another program waits for: after some retries, a 503."""
    await execute(
        database_url,
        "CREATE TABLE theirs ()",
        "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN LOCK TABLE theirs IN SHARE MODE; RETURN NEW; END $$",
        "CREATE TRIGGER theirs BEFORE INSERT ON contact FOR EACH ROW EXECUTE FUNCTION theirs()",
    )
    monkeypatch.setattr(identify, "_TRIES", 2)
    async with asking(database_url) as submit:
        async with holding(database_url, "LOCK TABLE theirs IN EXCLUSIVE MODE"):
            with pytest.raises(RowsHeld):
                await submit(_request("new"))

        assert await fetch(database_url, "SELECT FROM contact") == []
        assert _contact(await submit(_request("new")))["emails"] == ["new"]


async def test_waiting_for_the_lane_is_normal(database_url: str) -> None:
    """The role's lock_timeout does not apply to the wait for the lane."""
    name = urlsplit(database_url).path.removeprefix("/")
    await execute(database_url, f"ALTER DATABASE {name} SET lock_timeout = '10ms'")
    async with asking(database_url) as submit, asyncio.timeout(20):
        async with holding(database_url, "LOCK TABLE writer_lane IN EXCLUSIVE MODE") as other:
            waiting = submit(_request("new"))
            await somebody_waits(other)
            await asyncio.sleep(0.1)  # ten times as long

        assert _contact(await waiting)["emails"] == ["new"]


@pytest.mark.parametrize("statement", HOLDS[1:])
async def test_recon_respects_locks_of_other_programs(statement: str, database_url: str) -> None:
    """While another session holds a primary, by FOR SHARE or an update, recon does not change the identity."""
    await execute(database_url, *PEOPLE)
    async with asking(database_url) as submit, asyncio.timeout(20):
        async with holding(database_url, statement) as other:
            waiting = submit(_request("new", "2"))
            await somebody_waits(other)
            rows = await other.fetch("SELECT FROM contact WHERE linked_id = 2")
            assert len(rows) == 1
            assert not waiting.done()

        await waiting
