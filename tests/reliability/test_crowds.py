"""Four hundred clients at once ask for large answers: memory is bounded, and other clients are served."""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest

from tests.harness import ROOT
from tests.harness.crowd import PHONE
from tests.harness.databases import fetch
from tests.harness.processes import Process, StartRecon, everything, recon
from tests.harness.storm import probe

pytestmark = pytest.mark.usefixtures("files")
MB = 1024 * 1024

# 10,000 contacts of 300 characters: an answer has 3.3 MB. Without the limit, each request makes it another one.
_LARGE_IDENTITY = f"""
    WITH unlimited AS (UPDATE setting SET max_emails = 0),
        root AS (INSERT INTO contact (email, phone_number) VALUES ('first@crowd.example', '{PHONE}') RETURNING id)
    INSERT INTO contact (email, phone_number, link_precedence, linked_id)
    SELECT lpad(n || '@crowd.example', 300, 'x'), '{PHONE}', 'secondary', root.id
    FROM root, generate_series(2, 10000) AS n
"""


@contextmanager
def _crowd(port: int, count: int, how: str) -> Iterator[subprocess.Popen[str]]:
    script = str(ROOT / "tests" / "harness" / "crowd.py")
    command = [sys.executable, script, str(port), str(count), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def _measured(process: Process, during: asyncio.Task[Any]) -> tuple[int, float]:
    """The highest memory of the process until a task is done, and the longest that /healthz took."""
    memory, longest = 0, 0.0
    while not during.done():
        memory = max(memory, psutil.Process(process.popen.pid).memory_info().rss)
        started = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        longest = max(longest, time.monotonic() - started)
        await asyncio.sleep(0.01)
    return memory, longest


async def _metric(process: Process, name: str) -> float:
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    metrics = (await everything(reader)).decode()
    writer.close()
    _, _, after = metrics.partition(f"{name} ")
    return float(after.split()[0]) if after else 0


async def test_a_crowd_writes_about_a_large_identity(start_recon: StartRecon, database_url: str) -> None:
    """400 clients that read get their answer or a 503, no connection is closed, and memory and others do not suffer."""
    process = start_recon("--database-url", database_url)
    await fetch(database_url, _LARGE_IDENTITY)
    assert (await probe(process.port))[0] == 200
    before = psutil.Process(process.popen.pid).memory_info().rss

    with _crowd(process.port, 400, "read") as crowd:
        answered = asyncio.create_task(asyncio.to_thread(crowd.communicate))
        memory, longest = await _measured(process, answered)
        statuses, slowest = json.loads((await answered)[0])

    assert set(statuses) <= {"200", "503"}
    assert sum(statuses.values()) == 400
    assert statuses["200"] > 0
    assert memory - before < 400 * MB
    assert longest < 5  # alone on a machine, a fifth of a second
    assert slowest < 30  # with the time that this client takes to read; alone on a machine, 5 s
    assert recon("check", "--database-url", database_url).returncode == 0


@pytest.mark.parametrize(
    ("how", "metric", "enough"),
    [
        ("ignore", 'recon_connections_closed_total{why="unsent"}', 50),
        ("ignore-show", 'recon_http_requests_total{route="/identities/{contactId}",status="503"}', 250),
    ],
)
async def test_a_crowd_never_reads(
    start_recon: StartRecon, database_url: str, how: str, metric: str, enough: int
) -> None:
    """Of 400 clients that never read, so many are closed or refused that memory is bounded and others are served."""
    process = start_recon("--database-url", database_url, "--max-unsent", str(64 * MB))
    await fetch(database_url, _LARGE_IDENTITY)
    assert (await probe(process.port))[0] == 200
    before = psutil.Process(process.popen.pid).memory_info().rss

    async def until_shed() -> list[str]:
        """Send honest requests until one is answered and recon has closed or refused many of the others."""
        statuses: list[str] = []
        while "200" not in statuses or await _metric(process, metric) < enough:
            with _crowd(process.port, 1, "read") as reader:
                answer, _ = await asyncio.to_thread(reader.communicate)
            statuses += json.loads(answer)[0]
        return statuses

    with _crowd(process.port, 400, how) as crowd:
        assert await asyncio.to_thread(crowd.stdout.readline) == "connected\n"  # type: ignore[union-attr]
        async with asyncio.timeout(60):
            honest = asyncio.create_task(until_shed())
            memory, longest = await _measured(process, honest)

    assert set(await honest) <= {"200", "503"}  # a 503 at the deadline, if many of the others came before
    assert "200" in await honest
    assert memory - before < (64 + 150) * MB  # and two batches of 43 MB that are in progress meanwhile
    assert longest < 5
