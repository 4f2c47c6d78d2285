"""Batches beside single requests, and batches that are cut off: a prefix of the lines is done, and no later line."""

import asyncio
import random
import signal
import socket
import time
from collections.abc import Iterator
from itertools import islice

import aiohttp
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from recon.identities.chunks import MAX_CHUNK
from recon.sql import invariants
from tests.harness.batches import line, opened, replayed
from tests.harness.databases import execute, fetch
from tests.harness.exchanges import Request
from tests.harness.history import check, contacts
from tests.harness.processes import Process, StartRecon
from tests.harness.shop import _Shop, driving

LINES = 20_000
SEED = 12


def new(count: int = LINES) -> Iterator[bytes]:
    """Lines about new customers."""
    return (line(f"c{number}", f"{number}") for number in range(count))


async def assert_prefix(url: str, least: int, most: int = LINES) -> int:
    """Check that the customers of the first lines are stored, and no other; return how many."""
    rows = await fetch(url, "SELECT email FROM contact WHERE email LIKE 'c%' ORDER BY id")
    assert [row["email"] for row in rows] == [f"c{number}" for number in range(len(rows))]
    assert least <= len(rows) <= most
    return len(rows)


async def assert_sent_again(process: Process, url: str, done: int) -> None:
    """Send all lines again: it adds what is missing, and nothing else."""
    async with opened(process.port, new()) as batch, asyncio.timeout(60):
        await batch.ended()

    assert batch.is_complete
    assert batch.summary is not None
    assert (batch.summary["ok"], batch.summary["known"]) == (LINES, done)
    assert [each["contact"]["emails"] for each in batch.answers] == [[f"c{number}"] for number in range(LINES)]
    assert await assert_prefix(url, LINES) == LINES
    violations, _ = await invariants.check(url)
    assert violations == []


async def _sample(process: Process, name: str, **labels: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{process.url}/metrics") as response:
        text = await response.text()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if (sample.name, sample.labels) == (name, labels):
                return sample.value
    return 0


async def _single(process: Process, email: str) -> None:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{process.url}/identify", json={"email": email}) as response,
    ):
        assert response.status == 200


@pytest.mark.parametrize("options", [[], ["--no-writer-lane"], ["--no-coalesce"]], ids=["lane", "no-lane", "plain"])
async def test_batches_beside_single_requests(options: list[str], start_recon: StartRecon, database_url: str) -> None:
    """Clients with single requests and two batches race for the same people: the history is linearizable."""
    processes = [start_recon("--database-url", database_url, *options) for _ in range(2)]
    shared = _Shop(SEED).requests()  # of which each client takes the next one
    valid = (each for each in shared if each.phone is None or (isinstance(each.phone, str) and len(each.phone) < 65))

    def some(count: int) -> Iterator[Request]:
        return islice((each for each in valid if "\0" not in (each.phone or "")), count)

    urls = [each.url for each in processes]
    async with driving(urls, replay=some(3_000), clients=16) as history, asyncio.timeout(100):
        batches = await asyncio.gather(*(replayed(each.port, some(2_000), history) for each in processes))

    assert [batch.summary and batch.summary["ok"] for batch in batches] == [2_000, 2_000], batches[0].answers[-1:]
    assert check(history, await contacts(database_url)) == []
    violations, _ = await invariants.check(database_url)
    assert violations == []


async def test_the_client_disconnects(start_recon: StartRecon, database_url: str) -> None:
    """Wherever the client stops reading and sending, whole chunks are done, at most one after the last answer."""
    process = start_recon("--database-url", database_url)
    choose = random.Random(SEED)  # noqa: S311 (the same again for the same seed)
    for _ in range(5):
        await execute(database_url, "TRUNCATE contact RESTART IDENTITY")
        async with opened(process.port, new()) as batch, asyncio.timeout(60):
            await batch.reached(choose.randrange(1, LINES // 2))
            batch.writer.transport.abort()
            await batch.ended()
        await _single(process, "after")  # the lane is free: a chunk that was being written has ended
        done = await assert_prefix(database_url, batch.done)
        async with asyncio.timeout(20):
            while await _sample(process, "recon_http_streams", route="/identify/batch"):
                await asyncio.sleep(0.01)
        done = await assert_prefix(database_url, done)
        assert not batch.is_complete
    await assert_sent_again(process, database_url, done)
    assert process.failures() == []


async def test_kill_9(start_recon: StartRecon, database_url: str) -> None:
    """A process that is killed leaves a prefix, too; the client sees that the end is missing."""
    choose = random.Random(SEED)  # noqa: S311 (the same again for the same seed)
    done = 0
    for _ in range(3):
        process = start_recon("--database-url", database_url)
        async with opened(process.port, new()) as batch, asyncio.timeout(60):
            await batch.reached(min(LINES - 1, done + choose.randrange(1, 3_000)))
            process.popen.send_signal(signal.SIGKILL)
            await batch.ended()
        assert (batch.is_complete, batch.summary) == (False, None)
        done = await assert_prefix(database_url, batch.done)
    await execute(database_url, "SELECT pg_sleep(0.1)")
    done = await assert_prefix(database_url, done)
    await assert_sent_again(start_recon("--database-url", database_url), database_url, done)


KILL = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'recon%'
"""


async def test_the_database_ends_its_sessions(start_recon: StartRecon, database_url: str) -> None:
    """The last line is a 503 about the first line that was not done, or whose outcome is unknown."""
    process = start_recon("--database-url", database_url)
    async with opened(process.port, new()) as batch, asyncio.timeout(60):
        await batch.reached(MAX_CHUNK)
        while not batch.head or batch.answers[-1]["status"] == 200:
            await execute(database_url, KILL)
            await asyncio.sleep(0)
        await batch.ended()

    *_, last = batch.answers
    assert (last["line"], last["status"]) == (batch.done + 1, 503)
    assert last["problem"]["type"] in {"urn:recon:unavailable", "urn:recon:outcome-unknown"}
    assert (batch.is_complete, batch.summary) == (False, None)
    done = await assert_prefix(database_url, batch.done)
    assert done == batch.done or last["problem"]["type"] == "urn:recon:outcome-unknown"
    await assert_sent_again(process, database_url, done)


async def test_the_database_stands_still(start_recon: StartRecon, database_url: str) -> None:
    """The time limit of a request is that of a chunk: then the batch ends, and says at which line."""
    process = start_recon("--database-url", database_url, "--request-timeout", "1", "--statement-timeout", "0.8")
    async with opened(process.port, new()) as batch, asyncio.timeout(60):
        await batch.reached(MAX_CHUNK)
        await execute(database_url, "BEGIN; LOCK TABLE contact IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3); COMMIT")
        await batch.ended()

    *_, last = batch.answers
    assert (last["line"], last["status"], batch.is_complete) == (batch.done + 1, 503, False)
    await assert_sent_again(process, database_url, await assert_prefix(database_url, batch.done))


async def test_nothing_was_done(start_recon: StartRecon, database_url: str) -> None:
    """A batch whose first chunk fails is answered like a single request: with a 503 and nothing else."""
    process = start_recon("--database-url", database_url)
    await execute(database_url, "ALTER TABLE setting RENAME TO hidden")
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{process.url}/identify/batch", data=b"".join(new(3)), headers={"Content-Type": "application/x-ndjson"}
        ) as response,
    ):
        problem = await response.json(content_type=None)

    assert (response.status, problem["status"]) in {(500, 500), (503, 503)}


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_shutdown(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """At SIGTERM, batches end at the border of a chunk, with a last line that says so; the process ends in time."""
    process = start_recon("--database-url", database_url, "--workers", str(workers))
    async with opened(process.port, new(10 * LINES)) as batch, asyncio.timeout(30):
        await batch.reached(1)
        process.popen.send_signal(signal.SIGTERM)
        await batch.ended()

    *_, last = batch.answers
    assert (last["line"], last["status"], batch.is_complete) == (batch.done + 1, 503, False)
    assert "shutting down" in last["problem"]["detail"]
    assert await assert_prefix(database_url, batch.done, 10 * LINES) == batch.done
    assert await asyncio.to_thread(process.popen.wait, 10) == 0
    assert process.failures() == []


async def test_a_client_that_does_not_read(start_recon: StartRecon, database_url: str) -> None:
    """recon stops working when the answers are not read, and goes on when they are."""
    process = start_recon("--database-url", database_url)
    await execute(database_url, "INSERT INTO contact (email, phone_number) VALUES ('same', '1')")
    lines = (line("same") if number % 2 else line(f"c{number // 2}") for number in range(LINES))
    largest = (
        "INSERT INTO contact (email, linked_id, link_precedence) SELECT 'x' || n, 1, 'secondary' FROM generate_series"
    )
    await execute(database_url, f"{largest}(1, 90) AS n")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel must not buffer the answer
    connection.connect(("127.0.0.1", process.port))
    connection.setblocking(False)
    async with opened(process.port, lines, receiving=False, sock=connection, limit=4096) as batch, asyncio.timeout(60):
        before, count = -1.0, 0.0
        while count != before:  # until no line is answered while single requests are
            before = count
            for number in range(20):
                await _single(process, f"single {number}")
            count = await _sample(process, "recon_batch_lines_total", status="200")
        for number in range(100):
            await _single(process, f"another {number}")
        assert await _sample(process, "recon_batch_lines_total", status="200") == count < LINES
        assert await assert_prefix(database_url, 1) <= count / 2 + MAX_CHUNK

        batch.receive()
        await batch.ended()

    assert batch.is_complete
    assert await assert_prefix(database_url, LINES // 2) == LINES // 2


async def test_a_client_that_takes_its_time(start_recon: StartRecon, database_url: str) -> None:
    """A client that sends some of a batch within each time limit has all the time that it needs."""
    process = start_recon("--database-url", database_url, "--body-timeout", "1")
    started = time.monotonic()
    async with opened(process.port, None, b"?errorsOnly=true") as batch, asyncio.timeout(30):
        for number in range(8):
            batch.writer.write(b"%x\r\n%b\r\n" % (len(each := line(f"c{number}")), each))
            await asyncio.sleep(0.4)
        batch.writer.write(b"0\r\n\r\n")
        await batch.ended()

    assert batch.summary is not None
    assert (batch.summary["created"], batch.is_complete) == (8, True)
    assert time.monotonic() - started > 2  # several times --body-timeout, without a byte of the answer


async def test_a_client_that_stops_sending(start_recon: StartRecon, database_url: str) -> None:
    """After --body-timeout without a byte, the batch ends with a 408 about the missing line; that is no error."""
    process = start_recon("--database-url", database_url, "--body-timeout", "1", "--log-level", "debug")
    async with opened(process.port, None) as batch, asyncio.timeout(30):
        batch.writer.write(b"%x\r\n%b\r\n" % (len(each := line("c0") + b'{"email": '), each))
        await batch.ended()

    assert [(each["line"], each["status"]) for each in batch.answers] == [(1, 200), (2, 408)]
    assert not batch.is_complete
    [event] = [event for event in process.events() if event["event"] == "POST /identify/batch was aborted"]
    assert (event["reason"], event["level"]) == ("client", "debug")
    assert [event["counts"][name] for name in ("lines", "ok", "created")] == [1, 1, 1]
    assert process.failures() == []


async def test_the_log_and_the_metrics_of_a_batch(start_recon: StartRecon, database_url: str) -> None:
    """A batch has one line in the log, with its counts; its lines are counted by status."""
    process = start_recon("--database-url", database_url, "--log-level", "debug")
    async with opened(process.port, [line("c0"), line(), line("c0")]) as batch, asyncio.timeout(30):
        await batch.ended()
    async with asyncio.timeout(10):
        while not (events := [each for each in process.events() if each["event"] == "POST /identify/batch"]):
            await asyncio.sleep(0.01)

    [event] = events
    assert event["status"] == 200
    assert event["counts"] == batch.summary
    assert await _sample(process, "recon_batch_lines_total", status="200") == 2
    assert await _sample(process, "recon_batch_lines_total", status="400") == 1


async def test_memory_is_flat(start_recon: StartRecon, database_url: str) -> None:
    """A large body needs no more memory than a small one: it is neither kept nor read ahead."""
    process = start_recon("--database-url", database_url)
    seen = []
    for count in (2_000, 40_000):
        lines = (line(f"c{number % 500}", note="x" * 1000) for number in range(count))
        async with opened(process.port, lines, b"?errorsOnly=true") as batch, asyncio.timeout(100):
            await batch.ended()
        assert batch.summary is not None
        assert batch.summary["ok"] == count
        seen.append(psutil.Process(process.popen.pid).memory_info().rss)

    assert seen[1] - seen[0] < 10 * 2**20  # of 40 MB
