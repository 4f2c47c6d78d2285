"""The command `recon import`: the records of files as requests, at the speed of the database."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recon import signals
from recon.cli import dry_run
from recon.cli.options import load_settings, settings_options
from recon.cli.restore import restore
from recon.cli.running import database_of, failing_clearly
from recon.errors import ReconError
from recon.settings import Settings, database_settings, database_url, suppress_key

if TYPE_CHECKING:  # imported only when the command runs: other commands start faster without them
    from recon.cli.tally import Display
    from recon.database.transactions import Database
    from recon.sql.imports import Standing
    from recon.transfer.pieces import Piece
    from recon.transfer.records import Asked, Format
    from recon.transfer.text import Text

_INTERRUPTED = 130  # exit code, as after Ctrl-C


@dataclass(frozen=True, slots=True)
class Options:
    """What the command was told, besides its settings."""

    files: Sequence[str]
    asked: "Asked"
    encoding: str | None
    source: str
    rejects: Path | None
    resume: bool
    restart: bool
    as_json: bool


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE... | -")
@click.option("--email", "emails", multiple=True, metavar="COLUMN", help="Column with emails; may be repeated.")
@click.option("--phone", "phones", multiple=True, metavar="COLUMN", help="Column with phone numbers; may be repeated.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["csv", "ndjson"]),
    help="Format of the files; by default the one that their names tell.",
)
@click.option("--encoding", metavar="NAME", help="Encoding of the files [default: utf-8].")
@click.option(
    "--source", default="import", show_default=True, metavar="NAME", help="Stored with each contact as its source."
)
@click.option(
    "--rejects",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File for the records that are rejected [default: FILE.rejects.csv or .ndjson].",
)
@click.option("--resume", is_flag=True, help="Continue an import that was interrupted.")
@click.option("--restart", is_flag=True, help="Begin again, even if an import of the file was interrupted.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@dry_run.offered
@settings_options("database_url", "data_dir", "default_region", "strict", "pgbouncer", "writer_lane")
def import_(
    *,
    files: Sequence[str],
    emails: Sequence[str],
    phones: Sequence[str],
    format_: str | None,
    encoding: str | None,
    source: str,
    rejects: Path | None,
    resume: bool,
    restart: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Store the records of CSV or NDJSON files, as if each were a request to POST /identify.

    With --dry-run, nothing is stored and no database is needed: the rules are applied in memory, and recon shows what
    they make of the records. With one of the options that name other guards, it shows the same under these, too.

    A file that `recon export --full` wrote is restored instead, in an empty database.
    """
    from recon.transfer.records import Asked

    what_if = dry_run.taken_from(options, interrupted=resume or restart)
    _check(files, encoding, rejects, resume=resume, restart=restart)
    asked = Asked(format_, emails, phones)
    told = Options(files, asked, encoding, source, rejects, resume, restart, as_json)
    settings = load_settings(options)
    if what_if is not None:
        with failing_clearly(), ExitStack() as stack:
            opened = _opened(dry_run.records_of(_texts(stack, told)), settings, told)
            if rejects is not None:
                _require_apart(opened)
            read = [(each.text, each.format, _pieces(settings, each, told)) for each in opened]
            dry_run.run(what_if, read, settings, told)
        return
    with failing_clearly(), database_of(settings) as settings:
        is_done = asyncio.run(_import(settings, told))
    sys.exit(0 if is_done else _INTERRUPTED)


def _check(files: Sequence[str], encoding: str | None, rejects: Path | None, *, resume: bool, restart: bool) -> None:
    """Raise UsageError for options that make no sense together."""
    if resume and restart:
        raise click.UsageError("give --resume or --restart, not both")
    if resume and "-" in files:
        raise click.UsageError("an import of standard input cannot be resumed")
    if rejects is not None and len(files) > 1:
        raise click.UsageError("--rejects is for one FILE")
    if len(set(files)) < len(files):
        raise click.UsageError("a FILE is named twice")
    if encoding is not None:
        try:
            "".encode(encoding)
        except LookupError:
            raise click.UsageError(f"there is no encoding {encoding}") from None


class _Opened:
    """A file, how it is read, and where its import stands."""

    def __init__(self, text: "Text", told: Options, settings: Settings) -> None:
        from recon.sql.imports import Standing
        from recon.transfer.records import format_of
        from recon.transfer.text import STDIN

        self.text = text
        self.format: Format = format_of(text, told.asked)
        text.mark()
        form = {
            "format": self.format.name,
            "emails": self.format.columns.emails,
            "phones": self.format.columns.phones,
            "encoding": told.encoding,
            "source": told.source,
            "strict": settings.strict,
        }
        path = STDIN if text.name == STDIN else str(Path(text.name).resolve())
        self.standing: Standing = Standing(path, form)
        self.rejects = told.rejects or _rejects_of(text.name, self.format.suffix)

    def columns(self) -> str:
        """Say where the identifiers are looked for."""
        emails, phones = (", ".join(names) or "none" for names in self.format.columns)
        return f"{self.text.name}: {self.format.name}; emails: {emails}; phone numbers: {phones}"


def _rejects_of(name: str, suffix: str) -> Path:
    path = Path("stdin" if name == "-" else name.removesuffix(".gz"))
    return path.with_name(f"{path.stem}.rejects{suffix}")


async def _import(settings: Settings, told: Options) -> bool:
    """Import the files, one after the other. False if a signal ended it."""
    from recon.transfer.restoring import is_full_export

    with ExitStack() as stack:
        texts = _texts(stack, told)
        full = next(filter(is_full_export, texts), None)
        if full is not None:
            await restore(settings, full, _misplaced(told), as_json=told.as_json)
            return True
        opened = _opened(texts, settings, told)
        for each in opened:
            if each.text.size is not None:
                each.text.lock()
        _require_apart(opened)
        async with _database(settings) as database:
            for each in opened:
                await _stand(database, each, told)
            for each in opened:
                if not each.standing.finished and not await _one(database, settings, each, told):
                    return False
    return True


def _texts(stack: ExitStack, told: Options) -> "list[Text]":
    """Open all files, before anything is changed."""
    from recon.transfer.text import Text

    return [stack.enter_context(closing(Text(name, told.encoding))) for name in told.files]


def _opened(texts: "Sequence[Text]", settings: Settings, told: Options) -> list[_Opened]:
    """Find and show the columns of all files."""
    opened = []
    for text in texts:
        opened.append(_Opened(text, told, settings))
        click.echo(opened[-1].columns(), err=True)
    return opened


def _require_apart(opened: Sequence[_Opened]) -> None:
    """Raise ReconError unless rejects have files of their own, which can be created."""
    taken = {Path(each.text.name).resolve() for each in opened if each.text.size is not None}
    for each in opened:
        path = each.rejects.resolve()
        if path in taken:
            raise ReconError(f"{each.rejects} would be overwritten by the rejects of {each.text.name}: give --rejects")
        if not os.access(path.parent, os.W_OK) or path.is_dir():
            raise ReconError(f"the rejects of {each.text.name} cannot be written to {each.rejects}: give --rejects")
        taken.add(path)


def _misplaced(told: Options) -> list[str]:
    """What was given that a full export does not take."""
    given = {
        "other FILE": len(told.files) > 1,
        "--resume": told.resume,
        "--restart": told.restart,
        "--rejects": told.rejects,
        "--encoding": told.encoding,
        "--format csv": told.asked.format == "csv",
        "--email": told.asked.emails,
        "--phone": told.asked.phones,
    }
    return [option for option, is_given in given.items() if is_given]


@asynccontextmanager
async def _database(settings: Settings) -> AsyncIterator["Database"]:
    from recon.database.transactions import Database
    from recon.rules.digests import check_of

    key = suppress_key(settings)
    check = None if key is None else check_of(key)
    database = Database(database_url(settings), replace(database_settings(settings), suppress_check=check))
    await database.prepare()  # first, because opening waits for a database that is not there
    async with database.opened():
        yield database


async def _stand(database: "Database", opened: _Opened, told: Options) -> None:
    """Find or store where an import begins. Raises ReconError if it may not begin there."""
    from recon.transfer import importing
    from recon.transfer.text import STDIN

    new = opened.standing
    if new.file == STDIN:
        return
    found = await importing.find(database, new.file)
    if found is not None and not found.finished and not (told.resume or told.restart):
        raise ReconError(
            f"an import of {opened.text.name} was interrupted after {found.counts.get('records', 0)} records: "
            "--resume continues it, --restart begins again"
        )
    if found is None or not told.resume:
        await importing.begin(database, new)
        return
    _require_same(opened, found)
    opened.standing = found
    if found.finished:
        click.echo(f"{opened.text.name}: this import is finished already", err=True)
        _summarize(opened, found.counts, None, told)


def _require_same(opened: _Opened, found: "Standing") -> None:
    """Raise ReconError unless the file has what was imported of it, and is read in the same way."""
    name, text = opened.text.name, opened.text
    if found.form != opened.standing.form:
        raise ReconError(f"the import of {name} began with other columns or options: {json.dumps(found.form)}")
    is_same = not found.characters or text.skip(found.characters) == found.digest
    if not is_same or (found.finished and text.skip(found.characters + 1) != found.digest):
        raise ReconError(
            f"{name} is not the file of which {found.counts.get('records', 0)} records were imported: "
            "--restart imports it from its beginning"
        )


async def _one(database: "Database", settings: Settings, opened: _Opened, told: Options) -> bool:
    """Import one file, from where it stands. False if a signal ended it."""
    from recon.cli.tally import Display
    from recon.rules.digests import digest
    from recon.transfer.importing import Import
    from recon.transfer.pieces import Reader
    from recon.transfer.rejects import Rejects

    standing = opened.standing
    reader = Reader(_pieces(settings, opened, told))
    key = suppress_key(settings)
    rejects = Rejects(opened.rejects, opened.format, told.encoding)
    with Display(opened.text.name, opened.text.size, standing.counts.get("records", 0)) as display:
        importing = Import(
            database,
            None if key is None else partial(digest, key),
            standing,
            reader,
            rejects=rejects,
            report=display.show,
        )
        _stop_when_told(importing.stop)
        try:
            await importing.run()
        except (ReconError, OSError):
            _name_resume(opened, importing.standing)
            raise
        finally:
            _stop_at_once()
    _summarize(opened, importing.standing.counts, display, told)
    if not importing.standing.finished:
        _name_resume(opened, importing.standing)
    return importing.standing.finished


def _pieces(settings: Settings, opened: _Opened, told: Options) -> "Iterator[Piece]":
    """The pieces of a file that are still to be imported. A pipe can be read only here, by this process."""
    from recon.transfer import elsewhere, pieces
    from recon.transfer.importing import PIECE
    from recon.transfer.requests import Maker

    text, form, region, strict = opened.text, opened.format, settings.default_region, settings.strict
    line = max(opened.standing.line, form.line())
    if text.size is None:
        return pieces.pieces(text, form, Maker(told.source, region, strict=strict), line, PIECE)
    done = opened.standing.characters
    return elsewhere.read(
        elsewhere.Task(
            text.name, told.encoding, form.name, *form.columns, told.source, region, strict, done, line, PIECE
        )
    )


def _stop_when_told(stop: Any) -> None:
    """Have the first ending signal stop the import behind a chunk; a second one ends it at once."""
    loop = asyncio.get_running_loop()

    def received() -> None:
        stop()
        _stop_at_once()
        click.echo("recon: ending behind this chunk", err=True)

    for each in signals.not_ignored():
        loop.add_signal_handler(each, received)


def _stop_at_once() -> None:
    loop = asyncio.get_running_loop()
    for each in signals.ENDING:
        loop.remove_signal_handler(each)
    signals.exit_when_received()


def _name_resume(opened: _Opened, standing: "Standing") -> None:
    if standing.file != "-":
        records = standing.counts.get("records", 0)
        click.echo(
            f"recon: {records} records are imported; `recon import --resume {opened.text.name}` continues", err=True
        )


def _summarize(opened: _Opened, counts: dict[str, int], display: "Display | None", told: Options) -> None:
    """Print what the import came to."""
    from recon.cli import tally

    summary = tally.summary(counts, *((None, None) if display is None else (display.seconds, display.rate)))
    summary["rejects"] = str(opened.rejects) if counts.get("rejected") else None
    if told.as_json:
        click.echo(json.dumps({"file": opened.text.name} | summary))
        return
    from recon.cli import terminal

    terminal.console().print(tally.table(opened.text.name, summary))
