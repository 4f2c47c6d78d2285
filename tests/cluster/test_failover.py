"""Failover: the primary is lost, a standby is promoted, and recon finds it without help."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest

from tests.harness.databases import fetch
from tests.harness.faults import until_recovered
from tests.harness.ports import HOST
from tests.harness.postgres import Postgres
from tests.harness.processes import StartRecon

REPLAYED = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn AS replayed"
# Seconds after the promotion within which recon must serve again. `make soak` requires five on an otherwise idle
# machine; tests share theirs.
WELL = 20


@pytest.fixture
def servers() -> Iterator[tuple[Postgres, Postgres]]:
    """A primary and its standby."""
    with tempfile.TemporaryDirectory(prefix="recon-failover-") as folder:
        folders = [Path(folder) / name for name in ("primary", "standby")]
        for each in folders:
            each.mkdir()
        primary, standby = map(Postgres, folders)
        primary.start()
        try:
            standby.copy_from(primary)
            standby.start()
            try:
                yield primary, standby
            finally:
                standby.stop()
        finally:
            with suppress(Exception):  # it may have ended before
                primary.stop()


def _url(*ports: int) -> str:
    return (
        f"postgresql://postgres@{','.join(f'{HOST}:{port}' for port in ports)}/postgres?target_session_attrs=read-write"
    )


async def _said(url: str, email: str) -> int:
    async with aiohttp.ClientSession() as session, session.post(f"{url}/identify", json={"email": email}) as response:
        return response.status


async def test_a_failover(servers: tuple[Postgres, Postgres], start_recon: StartRecon) -> None:
    """recon serves from the primary wherever it is in the list, is not ready without one, and finds the new one."""
    primary, standby = servers
    process = start_recon("--database-url", _url(standby.port, primary.port))
    assert await _said(process.url, "before@failover.example") == 200
    await _caught_up(standby, primary)

    primary.vanish()
    assert await _said(process.url, "between@failover.example") == 503
    standby.promote()

    assert await until_recovered([process.url]) < WELL
    emails = {row["email"] for row in await fetch(standby.url(), "SELECT email FROM contact")}
    assert "before@failover.example" in emails
    assert "between@failover.example" not in emails
    assert not process.failures()
    hosts = f"{HOST}:{standby.port}, {HOST}:{primary.port}"
    assert f"using the database postgres at {hosts}" in [event["event"] for event in process.events()]


async def _caught_up(standby: Postgres, primary: Postgres) -> None:
    """Return once the standby has everything that the primary has now."""
    [now] = await fetch(primary.url(), "SELECT pg_current_wal_flush_lsn()::text AS lsn")
    async with asyncio.timeout(WELL):
        while not (await fetch(standby.url(), REPLAYED, now["lsn"]))[0]["replayed"]:
            await asyncio.sleep(0.02)


async def test_a_standby_alone(servers: tuple[Postgres, Postgres], start_recon: StartRecon) -> None:
    """With a standby only, recon waits, also if the URL does not ask for a primary."""
    primary, standby = servers
    start_recon("--database-url", primary.url())  # this creates the schema
    await _caught_up(standby, primary)
    process = start_recon("--database-url", standby.url(), ready=False)
    async with aiohttp.ClientSession() as session, asyncio.timeout(WELL):
        status = 0
        while status != 503:
            with suppress(aiohttp.ClientConnectionError):
                async with session.get(f"{process.url}/readyz") as response:
                    status = response.status
            await asyncio.sleep(0.02)
    assert await _said(process.url, "standby@failover.example") == 503

    standby.promote()

    assert await until_recovered([process.url]) < WELL
