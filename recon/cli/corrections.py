"""Commands that correct identities. Each shows what it would come to and asks, unless --yes is given."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from recon.cli.identities import EPILOG, readings, resolved
from recon.cli.options import load_settings, settings_options
from recon.cli.running import database_of, failing_clearly
from recon.errors import NotDivided, ReconError
from recon.rules.identifiers import Identifiers, phone_key_for
from recon.settings import Settings, database_settings, database_url

if TYPE_CHECKING:  # imported only when a command runs: other commands start faster without them
    from recon.database.transactions import Database
    from recon.identities.corrections import Correction, Corrections, Encode
    from recon.identities.lookup import Lookup

Command: TypeAlias = Callable[..., Any]

SOURCE = "terminal"  # in the place of the name of an API key


@dataclass(frozen=True, slots=True)
class Desk:
    """What a command works with.

    Attributes
    ----------
    settings : the command's settings, with a database URL.
    note, dry_run, yes, as_json : the options that all corrections share.
    """

    settings: Settings
    database: "Database"
    lookup: "Lookup"
    corrections: "Corrections"
    note: str | None
    dry_run: bool
    yes: bool
    as_json: bool

    async def contact(self, who: str) -> int:
        """A contact of the identity of WHO. Raises ReconError if it is nobody, or ambiguous."""
        _, contact_id = await resolved(self.lookup, who, self.settings.default_region)
        return contact_id

    def value(self, text: str) -> Identifiers:
        """The email or phone number that a text stands for. Raises ReconError if it is neither."""
        return value_of(text, self.settings.default_region)

    async def make(self, corrections: "Sequence[Correction]", encode: "Encode") -> None:
        """Show what the corrections would come to, ask once, and make each in the state that was shown."""
        from recon.identities.corrections import Terms

        terms = Terms(SOURCE, self.note, dry_run=True)
        previews = [await self._answer(correction, terms, encode) for correction in corrections]
        if self.dry_run or not self.yes:
            for preview in previews:
                self._print(preview, preview=not self.dry_run)
        if self.dry_run:
            return
        if not self.yes:
            await asyncio.to_thread(confirm, len(corrections))  # the event loop goes on while the steward thinks
        for correction, preview in zip(corrections, previews, strict=True):
            given = replace(terms, dry_run=False, if_state=preview.get("state"))
            self._print(await self._answer(correction, given, encode), preview=False)

    async def _answer(self, correction: "Correction", terms: Any, encode: "Encode") -> dict[str, Any]:
        try:
            return await self.corrections.make(correction, terms, encode)
        except NotDivided as error:
            links, _ = error.path
            names = ", ".join(link.name for link in links)
            raise ReconError(f"other links still connect the identity: {names}") from None

    def show(self, answer: dict[str, Any]) -> None:
        """Print what is so now."""
        self._print(answer, preview=False)

    def _print(self, answer: dict[str, Any], *, preview: bool) -> None:
        """Print an answer; a preview to standard error, so that standard output has one answer."""
        if self.as_json:
            click.echo(json.dumps(answer, ensure_ascii=False, default=str), err=preview)
            return
        from recon.cli import terminal

        writer = terminal.console(stderr=preview)
        writer.print(*terminal.correction(answer, preview=preview or self.dry_run), sep="\n")


def _valid_note(_context: click.Context, _option: click.Parameter, note: str | None) -> str | None:
    """The note. Raises BadParameter if it is none that the API takes."""
    if note is not None:
        from recon.api.decisions import valid_note

        try:
            return valid_note(note)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
    return None


def value_of(text: str, region: str | None) -> Identifiers:
    """The email or phone number that a text stands for. Raises ReconError if it is neither."""
    found = [each for each in readings(text, region) if isinstance(each, Identifiers)]
    if len(found) != 1:
        raise ReconError("a value is an email or a phone number: write email:TEXT or phone:TEXT")
    return found[0]


def correcting(command: Command) -> Command:
    """The options that these commands share."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API answers."),
        click.option("--yes", is_flag=True, help="Do not ask."),
        click.option("--note", metavar="TEXT", callback=_valid_note, help="Why; the history shows it."),
        click.option("--dry-run", is_flag=True, help="Show what it would come to, and change nothing."),
    ):
        command = option(command)
    return settings_options("database_url", "data_dir", "default_region", "correction_timeout")(command)


def run(work: Callable[[Desk], Awaitable[None]], options: dict[str, Any]) -> None:
    """Open the database, and do the work."""
    shared = {name: options.pop(name) for name in ("note", "dry_run", "yes", "as_json")}
    settings = load_settings(options)

    async def opened(settings: Settings) -> None:
        async with _desk(settings, shared) as desk:
            await work(desk)

    with failing_clearly(), database_of(settings, create=False) as settings:
        asyncio.run(opened(settings))


@asynccontextmanager
async def _desk(settings: Settings, shared: dict[str, Any]) -> AsyncIterator[Desk]:
    from recon.database.connecting import connected
    from recon.database.schema import require_served
    from recon.database.transactions import Database
    from recon.identities.corrections import Corrections
    from recon.identities.lookup import Lookup

    url = database_url(settings)
    async with connected(url) as connection:  # first, because opening creates a schema where there is none
        await require_served(connection, settings.default_region)
    async with Database(url, database_settings(settings)).opened() as database:
        corrections = Corrections(database, settings.correction_timeout)
        yield Desk(settings, database, Lookup(database), corrections, **shared)


@click.command(epilog=EPILOG)
@click.argument("who")
@click.option(
    "--link", "links", multiple=True, metavar="NAME", help="Cut this link (recon why shows names); repeatable."
)
@click.option(
    "--part",
    "parts",
    multiple=True,
    metavar="VALUES",
    help="Move these emails and phone numbers, separated by commas, out into an identity; repeatable.",
)
@click.option("--together", is_flag=True, help="With --part: what is left stays one identity, whatever connects it.")
@click.option(
    "--keep-apart/--no-keep-apart", default=True, help="Keep what separates apart from then on [default: on]."
)
@correcting
def split(
    *, who: str, links: Sequence[str], parts: Sequence[str], together: bool, keep_apart: bool, **options: Any
) -> None:
    """Divide the identity of WHO, by links to cut or by values to move out."""
    if bool(links) == bool(parts):
        raise click.UsageError("give either --link or --part")

    async def work(desk: Desk) -> None:
        from recon.api.decisions import many
        from recon.identities.dividing import Split, identifier_of

        moved = [[identifier_of(desk.value(text)) for text in part.split(",") if text.strip()] for part in parts]
        rest = "together" if together else "links"
        contact_id = await desk.contact(who)
        await desk.make([Split(contact_id, list(links) or None, moved, rest, keep_apart)], many)  # type: ignore[arg-type]

    run(work, options)


@click.command(epilog=EPILOG)
@click.argument("first", metavar="WHO")
@click.argument("second", metavar="WHO")
@click.option("--release", is_flag=True, help="Link them even if they are kept apart, and lift that.")
@correcting
def link(*, first: str, second: str, release: bool, **options: Any) -> None:
    """Make the identities of two one."""

    async def work(desk: Desk) -> None:
        from recon.api.decisions import one
        from recon.identities.linking import Link

        await desk.make([Link(await desk.contact(first), await desk.contact(second), release)], one)

    run(work, options)


@click.command("keep-apart", epilog=EPILOG)
@click.argument("first", metavar="WHO")
@click.argument("second", metavar="WHO")
@correcting
def keep_apart(*, first: str, second: str, **options: Any) -> None:
    """Keep the identities of two apart: no request joins them."""

    async def work(desk: Desk) -> None:
        from recon.api.decisions import many
        from recon.identities.linking import KeepApart

        await desk.make([KeepApart(await desk.contact(first), await desk.contact(second))], many)

    run(work, options)


@click.command(epilog=EPILOG)
@click.argument("first", metavar="WHO")
@click.argument("second", metavar="[WHO]", required=False)
@click.option("--event", "event_id", type=click.IntRange(0), metavar="ID", help="Lift the constraint of this event.")
@correcting
def release(*, first: str, second: str | None, event_id: int | None, **options: Any) -> None:
    """Lift what keeps the identities of two apart, or the constraint of an event."""
    if (second is None) == (event_id is None):
        raise click.UsageError("give either a second WHO or --event")

    async def work(desk: Desk) -> None:
        from recon.api.decisions import many
        from recon.identities.linking import Release

        other = None if second is None else await desk.contact(second)
        await desk.make([Release(await desk.contact(first), other, event_id)], many)

    run(work, options)


@click.command()
@click.argument("value", required=False)
@click.option(
    "--from",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Block each value of a file, one a line; # begins a comment.",
)
@correcting
def block(*, value: str | None, file: Path | None, **options: Any) -> None:
    """Declare that VALUE, an email or a phone number, identifies nobody; it leaves all contacts."""
    if (value is None) == (file is None):
        raise click.UsageError("give either a value or --from")
    texts = [value] if value is not None else _lines(file or Path())

    async def work(desk: Desk) -> None:
        from recon.api.decisions import many
        from recon.identities.dividing import Block

        await desk.make([Block(desk.value(text)) for text in texts], many)

    run(work, options)


@click.command()
@click.argument("value")
@correcting
def unblock(*, value: str, **options: Any) -> None:
    """Allow VALUE, an email or a phone number, again; what separated stays separate."""

    async def work(desk: Desk) -> None:
        from recon.api.decisions import decided
        from recon.identities.dividing import Unblock

        await desk.make([Unblock(desk.value(value))], decided)

    run(work, options)


@click.command()
@click.argument("event_id", metavar="ID", type=click.IntRange(0))
@correcting
def dismiss(*, event_id: int, **options: Any) -> None:
    """Take the withheld link of the event ID off the review list."""

    async def work(desk: Desk) -> None:
        from recon.api.decisions import decided
        from recon.identities.guarding import Dismiss

        await desk.make([Dismiss(event_id)], decided)

    run(work, options)


@click.command(epilog=EPILOG)
@click.argument("who")
@click.option("--suppress", is_flag=True, help="Keep keyed digests, so that nothing brings the person back.")
@correcting
def erase(*, who: str, suppress: bool, **options: Any) -> None:
    """Erase the identity of WHO, and whatever the database says of it. Nothing brings it back."""

    async def work(desk: Desk) -> None:
        from recon.api.decisions import decided
        from recon.identities.erasing import Erase
        from recon.settings import suppress_key

        key = suppress_key(desk.settings)
        phone_key = phone_key_for(desk.settings.default_region)
        contact_id = await desk.contact(who)
        await desk.make([Erase(contact_id, phone_key, suppress, key, desk.corrections.has_lane)], decided)

    run(work, options)


def confirm(number: int) -> None:
    """Ask, on standard error. Raises ReconError unless the answer is yes."""
    question = "Make this correction?" if number == 1 else f"Make these {number} corrections?"
    try:
        if click.confirm(question, err=True):
            return
    except click.Abort:  # the end of standard input
        pass
    raise ReconError("nothing was changed")


def _lines(file: Path) -> list[str]:
    """The values of a file."""
    try:
        text = file.read_text("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except UnicodeDecodeError:
        raise click.BadParameter("the file must be text in UTF-8", param_hint="--from") from None
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
