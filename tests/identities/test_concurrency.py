"""The six races against running processes: the rows are always those of a serial run, and every answer is a 200."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from itertools import cycle, product
from typing import Any

import aiohttp
import pytest

from recon.sql import invariants
from tests.harness.databases import execute, fetch
from tests.harness.processes import recon_processes
from tests.harness.races import RACES, Request

ROUNDS = int(os.environ.get("RECON_TEST_ROUNDS", "2"))  # of each race in each configuration
FORMS = {
    "coalesced, lane": [],
    "coalesced, no lane": ["--no-writer-lane"],
    "plain, lane": ["--no-coalesce"],
    "plain, no lane": ["--no-coalesce", "--no-writer-lane"],
}


@pytest.fixture(scope="module", params=product(FORMS, (1, 2)), ids=lambda form: f"{form[0]}, {form[1]} process(es)")
def recon_urls(
    request: pytest.FixtureRequest, shared_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Start one or two recon processes, in one of the configurations, on one database."""
    form, processes = request.param
    with recon_processes(tmp_path_factory.mktemp("recon")) as start:
        yield [start("--database-url", shared_database_url, *FORMS[form]).url for _ in range(processes)]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a limit of connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.mark.parametrize("at_a_time", [8, 50])
@pytest.mark.parametrize("name", RACES)
async def test_race(
    name: str, at_a_time: int, recon_urls: list[str], shared_database_url: str, session: aiohttp.ClientSession
) -> None:
    """With any number of concurrent requests, the table ends as after a serial run, and every request is answered."""
    await expect_race(name, at_a_time, recon_urls, shared_database_url, session, rounds=ROUNDS)


async def expect_race(
    name: str, at_a_time: int, recon_urls: list[str], database_url: str, session: aiohttp.ClientSession, *, rounds: int
) -> None:
    """Run the race several times from an empty table; it must end as a serial run, with every request answered."""
    race = RACES[name](at_a_time)
    for _ in range(rounds):
        await execute(database_url, "TRUNCATE contact RESTART IDENTITY")
        await _send(session, recon_urls, race.before, 1)

        await _send(session, recon_urls, race.at_once, at_a_time)

        rows = await fetch(database_url, "SELECT id, email, phone_number, linked_id FROM contact ORDER BY id")
        assert sorted((row["email"], row["phone_number"]) for row in rows) == sorted(race.rows)
        assert [row["id"] for row in rows if row["linked_id"] is None] == [rows[0]["id"]]
        assert (await invariants.check(database_url))[0] == []
        answers = await _send(session, recon_urls, race.rows, 1)
        assert {answer["primaryContactId"] for answer in answers} == {rows[0]["id"]}
        assert {len(answer["secondaryContactIds"]) for answer in answers} == {len(rows) - 1}


async def _send(
    session: aiohttp.ClientSession, urls: list[str], requests: list[Request], at_a_time: int
) -> list[dict[str, Any]]:
    """Send requests to the processes in turn, with a limit of concurrent ones; each must be answered 200."""
    turns = asyncio.Semaphore(at_a_time)

    async def send(url: str, email: str | None, phone: str | None) -> dict[str, Any]:
        async with turns, session.post(f"{url}/identify", json={"email": email, "phoneNumber": phone}) as response:
            assert response.status == 200, await response.text()
            contact = (await response.json())["contact"]
        # Whatever other requests do meanwhile, the answer has the identifiers of its request.
        assert email in contact["emails"]
        assert phone in contact["phoneNumbers"]
        return contact

    return await asyncio.gather(*(send(url, *request) for url, request in zip(cycle(urls), requests, strict=False)))
