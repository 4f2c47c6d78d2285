"""Many requests of one client, in order: a chunk at a time, in turn with the transactions of single requests.

A chunk is a part of the client's requests. Its first requests are answered from one read; from the first one on that
changes something, all are applied in one transaction. So the answers are those of the requests one after another.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from recon.database.transactions import may_be_one_requests_fault
from recon.errors import RetriesExhausted
from recon.identities.batching import MAX_BATCH, Entry, Lane, Room, RowQueues
from recon.identities.contention import Held
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Applied, Identify
from recon.rules.identifiers import Identifiers

T = TypeVar("T")

# Requests of a chunk: the most that share a transaction anywhere.
MAX_CHUNK = MAX_BATCH

# Without the writer lane, a transaction conflicts with all that run beside it: a chunk of 512 among 16 clients did not
# commit within five seconds.
MAX_CHUNK_WITHOUT_LANE = 32

# The pause after a chunk while there are single requests: so many times as long as the chunk took. With equal times,
# single requests kept 0.4 to 0.5 of their rate, since a chunk also takes time before and after its transactions.
_PAUSE = 2
# The longest pause, in seconds, while there are single requests. A chunk takes longer only when the
# database is slow, and then a pause helps nobody.
_LONGEST_PAUSE = 0.1
# How long no single request was in progress when there is none, in seconds.
_CHECK_EVERY = 0.002


class Failed(NamedTuple):
    """Instead of an outcome: the error of a request that fails alone."""

    error: Exception


Result: TypeAlias = Applied | Failed


class _Chunk(NamedTuple):
    """Requests in order, and the outcomes of those before them that are known."""

    requests: Sequence[Identifiers]
    known: Sequence[Applied] = ()


class _Rest(NamedTuple):
    """Instead of outcomes: what is left of a chunk changes something."""

    chunk: _Chunk


class Chunks:
    """Answers chunks, one read and one write at a time, however many clients send them.

    While there are single requests, it pauses after each read and write, so that they keep more than half of the
    database and of the event loop. Chunks of several clients take turns.

    Parameters
    ----------
    identify : applies the requests. It must be that of the single requests.
    limit : how many chunks may wait; more get Overloaded.
    deadlines : until when each chunk must have its answers.
    room : returns when there is memory for the answers of another chunk; None: there always is.
    largest : how many requests a chunk may have.
    """

    def __init__(
        self,
        identify: Identify,
        limit: int,
        deadlines: Deadlines,
        room: Room | None = None,
        largest: int = MAX_CHUNK,
    ) -> None:
        def write(entry: Entry, rest: _Rest) -> None:
            self._writes.enqueue((rest.chunk, *entry[1:]))

        def wait_for_row(entry: Entry, held: Held) -> None:
            queues.enqueue(held.row, entry, self._writes.enqueue)

        queues = RowQueues(identify.wait_for, limit, 1)
        self.largest = largest
        self._identify = identify
        self._next_turn = 0.0
        self._reads = Lane("read chunk", self._read, limit, deadlines, largest=1, pass_on={_Rest: write}, room=room)
        self._writes = Lane(
            "write chunk", self._write, limit, deadlines, largest=1, changes=True, pass_on={Held: wait_for_row}
        )

    def submit(self, requests: Sequence[Identifiers]) -> "asyncio.Future[list[Applied]]":
        """A future of the outcomes of the first requests of a chunk: of at least one, and perhaps not of all.

        What follows them was left undone. Cancelling the future does not undo a transaction that has begun.
        """
        return self._reads.submit(_Chunk(requests))

    async def _read(self, take: Callable[[], list[_Chunk]]) -> list[list[Applied] | _Rest]:
        chunks = take()  # one, or none if its client left
        return [await self._in_turn(partial(self._known, chunk)) for chunk in chunks]

    async def _known(self, chunk: _Chunk) -> list[Applied] | _Rest:
        known, size = await self._identify.read_in_order(lambda: chunk.requests)
        if len(known) == size:
            return known
        return _Rest(_Chunk(chunk.requests[len(known) : size], known))

    async def _write(self, take: Callable[[], list[_Chunk]]) -> list[list[Applied] | Held]:
        known: Sequence[Applied] = ()

        def requests() -> Sequence[Identifiers]:  # when the transaction has its place in the writer lane
            nonlocal known
            [chunk] = take() or [_Chunk(())]
            known = chunk.known
            return chunk.requests

        outcomes = await self._in_turn(partial(self._identify.write_in_order, requests))
        return [outcomes if isinstance(outcomes, Held) else [*known, *outcomes]]

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work when single requests have had their turn."""
        await self._pause()
        passes, started = self._identify.passes, time.monotonic()
        try:
            return await work()
        finally:
            if self._identify.passes != passes:
                now = time.monotonic()
                self._next_turn = now + min(_PAUSE * (now - started), _LONGEST_PAUSE)

    async def _pause(self) -> None:
        """Return when it is the turn of a chunk, or when there is no single request."""
        while time.monotonic() < self._next_turn:
            passes = self._identify.passes
            await asyncio.sleep(_CHECK_EVERY)
            if self._identify.passes == passes and not self._identify.in_progress:
                break


class Course:
    """The requests of one client, in order.

    Parameters
    ----------
    chunks : answers its chunks, and those of other clients.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._size = chunks.largest

    async def answer(self, requests: Sequence[Identifiers]) -> list[Result]:
        """Answer the first requests: at least one, and perhaps not all. What follows them was left undone.

        A chunk that fails because of one request is halved, in order, until that request fails alone; after it, chunks
        grow again. Raises Unavailable, as single requests do: then the first request was left undone, or its outcome is
        unknown.
        """
        while True:
            chunk = requests[: self._size]
            try:
                results: list[Result] = [*await self._chunks.submit(chunk)]
            except Exception as error:
                # Smaller transactions have fewer serialization conflicts.
                is_too_large = isinstance(error, RetriesExhausted) and len(chunk) > 1
                if not (is_too_large or may_be_one_requests_fault(error)):
                    raise
                if len(chunk) == 1:
                    return [Failed(error)]
                self._size = len(chunk) // 2
            else:
                self._size = min(2 * self._size, self._chunks.largest)
                return results
