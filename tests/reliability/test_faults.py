"""Fault injection: after every fault nothing is lost, nothing is wrong, and recon recovers without help.

Also: how recon starts if its database is unavailable, or has another version.
"""

import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from recon.database.definitions import SCHEMA, SCHEMA_VERSION
from recon.database.transactions import Connection, Database
from recon.errors import Unavailable
from recon.settings import DatabaseSettings
from tests.harness.databases import execute, fetch
from tests.harness.faults import FAULTS, REQUESTS, Fleet, fleet, survived, until_recovered
from tests.harness.postgres import Cut, Postgres, postgres, suspended
from tests.harness.processes import OUTAGE, Process, StartRecon

ROUNDS = int(os.environ.get("RECON_TEST_FAULTS", "1"))  # rounds of each fault; a soak has more
# Seconds after a fault within which recon must serve again. `make soak` requires five on an otherwise idle machine;
# tests share theirs.
WELL = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL that these tests can crash or pause."""
    # Not in pytest's folder, which pytest closes to other users: the server may run as another user.
    with tempfile.TemporaryDirectory(prefix="recon-faults-") as folder, postgres(Path(folder)) as server:
        yield server


@pytest.fixture
async def recons(server: Postgres, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two recon processes on an empty database."""
    async with fleet(server, tmp_path) as recons:
        yield recons


@pytest.mark.timeout(120 + 60 * ROUNDS)
@pytest.mark.parametrize("name", FAULTS)
async def test_survived(name: str, recons: Fleet) -> None:
    """Thousands of requests during a fault: every answer is correct, and so is the database."""
    # Raises if the fault did not happen or had no effect.
    figures = await survived(FAULTS[name], recons, seed=sorted(FAULTS).index(name), rounds=ROUNDS)

    assert figures.violations == []
    assert figures.load["requests"] > REQUESTS * ROUNDS
    assert figures.recovery < WELL


SAID = {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"}


@pytest.mark.parametrize(("cut", "rows"), [(Cut.BEFORE, 0), (Cut.AFTER, 1)])
async def test_the_network_is_cut_in_commit(cut: Cut, rows: int, recons: Fleet) -> None:
    """The outcome is unknown: the answer says so, and repeating the request is safe."""
    proxy = recons.proxies[0]
    await execute(recons.database_url, "TRUNCATE contact RESTART IDENTITY")
    turns = iter([cut])
    proxy.at_commit = lambda: next(turns, Cut.NOT)

    async with aiohttp.ClientSession() as session:
        async with session.post(f"{recons.urls[0]}/identify", json=SAID) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            assert (await response.json(content_type=None))["type"] == "urn:recon:outcome-unknown"
        assert len(await fetch(recons.database_url, "SELECT FROM contact")) == rows
        for url in recons.urls * 2:
            async with session.post(f"{url}/identify", json=SAID) as response:
                assert response.status == 200

    assert len(await fetch(recons.database_url, "SELECT FROM contact")) == 1


async def test_starting_before_the_server(server: Postgres, start_recon: StartRecon) -> None:
    """recon starts without a database and is not ready; it is ready soon after the database starts."""
    await execute(server.url(), "CREATE DATABASE later ENCODING UTF8 TEMPLATE template0")
    server.stop()
    try:
        forms = ["--workers", "1"], ["--workers", "2"]
        processes = [start_recon("--database-url", server.url("later"), *form, ready=False) for form in forms]
        async with aiohttp.ClientSession() as session:
            for process in processes:
                await _until_status(session, f"{process.url}/healthz", 200)
                await _until_status(session, f"{process.url}/readyz", 503)
                async with session.post(f"{process.url}/identify", json=SAID) as response:
                    assert (response.status, response.headers["Retry-After"]) == (503, "1")
            for process, (_, workers) in zip(processes, forms, strict=True):
                async with asyncio.timeout(30):  # until each worker has tried to connect
                    while _said(process, OUTAGE) < int(workers):
                        await asyncio.sleep(0.02)
    finally:
        server.start()

    assert await until_recovered([process.url for process in processes]) < WELL
    for process, (_, workers) in zip(processes, forms, strict=True):
        async with asyncio.timeout(WELL):
            while _said(process, "recon can use the database now") < int(workers):
                await asyncio.sleep(0.02)
        assert not [event for event in process.events() if "where" in event]


def _said(process: Process, words: str) -> int:
    return sum(words in event["event"] for event in process.events())


@pytest.mark.parametrize("version", [0, 99], ids=["older", "newer"])
async def test_a_database_of_another_version_that_comes_later(
    version: int, server: Postgres, start_recon: StartRecon
) -> None:
    """A waiting process does not serve a database of another version: it logs one line until that is corrected."""
    name = f"version_{version}"
    process = start_recon("--database-url", server.url(name), ready=False)
    async with aiohttp.ClientSession() as session:
        await _until_status(session, f"{process.url}/readyz", 503)
    await execute(server.url(), "CREATE DATABASE hidden ENCODING UTF8 TEMPLATE template0")
    await execute(server.url("hidden"), SCHEMA, f"COMMENT ON TABLE contact IS 'recon schema {version}'")
    await execute(server.url(), f"ALTER DATABASE hidden RENAME TO {name}")
    complaint = f"this recon serves schema {SCHEMA_VERSION}, but the database has schema {version}"

    async with aiohttp.ClientSession() as session:
        await _until_status(session, f"{process.url}/readyz", 503, complaint)
        async with session.post(f"{process.url}/identify", json=SAID) as response:
            assert response.status == 503
        await execute(server.url(name), f"COMMENT ON TABLE contact IS 'recon schema {SCHEMA_VERSION}'")
        await _until_status(session, f"{process.url}/readyz", 200)

    assert [event["level"] for event in process.events() if event["event"].endswith(complaint)] == ["error"]


@pytest.mark.parametrize("version", [0, 99], ids=["older", "newer"])
async def test_a_database_that_changes_its_version(version: int, recons: Fleet) -> None:
    """If the database gets another version, a process is not ready, logs one line, and recovers afterwards."""
    complaint = f"this recon serves schema {SCHEMA_VERSION}, but the database has schema {version}"
    await execute(recons.database_url, f"COMMENT ON TABLE contact IS 'recon schema {version}'")

    async with aiohttp.ClientSession() as session:
        for url in recons.urls:
            await _until_status(session, f"{url}/readyz", 503, complaint)
        await execute(recons.database_url, f"COMMENT ON TABLE contact IS 'recon schema {SCHEMA_VERSION}'")
        for url in recons.urls:
            await _until_status(session, f"{url}/readyz", 200)

    assert recons.complaints() == []


async def _until_status(session: aiohttp.ClientSession, url: str, status: int, detail: str = "") -> None:
    """Return the problem's detail once the response has the status."""
    answer: tuple[int, str] | None = None
    with suppress(TimeoutError):
        async with asyncio.timeout(WELL):
            while answer is None or answer[0] != status or detail not in answer[1]:
                with suppress(aiohttp.ClientConnectionError):
                    async with session.get(url) as response:
                        answer = response.status, await response.text()
                await asyncio.sleep(0.02)
            return
    raise AssertionError(f"{url}: {answer}")


async def test_a_connection_that_ran_into_its_time_limit_is_not_used_again(server: Postgres) -> None:
    """PostgreSQL may still execute a statement that timed out, so recon closes its session."""
    await execute(server.url(), "CREATE DATABASE slow ENCODING UTF8 TEMPLATE template0")
    async with Database(server.url("slow"), DatabaseSettings(transaction_timeout=0.3)).opened() as database:
        before = await database.snapshot("test", _pid)
        with server.paused():
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await database.serializable("test", _pid)
            assert time.monotonic() - started < 4  # and not as long as the server is paused

        assert await database.snapshot("test", _pid) != before
        assert await database.serializable("test", _pid) != before


async def test_when_one_session_does_not_answer_the_idle_ones_are_not_tried(server: Postgres) -> None:
    """If the server vanishes without closing connections, recon waits for one time limit, not one per session."""
    await execute(server.url(), "CREATE DATABASE vanished ENCODING UTF8 TEMPLATE template0")
    async with Database(server.url("vanished"), DatabaseSettings(transaction_timeout=0.3)).opened() as database:
        everyone_has_one = asyncio.Barrier(3)

        async def wait_for_all(connection: Connection) -> int:
            await everyone_has_one.wait()
            return await _pid(connection)

        pids = await asyncio.gather(*(database.snapshot("test", wait_for_all) for _ in range(3)))
        with suspended(*pids):
            with pytest.raises(Unavailable):
                await database.snapshot("test", _pid)

            assert await database.snapshot("test", _pid) not in pids


async def _pid(connection: Connection) -> int:
    """Return the process id of the session's server process."""
    return await connection.fetchval("SELECT pg_backend_pid()")
