"""recon under fire: whatever breaks, nothing is lost, nothing is wrong, and recon is well again by itself."""

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from conftest import execute, fetch
from faults import Fault, Fleet, crash, cuts, fleet, kill, pause, stop, survived, terminations
from postgres import Cut, Postgres, postgres

ROUNDS = int(os.environ.get("RECON_TEST_FAULTS", "1"))  # how often each fault comes; more for a soak
WELL = 5  # seconds after a fault in which everything must be well again


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL that these tests may hurt."""
    # Not in pytest's own folder: that is closed to other users, of whom the server is one, again and again.
    with tempfile.TemporaryDirectory(prefix="recon-faults-") as folder, postgres(Path(folder)) as server:
        yield server


@pytest.fixture
async def recons(server: Postgres, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two recon processes on an empty database."""
    async with fleet(server, tmp_path) as recons:
        yield recons


FAULTS: dict[str, Fault] = {
    "kill -9 before COMMIT": kill(Cut.BEFORE),
    "kill -9 after COMMIT": kill(Cut.AFTER),
    "the database crashes": crash,
    "sessions are ended": terminations(20),
    "SIGTERM": stop,
    "the database stands still": pause(10),
    "the network is cut in COMMIT": cuts(20),
}


@pytest.mark.timeout(120 + 60 * ROUNDS)
@pytest.mark.parametrize("name", FAULTS)
async def test_survived(name: str, recons: Fleet) -> None:
    """Thousands of requests while something breaks: every answer was right, and so is what is in the database."""
    figures = await survived(FAULTS[name], recons, seed=sorted(FAULTS).index(name), rounds=ROUNDS)

    assert figures.violations == []
    assert figures.load["requests"] > 3_000 * ROUNDS
    assert figures.load["retried"] > 0
    assert figures.until_well < WELL


SAID = {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"}


@pytest.mark.parametrize(("cut", "rows"), [(Cut.BEFORE, 0), (Cut.AFTER, 1)])
async def test_the_network_is_cut_in_commit(cut: Cut, rows: int, recons: Fleet) -> None:
    """Nobody can know the outcome: that is what the answer says, and sending the request again is safe."""
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
