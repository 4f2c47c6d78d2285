"""Restores a full export in an empty database: all of it, or nothing."""

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

from recon.database.definitions import SCHEMA_VERSION
from recon.database.transactions import Connection
from recon.errors import ReconError
from recon.quantities import quantity
from recon.sql import exports, restoring
from recon.sql.exports import Section
from recon.transfer.exporting import END, HEADER, VERSION
from recon.transfer.text import Text

_BEGINNING = b'{"type":"%s",' % HEADER.encode()
_BATCH = 500  # rows that go to PostgreSQL at a time
_ESCAPED = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})  # in the text format of COPY
_BRACES = str.maketrans("[]", "{}")  # from a list in JSON to an array literal


def is_full_export(text: Text) -> bool:
    """Tell whether a file, of which nothing has been read, is a full export."""
    return text.beginning(len(_BEGINNING)) == _BEGINNING


class Restore:
    """Restores one file, in the transaction of a session.

    Parameters
    ----------
    text : the file, of which nothing has been read.
    region : the default region of the process and the database.
    report : called with the number of rows that were restored since it was called last.
    """

    def __init__(self, text: Text, region: str | None, report: Callable[[int], None]) -> None:
        self._text = text
        self._region = region
        self._report = report
        self._lines = iter(text)
        self._number = 0
        self._line: dict[str, Any] | None = None
        self._counts: Counter[str] = Counter()
        self._error: ReconError | None = None
        self._guards = self._read_header()

    async def run(self, connection: Connection, suppress_check: str | None) -> Counter[str]:
        """Restore all rows; return how many there are of each type. Raises ReconError: then roll back."""
        if not await restoring.is_empty(connection):
            raise ReconError(f"{self._text.name} is a full export: the database must be empty, and it is not")
        await restoring.set_guards(connection, self._guards)
        self._advance()
        for section in exports.SECTIONS:
            await self._copy(connection, section)
        violations = self._read_end()
        found = await restoring.finish(connection, suppress_check)
        if len(found) != violations:
            shown = found[0] if found else "none"
            raise ReconError(
                f"{self._text.name} was changed: it would have {quantity(len(found), 'violation')} of invariants, "
                f"and says that it has {violations}; the first is: {shown}"
            )
        return self._counts

    def _read_header(self) -> dict[str, Any]:
        self._advance()
        header = self._line or {}
        version, schema = header.get("version"), header.get("schema")
        if header.get("type") != HEADER or not isinstance(version, int) or not isinstance(schema, int):
            raise self._wrong("is not the header of a full export")
        name = self._text.name
        if version > VERSION or schema > SCHEMA_VERSION:
            raise ReconError(f"{name} was written by a newer version of recon (schema {schema})")
        if schema < SCHEMA_VERSION:
            raise ReconError(
                f"{name} has schema {schema}, and this recon restores schema {SCHEMA_VERSION}: restore it with the "
                "version of recon that wrote it, and migrate that database"
            )
        region, guards = header.get("defaultRegion"), header.get("guards")
        if region != self._region:
            raise ReconError(
                f"{name} is of a database with the default region {region or 'none'}, and recon is configured with "
                f"{self._region or 'none'}: restore it with the same --default-region (RECON_DEFAULT_REGION)"
            )
        if not isinstance(guards, dict):
            raise self._wrong("has no guards")
        return guards

    async def _copy(self, connection: Connection, section: Section) -> None:
        try:
            await restoring.copy_rows(connection, section, self._rows(section))
        except Exception:
            if self._error is not None:  # the driver may have made another one of it
                raise self._error from None
            raise

    async def _rows(self, section: Section) -> AsyncIterator[bytes]:
        """The rows of the lines of one type, as COPY takes them."""
        try:
            while rows := self._batch(section):
                self._counts[section.table] += len(rows)
                self._report(len(rows))
                yield "".join(rows).encode()
        except UnicodeEncodeError:
            self._error = self._wrong("or one before it has what is no text")
            raise self._error from None
        except ReconError as error:
            self._error = error
            raise

    def _batch(self, section: Section) -> list[str]:
        columns, keys = section.columns, {"type", *section.columns}
        rows: list[str] = []
        while self._line is not None and self._line.get("type") == section.table and len(rows) < _BATCH:
            line = self._line
            if line.keys() != keys:
                raise self._wrong(f"does not have the members of the type {section.table}")
            rows.append("\t".join([_field(line[column]) for column in columns]) + "\n")
            self._advance()
        self._text.mark()  # so that the file does not remember these lines
        return rows

    def _read_end(self) -> int:
        """The number of violations of invariants that the last line says there are."""
        end = self._line
        if end is None:
            raise ReconError(f"{self._text.name} is cut off: its last line is not the end of a full export")
        if end.get("type") != END:
            raise self._wrong("is of a type that is not known, or not in its place")
        expected = {section.table: self._counts[section.table] for section in exports.SECTIONS}
        if end.get("counts") != expected:
            raise ReconError(
                f"{self._text.name} was changed: it has {expected}, and says that it has {end.get('counts')}"
            )
        violations = end.get("violations")
        if not isinstance(violations, int):
            raise self._wrong("does not say how many violations there are")
        self._advance()
        if self._line is not None:
            raise self._wrong("comes behind the end")
        return violations

    def _advance(self) -> None:
        line = next(self._lines, None)
        self._number += 1
        if line is None:
            self._line = None
            return
        try:
            self._line = json.loads(line)
        except (ValueError, RecursionError):
            raise self._wrong("is not JSON; is the file cut off?") from None
        if not isinstance(self._line, dict):
            raise self._wrong("is not a JSON object")

    def _wrong(self, why: str) -> ReconError:
        return ReconError(f"{self._text.name}: line {self._number} {why}")


def _field(value: Any) -> str:
    """A value in the text format of COPY."""
    if value is None:
        return "\\N"
    if isinstance(value, str):
        return value.translate(_ESCAPED)
    if isinstance(value, list):
        return json.dumps(value).translate(_BRACES)
    return json.dumps(value, ensure_ascii=False).translate(_ESCAPED)
