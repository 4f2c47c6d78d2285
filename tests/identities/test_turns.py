"""Turns of reads: large identities one at a time, and time for others in between."""

import asyncio
import time

import pytest

from recon.errors import Overloaded
from recon.identities.turns import Turns


async def test_small_reads_run_so_many_at_a_time() -> None:
    """A third read waits until one of two has ended."""
    turns = Turns(at_once=2, limit=10)
    running = most = 0

    async def read() -> None:
        nonlocal running, most
        async with turns.small():
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    await asyncio.gather(*(read() for _ in range(6)))

    assert most == 2


async def test_more_waiting_reads_are_shed() -> None:
    """With one read in progress and two waiting, the next one gets Overloaded; those that wait get their turn."""
    turns = Turns(at_once=1, limit=2)
    go_on = asyncio.Event()

    async def read() -> None:
        async with turns.small():
            await go_on.wait()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(read())
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await read()
        go_on.set()


async def test_a_large_read_leaves_an_idle_loop_at_once() -> None:
    """When nothing else is to be done, the next read of a large identity begins before the pause is over."""
    turns = Turns(at_once=1, limit=2)
    async with turns.large():
        await asyncio.sleep(0.5)

    started = time.monotonic()
    async with turns.large():
        waited = time.monotonic() - started

    assert waited < 0.4


async def test_a_large_read_leaves_time_to_a_busy_loop() -> None:
    """While other requests occupy the event loop, the next read of a large identity waits as long as the last took."""
    turns = Turns(at_once=1, limit=2)
    stopped = False

    async def others() -> None:
        while not stopped:
            until = time.thread_time() + 0.002
            while time.thread_time() < until:
                pass
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(others())
        began = time.monotonic()
        async with turns.large():
            await asyncio.sleep(0.2)
        ended = time.monotonic()
        async with turns.large():
            waited = time.monotonic() - ended
        stopped = True

    assert waited >= 0.9 * (ended - began)


async def test_small_reads_do_not_wait_for_large_ones() -> None:
    """While a large identity is read, small ones are."""
    turns = Turns(at_once=1, limit=2)
    async with asyncio.timeout(5), turns.large(), turns.small():
        pass
