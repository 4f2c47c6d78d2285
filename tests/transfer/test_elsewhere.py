"""The process that reads a file for an import: what it sends is what this process would read, and it ends with it."""

import gzip
import os
import signal
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from recon.errors import ReconError
from recon.transfer import elsewhere
from recon.transfer.pieces import Piece, pieces
from recon.transfer.records import Asked, format_of
from recon.transfer.requests import Maker
from recon.transfer.text import Text

LINES = {
    "shop.csv": "a@x.de,1\nä@x,\nb@x,(201) 555-0123\n\x01,5\n,\n",
    "shop.ndjson": '{"mail": ["a@x.de", "b@x"], "tel": [1, "(201) 555-0123"]}\n[]\n{"mail": "ä@x"}\n',
}


def task_of(path: Path, *, characters: int = 0, line: int = 0, size: int = 2) -> elsewhere.Task:
    """What an import asks for."""
    form = path.suffix[1:]
    return elsewhere.Task(str(path), None, form, ["mail"], ["tel"], "crm", "US", False, characters, line, size)


@pytest.mark.parametrize("name", LINES)
def test_the_same_pieces(name: str, tmp_path: Path) -> None:
    """Requests, rejects, counts and digests are those of this process, also where it goes on behind some."""
    path = tmp_path / name
    path.write_bytes((b"mail,tel\n" if name == "shop.csv" else b"") + LINES[name].encode() * 20 + b'"\xff",2\n')
    with closing(Text(str(path))) as text:
        form = format_of(text, Asked(None, ["mail"], ["tel"]))
        expected = [*pieces(text, form, Maker("crm", "US", strict=False), form.line(), 2)]

    assert [as_lists(piece) for piece in elsewhere.read(task_of(path))] == [as_lists(piece) for piece in expected]

    behind = expected[7]
    rest = elsewhere.read(task_of(path, characters=behind.characters, line=behind.line))
    assert [as_lists(piece) for piece in rest] == [as_lists(piece) for piece in expected[8:]]


def as_lists(piece: Piece) -> tuple[object, ...]:
    """All of a piece but its position, which says how much was read ahead."""
    return (
        *(piece.requests, piece.origins, piece.invalid, piece.records, piece.unlinked),
        *(piece.characters, piece.line, piece.digest),
    )


def children() -> set[int]:
    """Return the processes that this one has started and that have not ended."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(each) for each in found}


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """An error behind some pieces is raised with its own message; so is the end of the process."""
    path = tmp_path / "shop.csv"
    text = b"mail,tel\n" + b"".join(b"%d@x,%d\n" % (number, number) for number in range(20_000))
    path.write_bytes(gzip.compress(text)[:-1000])
    with pytest.raises(ReconError, match="not a complete gzip file"):
        list(elsewhere.read(task_of(path, size=1024)))

    before = children()
    path.write_bytes(text)
    reading = elsewhere.read(task_of(path))
    assert len([*islice(reading, 5)]) == 5
    (process,) = children() - before
    os.kill(process, signal.SIGKILL)
    with pytest.raises(ReconError, match=r"the process that reads .*shop.csv was ended"):
        list(reading)


def test_it_ends_with_its_reader(tmp_path: Path) -> None:
    """An import that stops leaves no process behind."""
    path = tmp_path / "shop.csv"
    path.write_text("mail,tel\n" + "a@x,1\n" * 20_000)
    before = children()
    reading = elsewhere.read(task_of(path))
    next(reading)
    assert len(children() - before) == 1

    reading.close()

    assert children() == before
