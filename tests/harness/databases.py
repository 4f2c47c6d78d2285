"""Running statements on a test's database."""

import asyncio
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import asyncpg


async def execute(url: str, *statements: str) -> None:
    """Run statements one after another on one connection."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """Run a statement and return its rows."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


def at_database(url: str, name: str) -> str:
    """Return the URL of another database of the same server."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


class Administrator:
    """A session that outlives the tests and their event loops, for statements between the tests.

    Parameters
    ----------
    url : URL of the database that it connects to.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)  # which is nobody's current loop

    def __enter__(self) -> Self:
        self._connection = self._runner.run(asyncpg.connect(self.url))
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._connection.close())
        self._runner.close()

    def execute(self, statement: str) -> None:
        """Run a statement outside of a transaction."""
        self._runner.run(self._connection.execute(statement))
