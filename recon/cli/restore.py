"""The part of `recon import` that restores a full export."""

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from recon.errors import ReconError
from recon.settings import Settings, database_settings, database_url, suppress_key

if TYPE_CHECKING:  # imported only when the command runs: other commands start faster without it
    from recon.transfer.text import Text


async def restore(settings: Settings, text: "Text", misplaced: list[str], *, as_json: bool) -> None:
    """Restore a full export in an empty database.

    `misplaced` are the options that were given and are for other files. Raises ReconError; nothing is changed then.
    """
    import json

    from recon.cli.meter import Meter
    from recon.database.transactions import Database
    from recon.rules.digests import check_of
    from recon.sql import restoring
    from recon.transfer.restoring import Restore

    if misplaced:
        raise ReconError(f"{text.name} is a full export, which is restored as a whole: it takes no {misplaced[0]}")
    key = suppress_key(settings)
    check = None if key is None else check_of(key)
    url = database_url(settings)
    with Meter("rows") as meter:
        work = Restore(text, settings.default_region, meter.add)
        await Database(url, replace(database_settings(settings), suppress_check=check)).prepare()
        async with restoring.restoring(url) as connection:
            counts = await work.run(connection, check)
    if as_json:
        click.echo(json.dumps({"file": text.name, "restored": counts, "seconds": round(meter.seconds, 3)}))
    else:
        click.echo(f"{text.name}: restored {meter.said()}")
