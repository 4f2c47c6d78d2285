"""Queues for rows that other sessions hold: who waits, who is let go, and how many."""

import asyncio
from typing import Any

import pytest

from recon.errors import Overloaded, RowsHeld, Unavailable
from recon.identities.batching import RowQueues


class Row:
    """A row that another session holds until it is let go, and how often it is waited for at a time."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.waiting = self.most_waiting = 0
        self.error: Exception | None = None

    async def __call__(self, _: int) -> None:
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        try:
            await self.free.wait()
        finally:
            self.waiting -= 1
        error, self.error = self.error, None
        if error is not None:
            raise error


def _entry(item: int) -> Any:
    return item, asyncio.get_running_loop().create_future(), None


async def test_rows_are_waited_for_by_so_many_connections() -> None:
    """However many rows are held, and however many requests need each; those that gave up do not come back."""
    row, back = Row(), []
    queues = RowQueues(row, limit=10, at_once=2)
    entries = [_entry(item) for item in range(9)]
    for entry in entries:
        queues.enqueue(entry[0] % 3, entry, back.append)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    entries[4][1].cancel()

    row.free.set()
    async with asyncio.timeout(1):
        while len(back) < 8:
            await asyncio.sleep(0)

    assert row.most_waiting == 2
    assert sorted(item for item, _, _ in back) == [0, 1, 2, 3, 5, 6, 7, 8]


async def test_a_row_that_cannot_be_waited_for() -> None:
    """When the database fails, those who waited are told; who came later waits anew."""
    row, back = Row(), []
    queues = RowQueues(row, limit=10, at_once=1)
    first, second = _entry(1), _entry(2)
    queues.enqueue(7, first, back.append)
    await asyncio.sleep(0)
    queues.enqueue(7, second, back.append)

    row.error = Unavailable()
    row.free.set()
    with pytest.raises(Unavailable):
        await first[1]
    async with asyncio.timeout(1):
        while not back:
            await asyncio.sleep(0)

    assert back == [second]


async def test_a_row_that_nobody_needs_any_more() -> None:
    """When all requests that need a row have given up, no further transaction waits for it, and none goes back."""
    waits, back, entry = 0, [], _entry(1)

    async def wait(_: int) -> None:
        nonlocal waits
        waits += 1
        entry[1].cancel()
        raise RowsHeld

    queues = RowQueues(wait, limit=1, at_once=1)
    queues.enqueue(7, entry, back.append)
    async with asyncio.timeout(1):
        while queues._rows:
            await asyncio.sleep(0)

    assert (waits, back) == (1, [])


async def test_a_wait_that_fails_after_a_caller_has_left() -> None:
    """The error is the answer of those that still wait."""
    row = Row()
    queues = RowQueues(row, limit=10, at_once=1)
    left, waiting = _entry(1), _entry(2)
    for entry in (left, waiting):
        queues.enqueue(7, entry, [].append)
    await asyncio.sleep(0)

    left[1].cancel()
    row.error = Unavailable()
    row.free.set()

    with pytest.raises(Unavailable):
        await waiting[1]


async def test_a_row_that_is_still_held_is_waited_for_again() -> None:
    """Each wait has a limit; nobody goes back before the row is free."""
    waits, back, others = 0, [], asyncio.Event()

    async def wait(_: int) -> None:
        nonlocal waits
        waits += 1
        await others.wait()
        if waits < 3:
            raise RowsHeld

    queues = RowQueues(wait, limit=10, at_once=1)
    entry = _entry(1)

    queues.enqueue(7, entry, lambda each: back.append((each, waits)))
    others.set()
    async with asyncio.timeout(1):
        while not back:
            await asyncio.sleep(0)

    assert back == [(entry, 3)]


async def test_the_queues_of_rows_are_bounded() -> None:
    """All of them together: who is refused is told at once."""
    row = Row()
    queues = RowQueues(row, limit=1, at_once=1)
    queues.enqueue(7, _entry(1), [].append)
    refused = _entry(2)

    queues.enqueue(8, refused, [].append)

    with pytest.raises(Overloaded):
        await refused[1]
    row.free.set()
