"""The network to the database is cut while a correction commits: the answer says what is known, and what is safe."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from itertools import chain, product, repeat
from pathlib import Path

import aiohttp
import pytest

from tests.harness.databases import fetch
from tests.harness.desk import KINDS, Answer, empty, introduce, send
from tests.harness.exchanges import History
from tests.harness.faults import Fault, Fleet, crash, fleet, kill, pause, stop, survived, terminations
from tests.harness.postgres import Cut, Postgres, postgres
from tests.harness.stewards import STORED, is_other, stewards_at_work

CORRECTIONS = [kind for kind in KINDS if kind != "identify"]
CUTS = (Cut.BEFORE, Cut.AFTER)
EVENTS = "SELECT id FROM event ORDER BY id"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL of these tests."""
    # Not in pytest's folder, which pytest closes to other users: the server may run as another user.
    with tempfile.TemporaryDirectory(prefix="recon-faults-") as folder, postgres(Path(folder)) as server:
        yield server


@pytest.fixture
async def recons(server: Postgres, tmp_path: Path) -> AsyncIterator[Fleet]:
    """Two recon processes on an empty database, whose network a test can cut."""
    async with fleet(server, tmp_path) as recons:
        yield recons


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


async def _cut(
    session: aiohttp.ClientSession, recons: Fleet, kind: str, cuts: list[Cut], key: str | None, **more: bool
) -> Answer:
    """The answer to a correction that loses its connection at one of its COMMITs: of its plan, of its write."""
    await empty(recons.database_url)
    people = await introduce(session, recons.urls[1], recons.database_url, 0)
    method, path, body = KINDS[kind](people, 0)
    proxy, turns = recons.proxies[0], chain(cuts, repeat(Cut.NOT))
    before = proxy.cuts
    proxy.at_commit = lambda: next(turns)
    answer = await send(session, recons.urls[0], kind, (method, path, body | more), key)
    proxy.at_commit = lambda: Cut.NOT
    assert proxy.cuts == before + 1
    return answer


async def test_with_a_key(recons: Fleet, session: aiohttp.ClientSession) -> None:
    """The outcome is unknown, and the same request with the same key makes the correction exactly once."""
    for kind, cut in product(CORRECTIONS, CUTS):
        lost = await _cut(session, recons, kind, [Cut.NOT, cut], "once")
        before = len(await fetch(recons.database_url, EVENTS))

        again = [await send(session, url, kind, lost.request, "once") for url in recons.urls * 2]

        _expect_unknown(lost, "Repeat it with the same Idempotency-Key: it is made once.")
        assert [answer.status for answer in again] == [200] * 4, (kind, again)
        assert ["repeated" in answer.body for answer in again] == [cut is Cut.AFTER, True, True, True], kind
        assert [answer.body | {"repeated": True} for answer in again] == [again[-1].body] * 4, kind
        events = [row["id"] for row in await fetch(recons.database_url, EVENTS)]
        assert len(events) == before + (cut is Cut.BEFORE), kind
        assert events[-1] == again[0].event_id, kind


async def test_without_a_key(recons: Fleet, session: aiohttp.ClientSession) -> None:
    """The outcome is unknown, and the history of the identity tells it."""
    for cut in CUTS:
        lost = await _cut(session, recons, "keep apart", [Cut.NOT, cut], None)
        async with session.get(f"{recons.urls[1]}{lost.request[1].replace('keep-apart', 'history')}") as response:
            history = await response.text()

        _expect_unknown(
            lost, "Look at the history before you repeat it; with an Idempotency-Key, repeating is always safe."
        )
        assert ('"kept_apart"' in history) is (cut is Cut.AFTER)


def _expect_unknown(answer: Answer, advice: str) -> None:
    assert (answer.status, answer.body["type"]) == (503, "urn:recon:outcome-unknown"), answer
    assert answer.body["detail"].endswith(advice)


async def test_at_the_end_of_its_plan(recons: Fleet, session: aiohttp.ClientSession) -> None:
    """The outcome is known: a plan changes nothing, so the answer says that nothing was changed."""
    for dry_run, cut in product((False, True), CUTS):
        answer = await _cut(session, recons, "link", [cut], None, dryRun=dry_run)

        assert (answer.status, answer.body["type"]) == (503, "urn:recon:unavailable")
        assert answer.body["detail"].endswith("Nothing was changed; try again.")
        assert await fetch(recons.database_url, "SELECT FROM event WHERE kind = 'linked'") == []


REQUESTS = 600  # acknowledged beside the corrections; a third of them before the fault
CUT = 5  # corrections whose COMMIT does not arrive, and as many whose COMMIT is not answered


async def cut_corrections(recons: Fleet, _: History) -> dict[str, float]:
    """The network is cut in every second COMMIT of a correction."""
    done = asyncio.Event()
    turns = iter([Cut.BEFORE, Cut.NOT, Cut.AFTER, Cut.NOT] * CUT)

    def at_commit() -> Cut:
        turn = next(turns, None)
        if turn is None:
            done.set()
        return turn or Cut.NOT

    for proxy in recons.proxies:
        proxy.at_commit = at_commit
    await done.wait()
    return {"cuts": 2 * CUT}


FAULTS: dict[str, Fault] = {
    "kill -9 before COMMIT": kill(Cut.BEFORE),
    "kill -9 after COMMIT": kill(Cut.AFTER),
    "the database crashes": crash,
    "sessions are terminated": terminations(5),
    "SIGTERM": stop,
    "the database hangs": pause(4),
    "the network fails during COMMIT": cut_corrections,
}


@pytest.mark.parametrize("name", FAULTS)
async def test_survived(name: str, server: Postgres, tmp_path: Path) -> None:
    """Beside a shop's requests, each correction is made once and whole, or not at all, and each answer is true."""
    # Otherwise, corrections just wait until the database goes on.
    options = ["--correction-timeout", "2"] if name == "the database hangs" else []
    async with fleet(server, tmp_path, *options) as recons:
        for proxy in recons.proxies:
            proxy.mark = STORED  # COMMITs of corrections are meant
        async with stewards_at_work(recons.urls, recons.database_url, seed=len(name)) as stewards:
            figures = await survived(FAULTS[name], recons, seed=7, requests=REQUESTS, is_other=is_other)

        assert figures.violations == []
        await stewards.check()
    unknown = [case for case in stewards.corrections if case.unknown]
    repeated = [case for case in unknown if "repeated" in case.final.body]
    if name == "the network fails during COMMIT":
        assert (sum(len(case.unknown) for case in unknown), len(repeated)) == (2 * CUT, CUT)
    elif name.startswith("kill"):
        assert unknown
        assert bool(repeated) is (name == "kill -9 after COMMIT")
    elif name != "sessions are terminated":  # those may have been idle, or those of requests
        assert any(len(case.attempts) > 1 for case in stewards.corrections)
