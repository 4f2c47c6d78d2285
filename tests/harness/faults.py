"""Fault injection under load: each fault is real, and many clients record every response.

    async with fleet(server, folder) as recons:
        figures = await survived(crash, recons, seed=1)
    assert figures.violations == []

A fault is a coroutine function of the fleet and of the history of its load. It returns when the fault is over, with
figures that show its effect, and raises AssertionError if it had none.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from math import inf
from pathlib import Path
from typing import TypeAlias

import aiohttp
import asyncpg

from recon.sql import invariants
from tests.harness.databases import execute
from tests.harness.history import Contact, Exchange, History, Outcome, check, contacts
from tests.harness.journal import check_journal, events
from tests.harness.ports import free_port
from tests.harness.postgres import Cut, Postgres, Proxy
from tests.harness.processes import Process, StartRecon, recon_processes
from tests.harness.shop import driving

PROCESSES = 2
REQUESTS = 3_000  # acknowledged in a round: a third of them before the fault, at least a third after it
MAX_RECOVERY = 30  # seconds after which a service that has not recovered fails the test
MAX_DETECTION = 3  # seconds within which a process must report that its database does not answer
PROBES = "probes.example"  # the domain of the emails by which the harness probes whether a process serves


class Fleet:
    """recon processes on one database, each with its own network to it, and at a fixed address.

    Attributes
    ----------
    server : the database's server.
    database_url : the database, without a proxy.
    proxies : the networks, one for each process.
    processes : the latest process at each address.
    urls : the processes' addresses.
    """

    def __init__(
        self, server: Postgres, database: str, proxies: Sequence[Proxy], start: StartRecon, options: Sequence[str] = ()
    ) -> None:
        self.server = server
        self.database_url = server.url(database)
        self.proxies = proxies
        self._start = start
        self._arguments = [("--database-url", server.url(database, proxy.port), *options) for proxy in proxies]
        self._ports = [free_port() for _ in proxies]
        self.urls = [f"http://127.0.0.1:{port}" for port in self._ports]
        self.processes: list[Process] = [self._started(number) for number in range(len(proxies))]
        self._past: list[Process] = []

    def _started(self, number: int) -> Process:
        return self._start(*self._arguments[number], ready=False, port=self._ports[number])

    def restart(self, number: int) -> None:
        """Start the process with this number again; it must have ended."""
        assert self.processes[number].popen.poll() is not None
        self._past.append(self.processes[number])
        self.processes[number] = self._started(number)

    async def ended(self, number: int) -> int:
        """The exit code of a process, once it has ended."""
        return await asyncio.to_thread(self.processes[number].popen.wait, MAX_RECOVERY)

    async def stop(self) -> None:
        """Stop all processes."""
        await asyncio.gather(*(asyncio.to_thread(process.stop) for process in self.processes))

    def complaints(self) -> list[str]:
        """Return the logged events, of all processes, that an outage of the database does not explain."""
        return [f"log: {event}" for process in (*self._past, *self.processes) for event in process.failures()]


@asynccontextmanager
async def fleet(server: Postgres, folder: Path, *options: str) -> AsyncIterator[Fleet]:
    """Start recon processes, with these options, on an empty database of `server`; yield when all are ready.

    They are stopped afterwards.
    """
    database = f"fleet_{time.monotonic_ns()}"
    await execute(server.url(), f"CREATE DATABASE {database} ENCODING UTF8 TEMPLATE template0")
    async with AsyncExitStack() as stack:
        proxies = [await stack.enter_async_context(Proxy(server.port).running()) for _ in range(PROCESSES)]
        recons = Fleet(server, database, proxies, stack.enter_context(recon_processes(folder)), options)
        stack.push_async_callback(recons.stop)
        await asyncio.gather(*(asyncio.to_thread(process.wait_until_ready) for process in recons.processes))
        yield recons


async def until_recovered(urls: Sequence[str]) -> float:
    """Seconds until every process has answered a write, a read and /readyz with 200."""
    started = time.monotonic()
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        try:
            async with asyncio.timeout(MAX_RECOVERY):
                await asyncio.gather(*(_until_recovered(session, url) for url in urls))
        except TimeoutError:
            raise AssertionError(f"not recovered after {MAX_RECOVERY} seconds") from None
    return time.monotonic() - started


async def _until_recovered(session: aiohttp.ClientSession, url: str) -> None:
    body: dict[str, str] = {}

    async def writes() -> int:
        body["email"] = f"{time.monotonic_ns()}@{PROBES}"  # a new one at each attempt
        return await reads()

    async def reads() -> int:
        async with session.post(f"{url}/identify", json=body) as response:
            return response.status

    async def is_ready() -> int:
        async with session.get(f"{url}/readyz") as response:
            return response.status

    for probe in (writes, reads, is_ready):
        while not await _is_ok(probe):
            await asyncio.sleep(0.02)


async def _is_ok(probe: Callable[[], Awaitable[int]]) -> bool:
    try:
        return await probe() == 200
    except aiohttp.ClientError:
        return False


Fault: TypeAlias = Callable[[Fleet, History], Awaitable[dict[str, float]]]


@dataclass
class Figures:
    """The figures of a fault, or of several rounds of it.

    Attributes
    ----------
    load : the figures of the history.
    recovery : seconds from the fault's end until every process served again; the longest of all rounds.
    seen : figures of the fault's effect, by name.
    violations : everything that is wrong; empty if recon is correct.
    """

    load: dict[str, float] = field(default_factory=dict)
    recovery: float = 0
    seen: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def is_probe(row: asyncpg.Record) -> bool:
    """Tell whether a contact comes from a probe of the harness."""
    return (row["email"] or "").endswith(f"@{PROBES}")


async def survived(
    fault: Fault,
    recons: Fleet,
    *,
    seed: int,
    rounds: int = 1,
    requests: int = REQUESTS,
    is_other: Callable[[asyncpg.Record], bool] = is_probe,
) -> Figures:
    """Inject a fault `rounds` times under load; check the history and the database afterwards.

    `is_other` tells which contacts and events do not come from the load.
    """
    figures = Figures()
    async with driving(recons.urls, seed=seed) as history:
        for _ in range(rounds):
            before = history.acknowledged
            await history.reached(before + requests // 3)
            for name, value in (await fault(recons, history)).items():
                figures.seen[name] = max(value, figures.seen.get(name, 0))
            figures.recovery = max(figures.recovery, await until_recovered(recons.urls))
            await history.reached(max(before + requests, history.acknowledged + requests // 3))
    figures.load = history.figures()
    rows = [row for row in await contacts(recons.database_url) if not is_other(row)]
    journal = [event for event in await events(recons.database_url) if not is_other(event)]
    figures.violations = [
        *(str(violation) for violation in check(history, rows)),
        *check_journal(history, rows, journal),
        *(await invariants.check(recons.database_url))[0],
        *recons.complaints(),
        *(f"{each}: {each.status}" for each in history.of(Outcome.UNKNOWN) if each.status == 500),
    ]
    return figures


def _lost(history: History, since: float) -> int:
    """Count the requests since a moment that were not acknowledged."""
    return sum(each.ended >= since for each in history.of(Outcome.REFUSED, Outcome.UNKNOWN) if each.status != 400)


def kill(cut: Cut) -> Fault:
    """`kill -9` of a process in the middle of a batch: before its COMMIT arrives, or after the commit."""

    async def kill_in_commit(recons: Fleet, history: History) -> dict[str, float]:
        [process, *_], [proxy, *_] = recons.processes, recons.proxies
        in_flight: list[int] = []

        def at_commit() -> Cut:
            process.popen.kill()
            proxy.at_commit = lambda: Cut.NOT
            in_flight.append(sum(each.ended == inf and each.url == recons.urls[0] for each in history.exchanges))
            return cut

        proxy.at_commit = at_commit
        code = await recons.ended(0)
        recons.restart(0)
        assert code == -signal.SIGKILL
        assert in_flight[0] > 1, "the batch had only one request"
        return {"in flight": in_flight[0]}

    return kill_in_commit


async def crash(recons: Fleet, history: History) -> dict[str, float]:
    """The database's server crashes and recovers."""
    started = time.monotonic()
    recoveries = recons.server.log.count("automatic recovery in progress")
    await asyncio.to_thread(recons.server.crash)
    assert recons.server.log.count("automatic recovery in progress") == recoveries + 1
    lost = _lost(history, started)
    assert lost, "the fault had no effect"
    return {"requests not answered": lost, "seconds away": time.monotonic() - started}


def terminations(count: int) -> Fault:
    """The sessions of random connections are ended, ten a second."""

    async def terminate(recons: Fleet, history: History) -> dict[str, float]:
        started = time.monotonic()
        operator = await asyncpg.connect(recons.database_url)
        ended = 0
        try:
            while ended < count:
                await asyncio.sleep(0.1)
                ended += await operator.fetchval(TERMINATE) or 0
        finally:
            await operator.close()
        lost = _lost(history, started)
        assert lost, "the fault had no effect"
        return {"sessions ended": ended, "requests not answered": lost}

    return terminate


TERMINATE = """
SELECT pg_terminate_backend(pid)::int FROM pg_stat_activity
WHERE datname = current_database() AND starts_with(application_name, 'recon') ORDER BY random() LIMIT 1
"""


async def stop(recons: Fleet, history: History) -> dict[str, float]:
    """A process gets SIGTERM and is started again after its exit: it must answer what it had accepted.

    A request that arrives on an idle connection just as the process closes it was not accepted: it changed nothing.
    """
    in_flight = [each for each in history.exchanges if each.ended == inf and each.url == recons.urls[0]]
    assert in_flight, "the process had no requests in progress"
    recons.processes[0].popen.send_signal(signal.SIGTERM)
    code = await recons.ended(0)
    rows = await contacts(recons.database_url)
    recons.restart(0)
    assert code == 0
    dropped = [each for each in history.of(Outcome.UNKNOWN) if each.url == recons.urls[0]]
    assert not _inserted(dropped, history, rows), "a request was accepted and not answered"
    return {"in flight": len(in_flight), "dropped unread": len(dropped)}


def _inserted(exchanges: Sequence[Exchange], history: History, rows: Sequence[Contact]) -> list[str]:
    """Return the exchanges that inserted a row before they ended, where no other request can have inserted it."""
    epoch = time.time() - time.monotonic()  # time 0 of the monotonic clock, by the database's clock
    created = {(row["email"], row["phone_number"]): row["created_at"].timestamp() - epoch for row in rows}
    requests = Counter(row for _, row in {(each.number, each.request.row) for each in history.exchanges})
    return [
        str(each)
        for each in exchanges
        if requests[each.request.row] == 1 and created.get(each.request.row, inf) < each.ended
    ]


def pause(seconds: float) -> Fault:
    """The database's server hangs for a while: recon stays alive and reports that it is not ready."""

    async def stand_still(recons: Fleet, history: History) -> dict[str, float]:
        with recons.server.paused():
            started = time.monotonic()
            probes = await asyncio.gather(
                *(_probe(f"{url}/{path}") for url in recons.urls for path in ("healthz", "readyz"))
            )
            assert [status for status, _ in probes] == [200, 503] * PROCESSES
            assert max(taken for _, taken in probes) < MAX_DETECTION
            await asyncio.sleep(started + seconds - time.monotonic())
            served = [each for each in history.of(Outcome.ACKNOWLEDGED) if each.ended > started + 1]
            assert not served, "the server did not hang"
        return {"seconds paused": seconds, "seconds until not ready": max(taken for _, taken in probes)}

    return stand_still


async def _probe(url: str) -> tuple[int, float]:
    """Return the status of a response, and the seconds until it came."""
    started = time.monotonic()
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, time.monotonic() - started


def cuts(count: int) -> Fault:
    """The network is cut in every fifth COMMIT, alternately before it arrives and before its answer returns."""

    async def cut_commits(recons: Fleet, history: History) -> dict[str, float]:
        done = asyncio.Event()
        whole = [Cut.NOT] * 4
        turns = islice(cycle([*whole, Cut.BEFORE, *whole, Cut.AFTER]), 5 * count)

        def at_commit() -> Cut:
            turn = next(turns, None)
            if turn is None:
                done.set()
            return turn or Cut.NOT

        before = len(_of_unknown_outcome(history))
        for proxy in recons.proxies:
            proxy.at_commit = at_commit
        await done.wait()
        unknown = len(_of_unknown_outcome(history)) - before
        assert unknown >= count, "a request was answered as if its outcome were known"
        return {"cuts": count, "answered that the outcome is unknown": unknown}

    return cut_commits


def _of_unknown_outcome(history: History) -> list[Exchange]:
    return [each for each in history.of(Outcome.UNKNOWN) if b"urn:recon:outcome-unknown" in each.body]


FAULTS: dict[str, Fault] = {
    "kill -9 before COMMIT": kill(Cut.BEFORE),
    "kill -9 after COMMIT": kill(Cut.AFTER),
    "the database crashes": crash,
    "sessions are terminated": terminations(20),
    "SIGTERM": stop,
    "the database hangs": pause(10),
    "the network fails during COMMIT": cuts(20),
}
