"""The time that a request may take: past it, its caller is told so at once, whatever the database does."""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, TypeAlias
from weakref import ReferenceType, ref

from recon.errors import DeadlineExceeded, OutcomeUnknown

Waiting: TypeAlias = asyncio.Future[Any]

# What a request may take is cut into so many ticks. Requests of the same tick end together, up to a tick early: then
# watching one is an append to a list, with no timer of its own and no look at the clock.
_TICKS = 20


class Deadlines:
    """Gives each future that is watched an error when it is not done in time.

    Parameters
    ----------
    seconds : what each may take; it is told a twentieth earlier at most.
    """

    def __init__(self, seconds: float) -> None:
        self._tick = seconds / _TICKS
        # By weak references: an answered future is kept by nobody else, and its answer may have megabytes.
        self._new: list[ReferenceType[Waiting]] = []  # since the last tick
        self._older: deque[list[ReferenceType[Waiting]]] = deque()  # the oldest tick's first
        self._changing: set[Waiting] = set()
        self._ticking = False

    def watch(self, future: Waiting) -> None:
        """From now on the future's time is running."""
        self._new.append(ref(future))
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(self._tick, self._end_tick)

    def begin_change(self, futures: Iterable[Waiting]) -> None:
        """From now on the database may be changed for these: who gives up cannot say that nothing was."""
        self._changing.update(futures)

    def end_change(self, futures: Iterable[Waiting]) -> None:
        """No change is under way for these any more."""
        self._changing.difference_update(futures)

    def _end_tick(self) -> None:
        try:
            self._older.append(self._new)
            self._new = []
            self._older = deque([each for each in references if _waiting(each)] for references in self._older)
            if len(self._older) == _TICKS:
                for future in filter(None, map(_waiting, self._older.popleft())):
                    future.set_exception(OutcomeUnknown() if future in self._changing else DeadlineExceeded())
        finally:  # whatever happens to one future, the time of the others goes on
            self._ticking = any(self._older)
            if self._ticking:
                asyncio.get_running_loop().call_later(self._tick, self._end_tick)
            else:
                self._older.clear()


def _waiting(reference: ReferenceType[Waiting]) -> Waiting | None:
    """The future, unless it is done."""
    future = reference()
    return None if future is None or future.done() else future
