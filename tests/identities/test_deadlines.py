"""Deadlines of requests, apart from the batches that they end."""

import asyncio
import weakref

import pytest

from recon.errors import DeadlineExceeded
from recon.identities.deadlines import Deadlines, limited


async def test_deadlines_keep_nothing_that_is_answered() -> None:
    """An answered future is forgotten at once, also behind one that still waits; with none there is no timer."""
    loop = asyncio.get_running_loop()
    deadlines = Deadlines(0.4)
    patient = loop.create_future()
    deadlines.watch(patient)
    answered = weakref.WeakSet[asyncio.Future[None]]()
    for _ in range(100):
        future = loop.create_future()
        answered.add(future)
        deadlines.watch(future)
        future.set_result(None)
    del future

    assert not answered
    assert not patient.done()
    with pytest.raises(DeadlineExceeded):
        await patient
    assert not deadlines._ticking


async def test_a_read_that_takes_too_long() -> None:
    """It ends with the error of a deadline."""
    with pytest.raises(DeadlineExceeded):
        async with limited(0.01):
            await asyncio.Event().wait()
