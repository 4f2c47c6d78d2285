"""Concurrent requests become batches: the requests that arrive while a batch is in progress make up the next one.

Under light load a batch is one request and nothing waits; under heavy load batches grow by
themselves. No timer, nothing to tune.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from typing import Any, TypeAlias

from recon import metrics
from recon.background import run_once
from recon.contention import Held
from recon.database import may_be_one_requests_fault
from recon.deadlines import Deadlines
from recon.errors import Overloaded, RowsHeld
from recon.identifiers import Identifiers
from recon.identify import Answer, Identify, Large, Outcome, Take

# Requests in a batch. Far above what batches grow to by themselves; it bounds the time and memory of one
# transaction when a backlog has built up.
MAX_BATCH = 512

# A request, the future of its answer, and what it can share a batch by: its large identities, or None.
Entry: TypeAlias = tuple[Identifiers, "asyncio.Future[Answer]", Hashable]

Room: TypeAlias = Callable[[], Awaitable[None]]


class Batch:
    """Requests that share a transaction: taken when the work can begin, and the same when the work runs again."""

    def __init__(self, take: Callable[[], Iterable[Entry]]) -> None:
        self._take = take
        self._entries: list[Entry] | None = None

    @property
    def entries(self) -> list[Entry]:
        """Those of its requests that still want an answer: a caller that gave up was told that nothing was changed."""
        if self._entries is None:
            self._entries = [entry for entry in self._take() if not entry[1].done()]
        return self._entries

    def requests(self) -> list[Identifiers]:
        """What is to be answered."""
        return [request for request, _, _ in self.entries]

    def futures(self) -> list["asyncio.Future[Answer]"]:
        """What the answers are waited for with."""
        return [future for _, future, _ in self.entries]

    def fail(self, error: Exception) -> None:
        """Answer all of it with an error."""
        for future in self.futures():
            if not future.done():
                future.set_exception(error)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two batches, to be run one after the other."""
        entries, middle = self.entries, len(self.entries) // 2
        return Batch(lambda: entries[:middle]), Batch(lambda: entries[middle:])


class Lane:
    """Runs `work` on batches of the requests that were submitted meanwhile.

    Parameters
    ----------
    name : the label of its metrics.
    work : outcomes for a batch, in its order. It is given a function that takes the batch from the queue, to be
        called when the work can begin; called again, that gives the same batch. Fewer outcomes than requests: the
        others wait for another batch.
    limit : how many requests may wait; more get Overloaded.
    deadlines : until when each request must have its answer.
    width : how many batches may be in progress. At most one of them has yet to take its requests.
    largest : how many requests may be in a batch; MAX_BATCH unless told otherwise.
    changes : whether `work` changes the database.
    rest : the lane for the requests that change something (outcome None).
    large : the lane for the requests that touch a large identity (outcome Large), one identity a batch.
    row_queues : for the requests that need a row that another session holds (outcome Held).
    room : returns when there is memory for the answers of another batch; None: there always is.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[Take], Awaitable[Sequence[Outcome]]],
        limit: int,
        deadlines: Deadlines,
        *,
        width: int = 1,
        largest: int | None = None,
        changes: bool = False,
        rest: "Lane | None" = None,
        large: "Lane | None" = None,
        row_queues: "RowQueues | None" = None,
        room: Room | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._limit = limit
        self._deadlines = deadlines
        self._width = width
        self._largest = largest or MAX_BATCH
        self._changes = changes
        self._rest = rest
        self._large = large
        self._row_queues = row_queues
        self._room = room
        self._waiting: deque[Entry] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._taker = False  # whether one of them has yet to take its requests
        self._backlog = metrics.WAITING.labels(name)

    def submit(self, request: Identifiers) -> "asyncio.Future[Answer]":
        """A future of the request's answer. Cancelling it harms no other request of the batch."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._deadlines.watch(future)
        self.enqueue((request, future, None))
        return future

    def enqueue(self, entry: Entry) -> None:
        """Have a request that is watched already wait for its batch."""
        if len(self._waiting) >= self._limit:
            entry[1].set_exception(Overloaded())
            return
        self._waiting.append(entry)
        if not self._taker and len(self._running) < self._width:
            self._start()

    def _start(self) -> None:
        self._taker = True
        self._running.add(run_once(f"the batches of the lane {self._name}", self._run()))

    async def _run(self) -> None:
        try:
            while self._taker:
                if self._room is not None:
                    await self._room()
                await self._settle(Batch(self._take))
                if self._taker:  # another one
                    return
                self._taker = bool(self._waiting)
        finally:
            # No await between the last look at the queue and this: a submit in between would never be woken.
            self._running.remove(asyncio.current_task())  # type: ignore[arg-type]

    def _take(self) -> list[Entry]:
        self._taker = False
        entries = self._next()
        self._backlog.set(len(self._waiting))
        if self._waiting and len(self._running) < self._width:
            self._start()
        return entries

    def _next(self) -> list[Entry]:
        """What waits longest, with all that can share a batch with it."""
        waiting = self._waiting
        if not waiting or waiting[0][2] is None:
            return [waiting.popleft() for _ in range(min(len(waiting), self._largest))]
        key = waiting[0][2]
        entries = [entry for entry in waiting if entry[2] == key][: self._largest]
        taken = set(map(id, entries))
        self._waiting = deque(entry for entry in waiting if id(entry) not in taken)
        return entries

    async def _settle(self, batch: Batch) -> None:
        """Give each request of the batch its answer, or the error that is its own, or pass it on."""
        try:
            outcomes = await self._worked(batch)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is some request's answer)
            if len(batch.entries) > 1 and may_be_one_requests_fault(error):
                # The transaction is undone, so halves can be tried: in the end the bad request fails alone.
                for half in batch.halves():
                    await self._settle(half)
            else:
                batch.fail(error)
            return
        for entry, outcome in zip(batch.entries, outcomes, strict=False):
            future = entry[1]
            if future.done():
                continue
            if outcome is None:
                self._rest.enqueue(entry)  # type: ignore[union-attr] # whoever has such outcomes has it
            elif outcome.__class__ in _ELSEWHERE:
                self._pass_on(entry, outcome)
            else:
                future.set_result(outcome)  # type: ignore[arg-type]
        # Behind those that wait already, so that a large identity does not keep others waiting.
        self._waiting.extend(batch.entries[len(outcomes) :])

    def _pass_on(self, entry: Entry, outcome: Outcome) -> None:
        if isinstance(outcome, Large):
            self._large.enqueue((entry[0], entry[1], outcome.roots))  # type: ignore[union-attr]
        elif isinstance(outcome, Held):
            self._row_queues.enqueue(outcome.row, entry, self.enqueue)  # type: ignore[union-attr]

    async def _worked(self, batch: Batch) -> Sequence[Outcome]:
        """The work's outcomes; while it may change something for the requests that it took, the deadlines know."""
        if not self._changes:
            return await self._work(batch.requests)

        def begin() -> Sequence[Identifiers]:
            self._deadlines.begin_change(batch.futures())
            return batch.requests()

        try:
            return await self._work(begin)
        finally:
            self._deadlines.end_change(batch.futures())


_ELSEWHERE = frozenset({Large, Held})


class RowQueues:
    """Requests that need a row that another session holds wait for it here, apart from all others.

    For each such row one transaction waits, whatever the number of requests. When the row is free, they go back to
    where they came from.

    Parameters
    ----------
    wait : returns when no other session holds the row any more; raises RowsHeld now and then while one does.
    limit : how many requests may wait; more get Overloaded.
    at_once : how many rows can be waited for at a time, since each takes a database connection.
    """

    def __init__(self, wait: Callable[[int], Awaitable[None]], limit: int, at_once: int) -> None:
        self._wait = wait
        self._limit = limit
        self._connections = asyncio.Semaphore(at_once)
        self._rows: dict[int, list[tuple[Entry, Callable[[Entry], None]]]] = {}

    def enqueue(self, row: int, entry: Entry, back: Callable[[Entry], None]) -> None:
        """Call `back` with the entry when the row is free, unless its deadline is earlier."""
        if sum(map(len, self._rows.values())) >= self._limit:
            entry[1].set_exception(Overloaded())
            return
        if row not in self._rows:
            self._rows[row] = []
            run_once(f"the wait for contact {row}", self._run(row))
        self._rows[row].append((entry, back))

    async def _run(self, row: int) -> None:
        # Without an await between the last look at the queue and its removal: nobody is forgotten.
        while any(not future.done() for (_, future, _), _ in self._rows[row]):
            from_the_beginning = len(self._rows[row])
            try:
                async with self._connections:
                    await self._wait(row)
            except RowsHeld:
                continue
            except Exception as error:  # noqa: BLE001 (it is the answer of those who waited all the time)
                for (_, future, _), _ in self._rows[row][:from_the_beginning]:
                    if not future.done():
                        future.set_exception(error)
                del self._rows[row][:from_the_beginning]
            else:
                break
        for entry, back in self._rows.pop(row):
            if not entry[1].done():
                back(entry)


Submit: TypeAlias = Callable[[Identifiers], "asyncio.Future[Answer]"]


def coalesced(
    identify: Identify, limit: int, deadlines: Deadlines, rows_at_once: int = 1, room: Room | None = None
) -> Submit:
    """A function that answers one request by sharing transactions: a read batch, and for the rest a write batch."""
    # Two write batches: one writes, and the next has its connection and stands in the queue for the writer
    # lane, so that the lane is handed on inside the database and its requests are those of that moment.
    return _lanes(identify, limit, deadlines, rows_at_once, room, reads=1, writes=2, largest=None)


def plain(identify: Identify, limit: int, deadlines: Deadlines, at_once: int, room: Room | None = None) -> Submit:
    """A function that answers one request in transactions of its own, so many of them at once."""
    return _lanes(identify, limit, deadlines, max(1, at_once // 4), room, reads=at_once, writes=at_once, largest=1)


def _lanes(
    identify: Identify,
    limit: int,
    deadlines: Deadlines,
    rows_at_once: int,
    room: Room | None,
    *,
    reads: int,
    writes: int,
    largest: int | None,
) -> Submit:
    queues = RowQueues(identify.wait_for, limit, rows_at_once)

    def lane(name: str, work: Callable[[Take], Awaitable[Sequence[Outcome]]], width: int, **options: Any) -> Lane:
        return Lane(name, work, limit, deadlines, width=width, largest=largest, **options)

    changes = {"changes": True, "row_queues": queues}
    large_writes = lane("write large", identify.write, 1, room=room, **changes)
    large_reads = lane("read large", identify.read_large, 1, room=room, rest=large_writes)
    small_writes = lane("write", identify.write, writes, **changes)
    return lane("read", identify.read, reads, rest=small_writes, large=large_reads).submit
