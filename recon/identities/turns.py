"""Turns of reads: how many run at a time, and how much of the event loop those of large identities leave to others."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from recon.background import run_once
from recon.errors import Overloaded

# Between two reads of large identities, how often it is checked whether the event loop has anything else to do, in
# seconds, and from which part of that time on it has.
_CHECK_EVERY = 0.005
_BUSY = 0.25


class Turns:
    """Bounds the reads of identities, so that requests of other kinds keep most of the sessions and of the event loop.

    Small identities are read a few at a time. Large ones are read one at a time, since deriving links from 10,000
    contacts occupies the event loop for about 80 ms. After each, the loop is left to other requests for as long as the
    read took, or until it is idle. A thread would not help: it would hold the interpreter's lock.

    Parameters
    ----------
    at_once : how many small identities are read at a time; each takes a session.
    limit : how many reads may wait; more get Overloaded.
    """

    def __init__(self, at_once: int, limit: int) -> None:
        self._small = asyncio.Semaphore(at_once)
        self._large = asyncio.Semaphore(1)
        self._limit = limit
        self._waiting = 0

    @asynccontextmanager
    async def small(self) -> AsyncIterator[None]:
        """The turn of a read of a few contacts."""
        await self._acquire(self._small)
        try:
            yield
        finally:
            self._small.release()

    @asynccontextmanager
    async def large(self) -> AsyncIterator[None]:
        """The turn of a read of a large identity."""
        await self._acquire(self._large)
        started = time.monotonic()
        try:
            yield
        finally:
            run_once("the pause after the read of a large identity", self._pause(time.monotonic() - started))

    async def _acquire(self, turns: asyncio.Semaphore) -> None:
        if self._waiting >= self._limit:
            raise Overloaded
        self._waiting += 1
        try:
            await turns.acquire()
        finally:
            self._waiting -= 1

    async def _pause(self, seconds: float) -> None:
        """End the turn after `seconds`, or when the event loop is idle."""
        try:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                worked = time.thread_time()
                await asyncio.sleep(_CHECK_EVERY)
                if time.thread_time() - worked < _CHECK_EVERY * _BUSY:
                    break
        finally:
            self._large.release()
