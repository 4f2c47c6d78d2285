"""The text of a file that is imported, and how far it has been read."""

import codecs
import fcntl
import gzip
import hashlib
import io
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any

from recon.errors import ReconError

STDIN = "-"
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_GZIP = b"\x1f\x8b"  # the first bytes of a gzipped file
# Bytes that are no text of the encoding. They go to the rejects as they came.
BAD_BYTES = "surrogateescape"
_SLICE = 2**20  # characters


class Text:
    """The lines of a file, or of standard input, gzipped or not.

    Parameters
    ----------
    name : its path; STDIN for standard input.
    encoding : of the text; UTF-8, with or without a byte order mark, unless given.

    Attributes
    ----------
    size : in bytes, as it is stored; None if that is not known: of standard input, and of a pipe with a name.
    """

    def __init__(self, name: str, encoding: str | None = None) -> None:
        self.name = name
        # The file stays open as long as the import, which closes it.
        stored: Any = sys.stdin.buffer if name == STDIN else Path(name).open("rb")  # noqa: SIM115
        self._stored = stored
        self.size = Path(name).stat().st_size if name != STDIN and Path(name).is_file() else None
        start = self._stored.peek(2)[:2]
        if encoding is None and start in _UTF_16:
            raise ReconError(f"{name} is UTF-16: give --encoding utf-16")
        gzipped: bool = start == _GZIP
        unpacked: IO[bytes] = gzip.GzipFile(fileobj=self._stored) if gzipped else self._stored  # type: ignore[assignment]
        self._text = io.TextIOWrapper(unpacked, encoding or "utf-8-sig", BAD_BYTES, newline="")
        self._ahead: deque[str] = deque()
        self._unmarked: list[str] = []
        self._digest = hashlib.sha256()
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        """Read line after line. Raises ReconError when it cannot be read."""
        unmarked = self._unmarked
        while self._ahead:
            unmarked.append(self._ahead.popleft())
            yield unmarked[-1]
        for line in self._read():
            unmarked.append(line)
            yield line

    def peek(self, lines: int) -> list[str]:
        """Return so many of the next lines, or all that there are; they are still to be read."""
        self._ahead.extend(islice(self._read(), lines))
        return [*self._ahead]

    def _read(self) -> Iterator[str]:
        with self._failing_clearly():
            # Not `yield from`, which would close the file together with this generator.
            for line in self._text:  # noqa: UP028
                yield line

    @contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ReconError(f"{self.name} is not a complete gzip file: {error}") from None
        except UnicodeError:
            raise ReconError(f"{self.name} is not text in this encoding; give it with --encoding") from None

    def mark(self) -> bytes:
        """Return the digest of all that was read."""
        text = "".join(self._unmarked)
        self._unmarked.clear()
        self.characters += len(text)
        self._digest.update(_bytes(text))
        return self._digest.digest()

    def skip(self, characters: int) -> bytes:
        """Read so many characters, or all that there are, and return their digest."""
        while (missing := characters - self.characters) > 0:
            text = self._slice(min(missing, _SLICE))
            if not text:
                break
            self._unmarked.append(text)
            self.mark()
        return self._digest.digest()

    def _slice(self, most: int) -> str:
        if not self._ahead:
            with self._failing_clearly():
                return self._text.read(most)
        line = self._ahead.popleft()
        if len(line) > most:
            self._ahead.appendleft(line[most:])
        return line[:most]

    def beginning(self, size: int) -> bytes:
        """Return the first bytes of the text, of which nothing has been read; it is read later nevertheless."""
        unread: Any = self._text.buffer
        try:
            found: bytes = unread.peek(size)[:size]
        except (EOFError, zlib.error, gzip.BadGzipFile):
            return b""  # reading it tells what is wrong
        return found

    def position(self) -> int | None:
        """How many of the stored bytes have been read, or a few more; None if that is not known."""
        return None if self.size is None else self._stored.tell()

    def lock(self) -> None:
        """Have no other process lock the file until it is closed here. Raises ReconError if another one has it."""
        try:
            fcntl.flock(self._stored, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReconError(f"another process imports {self.name}") from None
        except OSError:  # a file system without such locks
            return

    def close(self) -> None:
        """Close the file."""
        if self.name != STDIN:
            self._text.close()
            self._stored.close()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
