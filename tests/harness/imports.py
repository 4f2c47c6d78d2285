"""Running `recon import`, and imports in this process."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recon.database.transactions import Database
from recon.rules.identifiers import Identifiers
from recon.sql.imports import Standing
from recon.transfer import importing
from recon.transfer.importing import Import, Progress
from recon.transfer.pieces import Piece, Reader
from recon.transfer.records import Asked, format_of
from recon.transfer.rejects import Rejects
from recon.transfer.text import Text
from tests.harness.model import Request


def identifiers(request: Request) -> Identifiers:
    """A request in canonical form."""
    return Identifiers(request[0], request[1], request[1], "import")


def piece_of(requests: Sequence[Request], number: int) -> Piece:
    """A piece that ends at line `number`, of records with one request each."""
    return Piece(
        requests=[identifiers(request) for request in requests],
        origins=[(number, ["?"]) for _ in requests],
        records=len(requests),
        characters=number,
        line=number,
        digest=bytes([number % 256]),
    )


@dataclass
class Imported:
    """An import in this process: where it stands, and the progress that it reported."""

    standing: Standing
    reported: list[Progress]


async def import_pieces(
    database: Database, pieces: Iterable[Piece], folder: Path, *, most_pieces: int = 8, file: str = "/shop.csv"
) -> Imported:
    """Import pieces that the test made."""
    reported: list[Progress] = []
    source = folder / "shop.csv"
    source.write_text("email\n")
    text = Text(str(source))
    rejects = Rejects(folder / "rejects.csv", format_of(text, Asked()), None)
    text.close()
    standing = Standing(file, {})
    await importing.begin(database, standing)
    reader = Reader(_all_ready(pieces))
    running = Import(database, None, standing, reader, rejects=rejects, report=reported.append, most_pieces=most_pieces)
    await running.run()
    return Imported(running.standing, reported)


def _all_ready(pieces: Iterable[Piece]) -> Iterator[Piece]:
    yield from pieces
