"""The rate limit of log lines that clients can cause."""

import asyncio
import logging
import random
import time

import pytest

from recon.logs import Failures
from tests.harness.databases import execute
from tests.harness.processes import StartRecon, everything
from tests.harness.storm import idle_connections
from tests.server.test_protocol import BODY, POST


class _Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seed", range(20))
def test_fifty_lines_in_any_second(seed: int) -> None:
    """No second has more than fifty lines, whenever they come, and all suppressed lines are counted."""
    chance = random.Random(seed)  # noqa: S311
    clock = _Clock()
    failures = Failures(clock)
    times, suppressed, attempts = [], 0, 5000
    for _ in range(attempts):
        clock.now += chance.choice([0, 0.0001, 0.01, 0.05 * chance.random(), 0.5 * (chance.random() < 0.01)])
        if failures.may_be_logged():
            times.append(clock.now)
            suppressed += failures.left_out().get("failures_not_logged_before", 0)
    clock.now += 1
    assert failures.may_be_logged()
    suppressed += failures.left_out().get("failures_not_logged_before", 0)

    assert all(later - earlier >= 1 for earlier, later in zip(times, times[50:], strict=False))
    assert suppressed == attempts - len(times)


def test_a_quiet_log_is_complete() -> None:
    """Below the limit, all failures are logged."""
    clock = _Clock()
    failures = Failures(clock)
    for _ in range(200):
        clock.now += 1 / Failures.REFILL + 0.001
        assert failures.may_be_logged()
    assert failures.left_out() == {}


def test_lines_of_a_logger() -> None:
    """A logger whose lines clients can cause has the same limit, and counts the suppressed lines."""
    clock = _Clock()
    failures = Failures(clock)
    records = [logging.makeLogRecord({"msg": "x"}) for _ in range(100)]
    assert sum(failures.filter(record) for record in records) == Failures.BURST

    clock.now += 1
    last = logging.makeLogRecord({"msg": "x"})
    assert failures.filter(last)
    assert vars(last)["failures_not_logged_before"] == 100 - Failures.BURST


async def test_failures_of_recon_itself(start_recon: StartRecon, database_url: str) -> None:
    """Responses with status 500, which are logged with tracebacks, are under the limit as well."""
    await execute(database_url, "ALTER TABLE contact ADD CONSTRAINT made_up CHECK (email <> 'a@shop.example')")
    process = start_recon("--database-url", database_url)
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    request = POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    writer.write(request * 150 + request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
    answers = await everything(reader)
    writer.close()
    seconds = time.monotonic() - started
    process.stop()

    assert answers.count(b"HTTP/1.1 500 ") == 151
    lines = [event for event in process.events() if event["event"] in {"a request failed", "POST /identify"}]
    assert 0 < len(lines) <= Failures.BURST + Failures.REFILL * (seconds + 1)


async def test_connections_above_the_limit(start_recon: StartRecon, database_url: str) -> None:
    """Connections above the limit are refused without a log line each."""
    # The five stay open however long the others take.
    limits = ("--max-connections", "5", "--head-timeout", "600")
    process = start_recon("--database-url", database_url, *limits, "--log-level", "debug")
    refused = 0
    with idle_connections(process.port, 5):
        for _ in range(300):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            refused += (await everything(reader)).startswith(b"HTTP/1.1 503 ")
            writer.close()
    process.stop()

    assert refused == 300
    assert len(process.events()) < 100
