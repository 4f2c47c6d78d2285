"""A consumer that only follows the change feed has an exact copy, whatever happens to the identities meanwhile."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import cycle
from pathlib import Path

import aiohttp
import pytest

from recon.identities.changes import Changes
from recon.rules.feed import Page
from tests.harness.databases import fetch
from tests.harness.faults import FAULTS, fleet, until_recovered
from tests.harness.feed import Comparing, Copy, identities_of, read_one, read_to_the_end
from tests.harness.meddling import meddling
from tests.harness.postgres import Postgres, postgres
from tests.harness.processes import StartRecon
from tests.harness.shop import driving

ALL_POSITIONS = "SELECT id FROM contact UNION ALL SELECT id FROM event ORDER BY id"
CORRECTIONS = {"split", "link", "block", "erase"}
TIMES = 3  # that a copy has to be compared while everything changes


class Compared:
    """A copy that is compared with the database in the snapshot of each page after which it is exact.

    Attributes
    ----------
    times : how often it was.
    """

    def __init__(self, url: str) -> None:
        self.copy = Copy()
        self.times = 0
        self._database = Comparing(url)

    async def follow(self, over: asyncio.Event) -> None:
        """Follow the feed until it is over, by pages of different sizes."""
        async with self._database.opened():
            feed: Changes[Page] = Changes(self._database, lambda page: page)
            for limit in cycle((10, 100, 1000)):  # the largest keeps up with whatever traffic there is
                if over.is_set():
                    return
                # Only at the end does it wait: requests that wait share a small part of the time.
                self.copy.take_values(await feed.page(self.copy.after, limit, wait=int(self.copy.is_exact)))
                if self.copy.is_exact:
                    self.times += 1
                    assert self.copy.identities == self._database.truth


@asynccontextmanager
async def following(urls: Sequence[str]) -> AsyncIterator[list[Copy]]:
    """Consumers that follow the feed by HTTP, one for each process, with the copies that they keep; tireless."""
    copies = [Copy() for _ in urls]
    over = asyncio.Event()
    async with aiohttp.ClientSession() as session:

        async def follow(url: str, copy: Copy) -> None:
            while not over.is_set():
                with suppress(aiohttp.ClientError, OSError, AssertionError):  # a 503, or no answer
                    await read_one(session, url, copy, limit=50, wait=int(copy.is_exact))
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(follow(url, copy)) for url, copy in zip(urls, copies, strict=True)]
        try:
            yield copies
        finally:
            over.set()
            await asyncio.gather(*tasks)
        for url, copy in zip(urls, copies, strict=True):
            await read_to_the_end(session, url, copy)


async def expect_exact(copies: Sequence[Copy], url: str) -> None:
    """The copies are what the database has, and each position came once and in order."""
    truth = await identities_of(url)
    positions = {row["id"] for row in await fetch(url, ALL_POSITIONS)}
    for copy in copies:
        assert copy.identities == truth
        assert copy.positions == sorted(set(copy.positions))
        assert positions <= set(copy.positions)


@pytest.mark.timeout(300)  # on a busy machine; without the lane, corrections conflict with requests again and again
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("lane", [True, False])
async def test_a_copy_is_exact(lane: bool, processes: int, start_recon: StartRecon, database_url: str) -> None:
    """Under load, with corrections and rows of other programs, the copy is exact whenever a page says so."""
    option = "--writer-lane" if lane else "--no-writer-lane"
    urls = [start_recon("--database-url", database_url, option).url for _ in range(processes)]
    compared, over = Compared(database_url), asyncio.Event()

    async with following(urls) as copies, meddling(urls, database_url, seed=processes) as done:
        task = asyncio.create_task(compared.follow(over))
        async with driving(urls, seed=processes, clients=8 if lane else 4) as history:
            await history.reached(200)
            while not (set(done) >= CORRECTIONS and compared.times > TIMES) and not task.done():
                await asyncio.sleep(0.05)
        over.set()
        await task

    assert len(await identities_of(database_url)) > 50
    await expect_exact(copies, database_url)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL of these tests."""
    # Not in pytest's folder, which pytest closes to other users: the server may run as another user.
    with tempfile.TemporaryDirectory(prefix="recon-feed-") as folder, postgres(Path(folder)) as server:
        yield server


@pytest.mark.parametrize("name", ["kill -9 before COMMIT", "kill -9 after COMMIT", "the database crashes"])
async def test_a_copy_survives(name: str, server: Postgres, tmp_path: Path) -> None:
    """After a fault the consumer goes on where it was, and its copy is exact."""
    async with fleet(server, tmp_path) as recons:
        url = recons.database_url
        async with (
            following(recons.urls) as copies,
            meddling(recons.urls, url) as done,
            driving(recons.urls, clients=8) as history,
        ):
            await history.reached(400)
            before = [copy.after for copy in copies]
            await FAULTS[name](recons, history)
            await until_recovered(recons.urls)
            await history.reached(history.acknowledged + 400)

        assert all(copy.after > after > 0 for copy, after in zip(copies, before, strict=True))
        assert done
        await expect_exact(copies, url)
