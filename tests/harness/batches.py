"""A client of POST /identify/batch: it sends lines, and keeps the answers as far as they come.

async with opened(port, lines) as batch:
await batch.reached(100)  # so many lines were answered; now something breaks
process.popen.kill()
await batch.ended()
assert not batch.is_complete
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any

from tests.harness.exchanges import Exchange, History, Outcome, Request

HEAD = (
    b"POST /identify/batch%b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
AT_ONCE = 64  # lines that are sent together


class Batch:
    """A batch in progress.

    Attributes
    ----------
    answers : the lines of the answer so far, parsed; without the summary.
    summary : the counts; None until they come.
    is_complete : whether the answer has its end.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.head = b""
        self.answers: list[dict[str, Any]] = []
        self.summary: dict[str, int] | None = None
        self.is_complete = False
        self._news = asyncio.Event()
        self._receiving: asyncio.Future[None] | None = None

    async def send(self, lines: Iterable[bytes]) -> None:
        """Send lines, each when the one before is in the socket's buffer, and the end of the body."""
        with suppress(ConnectionError):
            for some in _groups(lines):
                self.writer.write(b"%x\r\n%b\r\n" % (len(some), some))
                await self.writer.drain()
            self.writer.write(b"0\r\n\r\n")

    def receive(self) -> None:
        """Start to read the answer."""
        self._receiving = asyncio.ensure_future(self._receive())
        self._receiving.add_done_callback(lambda _: self._news.set())

    async def _receive(self) -> None:
        rest = b""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            self.head = await self._reader.readuntil(b"\r\n\r\n")
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                *lines, rest = (rest + (await self._reader.readexactly(size + 2))[:-2]).split(b"\n")
                self._take(lines)
            self.is_complete = not rest

    def _take(self, lines: list[bytes]) -> None:
        for each in map(json.loads, lines):
            if "summary" in each:
                self.summary = each["summary"]
            else:
                self.answers.append(each)
        self._news.set()

    async def reached(self, count: int) -> None:
        """Return when so many lines were answered."""
        assert await self.reached_or_ended(count), f"the answer ended at {len(self.answers)} of {count}"

    async def reached_or_ended(self, count: int) -> bool:
        """Whether so many lines were answered, when they were or the answer has ended."""
        assert self._receiving is not None
        while len(self.answers) < count and not self._receiving.done():
            self._news.clear()
            await self._news.wait()
        return len(self.answers) >= count

    async def ended(self) -> None:
        """Return when the answer or the connection has ended."""
        assert self._receiving is not None
        await self._receiving

    @property
    def done(self) -> int:
        """How many lines, from the first one on, were answered with 200."""
        return next((n for n, each in enumerate(self.answers) if each["status"] != 200), len(self.answers))


def _groups(lines: Iterable[bytes]) -> Iterator[bytes]:
    remaining = iter(lines)
    while some := b"".join(islice(remaining, AT_ONCE)):
        yield some


@asynccontextmanager
async def opened(
    port: int, lines: Iterable[bytes] | None, query: bytes = b"", *, receiving: bool = True, **options: Any
) -> AsyncIterator[Batch]:
    """Open a connection, send lines, and read the answer unless `receiving` is false; close it in the end.

    Without lines, the caller sends the body.
    """
    where = {} if "sock" in options else {"host": "127.0.0.1", "port": port}
    reader, writer = await asyncio.open_connection(**where, **options)
    batch = Batch(reader, writer)
    writer.write(HEAD % query)
    sending = asyncio.ensure_future(batch.send(lines) if lines is not None else asyncio.sleep(0))
    try:
        if receiving:
            batch.receive()
        yield batch
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def line(email: str | None = None, phone: Any = None, **others: Any) -> bytes:
    """A line of a body."""
    return json.dumps({"email": email, "phoneNumber": phone} | others).encode() + b"\n"


async def replayed(port: int, requests: Iterable[Request], history: History) -> Batch:
    """Send requests as one batch, and add them to a history."""
    sent: list[Exchange] = []

    def lines() -> Iterator[bytes]:
        for number, request in enumerate(requests):
            sent.append(Exchange(-1 - number, 0, "batch", request, time.monotonic()))
            history.exchanges.append(sent[-1])
            yield json.dumps(request.json).encode() + b"\n"

    async with opened(port, lines()) as batch:
        known = 0
        while await batch.reached_or_ended(known + 1):
            for each in batch.answers[known:]:
                exchange = sent[each["line"] - 1]
                exchange.ended, exchange.status = time.monotonic(), each["status"]
                exchange.outcome = Outcome.ACKNOWLEDGED if each["status"] == 200 else Outcome.REFUSED
                exchange.body = json.dumps({"contact": each.get("contact")}).encode()
            known = len(batch.answers)
    return batch
