"""Running statements on a test's database."""

from typing import Any
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
