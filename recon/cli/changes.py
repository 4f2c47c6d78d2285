"""The command that prints the change feed, and follows it."""

import asyncio
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from recon.cli.identities import explaining, opened
from recon.cli.options import load_settings
from recon.cli.running import database_of, failing_clearly
from recon.errors import Unavailable
from recon.settings import Settings

if TYPE_CHECKING:  # imported only when the command runs: other commands start faster without it
    from collections.abc import Callable

    from recon.identities.changes import Changes
    from recon.rules.feed import Page

Print: TypeAlias = "Callable[[Page], None]"

_PAGE = 1000  # contacts and events that are fetched at a time
_RETRY = 1.0  # seconds between two tries while the database is away


@click.command()
@click.option(
    "--after",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    metavar="POSITION",
    help="Begin after this position.",
)
@click.option("--follow", is_flag=True, help="Go on with what happens from then on, until Ctrl-C.")
@explaining
def changes(*, after: int, follow: bool, as_json: bool, **options: Any) -> None:
    """Print the change feed: contacts and events in order, and the identities that they touched.

    With --json, each line is a page, as the API answers.
    """
    settings = load_settings(options)
    show = _json if as_json else _text()

    async def run(settings: Settings) -> None:
        from recon.identities.changes import Changes

        async with opened(settings) as database:
            await _print(Changes(database, lambda page: page), after, show, follow=follow)

    with failing_clearly(), database_of(settings, create=False) as settings:
        asyncio.run(run(settings))


async def _print(feed: "Changes[Page]", after: int, show: Print, *, follow: bool) -> None:
    """Print pages up to the end of the feed or, to follow it, for ever. While the database is away, wait for it."""
    from recon.identities.changes import MOST_WAIT

    wait = 0  # until the end is reached: requests that wait share a part of the time
    while True:
        try:
            page = await feed.page(after, _PAGE, wait)
        except Unavailable:
            if not follow:
                raise
            await asyncio.sleep(_RETRY)
            continue
        wait = 0 if page.more and page.entries else MOST_WAIT
        if page.entries or not follow:
            show(page)
        after = page.next
        if not (page.more or follow):
            return


def _json(page: "Page") -> None:
    from recon.api.changes import changes_response

    click.echo(changes_response(page))


def _text() -> Print:
    from recon.cli import terminal

    console = terminal.console()

    def show(page: "Page") -> None:
        for line in terminal.changes(page):
            console.print(line, soft_wrap=True)

    return show
