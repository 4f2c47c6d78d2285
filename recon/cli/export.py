"""The command `recon export`: every identity, or all that another database needs to have the same identities."""

import asyncio
import gzip
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from recon.cli.options import load_settings, settings_options
from recon.cli.running import database_of, failing_clearly
from recon.errors import ReconError
from recon.quantities import quantity
from recon.settings import Settings, database_url

if TYPE_CHECKING:  # imported only when the command runs: other commands start faster without it
    from collections.abc import Iterator

    from recon.cli.meter import Meter
    from recon.transfer.exporting import Exported, Out


@click.command()
@click.option(
    "--format",
    "format_",
    type=click.Choice(["ndjson", "csv"]),
    default="ndjson",
    show_default=True,
    help="A JSON object for each identity, or rows of an email and a phone number.",
)
@click.option("--full", is_flag=True, help="Write all that `recon import` restores in an empty database.")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="File to write, gzipped if its name ends in .gz [default: standard output].",
)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@settings_options("database_url", "data_dir", "writer_lane")
def export(*, format_: str, full: bool, output: Path | None, force: bool, **options: Any) -> None:
    """Write every identity of one snapshot of the database, as POST /identify answers it.

    The last line of NDJSON, and the last line on standard error, is the position after which GET /changes goes on.
    """
    if full and format_ == "csv":
        raise click.UsageError("--full is NDJSON")
    if force and output is None:
        raise click.UsageError("--force is for --output")
    settings = load_settings(options)
    what = "full" if full else {"ndjson": "identities", "csv": "records"}[format_]
    with failing_clearly(), database_of(settings, create=False) as settings, _opened(output, force=force) as out:
        exported, meter = asyncio.run(_export(settings, out, what, is_shown=output is not None))
    _summarize(exported, meter)


async def _export(settings: Settings, out: "Out", what: str, *, is_shown: bool) -> "tuple[Exported, Meter]":
    from recon.cli.meter import Meter
    from recon.sql import exports
    from recon.transfer.exporting import Export

    noun = {"full": "rows", "identities": "identities", "records": "lines"}[what]
    async with exports.session(database_url(settings)) as connection:
        with Meter(noun, is_quiet=not is_shown and sys.stdout.isatty()) as meter:
            exporting = Export(connection, out, meter.add, has_lane=settings.writer_lane)
            return await getattr(exporting, what)(), meter


@contextmanager
def _opened(path: Path | None, *, force: bool) -> "Iterator[Out]":
    """Standard output, or a new file, which gets its name when it is complete. Only its owner can read it."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.exists() and not (force and path.is_file()):
        raise ReconError(f"{path} exists" + ("; --force replaces it" if path.is_file() else " and is not a file"))
    file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    try:
        with file:
            with _packed(file, path) as out:  # type: ignore[arg-type]
                yield out
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise


@contextmanager
def _packed(file: BinaryIO, path: Path) -> "Iterator[Out]":
    if path.suffix != ".gz":
        yield file
        return
    # Without name and time: the same identities are the same bytes.
    with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        yield packed


def _summarize(exported: "Exported", meter: "Meter") -> None:
    if not exported.is_settled:
        click.echo(
            "recon: a transaction that may have drawn an earlier position is open for more than a minute, "
            "so the change feed has to be read from its beginning",
            err=True,
        )
    if exported.violations:
        click.echo(
            f"recon: the export has {quantity(exported.violations, 'violation')} of invariants, as the database has; "
            "`recon check` lists them",
            err=True,
        )
    click.echo(f"exported {meter.said()}; position {exported.position}", err=True)
