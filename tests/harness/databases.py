"""Statements on a test's database."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg


async def execute(url: str, *statements: str) -> None:
    """Run statements, each on its own, on one connection."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """The rows of a statement."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


def at_database(url: str, name: str) -> str:
    """The same server's URL, for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
