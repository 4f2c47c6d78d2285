"""Concurrent requests become batches: what arrives while a batch is under way makes up the next one.

Under light load a batch is one request and nothing waits; under heavy load batches grow by
themselves. No timer, nothing to tune.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, partial
from typing import Generic, TypeAlias, TypeVar

from recon import metrics
from recon.deadlines import Deadlines
from recon.errors import Overloaded, Unavailable
from recon.identifiers import Identifiers
from recon.identify import Answer, Identify

Item = TypeVar("Item")
Result = TypeVar("Result")
Waiting: TypeAlias = tuple[Item, asyncio.Future[Result]]

# Requests in a batch. Far above what batches grow to by themselves; it bounds the time and memory of one
# transaction when a backlog has built up.
MAX_BATCH = 512


class Lane(Generic[Item, Result]):
    """Runs `work` on batches of whatever was submitted meanwhile.

    Parameters
    ----------
    name : what its metrics are labelled with.
    work : results for a batch, in its order; None for an item that is to go on to `rest`. It is not given
        the batch but a function that takes it from the queue, to be called when the work can begin;
        called again, that gives the same batch.
    limit : how many may wait; more get Overloaded.
    deadlines : until when what was submitted must have its result.
    width : how many batches may be under way. At most one of them has yet to take its items.
    largest : how many requests may be in a batch; MAX_BATCH unless told otherwise.
    rest : the lane for what this one has no result for.
    changes : whether `work` changes the database.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Callable[[], Sequence[Item]]], Awaitable[Sequence[Result | None]]],
        limit: int,
        deadlines: Deadlines,
        *,
        width: int = 1,
        largest: int | None = None,
        rest: "Lane[Item, Result] | None" = None,
        changes: bool = False,
    ) -> None:
        self._work = work
        self._limit = limit
        self._deadlines = deadlines
        self._width = width
        self._largest = largest or MAX_BATCH
        self._rest = rest
        self._changes = changes
        self._waiting: deque[Waiting[Item, Result]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._taker = False  # whether one of them has yet to take what waits
        self._backlog = metrics.WAITING.labels(name)

    def submit(self, item: Item) -> asyncio.Future[Result]:
        """A future of the item's result. Cancelling it harms no one else in the batch."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._deadlines.watch(future)
        self._enqueue((item, future))
        return future

    def _enqueue(self, entry: Waiting[Item, Result]) -> None:
        if len(self._waiting) >= self._limit:
            entry[1].set_exception(Overloaded())
            return
        self._waiting.append(entry)
        if not self._taker and len(self._running) < self._width:
            self._start()

    def _start(self) -> None:
        self._taker = True
        self._running.add(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        try:
            while self._taker:
                await self._settle(cache(self._take))
                if self._taker:  # another one
                    return
                self._taker = bool(self._waiting)
        finally:
            # No await between the last look at the queue and this: a submit in between would never be woken.
            self._running.remove(asyncio.current_task())  # type: ignore[arg-type]

    def _take(self) -> Sequence[Waiting[Item, Result]]:
        self._taker = False
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._largest))]
        self._backlog.set(len(self._waiting))
        if self._waiting and len(self._running) < self._width:
            self._start()
        return _not_done(batch)

    async def _settle(self, take: Callable[[], Sequence[Waiting[Item, Result]]]) -> None:
        """Give each entry of the batch its result, or the error that is its own, or hand it on."""
        try:
            results = await self._worked(take)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is some request's answer)
            batch = take()
            if len(batch) <= 1 or isinstance(error, Unavailable):
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                return
        else:
            for entry, result in zip(take(), results, strict=True):
                if entry[1].done():
                    continue
                if result is None and self._rest is not None:
                    self._rest._enqueue(entry)  # noqa: SLF001 (a lane too)
                else:
                    entry[1].set_result(result)  # type: ignore[arg-type]
            return
        # One request spoils it for all. The transaction is undone, so halves can be tried: in the end the
        # bad one fails alone. (When the database is away nobody is to blame, and trying is no use.)
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            await self._settle(cache(partial(_not_done, half)))

    async def _worked(self, take: Callable[[], Sequence[Waiting[Item, Result]]]) -> Sequence[Result | None]:
        """The work's results; while it may change something for those that it took, the deadlines know."""
        if not self._changes:
            return await self._work(lambda: [item for item, _ in take()])

        def begin() -> Sequence[Item]:
            self._deadlines.begin_change(future for _, future in take())
            return [item for item, _ in take()]

        try:
            return await self._work(begin)
        finally:
            self._deadlines.end_change(future for _, future in take())


def _not_done(entries: Sequence[Waiting[Item, Result]]) -> Sequence[Waiting[Item, Result]]:
    """Those that still want a result: whoever gave up before was told that nothing was changed."""
    return [entry for entry in entries if not entry[1].done()]


One: TypeAlias = Callable[[Identifiers], asyncio.Future[Answer]]


def coalesced(identify: Identify, limit: int, deadlines: Deadlines) -> One:
    """A function that answers one request by sharing transactions: a read batch, and for the rest a write batch."""
    # Two write batches: one writes, and the next has its connection and stands in the queue for the writer
    # lane, so that the lane is handed on inside the database and its requests are those of that moment.
    writes: Lane[Identifiers, Answer] = Lane("write", identify.write, limit, deadlines, width=2, changes=True)
    return Lane("read", lambda take: identify.read(take()), limit, deadlines, rest=writes).submit


def plain(identify: Identify, limit: int, deadlines: Deadlines, at_once: int) -> One:
    """A function that answers one request in transactions of its own, so many of them at once."""
    writes: Lane[Identifiers, Answer] = Lane(
        "write", identify.write, limit, deadlines, width=at_once, largest=1, changes=True
    )
    return Lane(
        "read", lambda take: identify.read(take()), limit, deadlines, width=at_once, largest=1, rest=writes
    ).submit
