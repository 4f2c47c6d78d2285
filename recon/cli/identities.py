"""Commands that explain identities: show, history, why and withheld."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from recon.cli.options import load_settings, settings_options
from recon.cli.running import database_of, failing_clearly
from recon.errors import Deleted, Erased, NotFound, ReconError
from recon.rules.identifiers import Identifiers, normal_email, normal_phone, phone_key_for
from recon.settings import Settings, database_settings, database_url

if TYPE_CHECKING:  # imported only when a command runs: other commands start faster without them
    from rich.console import RenderableType

    from recon.database.transactions import Database
    from recon.identities.lookup import End, Lookup
    from recon.rules.journal import Event
    from recon.rules.review import KeptApart

Command: TypeAlias = Callable[..., Any]
Answer: TypeAlias = "tuple[bytes, list[RenderableType]]"  # JSON, and the same for a reader

_PAGE = 1000  # entries that are fetched at a time
_ID_DIGITS = 19  # at most, in a bigint
EPILOG = (
    "WHO is an email, a phone number, or the id of a contact. A number that is an id and a phone number is ambiguous: "
    "write id:12 or phone:12. An email without an @ is email:NAME."
)


def explaining(command: Command) -> Command:
    """The options that these commands share."""
    command = click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API answers.")(command)
    return settings_options("database_url", "data_dir", "default_region")(command)


@click.command(epilog=EPILOG)
@click.argument("who")
@click.option(
    "--as-of", metavar="WHEN", help="Show it as it was at a position, or at an ISO 8601 time with a time zone."
)
@explaining
def show(*, who: str, as_of: str | None, as_json: bool, **options: Any) -> None:
    """Show the identity of WHO."""
    moment = None if as_of is None else _moment(as_of)

    async def answer(lookup: "Lookup", region: str | None) -> Answer:
        from recon.api.messages import identify_response
        from recon.cli import terminal

        _, contact_id = await resolved(lookup, who, region)
        identity = await lookup.show(contact_id, moment)
        readable: list[RenderableType] = [terminal.show(identity)]
        if moment is None and not as_json:
            readable += terminal.guarded(*await _guarded(lookup, contact_id))
        return identify_response(identity), readable

    _run(answer, options, as_json=as_json)


@click.command(epilog=EPILOG)
@click.argument("who")
@explaining
def history(*, who: str, as_json: bool, **options: Any) -> None:
    """Show what happened to the identity of WHO: its contacts and events, oldest first."""

    async def answer(lookup: "Lookup", region: str | None) -> Answer:
        from recon.api.questions import history_response
        from recon.cli import terminal
        from recon.identities.lookup import History

        _, contact_id = await resolved(lookup, who, region)
        page = await lookup.history(contact_id, limit=_PAGE)
        entries = page.entries
        while page.next is not None:
            page = await lookup.history(contact_id, after=page.next, limit=_PAGE)
            entries += page.entries
        return history_response(History(entries, None)), [terminal.history(entries)]

    _run(answer, options, as_json=as_json)


@click.command(epilog=EPILOG)
@click.argument("first", metavar="WHO")
@click.argument("second", metavar="WHO")
@explaining
def why(*, first: str, second: str, as_json: bool, **options: Any) -> None:
    """Show why two are one person, as a chain of links, or that they are not."""

    async def answer(lookup: "Lookup", region: str | None) -> Answer:
        from recon.api.questions import why_response
        from recon.cli import terminal

        (start, _), (end, _) = await resolved(lookup, first, region), await resolved(lookup, second, region)
        found = await lookup.why(start, end)
        readable: list[RenderableType] = []
        if found.path:
            readable = [terminal.chain(found.path, found.stations, found.forms), ""]
        return why_response(found), [*readable, terminal.sentence(found.sentence)]

    _run(answer, options, as_json=as_json)


@click.command()
@explaining
def withheld(*, as_json: bool, **options: Any) -> None:
    """List the links that guards withheld and that are open, oldest first."""

    async def answer(lookup: "Lookup", _region: str | None) -> Answer:
        from recon.api.questions import withheld_response
        from recon.cli import terminal
        from recon.identities.lookup import Review

        page = await lookup.withheld(limit=_PAGE)
        entries = page.entries
        while page.next is not None:
            page = await lookup.withheld(page.next, limit=_PAGE)
            entries += page.entries
        return withheld_response(Review(entries, None)), [terminal.withheld(entries)]

    _run(answer, options, as_json=as_json)


async def _guarded(lookup: "Lookup", contact_id: int) -> "tuple[list[KeptApart], list[Event]]":
    """From whom an identity is kept apart, and the open withheld links about it."""
    page = await lookup.links(contact_id, limit=_PAGE)
    kept_apart, links = page.kept_apart, page.withheld
    while page.next is not None:
        page = await lookup.links(contact_id, after=page.next, limit=_PAGE)
        kept_apart, links = kept_apart + page.kept_apart, links + page.withheld
    return kept_apart, links


def _run(
    answer: Callable[["Lookup", str | None], Awaitable[Answer]], options: dict[str, Any], *, as_json: bool
) -> None:
    """Open the database, and print the answer."""
    settings = load_settings(options)

    async def run(settings: Settings) -> Answer:
        async with _looking_up(settings) as lookup:
            return await answer(lookup, settings.default_region)

    with failing_clearly(), database_of(settings, create=False) as settings:
        document, readable = asyncio.run(run(settings))
    if as_json:
        click.echo(document)
        return
    from recon.cli import terminal

    terminal.console().print(*readable, sep="\n")


@asynccontextmanager
async def _looking_up(settings: Settings) -> AsyncIterator["Lookup"]:
    """Look-ups in the settings' database. Raises SchemaMismatch or Unavailable if it cannot be served."""
    from recon.identities.lookup import Lookup

    async with opened(settings) as database:
        yield Lookup(database)


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator["Database"]:
    """The settings' database. Raises SchemaMismatch or Unavailable if it cannot be served."""
    from recon.database.connecting import connected
    from recon.database.schema import require_served
    from recon.database.transactions import Database

    url = database_url(settings)
    async with connected(url) as connection:  # first, because opening creates a schema where there is none
        await require_served(connection, settings.default_region)
    async with Database(url, database_settings(settings)).opened() as database:
        yield database


async def resolved(lookup: "Lookup", who: str, region: str | None) -> "tuple[End, int]":
    """What WHO stands for, and a contact of its identity. Raises ReconError if it is nobody, erased, or ambiguous."""
    found = {}
    erased = None
    for end in readings(who, region):
        try:
            contact_id = await _contact(lookup, end)
        except Erased as error:
            erased = error
            continue
        if contact_id is not None:
            found[contact_id] = end
    if not found:
        raise erased or NotFound(f"no contact has {who!r} as its email, phone number or id")
    if len(found) > 1:
        raise ReconError(f"{who!r} is the id of a contact and the phone number of another person: write id: or phone:")
    [(contact_id, end)] = found.items()
    return end, contact_id


async def _contact(lookup: "Lookup", end: "End") -> int | None:
    """A contact of the identity, its primary if one is live."""
    if isinstance(end, Identifiers):
        return next((identity.primary_id for identity in await lookup.lookup(end)), None)
    try:
        return (await lookup.show(end)).primary_id
    except NotFound:
        return None
    except Deleted:
        return end


def readings(who: str, region: str | None) -> "list[End]":
    """What WHO can be: by its prefix, or by its form."""
    kind, separator, value = who.partition(":")
    if not separator or kind not in {"id", "email", "phone"}:
        kind, value = "", who
    is_id = value.isascii() and value.isdigit() and len(value) <= _ID_DIGITS
    readings: list[End] = []
    if kind == "id" or (not kind and is_id):
        readings += [int(value)] if is_id else []
    if kind == "email" or (not kind and "@" in value):
        readings += _identifiers(value, None, region)
    if kind == "phone" or (not kind and "@" not in value):
        readings += _identifiers(None, value, region)
    return readings


def _identifiers(email: str | None, phone: str | None, region: str | None) -> "list[End]":
    """The email or the phone number in canonical form; nothing if no contact can have it."""
    try:
        email = email and normal_email(email)
        phone = phone and normal_phone(phone)
        (email or phone or "").encode()  # a command line can have bytes that are not UTF-8
    except ValueError:
        return []
    return [Identifiers(email, phone, phone and phone_key_for(region)(phone))] if email or phone else []


def _moment(text: str) -> int | datetime:
    """A position or a time."""
    if text.isascii() and text.isdigit() and len(text) <= _ID_DIGITS:
        return int(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise click.BadParameter(
            "must be a position, such as 31, or a time with a time zone, such as 2026-01-31T12:00:00Z",
            param_hint="--as-of",
        )
    return time
