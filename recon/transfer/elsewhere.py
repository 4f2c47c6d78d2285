"""A process of its own that reads a file, because the threads of one process run Python one at a time.

It takes a fifth of the work of an import. A piece crosses the pipe as a length and what `marshal` makes of its columns,
which takes a tenth of the time that parsing it takes.
"""

import gc
import marshal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from itertools import repeat
from typing import IO, Any, NamedTuple, cast

from recon.errors import ReconError
from recon.rules.identifiers import Identifiers
from recon.transfer.pieces import Piece, pieces
from recon.transfer.records import Asked, format_of
from recon.transfer.requests import Maker
from recon.transfer.text import Text

_LENGTH = 8  # bytes
# New objects between garbage collections, by default a few hundred. Records have no cycles.
_COLLECT_AFTER = 500_000


class Task(NamedTuple):
    """What is to be read, and how.

    Attributes
    ----------
    file, encoding : the file, which can be opened again and again.
    format, emails, phones : its format and columns.
    source, region, strict : as for `Maker`.
    characters, line : so much of the text is done.
    size : requests of a piece.
    """

    file: str
    encoding: str | None
    format: str
    emails: list[str]
    phones: list[str]
    source: str
    region: str | None
    strict: bool
    characters: int
    line: int
    size: int


def read(task: Task) -> Iterator[Piece]:
    """Read the pieces of a file in another process, which ends with this generator. Raises ReconError."""
    command = [sys.executable, "-P", "-m", __name__]
    # Of another session, so that Ctrl-C ends this process only, behind a chunk. The other one ends when it finds the
    # pipe closed: by this generator, or because this process was killed.
    with subprocess.Popen(  # noqa: S603 (our own program)
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        stdin, stdout = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
        try:
            with stdin as file:
                file.write(marshal.dumps(tuple(task)))
            while isinstance(found := _received(stdout), tuple):
                yield _piece(found, task.source)
            if found:
                raise ReconError(found)
        except (EOFError, BrokenPipeError):
            raise ReconError(f"the process that reads {task.file} was ended") from None


def _received(file: IO[bytes]) -> Any:
    length = file.read(_LENGTH)
    content = file.read(int.from_bytes(length))
    if len(length) < _LENGTH or len(content) < int.from_bytes(length):
        raise EOFError
    return marshal.loads(content)  # noqa: S302 (of our own program)


def _piece(found: Any, source: str) -> Piece:
    emails, phones, keys, lines, raws, *rest = found
    requests = list(map(Identifiers._make, zip(emails, phones, keys, repeat(source))))
    return Piece(requests, [*zip(lines, raws, strict=True)], *rest)


def _columns(piece: Piece) -> tuple[Any, ...]:
    emails, phones, keys, _ = zip(*piece.requests, strict=True) if piece.requests else ((), (), (), ())
    lines, raws = zip(*piece.origins, strict=True) if piece.origins else ((), ())
    return (
        *(emails, phones, keys, lines, raws),
        *(piece.invalid, piece.records, piece.unlinked),
        *(piece.characters, piece.line, piece.digest, piece.position),
    )


def _pieces(task: Task) -> Iterator[Piece]:
    with closing(Text(task.file, task.encoding)) as text:
        form = format_of(text, Asked(task.format, task.emails, task.phones))
        text.mark()
        text.skip(task.characters)
        maker = Maker(task.source, task.region, strict=task.strict)
        yield from pieces(text, form, maker, max(task.line, form.line()), task.size)


def main() -> None:
    """Read what standard input says, and write pieces to standard output: None behind the last, or why it ends."""
    gc.set_threshold(_COLLECT_AFTER)
    task = Task(*marshal.load(sys.stdin.buffer))  # noqa: S302 (of our own program)
    try:
        for piece in _pieces(task):
            _send(_columns(piece))
        _send(None)
    except BrokenPipeError:  # nobody waits for it
        sys.stdout = None  # nothing to flush
    except (ReconError, OSError) as error:
        with suppress(BrokenPipeError):
            _send(str(error))


def _send(value: Any) -> None:
    content = marshal.dumps(value)
    sys.stdout.buffer.write(len(content).to_bytes(_LENGTH))
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
