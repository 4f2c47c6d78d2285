"""The command `recon`: one short function a subcommand."""

import asyncio
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from recon import __version__, keys, signals
from recon.cli import changes, corrections, guards, identities, transfer
from recon.cli.export import export
from recon.cli.options import GroupedCommand, load_settings, settings_options, variables_alone
from recon.cli.rekey import rekey
from recon.cli.running import database_of, failing_clearly
from recon.dsn import has_password
from recon.quantities import quantity
from recon.server import listening
from recon.settings import Settings, database_url

log = logging.getLogger(__name__)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="recon")
def main() -> None:
    """Tell a shop which of its customers are the same person."""
    signals.exit_when_received()


for command in (
    identities.show,
    identities.history,
    identities.why,
    identities.withheld,
    changes.changes,
    corrections.split,
    corrections.link,
    corrections.keep_apart,
    corrections.release,
    corrections.block,
    corrections.unblock,
    corrections.dismiss,
    corrections.erase,
    guards.guards,
    rekey,
    transfer.import_,
    export,
):
    main.add_command(command)


@main.command(cls=GroupedCommand, epilog=variables_alone())
@settings_options()
def serve(**options: Any) -> None:
    """Serve POST /identify."""
    settings = load_settings(options)
    _configure_logs(settings)
    is_embedded = settings.database_url is None
    if options["database_url"] and has_password(options["database_url"]):
        log.warning("every user of this machine can see the password in --database-url; use RECON_DATABASE_URL instead")
    with failing_clearly():
        listening.check(settings)  # before a database is started
        listening.require_free_port(settings)
    with (
        _announcing_the_end(),
        failing_clearly(),
        _shared_metrics(settings.workers),
        database_of(settings) as settings,
    ):
        if is_embedded:
            _migrate(settings)
        from recon.server.processes import (
            serve as run,  # after _shared_metrics, which prometheus-client reads on import
        )

        run(settings)


def _migrate(settings: Settings) -> None:
    """Migrate the database of the embedded PostgreSQL, which has no operator."""
    from recon.database.upgrade import migrate_to

    for done in asyncio.run(migrate_to(database_url(settings), settings.default_region)):
        log.info("the embedded PostgreSQL: %s", done)


@main.command()
@settings_options("database_url", "data_dir", "default_region")
def check(**options: Any) -> None:
    """Scan the database for violations of the invariants; exit 1 if there are any."""
    settings = load_settings(options)
    from recon.sql import invariants

    with failing_clearly(), database_of(settings, create=False) as settings:
        violations, summary = asyncio.run(invariants.check(database_url(settings), settings.default_region))
    for violation in violations:
        click.echo(violation)
    click.echo(f"{summary}: {quantity(len(violations), 'violation') if violations else 'no violations'}")
    sys.exit(1 if violations else 0)


@main.command()
@click.option(
    "--apply",
    is_flag=True,
    help="Create the schema, migrate an older one, or add what is missing, and record --default-region.",
)
@click.option("--grant", metavar="ROLE", help="Also grant this role the privileges that serving needs.")
@click.option(
    "--grant-steward",
    metavar="ROLE",
    help="Also grant this role the privileges that serving and corrections need.",
)
@click.option("--grant-reader", metavar="ROLE", help="Also grant this role the privileges that exports need.")
@settings_options("database_url", "data_dir", "default_region")
def schema(
    *, apply: bool, grant: str | None, grant_steward: str | None, grant_reader: str | None, **options: Any
) -> None:
    """Print the schema as SQL, or apply it to a database."""
    from recon.database.grants import grants, reader_grants, steward_grants
    from recon.database.schema import script
    from recon.database.upgrade import apply_schema_to

    settings = load_settings(options)
    granted = "" if grant is None else grants(grant)
    granted += "" if grant_steward is None else steward_grants(grant_steward)
    granted += "" if grant_reader is None else reader_grants(grant_reader)
    if not apply:
        click.echo(script(settings.default_region, granted))
        return
    with failing_clearly(), database_of(settings) as settings:
        done = asyncio.run(apply_schema_to(database_url(settings), granted, settings.default_region))
    click.echo("\n".join(done) or "the schema is there already")


@main.command()
@settings_options("data_dir")
@click.confirmation_option("--yes", prompt="Delete all contacts?", help="Do not ask.")
def reset(**options: Any) -> None:
    """Delete the data of the embedded PostgreSQL."""
    from recon.database.embedded import data_folder

    data_dir = load_settings(options).data_dir
    with failing_clearly():
        deleted = data_folder.remove(data_dir)
    click.echo(f"deleted the data in {data_dir}" if deleted else f"there is no data in {data_dir}")


@main.command()
@click.option(
    "--name", required=True, metavar="NAME", help="Name of the key's holder; the log shows it with each request."
)
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(keys.SCOPES),
    default=["identify"],
    show_default=True,
    help="Scope of the key: identify, read (metrics too), steward (read and correct), erase, or admin (everything); "
    "may be repeated.",
)
@click.option("--append", type=click.Path(path_type=Path), metavar="FILE", help="Append the line to this key file.")
def key(name: str, scopes: tuple[str, ...], append: Path | None) -> None:
    """Create an API key; print its secret once, and its line for the key file."""
    with failing_clearly():
        secret, line = keys.new_key(name, scopes)
        if append is not None:
            keys.append(append, line)
    click.echo(secret)
    if append is None:
        click.echo(line)


def _configure_logs(settings: Settings) -> None:
    from recon import logs

    logs.configure(settings)


@contextmanager
def _announcing_the_end() -> Iterator[None]:
    """Log that recon has stopped, after all clean-up, unless it has failed."""
    owner = os.getpid()
    try:
        yield
    except SystemExit as end:
        if os.getpid() == owner and end.code in signals.EXIT_CODES:
            log.info("recon has stopped")
        raise
    log.info("recon has stopped")


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Make a folder through which prometheus-client sums the metrics of several processes."""
    if workers == 1:
        yield
        return
    owner = os.getpid()
    folder = tempfile.mkdtemp(prefix="recon-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    try:
        yield
    finally:
        if os.getpid() == owner:  # not in a forked worker process, which unwinds the same stack
            shutil.rmtree(folder, ignore_errors=True)
