"""The command `recon rekey`: a new default region for the database, and the match keys of it for all that is stored."""

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from recon.cli.corrections import SOURCE, confirm, correcting
from recon.cli.options import load_settings
from recon.cli.running import database_of, failing_clearly
from recon.settings import Settings, database_url

if TYPE_CHECKING:  # imported only when the command runs: other commands start faster without them
    from recon.identities.rekeying import Done, Preview


@click.command()
@click.option(
    "--drop-suppressed",
    is_flag=True,
    help="Forget suppressed phone numbers if the region changes: nobody can compute their new match keys.",
)
@correcting
def rekey(*, drop_suppressed: bool, note: str | None, dry_run: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Give the database this default region, or none, and compute all match keys anew."""
    settings = load_settings(options)

    async def work(settings: Settings) -> None:
        from recon.cli import progress
        from recon.database.connecting import connected
        from recon.database.exclusive import Session
        from recon.identities.rekeying import Rekey

        async with connected(database_url(settings)) as connection:
            session = Session(connection, settings.correction_timeout)
            with progress.shown() as steps:
                command = Rekey(session, settings.default_region, drop_suppressed, steps)
                preview = _previewed(await command.preview())
            if dry_run or not yes:
                _print(preview, as_json=as_json, is_preview=True, is_answer=dry_run)
            if dry_run:
                return
            if not yes:
                await asyncio.to_thread(confirm, 1)
            with progress.shown() as steps:
                command = Rekey(session, settings.default_region, drop_suppressed, steps)
                done = await command.make(SOURCE, note)
            _print(_done(done), as_json=as_json, is_preview=False, is_answer=True)

    with failing_clearly(), database_of(settings, create=False) as settings:
        asyncio.run(work(settings))


def _previewed(preview: "Preview") -> dict[str, Any]:
    """A preview as JSON."""
    stale, found = preview.stale, preview.forecast
    return {
        "from": preview.before,
        "to": preview.after,
        **stale._asdict(),
        "identitiesThatShare": found.identities,
        "sharedKeys": found.shared_keys,
        "shared": [{each.kind: each.key, "primaryContactIds": each.roots} for each in found.shared],
        "dividedKeys": found.divided_keys,
        "divided": [{"phoneNumber": each.key, "becomes": each.becomes} for each in found.divided],
    }


def _done(done: "Done") -> dict[str, Any]:
    """What was done, as JSON."""
    return {"from": done.before, "to": done.after, **done.counts, "eventId": done.event_id}


def _print(answer: Mapping[str, Any], *, as_json: bool, is_preview: bool, is_answer: bool) -> None:
    """Print an answer, a preview before a question to standard error."""
    if as_json:
        click.echo(json.dumps(answer, ensure_ascii=False), err=not is_answer)
        return
    from recon.cli import terminal

    terminal.console(stderr=not is_answer).print(*terminal.rekey(answer, preview=is_preview), sep="\n")
