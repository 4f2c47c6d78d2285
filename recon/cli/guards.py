"""The command `recon guards`: show and change the settings of the guards, and block what they find in the database."""

from typing import Any

import click

from recon.cli.corrections import Desk, correcting, run
from recon.rules.identifiers import Identifiers


@click.command()
@click.option("--max-emails", type=click.IntRange(0, 2**31 - 1), metavar="N", help="The most emails; 0 for no limit.")
@click.option(
    "--max-phones", type=click.IntRange(0, 2**31 - 1), metavar="N", help="The most phone numbers; 0: no limit."
)
@click.option(
    "--block-common/--no-block-common", default=None, help="Whether values of recon's own list identify nobody."
)
@click.option("--preview", is_flag=True, help="Show the values that identify nobody, but are in identities.")
@click.option("--apply", is_flag=True, help="Block each of these values.")
@correcting
def guards(
    *,
    max_emails: int | None,
    max_phones: int | None,
    block_common: bool | None,
    preview: bool,
    apply: bool,
    **options: Any,
) -> None:
    """Show the guards of the database, or change them."""
    changes = any(each is not None for each in (max_emails, max_phones, block_common))
    if changes + preview + apply > 1:
        raise click.UsageError("change the settings, or give --preview, or --apply")

    async def work(desk: Desk) -> None:
        from recon.api.decisions import decided
        from recon.identities.guarding import SetGuards, fetch_limits

        if preview or apply:
            await _values(desk, apply=apply)
        elif changes:
            await desk.make([SetGuards(max_emails, max_phones, block_common)], decided)
        else:
            desk.show((await fetch_limits(desk.database)).shown())

    run(work, options)


async def _values(desk: Desk, *, apply: bool) -> None:
    """Show the values that identify nobody and are in identities, or block each of them."""
    from recon.api.decisions import many
    from recon.identities.dividing import Block
    from recon.identities.guarding import find_held

    found = await find_held(desk.database)
    if not apply or not found:
        desk.show({"values": [_named(value) for value in found]})
        return
    await desk.make([Block(value) for value in found], many)


def _named(value: Identifiers) -> dict[str, str | None]:
    return {"email": value.email} if value.email is not None else {"phoneNumber": value.phone}
