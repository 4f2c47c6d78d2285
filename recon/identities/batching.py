"""Concurrent requests become batches: the requests that arrive while a batch is in progress make up the next one.

Under light load a batch is one request and nothing waits; under heavy load batches grow by
themselves. No timer, nothing to tune.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from types import NoneType
from typing import Any, TypeAlias

from recon import metrics
from recon.background import run_once
from recon.database.transactions import may_be_one_requests_fault
from recon.errors import Blocked, Overloaded, RowsHeld
from recon.identities.contention import Held
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Answer, Identify, Large, Refused
from recon.rules.identifiers import Identifiers

# Requests in a batch. Far above what batches grow to by themselves; it bounds the time and memory of one
# transaction when a backlog has built up.
MAX_BATCH = 512

# A request, the future of its answer, and what it can share a batch by: its large identities, or None. A lane may have
# entries of other kinds, such as the chunks of `chunks`.
Entry: TypeAlias = tuple[Any, "asyncio.Future[Any]", Hashable]

Room: TypeAlias = Callable[[], Awaitable[None]]
Work: TypeAlias = Callable[[Callable[[], list[Any]]], Awaitable[Sequence[Any]]]
PassOn: TypeAlias = Callable[[Entry, Any], None]  # has another queue take the request over; given its outcome


class Batch:
    """Requests that share a transaction: dequeued when the work can begin, and the same when the work runs again.

    Parameters
    ----------
    dequeue : gives the requests.
    changes : the deadlines, which must know for whom the work may have changed something; None if it only reads.
    """

    def __init__(self, dequeue: Callable[[], Iterable[Entry]], changes: Deadlines | None = None) -> None:
        self._dequeue = dequeue
        self._changes = changes
        self._entries: list[Entry] | None = None

    @property
    def entries(self) -> list[Entry]:
        """Its requests that are not done. A request past its deadline was answered that nothing was changed."""
        if self._entries is None:
            self._entries = [entry for entry in self._dequeue() if not entry[1].done()]
        return self._entries

    def requests(self) -> list[Any]:
        """What is to be answered; from now on the database may be changed for it."""
        if self._changes is not None:
            self._changes.begin_change(self._futures())
        return [request for request, _, _ in self.entries]

    async def run(self, work: Work) -> Sequence[Any]:
        """Return the work's outcomes for the requests, in their order."""
        try:
            return await work(self.requests)
        finally:
            if self._changes is not None:
                self._changes.end_change(self._futures())

    def fail(self, error: Exception) -> None:
        """Answer all of it with an error."""
        for future in self._futures():
            if not future.done():
                future.set_exception(error)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Two batches, to be run one after the other."""
        entries, middle = self.entries, len(self.entries) // 2
        return Batch(lambda: entries[:middle], self._changes), Batch(lambda: entries[middle:], self._changes)

    def _futures(self) -> list["asyncio.Future[Any]"]:
        return [future for _, future, _ in self.entries]


class Lane:
    """Runs `work` on batches of the requests that were submitted meanwhile.

    Parameters
    ----------
    name : the label of its metrics.
    work : outcomes for a batch, in its order. It is given a function that dequeues the batch's requests, to be
        called when the work can begin; called again, that gives the same requests. Fewer outcomes than requests: the
        others wait for another batch.
    limit : how many requests may wait; more get Overloaded.
    deadlines : until when each request must have its answer.
    width : how many batches may be in progress. At most one of them has yet to dequeue its requests.
    largest : how many requests may be in a batch; MAX_BATCH unless given.
    changes : whether `work` changes the database.
    pass_on : by the class of an outcome that is no answer: what has another queue take the request over.
    room : returns when there is memory for the answers of another batch; None: there always is.
    """

    def __init__(
        self,
        name: str,
        work: Work,
        limit: int,
        deadlines: Deadlines,
        *,
        width: int = 1,
        largest: int | None = None,
        changes: bool = False,
        pass_on: Mapping[type, PassOn] | None = None,
        room: Room | None = None,
    ) -> None:
        self._name = name
        self._work = work
        self._limit = limit
        self._deadlines = deadlines
        self._width = width
        self._largest = largest or MAX_BATCH
        self._changes = deadlines if changes else None
        self._pass_on = pass_on or {}
        self._room = room
        self._waiting: deque[Entry] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._pending = False  # whether one of them has yet to dequeue its requests
        self._backlog = metrics.WAITING.labels(name)

    def submit(self, request: Any) -> "asyncio.Future[Any]":
        """A future of the request's answer. Cancelling it harms no other request of the batch."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._deadlines.watch(future)
        self.enqueue((request, future, None))
        return future

    def enqueue(self, entry: Entry) -> None:
        """Have a request that is watched already wait for its batch."""
        if len(self._waiting) >= self._limit:
            entry[1].set_exception(Overloaded())
            return
        self._waiting.append(entry)
        if not self._pending and len(self._running) < self._width:
            self._start()

    def _start(self) -> None:
        self._pending = True
        self._running.add(run_once(f"the batches of the lane {self._name}", self._run()))

    async def _run(self) -> None:
        try:
            while self._pending:
                if self._room is not None:
                    await self._room()
                await self._settle(Batch(self._dequeue, self._changes))
                if self._pending:  # another one
                    return
                self._pending = bool(self._waiting)
        finally:
            # No await between the last check of the queue and this: a submit in between would never be woken.
            self._running.remove(asyncio.current_task())  # type: ignore[arg-type]

    def _dequeue(self) -> list[Entry]:
        self._pending = False
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
            outcomes = await batch.run(self._work)
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
            pass_on = self._pass_on.get(outcome.__class__)
            if pass_on is None:
                future.set_result(outcome)
            else:
                pass_on(entry, outcome)
        # Behind those that wait already, so that a large identity does not keep others waiting.
        self._waiting.extend(batch.entries[len(outcomes) :])


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
        # No await between the last check of the queue and its removal, or a request in between would never be woken.
        while any(not future.done() for (_, future, _), _ in self._rows[row]):
            from_the_beginning = len(self._rows[row])
            try:
                async with self._connections:
                    await self._wait(row)
            except RowsHeld:
                continue
            except Exception as error:  # noqa: BLE001 (it is the answer of the requests that waited all the time)
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

    def refuse(entry: Entry, _: Refused) -> None:
        entry[1].set_exception(Blocked())

    def lane(name: str, work: Work, width: int, pass_on: dict[type, PassOn], **options: Any) -> Lane:
        return Lane(
            name, work, limit, deadlines, width=width, largest=largest, pass_on={Refused: refuse, **pass_on}, **options
        )

    def write_lane(name: str, width: int, room: Room | None = None) -> Lane:
        def wait_for_row(entry: Entry, held: Held) -> None:
            queues.enqueue(held.row, entry, itself.enqueue)

        itself = lane(name, identify.write, width, {Held: wait_for_row}, changes=True, room=room)
        return itself

    def to(changing: Lane) -> PassOn:
        return lambda entry, _: changing.enqueue(entry)

    def to_large(entry: Entry, large: Large) -> None:
        request, future, _ = entry
        large_reads.enqueue((request, future, large.roots))  # those about the same identities share a batch

    large_writes = write_lane("write large", 1, room)
    large_reads = lane("read large", identify.read_large, 1, {NoneType: to(large_writes)}, room=room)
    small_writes = write_lane("write", writes)
    return lane("read", identify.read, reads, {NoneType: to(small_writes), Large: to_large}).submit
