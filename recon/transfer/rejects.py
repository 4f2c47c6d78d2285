"""The file of rejected records."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recon.errors import ReconError
from recon.transfer.records import Format
from recon.transfer.text import BAD_BYTES

_PRIVATE = 0o600  # it has what identifies people


class Rejects:
    """Appends rejected records to a file, which is created for the first one."""

    def __init__(self, path: Path, form: Format, encoding: str | None) -> None:
        self.path = path
        self._form = form
        self._encoding = encoding or "utf-8"

    def write(self, length: int, rejected: Iterable[tuple[int, Any, str]]) -> int:
        """Cut the file to a length in bytes, append records by line, flush it to the disk, and return its length.

        Called again for the same length, it replaces what the call before wrote. Raises ReconError.
        """
        lines = [self._form.reject(*each) for each in sorted(rejected, key=lambda each: each[0])]
        if not lines and not (self.path.exists() and self.path.stat().st_size != length):
            return length
        if length == 0 and lines:
            lines.insert(0, self._form.header())
        try:
            return self._replaced(length, lines)
        except OSError as error:
            raise ReconError(f"the rejects cannot be written to {self.path}: {error.strerror}") from error

    def _replaced(self, length: int, lines: Iterable[str]) -> int:
        with open(os.open(self.path, os.O_WRONLY | os.O_CREAT, _PRIVATE), "wb") as file:  # noqa: PTH123 (with its mode)
            file.truncate(length)
            file.seek(length)
            # A byte order mark, where the encoding has one, comes only at the beginning of the file.
            text = io.TextIOWrapper(file, self._encoding, BAD_BYTES, newline="")
            text.writelines(lines)
            text.flush()
            os.fsync(file.fileno())
            return file.tell()
