"""`recon rekey` beside other sessions: what it waits for, and that it changes all or nothing."""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import pytest

from recon.database import exclusive
from recon.database.connecting import connected
from recon.database.exclusive import Session
from recon.errors import RetriesExhausted, SchemaMismatch
from recon.identities.rekeying import Rekey
from tests.cli.test_rekey import E164, US, everything, keys, said
from tests.harness.databases import execute, fetch
from tests.harness.processes import RECON, MakeClient, recon
from tests.harness.steward import event

TO_US = ("rekey", "--default-region", "US", "--database-url")
WAITS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
BLOCKED_EVENT = event(1000, "merged", primary_id=1, email="a", phone_number=US, phone_key="2015550123")


class Silent:
    """Reports nothing."""

    def begin(self, step: str, total: int | None = None) -> None:
        """Take note of nothing."""

    def advance(self, items: int) -> None:
        """Take note of nothing."""


@asynccontextmanager
async def holding(url: str, statement: str) -> AsyncIterator[None]:
    """Another session holds what the statement locks."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"BEGIN; {statement}")
        yield
    finally:
        await connection.close()


async def until(url: str, condition: str) -> None:
    """Return once the statement yields more than 0."""
    async with asyncio.timeout(30):
        while not (await fetch(url, condition))[0][0]:
            await asyncio.sleep(0.02)


def started(url: str, *arguments: str) -> "subprocess.Popen[str]":
    """The command as a process."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([RECON, *TO_US, url, *arguments], text=True, **pipes)  # type: ignore[call-overload]


async def test_killed_in_the_middle(make_client: MakeClient, database_url: str) -> None:
    """A rekey that is killed while it writes leaves everything as it was, and the next one does all of it."""
    await said(make_client, ("a", US))
    await execute(database_url, *BLOCKED_EVENT)
    before = await everything(database_url)

    async with holding(database_url, "SELECT FROM event FOR UPDATE"):
        process = started(database_url, "--yes")
        await until(database_url, WAITS)
        process.kill()
        await asyncio.to_thread(process.communicate)

    assert await everything(database_url) == before
    assert recon(*TO_US, database_url, "--yes").returncode == 0
    assert await keys(database_url) == [E164]


async def test_interrupted(make_client: MakeClient, database_url: str) -> None:
    """Ctrl-C does the same."""
    await said(make_client, ("a", US))
    await execute(database_url, *BLOCKED_EVENT)
    before = await everything(database_url)

    async with holding(database_url, "SELECT FROM event FOR UPDATE"):
        process = started(database_url, "--yes")
        await until(database_url, WAITS)
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.communicate, timeout=30)

    assert process.returncode != 0
    assert await everything(database_url) == before


async def test_contacts_that_come_later(make_client: MakeClient, database_url: str) -> None:
    """What is written while the operator thinks gets its new match key, too."""
    await said(make_client, ("a", US))
    process = started(database_url)
    assert process.stderr is not None
    while "Nothing was changed yet." not in await asyncio.to_thread(process.stderr.readline):
        pass
    await said(make_client, ("b", "201-555-0199"))

    await asyncio.to_thread(process.communicate, "y\n")

    assert process.returncode == 0
    assert await keys(database_url) == [E164, "12015550199"]


async def test_a_session_that_holds_the_table(make_client: MakeClient, database_url: str) -> None:
    """The command gives up after a time, and lets other writers go on meanwhile."""
    await said(make_client, ("a", US))
    client = await make_client()

    async with holding(database_url, "UPDATE contact SET updated_at = now()"):
        process = started(database_url, "--yes", "--correction-timeout", "3")
        await until(database_url, WAITS)
        async with asyncio.timeout(30):
            response = await client.post("/identify", json={"email": "b"})
        _, complaint = await asyncio.to_thread(process.communicate, timeout=60)

    assert response.status == 200
    assert process.returncode == 1
    assert complaint.startswith("recon: ")
    assert [row["email"] for row in await fetch(database_url, "SELECT email FROM contact ORDER BY id")] == ["a", "b"]


async def test_a_role_that_does_not_own_the_tables(make_client: MakeClient, database_url: str) -> None:
    """It may not set the region; the command says who may, before it computes anything."""
    await said(make_client, ("a", US))
    async with connected(database_url) as connection:
        role = f"recon_test_{os.getpid()}_keys"
        await connection.execute(f"CREATE ROLE {role}; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
        try:
            await connection.execute(f"SET ROLE {role}")
            with pytest.raises(SchemaMismatch, match="run `recon rekey` as the tables' owner"):
                await Rekey(Session(connection, 1), "US", False, Silent()).preview()
            with pytest.raises(SchemaMismatch, match="nothing was changed: permission denied"):
                await Session(connection, 1).exclusively(lambda _: connection.execute("SELECT"), lambda: None)
        finally:
            await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_session_of_another_command(make_client: MakeClient, database_url: str) -> None:
    """The keys that another command has left in a session of a pooler are not used."""
    await said(make_client, ("a", US))
    async with connected(database_url) as connection:
        await Rekey(Session(connection, 1), "US", False, Silent()).preview()

        done = await Rekey(Session(connection, 1), "GB", False, Silent()).make("terminal", None)

    assert (done.before, done.after) == (None, "GB")
    assert await keys(database_url) == ["442015550123"]


@pytest.mark.parametrize("failures", [1, 4, 5])
async def test_conflicts(failures: int, database_url: str) -> None:
    """A transaction that meets a conflict is run again, a few times."""
    left = failures

    async def work(connection: asyncpg.Connection) -> str:
        nonlocal left
        left -= 1
        if left >= 0:
            await connection.execute("DO $$ BEGIN RAISE serialization_failure; END $$")
        return "done"

    async with connected(database_url) as connection:
        session = Session(connection, 5)
        if failures < exclusive._TRIES:
            assert await session.exclusively(work, lambda: None) == "done"
        else:
            with pytest.raises(RetriesExhausted):
                await session.exclusively(work, lambda: None)


def test_another_schema(bare_database_url: str) -> None:
    """A database without the schema is left alone."""
    done = recon(*TO_US, bare_database_url, "--yes")

    assert done.returncode == 1
    assert "does not have recon's schema" in done.stderr


async def test_progress_on_a_terminal(make_client: MakeClient, database_url: str) -> None:
    """On a terminal, each step is a line."""
    await said(make_client, ("a", US))
    ours, theirs = os.openpty()
    process = subprocess.Popen([RECON, *TO_US, database_url, "--yes"], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # raised at the end of a terminal
        while some := os.read(ours, 65_536):
            shown += some
    os.close(ours)

    assert process.wait(30) == 0
    for step in ("computing match keys", "comparing identities", "changing events", "changing contacts"):
        assert f"✓ {step}" in re.sub(r"\x1b\[[\d;]*m", "", shown.decode())


def test_what_is_not_reported() -> None:
    """A step can be without items."""
    from recon.cli import progress

    with progress.shown() as steps:
        steps.advance(1)
        steps.end()
