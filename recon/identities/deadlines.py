"""Request deadlines: at its deadline a request gets its 503, whatever the database does. One timing wheel for all."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from weakref import ReferenceType, ref

from recon.errors import DeadlineExceeded, OutcomeUnknown

Waiting: TypeAlias = asyncio.Future[Any]

# Slots of the timing wheel. Requests of one slot expire together, up to a slot early: then watching a request is an
# append to a list, without a timer of its own and without reading the clock.
_TICKS = 20


@asynccontextmanager
async def limited(seconds: float) -> AsyncIterator[None]:
    """End what only reads with DeadlineExceeded after `seconds`. A timer each: reads are few."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise DeadlineExceeded from error


class Deadlines:
    """Sets an error on each watched future that is not done in time.

    Parameters
    ----------
    seconds : time limit of each future; it may expire a twentieth earlier.
    """

    def __init__(self, seconds: float) -> None:
        self._tick = seconds / _TICKS
        # Weak references: nothing else keeps an answered future alive, and its answer may have megabytes.
        self._new: list[ReferenceType[Waiting]] = []  # since the last tick
        self._older: deque[list[ReferenceType[Waiting]]] = deque()  # the oldest tick's first
        self._changing: set[Waiting] = set()
        self._ticking = False

    def watch(self, future: Waiting) -> None:
        """Start the future's time limit."""
        self._new.append(ref(future))
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(self._tick, self._end_tick)

    def begin_change(self, futures: Iterable[Waiting]) -> None:
        """Note that the database may change for these from now on: if they expire, their outcome is unknown."""
        self._changing.update(futures)

    def end_change(self, futures: Iterable[Waiting]) -> None:
        """Note that no change is in progress for these any more."""
        self._changing.difference_update(futures)

    def _end_tick(self) -> None:
        try:
            self._older.append(self._new)
            self._new = []
            self._older = deque([each for each in references if _waiting(each)] for references in self._older)
            if len(self._older) == _TICKS:
                for future in filter(None, map(_waiting, self._older.popleft())):
                    future.set_exception(OutcomeUnknown() if future in self._changing else DeadlineExceeded())
        finally:  # whatever happens to one future, the time of the others runs on
            self._ticking = any(self._older)
            if self._ticking:
                asyncio.get_running_loop().call_later(self._tick, self._end_tick)
            else:
                self._older.clear()


def _waiting(reference: ReferenceType[Waiting]) -> Waiting | None:
    """The future, unless it is done."""
    future = reference()
    return None if future is None or future.done() else future
