"""Exports: every identity of one snapshot, or every row that tells what identities are and were."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from recon.database.definitions import SCHEMA_VERSION
from recon.database.transactions import Connection
from recon.errors import ReconError
from recon.identities.changes import writers_ended
from recon.sql import changes, corrections, exports, invariants

# Seconds that an export waits for the transactions that may have drawn a position up to its own.
PATIENCE = 60.0
VERSION = 1  # of the format of full exports
HEADER, END = "recon", "end"  # the types of the first and of the last line


class Out(Protocol):
    """Where an export goes."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export came to.

    Attributes
    ----------
    position : the position after which a consumer of the change feed goes on. Everything up to it is in the export.
    is_settled : whether the position is that of the snapshot. It is 0 if a transaction that may have drawn an earlier
        one did not end in time.
    violations : of invariants, which a full export counts.
    """

    position: int
    is_settled: bool
    violations: int = 0


class Export:
    """Writes one export.

    Parameters
    ----------
    out : where it goes.
    report : called with the lines that were written since it was called last.
    has_lane : whether the processes that write use the writer lane.
    """

    def __init__(self, connection: Connection, out: Out, report: Callable[[int], None], *, has_lane: bool) -> None:
        self._connection = connection
        self._out = out
        self._report = report
        self._has_lane = has_lane
        self._lines = 0

    async def identities(self) -> Exported:
        """Write every identity as a line of JSON, and last the position."""
        settled = await self._settled()
        async with exports.snapshot(self._connection, has_lane=self._has_lane):
            position = await exports.last_position(self._connection, settled or 0)
            await exports.copy_identities(self._connection, self._write)
        self._line({"position": position})
        return Exported(position, settled is not None)

    async def records(self) -> Exported:
        """Write every identity as CSV."""
        settled = await self._settled()
        async with exports.snapshot(self._connection, has_lane=self._has_lane):
            position = await exports.last_position(self._connection, settled or 0)
            await exports.copy_records(self._connection, self._write)
        return Exported(position, settled is not None)

    async def full(self) -> Exported:
        """Write every row that tells what identities are and were, between a header and an end with their numbers."""
        settled = await self._settled()
        counts = {}
        async with exports.snapshot(self._connection, has_lane=self._has_lane):
            position = await exports.last_position(self._connection, settled or 0)
            setting = await exports.fetch_setting(self._connection)
            self._line({"type": HEADER, "version": VERSION, "schema": SCHEMA_VERSION, **setting})
            for section in exports.SECTIONS:
                before = self._lines
                await exports.copy_rows(self._connection, section, self._write)
                counts[section.table] = self._lines - before
            violations = len(await invariants.violations(self._connection))
        self._line({"type": END, "counts": counts, "violations": violations})
        return Exported(position, settled is not None, violations)

    async def _settled(self) -> int | None:
        """The last position that was drawn, when no transaction is open any more that may have drawn one up to it.

        None if there still is one after a minute. The snapshot that is taken then shows everything up to the position.
        """
        last = await corrections.last_id(self._connection)
        ended = await writers_ended(lambda: changes.fetch_writers(self._connection), PATIENCE)
        return last if ended else None

    async def _write(self, data: bytes) -> None:
        self._put(data)
        lines = data.count(b"\n")
        self._lines += lines
        self._report(lines)

    def _line(self, value: object) -> None:
        self._put(json.dumps(value, separators=(",", ":")).encode() + b"\n")

    def _put(self, data: bytes) -> None:
        try:
            self._out.write(data)
        except OSError as error:  # not one of the connection
            raise ReconError(f"the export cannot be written: {error.strerror or error}") from None
