"""recon with a clock at each step, for the profile. recon itself contains none of this code.

.venv/bin/python -m bench.profile.timed serve --port PORT

Serves as `recon serve` does, and prints when each step ended and how long it took as its last line.
"""

import asyncio
import gc
import json
import time
from array import array
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

from recon import app
from recon.cli import main
from recon.identities.identify import Answer, Identify, Outcome
from recon.rules.identifiers import Identifiers
from recon.sql import contacts as sql

# The steps of a request in recon, in order.
READ_WAIT = "waiting for the read pass before it"
FETCH = "fetch (one statement, no BEGIN)"
READ = "the read pass"
WRITE_WAIT = "waiting for the lane (until a write pass that has it takes the request)"
BEGIN = "BEGIN and the lane"
LOCK = "lock and fetch"
CHANGE = "change"
COMMIT = "COMMIT"
WRITE = "the write pass, once it has the lane"
READ_REQUEST = "a request that only reads"
WRITE_REQUEST = "a request that writes"
TURN = "a turn of the event loop"
COLLECTION = "a garbage collection"
STEPS = (
    *(READ_WAIT, FETCH, READ, READ_REQUEST),
    *(WRITE_WAIT, BEGIN, LOCK, CHANGE, COMMIT, WRITE, WRITE_REQUEST),
    *(TURN, COLLECTION),
)

RESULT = "STEPS "  # the beginning of the last line
TURNS_EVERY = 0.01  # seconds between measurements of a turn

# The owner of a function, the function's name, and the wrapper that times it.
Patch: TypeAlias = tuple[object, str, Callable[[Any], Callable[..., Any]]]

now = time.perf_counter  # the same clock in all processes, so another process knows when the load began


def step_of(statement: str) -> str | None:
    """Return the step that a statement belongs to, as recon sends it or as PostgreSQL logs it."""
    known = {
        sql.FETCH_SMALL_CLUSTERS: FETCH,
        sql.LOCK_CLUSTERS: LOCK,
        sql.INSERT_CONTACTS: CHANGE,
        sql.CHANGE_CONTACTS: CHANGE,
    }
    words = statement.split()
    for text, step in known.items():
        if text.split() == words:
            return step
    return {"BEGIN": BEGIN, "COMMIT": COMMIT}.get(words[0]) if words else None


class Clocks:
    """The clocks and their measurements: for each step, its ends and durations alternately.

    They are kept as plain numbers, which cost the garbage collector no time.
    """

    def __init__(self) -> None:
        self.shown: defaultdict[str, array[float]] = defaultdict(lambda: array("d"))
        self._steps: dict[str, str | None] = {}  # of the statements seen
        self._arrived: dict[int, float] = {}  # when each request arrived, by its id()
        self._read: dict[int, float] = {}  # when the read pass had no answer for it
        self._turning = False
        self._collecting = 0.0  # when a garbage collection began

    def note(self, step: str, started: float) -> None:
        """Record a step that has ended."""
        ended = now()
        self.shown[step].extend((ended, ended - started))

    def install(self) -> None:
        """Replace recon's functions in this process by timed ones."""
        for owner, name, timed in self.patches():
            setattr(owner, name, timed(getattr(owner, name)))
        gc.callbacks.append(self._collection)

    def patches(self) -> Iterator[Patch]:
        """Yield the functions to replace, and their wrappers."""
        yield asyncpg.Connection, "execute", self._statement
        yield asyncpg.Connection, "fetch", self._statement
        yield Identify, "read", self._read_pass
        yield Identify, "write", self._write_pass
        yield app, "coalesced", self._coalesced  # the name by which `app` calls it

    def _collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting = now()
        else:
            self.note(COLLECTION, self._collecting)

    def _statement(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def timed(connection: Any, statement: str, *arguments: Any, **options: Any) -> Any:
            if statement not in self._steps:
                self._steps[statement] = step_of(statement)
            step = self._steps[statement]
            started = now()
            done = await run(connection, statement, *arguments, **options)
            if step is not None:
                self.note(step, started)
            return done

        return timed

    def _coalesced(self, make: Callable[..., Callable[..., Awaitable[Answer]]]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Callable[..., Awaitable[Answer]]:
            submit = make(*arguments, **options)

            def submitted(request: Identifiers, *arguments: Any, **options: Any) -> Awaitable[Answer]:
                if not self._turning:
                    self._turning = True
                    self._next_turn(asyncio.get_running_loop())
                self._arrived[id(request)] = now()
                return submit(request, *arguments, **options)

            return submitted

        return timed

    def _read_pass(self, read: Callable[..., Awaitable[Sequence[Outcome]]]) -> Callable[..., Any]:
        async def timed(identify: Identify, take: Callable[[], Sequence[Identifiers]]) -> Sequence[Outcome]:
            started = now()
            batch = take()
            for request in batch:
                self.note(READ_WAIT, self._arrived[id(request)])
            answers = await read(identify, lambda: batch)
            self.note(READ, started)
            for request, answer in zip(batch, answers, strict=True):
                if answer is None:
                    self._read[id(request)] = now()
                else:
                    self.note(READ_REQUEST, self._arrived.pop(id(request)))
            return answers

        return timed

    def _write_pass(self, write: Callable[..., Awaitable[Sequence[Outcome]]]) -> Callable[..., Any]:
        async def timed(identify: Identify, take: Callable[[], Sequence[Identifiers]]) -> Sequence[Outcome]:
            taken = now()

            def timed_take() -> Sequence[Identifiers]:
                nonlocal taken
                batch = take()
                taken = now()
                for request in batch:
                    if id(request) in self._read:  # not taken before, by an attempt that failed
                        self.note(WRITE_WAIT, self._read.pop(id(request)))
                return batch

            answers = await write(identify, timed_take)
            self.note(WRITE, taken)
            for request in take():
                self.note(WRITE_REQUEST, self._arrived.pop(id(request)))
            return answers

        return timed

    def _next_turn(self, loop: asyncio.AbstractEventLoop) -> None:
        # From a place in one turn to the same place in the next turn; the loop polls once in between.
        def first() -> None:
            started = now()
            loop.call_soon(second, started)

        def second(started: float) -> None:
            self.note(TURN, started)
            self._next_turn(loop)

        loop.call_later(TURNS_EVERY, loop.call_soon, first)


def shown(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Read the measurements of a process that has ended from its log: (end, duration) for each step."""
    line = next((line for line in log.read_text().splitlines() if line.startswith(RESULT)), None)
    found: dict[str, list[float]] = json.loads(line.removeprefix(RESULT)) if line else {}
    return {step: list(zip(numbers[::2], numbers[1::2], strict=True)) for step, numbers in found.items()}


if __name__ == "__main__":
    clocks = Clocks()
    clocks.install()
    try:
        main.main(prog_name="recon")
    finally:
        print(RESULT + json.dumps(clocks.shown, default=list), flush=True)  # noqa: T201 (what it is for)
