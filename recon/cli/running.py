"""What commands share: the database that they use, and errors as one line."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click
from pydantic import SecretStr

from recon.dsn import server_of
from recon.errors import ReconError, Unreachable
from recon.settings import Settings

log = logging.getLogger(__name__)


@contextmanager
def database_of(settings: Settings, *, create: bool = True) -> Iterator[Settings]:
    """Yield the settings with a database URL: their own, or that of an embedded PostgreSQL, which runs meanwhile.

    Without `create`, a data folder that does not exist is an error.
    """
    if settings.database_url is not None:
        server = server_of(settings.database_url.get_secret_value())
        log.info("using the database %s at %s", server.database, server.hosts)
        yield settings
        return
    from recon.database.embedded import data_folder  # imported only when it is needed

    with data_folder.running(settings.data_dir, create=create) as url:
        log.info("using an embedded PostgreSQL; its data is in %s", settings.data_dir)
        yield settings.model_copy(update={"database_url": SecretStr(url)})


@contextmanager
def failing_clearly() -> Iterator[None]:
    """End the command with one line instead of a traceback for errors that its user can correct."""
    try:
        yield
    except (ReconError, OSError, RuntimeError) as error:
        click.echo(f"recon: {error.reason if isinstance(error, Unreachable) else error}", err=True)
        sys.exit(1)
