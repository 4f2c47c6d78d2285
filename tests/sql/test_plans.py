"""Query plans: every statement of a request walks along indexes, whatever the table's size and statistics."""

import asyncio
import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import asyncpg
import pytest

from recon.database.definitions import SCHEMA
from recon.database.transactions import SESSION
from recon.sql import contacts as sql
from tests.harness.databases import execute

SEED = """
INSERT INTO contact (email, phone_number, link_precedence, linked_id)
SELECT 'e' || n || '@example.org', n::text,
    CASE WHEN n % 5 = 0 THEN 'secondary' ELSE 'primary' END, CASE WHEN n % 5 = 0 THEN n - 1 END
FROM generate_series(1, {rows}) AS n
"""
BATCH = 64

STATEMENTS: dict[str, tuple[str, list[Any]]] = {
    "fetch": (sql.FETCH_CLUSTERS, [[f"e{n}@example.org" for n in range(BATCH)], [str(n) for n in range(BATCH)]]),
    "fetch small": (
        sql.FETCH_SMALL_CLUSTERS,
        [[f"e{n}@example.org" for n in range(BATCH)], [str(n) for n in range(BATCH)]],
    ),
    "find roots": (sql.FIND_ROOTS, [[f"e{n}@example.org" for n in range(BATCH)], [str(n) for n in range(BATCH)]]),
    "lock free": (sql.LOCK_FREE_ROWS, [[*range(BATCH)]]),
    "wait": (sql.WAIT_FOR_ROW, [1]),
    "lock": (sql.LOCK_CLUSTERS, [[f"e{n}@example.org" for n in range(BATCH)], [str(n) for n in range(BATCH)]]),
    "change": (
        sql.CHANGE_CONTACTS,
        [
            [f"new{n}@example.org" for n in range(BATCH)],
            [f"new{n}" for n in range(BATCH)],
            [f"new{n}" for n in range(BATCH)],
            [None] * BATCH,
            [None if n == 0 else 1 for n in range(BATCH)],
            [None] * BATCH,
            1,
            [6, 11, 16],
            [1, 1, 1],
        ],
    ),
}
_NEW = [*range(1, BATCH + 1)]
_MERGES = [[BATCH + 1], ["merged"], [1], [None], [6], [None], ["e1@example.org"], ["6"], ["6"], ["shop"], [None]]
STATEMENTS["change and record"] = (sql.CHANGE_AND_RECORD, [*STATEMENTS["change"][1], _NEW, *_MERGES])


SIZES = [0, 50, 500, 5_000, 100_000]


@pytest.fixture(
    scope="module", params=product(SIZES, [False, True]), ids=lambda table: f"{table[0]} rows{', analysed' * table[1]}"
)
def table_url(request: pytest.FixtureRequest, shared_database_url: str) -> str:
    """A table of each size, never analysed and analysed."""
    rows, analysed = request.param
    asyncio.run(execute(shared_database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", SCHEMA))
    asyncio.run(
        execute(shared_database_url, "ALTER TABLE contact SET (autovacuum_enabled = off)", SEED.format(rows=rows))
    )
    if analysed:
        asyncio.run(execute(shared_database_url, "ANALYZE contact"))
    return shared_database_url


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_sequential_scan(name: str, table_url: str) -> None:
    """No statement of a request reads contact but by an index, and it reads few pages."""
    statement, arguments = STATEMENTS[name]
    connection = await asyncpg.connect(table_url, server_settings=SESSION)
    transaction = connection.transaction(isolation="serializable")
    await transaction.start()
    # As recon runs it: prepared, with the generic plan.
    await connection.execute(f"PREPARE tested AS {statement}")
    literals = ", ".join(_literal(argument) for argument in arguments)
    plan = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE tested ({literals})"))
    await transaction.rollback()
    await connection.close()

    nodes = list(_nodes(plan[0]["Plan"]))

    scans = [node for node in nodes if node.get("Relation Name") == "contact" and node["Node Type"] != "ModifyTable"]
    assert scans
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    for node in scans:
        # An index scan without a condition is a sequential scan in disguise.
        assert "Index Cond" in node, node
    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 60 * BATCH


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _literal(argument: list[Any] | int) -> str:
    if isinstance(argument, int):
        return str(argument)
    return "'{" + ",".join("NULL" if item is None else str(item) for item in argument) + "}'"
