"""The search for what a database still has of a person: in every column of every table, and in what pg_dump writes."""

import io
import json
import re
import subprocess
from collections.abc import Iterable
from shutil import which

import asyncpg

from tests.harness.databases import fetch
from tests.harness.postgres import PACKAGE

# Every column of every table, view and sequence that is not PostgreSQL's own.
COLUMNS = """
SELECT attrelid::regclass::text AS "table", quote_ident(attname) AS "column", format_type(atttypid, NULL) AS type
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'm', 'v', 'f', 'S') AND attnum > 0 AND NOT attisdropped
    AND nspname NOT IN ('pg_catalog', 'information_schema') AND nspname NOT LIKE 'pg_toast%'
ORDER BY 1, attnum
"""
TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"


async def columns(url: str) -> dict[str, list[str]]:
    """The texts of all values of a database, by table and column."""
    connection = await asyncpg.connect(url)
    try:
        return {
            f"{table}.{column}": [
                text
                for row in await connection.fetch(f"SELECT {text_of(column, kind)} FROM {table}")
                for text in row
                if text is not None
            ]
            for table, column, kind in await connection.fetch(COLUMNS)
        }
    finally:
        await connection.close()


def text_of(column: str, kind: str) -> str:
    """The expressions that show a column's values as text."""
    shown = f"{column}::text"
    return f"{shown}, encode({column}, 'escape')" if kind == "bytea" else shown


def in_text(text: str, sought: Iterable[str]) -> list[str]:
    """Those of the texts that are in a text, in whatever case, and in whatever way it escapes characters."""
    forms = [text, text.replace('""', '"'), re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), text)]
    folded = "\0".join(forms).casefold()
    return [each for each in sought if each.casefold() in folded]


async def found(url: str, sought: Iterable[str]) -> dict[str, set[str]]:
    """Those of the texts that are in the database, each with the columns that have it."""
    sought = list(sought)
    hits: dict[str, set[str]] = {}
    for place, texts in (await columns(url)).items():
        for each in in_text("\n".join(texts), sought):
            hits.setdefault(each, set()).add(place)
    return hits


def _programs() -> list[str]:
    """The pg_dump programs of this machine; the embedded server's first, which are the newest."""
    packaged = PACKAGE.glob("pginstall*/bin/pg_dump")
    return [*(str(path) for path in sorted(packaged, reverse=True)), *filter(None, [which("pg_dump")])]


async def dump(url: str) -> str:
    """What pg_dump writes of a database; if no pg_dump here is new enough for the server, what COPY writes."""
    [(version,)] = await fetch(url, "SELECT current_setting('server_version_num')::int / 10000")
    for program in _programs():
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if int(re.findall(r"\d+", shown)[0]) >= version:
            return subprocess.run([program, "--dbname", url], capture_output=True, text=True, check=True).stdout
    return await copied(url)


async def copied(url: str) -> str:
    """All tables as COPY writes them, and the sequences."""
    output = io.BytesIO()
    connection = await asyncpg.connect(url)
    try:
        for (table,) in await connection.fetch(TABLES):
            await connection.copy_from_query(f"SELECT * FROM {table}", output=output)
        sequences = await connection.fetch("SELECT * FROM pg_sequences")
    finally:
        await connection.close()
    return output.getvalue().decode() + json.dumps([dict(row) for row in sequences], default=str)
