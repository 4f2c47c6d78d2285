"""Pieces of a file: records turned into requests, and read ahead while other pieces are decided and written."""

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from recon.rules.identifiers import Identifiers
from recon.transfer.records import Format, Invalid
from recon.transfer.requests import Maker
from recon.transfer.text import Text

_AHEAD = 48  # pieces that are read ahead
_PATIENCE = 0.1  # seconds between looks whether the reader is to stop


@dataclass(slots=True)
class Piece:
    """Some records that follow one another.

    Attributes
    ----------
    requests : what the records ask for, in order.
    origins : for each request, the line and the record that it comes from.
    invalid : (line, record, reason) of each record that makes no request.
    records, unlinked : how many records there are, and how many requests of records with only emails or phone numbers.
    characters, line, digest : where the file's text stands behind the piece.
    position : the same in stored bytes, if that is known.
    """

    requests: list[Identifiers] = field(default_factory=list)
    origins: list[tuple[int, Any]] = field(default_factory=list)
    invalid: list[tuple[int, Any, str]] = field(default_factory=list)
    records: int = 0
    unlinked: int = 0
    characters: int = 0
    line: int = 0
    digest: bytes = b""
    position: int | None = None


def pieces(text: Text, form: Format, maker: Maker, line: int, size: int) -> Iterator[Piece]:
    """Read the records behind so many lines, in pieces of about `size` requests."""
    piece = Piece()
    for number, raw in form.records(line):
        _add(piece, form, maker, number, raw)
        if len(piece.requests) + len(piece.invalid) >= size:
            yield _marked(piece, text, form)
            piece = Piece()
    yield _marked(piece, text, form)


def _add(piece: Piece, form: Format, maker: Maker, number: int, raw: Any) -> None:
    piece.records += 1
    try:
        emails, phones = form.values(raw)
        requests = maker.requests(emails, phones)
    except Invalid as error:
        piece.invalid.append((number, raw, str(error)))
        return
    origin = number, raw
    if len(requests) == 1:
        piece.requests.append(requests[0])
        piece.origins.append(origin)
    else:
        piece.requests += requests
        piece.origins += [origin] * len(requests)
    first = requests[0]
    if first.email is None or first.phone_key is None:
        piece.unlinked += len(requests)


def _marked(piece: Piece, text: Text, form: Format) -> Piece:
    piece.digest, piece.characters = text.mark(), text.characters
    piece.line, piece.position = form.line(), text.position()
    return piece


class Reader:
    """A thread that reads pieces ahead, a bounded number of them."""

    def __init__(self, source: Iterator[Piece]) -> None:
        self._source = source
        self._ready: queue.Queue[Piece | Exception | None] = queue.Queue(_AHEAD)
        self._stopped = threading.Event()
        # A daemon, because standard input may never say anything again.
        threading.Thread(target=self._run, name="import reader", daemon=True).start()

    def next(self) -> Piece | None:
        """Return the next piece; None behind the last one, or when the reader is stopped. Waits for it.

        Raises what reading it raised.
        """
        while not self._stopped.is_set():
            with suppress(queue.Empty):
                item = self._ready.get(timeout=_PATIENCE)
                if isinstance(item, Exception):
                    raise item
                return item
        return None

    def ready(self) -> Piece | None:
        """Return the next piece if it is there already."""
        waiting = self._ready.queue
        # Nothing but this thread takes from the queue, so what is first stays first.
        return self._ready.get() if waiting and isinstance(waiting[0], Piece) else None  # type: ignore[return-value]

    def stop(self) -> None:
        """Let the thread end."""
        self._stopped.set()

    def _run(self) -> None:
        last: Exception | None = None
        try:
            for piece in self._source:
                if not self._put(piece):
                    return
        except Exception as error:  # noqa: BLE001 (it is raised where the piece is asked for)
            last = error
        self._put(last)

    def _put(self, item: Piece | Exception | None) -> bool:
        while not self._stopped.is_set():
            try:
                self._ready.put(item, timeout=_PATIENCE)
            except queue.Full:
                continue
            return True
        return False
