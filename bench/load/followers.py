"""Followers of the change feed during a series: each asks for the page after the last one, and waits for it."""

import asyncio
import re

from bench.load.watch import Meanwhile

LIMIT, WAIT = 1000, 30  # of each page: contacts and events, seconds
TAIL = 64  # bytes at the end of a page, which have its `next`
TIMEOUT = 60  # seconds to wait for an answer


class Followers(Meanwhile):
    """Follows the feed from its end while its context is open.

    Attributes
    ----------
    pages : how many pages the followers have read.
    positions : how far they got, all together.
    errors : answers without a 200.
    """

    def __init__(self, port: int, number: int) -> None:
        super().__init__()
        self._port = port
        self._number = number
        self.pages = self.positions = self.errors = 0

    def run(self) -> None:
        """Follow until the end."""
        if self._number:
            asyncio.run(self._all())

    async def _all(self) -> None:
        tasks = [asyncio.create_task(self._follow()) for _ in range(self._number)]
        await asyncio.to_thread(self._over.wait)
        for task in tasks:
            task.cancel()
        self.errors += sum(isinstance(each, Exception) for each in await asyncio.gather(*tasks, return_exceptions=True))

    async def _follow(self) -> None:
        async with asyncio.timeout(None) as limit:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            after = 0
            while True:
                limit.reschedule(asyncio.get_running_loop().time() + TIMEOUT)
                writer.write(
                    f"GET /changes?after={after}&limit={LIMIT}&wait={WAIT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
                )
                head = await reader.readuntil(b"\r\n\r\n")
                if not head.startswith(b"HTTP/1.1 200"):
                    raise ConnectionError(head[:TAIL])
                tail = await self._tail(reader, int(re.findall(rb"(?i)content-length: (\d+)", head)[0]))
                reached = int(re.findall(rb'"next":(\d+),"more"', tail)[0])
                self.pages += 1
                self.positions += reached - after
                after = reached

    async def _tail(self, reader: asyncio.StreamReader, length: int) -> bytes:
        """The end of a body of so many bytes; the rest is read and dropped."""
        tail = b""
        while length:
            part = await reader.read(min(length, 1 << 20))
            if not part:
                raise ConnectionError("the answer was cut off")
            length -= len(part)
            tail = (tail + part)[-TAIL:]
        return tail
