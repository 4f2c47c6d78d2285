"""Transactions and their retry, and a database that comes and goes."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from recon.api.messages import identify_response
from recon.database.transactions import Connection, Database
from recon.errors import OutcomeUnknown, RetriesExhausted, Unavailable
from recon.identities.identify import Identify
from recon.rules.identifiers import Identifiers
from recon.settings import DatabaseSettings
from recon.sql import invariants
from tests.harness.databases import at_database, execute, fetch


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    """A database that retries at most five times and has no lane."""
    async with Database(database_url, DatabaseSettings(retry_limit=5, writer_lane=False)).opened() as database:
        yield database


INSERT = "INSERT INTO contact (email) VALUES ('a')"


async def test_what_conflicts_is_run_again(database_url: str) -> None:
    """Two transactions that read before the other wrote: one is retried, and sees what the other did."""
    both_have_read = asyncio.Barrier(2)
    seen: list[int] = []

    async def insert_if_empty(connection: Connection) -> None:
        count = await connection.fetchval("SELECT count(*) FROM contact")
        seen.append(count)
        if len(seen) <= 2:
            await both_have_read.wait()
        if count == 0:
            await connection.execute(INSERT)

    async with Database(database_url, DatabaseSettings(writer_lane=False)).opened() as database:
        await asyncio.gather(*(database.serializable("test", insert_if_empty) for _ in range(2)))

    assert seen[:2] == [0, 0]
    assert seen[-1] == 1  # usually the third; one that comes while the other commits fails again
    assert len(await fetch(database_url, "SELECT FROM contact")) == 1


@pytest.mark.parametrize("error", [asyncpg.SerializationError, asyncpg.DeadlockDetectedError])
async def test_retries_are_bounded(database: Database, error: type[asyncpg.PostgresError]) -> None:
    """What never gets through is given up after the limit, and nothing of it stays."""
    tries = 0

    async def always_fails(connection: Connection) -> None:
        nonlocal tries
        tries += 1
        await connection.execute(INSERT)
        raise error("made up")

    with pytest.raises(RetriesExhausted):
        await database.serializable("test", always_fails)

    assert tries == 5
    async with asyncio.timeout(5):
        assert (
            await database.snapshot("test", lambda connection: connection.fetchval("SELECT count(*) FROM contact")) == 0
        )


@pytest.mark.parametrize("error", [asyncpg.UniqueViolationError("made up"), ValueError("made up")])
async def test_other_errors_are_not_retried(database: Database, error: Exception) -> None:
    """Only serialization failures and deadlocks are tried again."""
    tries = 0

    async def fails(_: Connection) -> None:
        nonlocal tries
        tries += 1
        raise error

    with pytest.raises(type(error)):
        await database.serializable("test", fails)

    assert tries == 1


async def test_no_connection_is_used_again_in_the_middle_of_a_transaction(database: Database) -> None:
    """A session that was left inside a transaction is closed: the next user would read and write in it."""
    sessions = []

    async def leaves_it_open(connection: Connection) -> None:
        sessions.append(connection.get_server_pid())
        await connection.execute("COMMIT; BEGIN; " + INSERT)
        raise ValueError("made up")

    async def session(connection: Connection) -> tuple[int, int]:
        return connection.get_server_pid(), await connection.fetchval("SELECT count(*) FROM contact")

    with pytest.raises(ValueError, match="made up"):
        await database.serializable("test", leaves_it_open)

    pid, contacts = await database.snapshot("test", session)
    assert pid != sessions[0]
    assert contacts == 0


DEFERRED = """
CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('attempt') < 3 THEN RAISE EXCEPTION 'made up' USING ERRCODE = '40001'; END IF;
    RETURN NULL;
END $$;
CREATE SEQUENCE attempt;
CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON contact DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION conflict();
"""


async def test_a_failure_of_commit_is_retried_too(database: Database, database_url: str) -> None:
    """COMMIT is part of what is retried: a fifth of serialization failures come there."""
    await execute(database_url, DEFERRED)

    await database.serializable("test", lambda connection: connection.execute(INSERT))

    assert len(await fetch(database_url, "SELECT FROM contact")) == 1
    assert (await fetch(database_url, "SELECT last_value FROM attempt"))[0][0] == 3


async def test_a_connection_lost_before_commit_is_unavailable(database: Database, database_url: str) -> None:
    """A session that the operator ends in mid-transaction has changed nothing; the next one works."""

    async def ended(connection: Connection) -> None:
        await connection.execute(INSERT)
        await execute(database_url, f"SELECT pg_terminate_backend({connection.get_server_pid()})")
        await connection.execute("SELECT 1")

    with pytest.raises(Unavailable) as caught:
        await database.serializable("test", ended)

    assert type(caught.value) is Unavailable
    await database.serializable("test", lambda connection: connection.execute(INSERT))
    assert len(await fetch(database_url, "SELECT FROM contact")) == 1


ENDED_IN_COMMIT = """
CREATE FUNCTION end_session() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(10); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER end_session AFTER INSERT ON contact DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION end_session();
"""


async def test_a_connection_lost_in_commit_leaves_the_outcome_unknown(database: Database, database_url: str) -> None:
    """Nobody can tell whether it was committed: that is said, and not retried."""
    await execute(database_url, ENDED_IN_COMMIT)

    with pytest.raises(OutcomeUnknown):
        await database.serializable("test", lambda connection: connection.execute(INSERT))


async def test_a_connection_lost_after_reading_leaves_nothing_unknown(database: Database, database_url: str) -> None:
    """What only reads has changed nothing, also when it loses its connection in COMMIT."""

    async def lost(connection: Connection) -> None:
        await execute(database_url, f"SELECT pg_terminate_backend({connection.get_server_pid()}, 5000)")

    for reading in (database.reading("test", lost), database.planning(lost, 5)):
        with pytest.raises(Unavailable) as raised:
            await reading
        assert type(raised.value) is Unavailable


async def test_completion_unknown_is_not_retried(database: Database) -> None:
    """40003 is no reason to try again, wherever it comes."""

    async def unknown(_: Connection) -> None:
        raise asyncpg.StatementCompletionUnknownError("made up")

    with pytest.raises(OutcomeUnknown):
        await database.serializable("test", unknown)


async def test_connections_that_were_lost_meanwhile_are_not_used(database_url: str) -> None:
    """After the database has dropped all idle connections, the very next requests work."""
    async with Database(database_url, DatabaseSettings(writer_lane=False)).opened() as database:
        everyone_has_one = asyncio.Barrier(4)

        async def wait_for_all(connection: Connection) -> int:
            await everyone_has_one.wait()
            return connection.get_server_pid()

        pids = await asyncio.gather(*(database.snapshot("test", wait_for_all) for _ in range(4)))
        for pid in pids:
            await execute(database_url, f"SELECT pg_terminate_backend({pid}, 5000)")

        for _ in range(4):
            await database.serializable("test", lambda connection: connection.execute("SELECT 1"))


async def test_a_statement_that_hangs_is_ended(database_url: str) -> None:
    """A statement may take only so long, waiting for a lock included."""
    async with Database(database_url, DatabaseSettings(statement_timeout=0.2)).opened() as database:
        holder = await asyncpg.connect(database_url)
        async with holder.transaction():
            await holder.execute("LOCK TABLE contact")

            with pytest.raises(Unavailable):
                await database.serializable("test", lambda connection: connection.execute(INSERT))
        await holder.close()


END_SLEEPERS = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
HANGS_AT_COMMIT = """
CREATE FUNCTION hang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER hang AFTER INSERT ON contact DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION hang();
"""


async def test_a_server_that_no_longer_answers_is_given_up(database_url: str) -> None:
    """Nothing of a transaction is waited for longer than it may take, no ROLLBACK and no farewell; the next works."""
    await execute(database_url, HANGS_AT_COMMIT)
    async with Database(
        database_url, DatabaseSettings(statement_timeout=60, transaction_timeout=0.3)
    ).opened() as database:
        async with asyncio.timeout(2):
            with pytest.raises(Unavailable) as before_commit:
                await database.serializable("test", lambda connection: connection.execute("SELECT pg_sleep(20)"))
            await execute(database_url, END_SLEEPERS)  # as statement_timeout does, since they have the lane
            with pytest.raises(OutcomeUnknown):
                await database.serializable("test", lambda connection: connection.execute(INSERT))

        assert not isinstance(before_commit.value, OutcomeUnknown)
        await execute(database_url, END_SLEEPERS)
        assert await database.snapshot("test", lambda connection: connection.fetchval("SELECT 1")) == 1


async def test_a_transaction_that_is_given_up_between_two_messages(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver then fails with an AttributeError of its own. That is unavailability too."""
    prepare = asyncpg.Connection._get_statement

    async with Database(database_url).opened() as database:

        async def then_given_up(connection: Connection, *arguments: object, **options: object) -> object:
            statement = await prepare(connection, *arguments, **options)
            database._pool.give_up(connection)
            return statement

        async def work(connection: Connection) -> None:
            monkeypatch.setattr(asyncpg.Connection, "_get_statement", then_given_up)
            await connection.fetch("SELECT $1::int", 1)

        for step in (database.snapshot, database.serializable):
            with pytest.raises(Unavailable):
                await step("test", work)
            monkeypatch.undo()
        assert await database.snapshot("test", lambda connection: connection.fetchval("SELECT 1")) == 1


async def test_an_error_in_the_work_is_no_unavailability(database: Database) -> None:
    """With its connection open, what the work raises is raised."""

    async def work(_: Connection) -> None:
        raise AttributeError("made up")

    with pytest.raises(AttributeError, match="made up"):
        await database.serializable("test", work)


WRAPAROUND = """
CREATE FUNCTION wraparound() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'made up' USING ERRCODE = '54000'; END $$;
CREATE TRIGGER wraparound BEFORE INSERT ON contact FOR EACH ROW EXECUTE FUNCTION wraparound();
"""


async def test_protection_against_transaction_id_wraparound_is_unavailability(
    database: Database, database_url: str
) -> None:
    """PostgreSQL refuses commands until VACUUM has run (54000): that is no fault of the request."""
    await execute(database_url, WRAPAROUND)

    with pytest.raises(Unavailable):
        await database.serializable("test", lambda connection: connection.execute(INSERT))


async def test_reads_are_serializable_in_one_round_trip(database: Database) -> None:
    """The read pass has no BEGIN: the session's default makes its statement a serializable transaction."""
    isolation = await database.snapshot(
        "test", lambda connection: connection.fetchval("SELECT current_setting('transaction_isolation')")
    )

    assert isolation == "serializable"


async def test_writers_take_turns_in_the_lane(database_url: str) -> None:
    """With the lane, transactions that would conflict do not: each sees what the one before it wrote."""
    tries = 0
    async with Database(database_url, DatabaseSettings(retry_limit=1)).opened() as database:

        async def insert_if_empty(connection: Connection) -> None:
            nonlocal tries
            tries += 1
            if await connection.fetchval("SELECT count(*) FROM contact") == 0:
                await connection.execute(INSERT)

        await asyncio.gather(*(database.serializable("test", insert_if_empty) for _ in range(10)))

    assert tries == 10
    assert len(await fetch(database_url, "SELECT FROM contact")) == 1


async def test_no_row_is_dated_before_what_it_was_decided_upon(database_url: str) -> None:
    """After a failover to a server whose clock is behind, the primary is still the oldest of its cluster."""
    await execute(database_url, "INSERT INTO contact (email, created_at) VALUES ('a', now() + interval '1 hour')")
    async with Database(database_url).opened() as database:
        await Identify(database, identify_response).write(
            lambda: [Identifiers("a", "1", "1"), Identifiers("b", None, None)]
        )

    assert (await invariants.check(database_url))[0] == []


async def test_a_database_that_is_not_there_yet_is_waited_for(server_url: str) -> None:
    """recon comes up before its database, says that it is not ready, and is once the database is there."""
    name = "recon_test_late"
    await execute(server_url, f"DROP DATABASE IF EXISTS {name}")
    async with Database(at_database(server_url, name)).opened() as database:
        with pytest.raises(Unavailable):
            await database.check()
        with pytest.raises(Unavailable):
            await database.serializable("test", lambda connection: connection.execute(INSERT))

        await execute(server_url, f"CREATE DATABASE {name} ENCODING UTF8 TEMPLATE template0")

        async with asyncio.timeout(10):
            while not await _answers(database):
                await asyncio.sleep(0.05)
        await database.serializable("test", lambda connection: connection.execute(INSERT))
    await execute(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_server_that_is_not_there_is_unavailable(unused_tcp_port: int) -> None:
    """Nothing listens there: that is said, and starting does not fail."""
    async with Database(f"postgresql://recon@127.0.0.1:{unused_tcp_port}/recon").opened() as database:
        assert not await _answers(database)


async def _answers(database: Database) -> bool:
    try:
        await database.check()
    except Unavailable:
        return False
    return True
