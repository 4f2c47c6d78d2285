"""The import of a file: chunk after chunk, each a transaction in the writer lane that also moves the cursor."""

import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from recon.database.transactions import Connection, Database
from recon.errors import ReconError, RowsHeld
from recon.rules.guards import Digest
from recon.rules.reconcile import Plan
from recon.sql import contacts, imports
from recon.sql.imports import Standing
from recon.transfer import chunks
from recon.transfer.pieces import Piece, Reader
from recon.transfer.rejects import Rejects
from recon.transfer.text import STDIN

PIECE = 1024  # requests: what is fetched while the piece before it is decided
# Pieces of a chunk while no other writer waits. With twice as many, an import is hardly faster, and the first writer
# that comes waits twice as long.
MOST_PIECES = 8
# How long other writers have the lane to themselves when they wait for it, as a multiple of the time that the last
# chunk had it.
_OTHERS = 1.5
# Chunks between garbage collections. What a chunk leaves behind has no cycles, so Python's own collections, which come
# with every few hundred objects, find nothing, and take half of the time of an import.
_COLLECT_EVERY = 128
# Seconds until a thread lets another one run, a tenth of Python's own. An answer of the database should not wait for
# the threads that read and decide.
_SWITCH = 0.0005
SECONDS = 120.0  # of a chunk and each statement of it, the wait for the lane included


@dataclass(frozen=True, slots=True)
class Progress:
    """Where an import stands: what the records came to so far, and how many of the stored bytes are read."""

    counts: Counter[str]
    position: int | None


class Import:
    """Imports one file.

    Parameters
    ----------
    standing : where the import stands; stored in the database unless it is one of standard input.
    reader : gives the pieces that follow.
    report : called after each chunk.
    most_pieces : of a chunk.
    """

    def __init__(
        self,
        database: Database,
        digest: Digest | None,
        standing: Standing,
        reader: Reader,
        *,
        rejects: Rejects,
        report: Callable[[Progress], None],
        most_pieces: int = MOST_PIECES,
    ) -> None:
        self._database = database
        self._digest = digest
        self._reader = reader
        self._rejects = rejects
        self._report = report
        self._most_pieces = most_pieces
        self._is_awaited = False
        self.standing = standing
        self._is_stopping = False

    def stop(self) -> None:
        """Have `run` end behind the present chunk."""
        self._is_stopping = True
        self._reader.stop()

    async def run(self) -> None:
        """Import all that the reader gives, or until `stop` is called. Raises ReconError; what is done is stored."""
        gc.disable()
        sys.setswitchinterval(_SWITCH)
        try:
            for number in count(1):
                if self.standing.finished:
                    return
                pieces = await self._next()
                if self._is_stopping:
                    return
                await self._chunk(pieces)
                if not number % _COLLECT_EVERY:
                    gc.collect()
        finally:
            gc.enable()
            self._reader.stop()

    async def _next(self) -> list[Piece]:
        """The pieces of the next chunk: one while other writers wait for the lane; none at the end of the file."""
        first = await asyncio.to_thread(self._reader.next)
        found = [] if first is None else [first]
        most = 1 if self._is_awaited else self._most_pieces
        while found and len(found) < most and (more := self._reader.ready()):
            found.append(more)
        return found

    async def _chunk(self, pieces: Sequence[Piece]) -> None:
        begun = time.monotonic()
        after, self._is_awaited, took = await self._written(pieces)
        self.standing = after
        self._report(Progress(Counter(after.counts), pieces[-1].position if pieces else None))
        if self._is_awaited and pieces:
            await asyncio.sleep(min(took, time.monotonic() - begun) * _OTHERS)

    async def _written(self, pieces: Sequence[Piece]) -> tuple[Standing, bool, float]:
        """Write a chunk; return where the import stands then, whether the lane is awaited, and how long it was held."""

        async def work(connection: Connection) -> tuple[Standing, bool, float]:
            begun = time.monotonic()
            plan = Plan()
            if pieces:
                plan = await chunks.apply(connection, pieces, self._digest)
                self._database.require_region(plan.region)  # which the match keys of the pieces were made for
            after = self._after(plan, pieces)
            if self.standing.file == STDIN:
                is_awaited: bool | None = await imports.is_lane_awaited(connection)
            else:
                is_awaited = await imports.advance_standing(connection, self.standing, after)
            if is_awaited is None:
                raise ReconError(f"another process imports {self.standing.file}")
            return after, is_awaited, time.monotonic() - begun

        while True:
            try:
                return await self._database.correcting(work, SECONDS, step="import")
            except RowsHeld:
                await self._wait(pieces)

    def _after(self, plan: Plan, pieces: Sequence[Piece]) -> Standing:
        """Where the import stands behind these pieces. Their rejects are on the disk when this returns."""
        if not pieces:
            return replace(self.standing, finished=True)
        last = pieces[-1]
        rejected = chunks.rejected(plan, pieces)
        counts = Counter(self.standing.counts) + chunks.counted(plan, pieces) + Counter(rejected=len(rejected))
        return replace(
            self.standing,
            characters=last.characters,
            line=last.line,
            digest=last.digest,
            rejects=self._rejects.write(self.standing.rejects, rejected),
            counts=dict(counts),
        )

    async def _wait(self, pieces: Sequence[Piece]) -> None:
        """Return when no other session holds a row that the chunk needs, or after a second."""
        requests = [request for piece in pieces for request in piece.requests]

        async def work(connection: Connection) -> None:
            await contacts.wait_for_table(connection)
            await imports.wait_for_rows(connection, requests, self._digest)

        with suppress(RowsHeld):
            await self._database.wait(work)


async def find(database: Database, file: str) -> Standing | None:
    """Where the last import of a file stands, if there was one."""
    return await database.planning(lambda connection: imports.find_standing(connection, file), SECONDS)


async def begin(database: Database, standing: Standing) -> None:
    """Store that an import begins."""

    async def work(connection: Connection) -> Any:
        await imports.begin_standing(connection, standing)

    await database.correcting(work, SECONDS, step="import")
