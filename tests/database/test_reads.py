"""Reads of several statements: one snapshot, which is a state that some order of the writes had."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from recon.database.transactions import Connection, Database
from recon.errors import Unavailable
from recon.settings import DatabaseSettings
from tests.harness.databases import execute

INSERT = "INSERT INTO contact (email) VALUES ('a')"


@pytest.fixture(params=[True, False], ids=["lane", "no lane"])
async def database(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[Database]:
    """A database with and without the lane."""
    async with Database(database_url, DatabaseSettings(writer_lane=request.param)).opened() as database:
        yield database


async def _count(connection: Connection) -> int:
    count: int = await connection.fetchval("SELECT count(*) FROM contact")
    return count


async def test_a_read_is_one_snapshot(database: Database, database_url: str) -> None:
    """A second statement does not see what was committed after the first; the next read does."""

    async def twice(connection: Connection) -> tuple[int, int]:
        before = await _count(connection)
        await execute(database_url, INSERT)
        return before, await _count(connection)

    first = await database.reading("test", twice)

    assert first == (0, 0)
    assert await database.reading("test", _count) == 1


async def test_a_read_cannot_write(database: Database) -> None:
    """PostgreSQL refuses changes, and the next read works. To recon the refusal looks like that of a standby."""
    with pytest.raises(Unavailable) as raised:
        await database.reading("test", lambda connection: connection.execute(INSERT))

    assert isinstance(raised.value.__cause__, asyncpg.ReadOnlySQLTransactionError)
    assert await database.reading("test", _count) == 0


@pytest.mark.parametrize(("lane", "isolation"), [(True, "repeatable read"), (False, "serializable")])
async def test_the_isolation_of_a_read(lane: bool, isolation: str, database_url: str) -> None:
    """With the lane any snapshot is a state of the serial order; without it only a serializable transaction's is."""
    async with Database(database_url, DatabaseSettings(writer_lane=lane)).opened() as database:
        found = await database.reading(
            "test", lambda connection: connection.fetchval("SELECT current_setting('transaction_isolation')")
        )

    assert found == isolation


async def test_no_writer_waits_for_a_read(database: Database) -> None:
    """While a read is in progress, a write commits."""
    written = asyncio.Event()

    async def read(connection: Connection) -> int:
        await _count(connection)
        async with asyncio.timeout(10):
            await database.serializable("test", lambda other: other.execute(INSERT))
        written.set()
        return await _count(connection)

    seen = await database.reading("test", read)

    assert (seen, written.is_set()) == (0, True)


async def test_a_read_that_conflicts_is_run_again(database: Database) -> None:
    """A serialization failure is retried, as in other transactions."""
    tries = 0

    async def conflicts_once(connection: Connection) -> int:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise asyncpg.SerializationError("made up")
        return await _count(connection)

    assert await database.reading("test", conflicts_once) == 0
    assert tries == 2
