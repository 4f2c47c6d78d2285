"""Overload: more requests on many connections than one recon can serve, and the figures of its responses.

    figures = await storm(process.port, process.popen.pid, connections=2000, seconds=5)

Each connection sends its next request as soon as the one before is answered, also after a refusal: the
clients ignore Retry-After.
"""

import asyncio
import resource
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil


@dataclass
class Figures:
    """The figures of a storm. Latencies in seconds, memory in bytes."""

    connections: int = 0
    offered: int = 0
    accepted: int = 0
    refused: int = 0
    others: Counter[str] = field(default_factory=Counter)
    """Anything but a 200 and a 503 with Retry-After: lost connections, other statuses."""
    seconds: float = 0
    median: float = 0
    p99: float = 0
    longest: float = 0
    refused_p99: float = 0
    newcomer: float = 0
    """The longest time that a request on a new connection waited for a response of any status."""
    highest_memory: int = 0
    until_normal: float = 0
    """Seconds from the storm's end until a lone request is answered with 200 in a tenth of a second."""
    emails: list[str] = field(default_factory=list, repr=False)
    """The emails that were answered with 200, to check that the database has them."""


class _Client(asyncio.Protocol):
    """One connection that always has one request in progress."""

    def __init__(self, name: str, storm: "_Storm") -> None:
        self._name = name
        self._storm = storm
        self._sent = 0
        self._started = 0.0
        self._buffer = b""
        self._email = ""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._storm.open.add(transport)
        self._send()

    def _send(self) -> None:
        if self._storm.over:
            self._transport.close()
            return
        self._sent += 1
        self._email = f"{self._name}-{self._sent}@storm.example"
        body = b'{"email": "%s"}' % self._email.encode()
        self._started = time.perf_counter()
        self._storm.figures.offered += 1
        self._transport.write(
            b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r", 1)[0])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        self._storm.answered(head, self._email, time.perf_counter() - self._started)
        self._send()

    def connection_lost(self, _: Exception | None) -> None:
        self._storm.open.discard(self._transport)
        if not self._storm.over:
            self._storm.figures.others["connection lost"] += 1


class _Storm:
    def __init__(self) -> None:
        self.figures = Figures()
        self.open: set[asyncio.Transport] = set()
        self.over = False
        self.latencies: list[float] = []
        self.refusals: list[float] = []

    def answered(self, head: bytes, email: str, seconds: float) -> None:
        status = head.split(b" ", 2)[1]
        if status == b"200":
            self.figures.accepted += 1
            self.figures.emails.append(email)
            self.latencies.append(seconds)
        elif status == b"503" and b"Retry-After: " in head:
            self.figures.refused += 1
            self.refusals.append(seconds)
        else:
            self.figures.others[status.decode()] += 1


async def storm(port: int, pid: int, *, connections: int = 2000, seconds: float = 5, ramp: float = 1) -> Figures:
    """Send requests without pause; `pid` is the recon process whose memory is measured, its workers included."""
    loop = asyncio.get_running_loop()
    storm = _Storm()
    figures = storm.figures
    watching = [asyncio.create_task(_watch_memory(pid, figures)), asyncio.create_task(_newcomers(port, figures))]
    started = time.perf_counter()
    # A hundred at a time: this tests many requests, not many handshakes.
    for first in range(0, connections, 100):
        numbers = range(first, min(first + 100, connections))
        made = [loop.create_connection(lambda n=n: _Client(f"{n}", storm), "127.0.0.1", port) for n in numbers]
        for outcome in await asyncio.gather(*made, return_exceptions=True):
            if isinstance(outcome, BaseException):
                figures.others[type(outcome).__name__] += 1
        await asyncio.sleep(ramp * 100 / connections)
    figures.connections = len(storm.open)
    await asyncio.sleep(seconds)
    figures.seconds = time.perf_counter() - started
    storm.over = True
    for task in watching:
        task.cancel()
    figures.until_normal = await _until_normal(port)
    async with asyncio.timeout(30):
        while storm.open:  # until the last request of each is answered
            await asyncio.sleep(0.01)
    if storm.latencies:
        figures.median = statistics.median(storm.latencies)
        figures.p99 = _p99(storm.latencies)
        figures.longest = max(storm.latencies)
    figures.refused_p99 = _p99(storm.refusals) if storm.refusals else 0
    return figures


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100]


async def _watch_memory(pid: int, figures: Figures) -> None:
    while True:
        process = psutil.Process(pid)
        memory = sum(each.memory_info().rss for each in [process, *process.children()] if "postgres" not in each.name())
        figures.highest_memory = max(figures.highest_memory, memory)
        await asyncio.sleep(0.25)


async def _newcomers(port: int, figures: Figures) -> None:
    while True:
        _, seconds = await probe(port)
        figures.newcomer = max(figures.newcomer, seconds)
        await asyncio.sleep(0.1)


async def probe(port: int, body: bytes = b'{"email": "probe@storm.example"}') -> tuple[int, float]:
    """Send a request on a new connection; return the status and the seconds until the response."""
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        answer = await reader.read()
    finally:
        writer.close()
    return int(answer.split(b" ", 2)[1]), time.perf_counter() - started


@contextmanager
def many_files() -> Iterator[int]:
    """Raise this process's limit of open files to the maximum meanwhile, and yield it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else 65_536
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def idle_connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that send nothing."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)]


async def _until_normal(port: int) -> float:
    started = time.perf_counter()
    while True:
        begun = time.perf_counter()
        if (await probe(port))[0] == 200 and time.perf_counter() - begun < 0.1:
            return begun - started
        await asyncio.sleep(0.01)
