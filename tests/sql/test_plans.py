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
from recon.sql import guards, journal, review
from tests.harness.databases import execute

SEED = """
INSERT INTO contact (email, phone_number, link_precedence, linked_id)
SELECT 'e' || n || '@example.org', n::text,
    CASE WHEN n % 5 = 0 THEN 'secondary' ELSE 'primary' END, CASE WHEN n % 5 = 0 THEN n - 1 END
FROM generate_series(1, {rows}) AS n
"""
# A merge for every tenth contact.
JOURNAL = """
INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key)
SELECT {rows} + n, 'merged', n, n + 1, 'e' || n || '@example.org', n::text, n::text
FROM generate_series(1, {rows}, 10) AS n
"""
# A withheld link for every tenth contact, open.
WITHHELD = """
INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key, detail)
SELECT 2 * {rows} + n, 'withheld', n, n + 1, 'e' || n || '@example.org', n + 1, n + 1, '{{"reason": "limit"}}'
FROM generate_series(2, {rows}, 10) AS n
"""
BATCH = 64
INDEXED = {"contact", "event", "event_contact", "erased", "blocked", "setting"}

_ASKED = [[f"e{n}@example.org" for n in range(BATCH)], [str(n) for n in range(BATCH)], ["a digest"]]
STATEMENTS: dict[str, tuple[str, list[Any]]] = {
    "fetch": (sql.FETCH_CLUSTERS, _ASKED),
    "fetch small": (sql.FETCH_SMALL_CLUSTERS, _ASKED),
    "find roots": (sql.FIND_ROOTS, _ASKED[:2]),
    "lock free": (sql.LOCK_FREE_ROWS, [[*range(BATCH)]]),
    "wait": (sql.WAIT_FOR_ROW, [1]),
    "lock": (sql.LOCK_CLUSTERS, _ASKED),
    "insert": (
        sql.INSERT_CONTACTS,
        [
            [f"new{n}@example.org" for n in range(BATCH)],
            [f"new{n}" for n in range(BATCH)],
            [f"new{n}" for n in range(BATCH)],
            [None] * BATCH,
            [None if n == 0 else 1 for n in range(BATCH)],
            [None] * BATCH,
            1,
        ],
    ),
}
_NEW = [*range(1, BATCH + 1)]
_MERGES = [[BATCH + 1], ["merged"], [1], [None], [6], [None], ["e1@example.org"], ["6"], ["6"], ["shop"], [None]]
STATEMENTS |= {
    "blocked among": (guards.BLOCKED_AMONG, _ASKED[:2]),
    "recorded": (guards.RECORDED, _ASKED[:2]),
    "lose": (guards.LOSE, [[1, 2], "email", [2]]),
    "mark": (guards.MARK, [[1, 2], ["{{7,0,1}}"] * 2]),
    "find root by id": (journal.FIND_ROOT, [5, None, None]),
    "find root by email": (journal.FIND_ROOT, [None, "e5@example.org", None]),
    "find root by phone": (journal.FIND_ROOT, [None, None, "5"]),
    "fetch records": (journal.FETCH_RECORDS, [[4], None, None]),
    "fetch a page of records": (journal.FETCH_RECORDS, [[4], 4, 100]),
    "fetch events": (journal.FETCH_EVENTS, [[4], None, None]),
    "fetch a page of events": (journal.FETCH_EVENTS, [[4], 4, 100]),
    "is divided": (journal.IS_DIVIDED, [4]),
    "is erased": (journal.IS_ERASED, [4]),
    "find roots of": (journal.FIND_ROOTS_OF, [[*range(BATCH)]]),
    "facts": (review.FETCH_FACTS, [[4, 9, 14]]),
    "constraints": (review.FETCH_CONSTRAINTS, [[4, 9, 14]]),
    "later parts": (review.FETCH_LATER_PARTS, [[4, 9, 14], 4]),
    "withheld": (review.FETCH_WITHHELD, [0, 100]),
    "withheld about": (review.FETCH_WITHHELD_ABOUT, [4]),
}
STATEMENTS["change"] = (sql.CHANGE_CONTACTS, [*STATEMENTS["insert"][1], [6, 11, 16], [1, 1, 1], _NEW, *_MERGES])


SIZES = [0, 50, 500, 5_000, 100_000]


@pytest.fixture(
    scope="module", params=product(SIZES, [False, True]), ids=lambda table: f"{table[0]} rows{', analysed' * table[1]}"
)
def table_url(request: pytest.FixtureRequest, shared_database_url: str) -> str:
    """A table of each size, never analysed and analysed."""
    rows, analysed = request.param
    asyncio.run(execute(shared_database_url, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public", SCHEMA))
    asyncio.run(
        execute(
            shared_database_url,
            "ALTER TABLE contact SET (autovacuum_enabled = off)",
            "ALTER TABLE event SET (autovacuum_enabled = off)",
            "ALTER TABLE event_contact SET (autovacuum_enabled = off)",
            "ALTER TABLE erased SET (autovacuum_enabled = off)",
            SEED.format(rows=rows),
            JOURNAL.format(rows=rows),
            WITHHELD.format(rows=rows),
            f"INSERT INTO event_contact SELECT n, {rows} + n FROM generate_series(1, {rows}, 10) AS n",
            f"INSERT INTO erased SELECT {rows} + n, n FROM generate_series(1, {rows}) AS n",
        )
    )
    if analysed:
        asyncio.run(execute(shared_database_url, "ANALYZE contact, event, event_contact, erased"))
    return shared_database_url


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_sequential_scan(name: str, table_url: str) -> None:
    """No statement of a request reads contact or event but by an index, and it reads few pages."""
    statement, arguments = STATEMENTS[name]

    plan = await _plan(statement, arguments, table_url)

    _require_index_walks(plan)
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60 * BATCH


# An identity of 10,000 contacts, and a million events, of which 10,000 are about it, one for each contact.
MILLION = [
    "INSERT INTO contact (email, phone_number) VALUES ('large-1', '1')",
    """INSERT INTO contact (email, phone_number, linked_id, link_precedence)
    SELECT 'large-' || n, '1', 1, 'secondary' FROM generate_series(2, 10000) AS n""",
    """INSERT INTO event (id, kind, primary_id, other_id)
    SELECT 20000 + n, 'deleted', 20000 + n, 20000 + n FROM generate_series(1, 990000) AS n""",
    """INSERT INTO event (id, kind, email, phone_number, phone_key, detail)
    SELECT 3000000 + n, 'withheld', 'e' || n, n, n, '{"reason": "limit"}' FROM generate_series(1, 10000) AS n""",
    """INSERT INTO event_contact (contact_id, event_id)
    SELECT 20000 + n, 20000 + n FROM generate_series(1, 100000) AS n""",
    """INSERT INTO event (id, kind, primary_id, other_id)
    SELECT 2000000 + n, 'deleted', 1, n FROM generate_series(1, 10000) AS n""",
]
OF_LARGE = {
    "links": (journal.FETCH_EVENTS, [[1], None, None], 10_000),
    "why": (journal.FETCH_RECORDS, [[1], None, None], 10_000),
    "withheld": (review.FETCH_WITHHELD_ABOUT, [1], 1),  # that of phone number 1
    "facts": (review.FETCH_FACTS, [[1]], 1),
    "a page of events": (journal.FETCH_EVENTS, [[1], 2_005_000, 100], 100),
    "a page of records": (journal.FETCH_RECORDS, [[1], 5_000, 100], 100),
}


async def test_a_large_identity_in_a_journal_of_a_million_events(database_url: str) -> None:
    """Links, why and history of 10,000 contacts walk along indexes, and read none of the other events."""
    await execute(database_url, "ALTER TABLE event SET (autovacuum_enabled = off)", *MILLION)

    for name, (statement, arguments, rows) in OF_LARGE.items():
        plan = await _plan(statement, arguments, database_url)

        _require_index_walks(plan)
        assert plan["Actual Rows"] == rows, name
        # Each of the 10,000 ids is looked up in two indexes of the journal, a few pages each.
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100_000, name


async def _plan(statement: str, arguments: list[Any], url: str) -> dict[str, Any]:
    """The plan of a statement as recon runs it, prepared, with the generic plan; and what came of it."""
    connection = await asyncpg.connect(url, server_settings=SESSION)
    transaction = connection.transaction(isolation="serializable")
    await transaction.start()
    await connection.execute(f"PREPARE tested AS {statement}")
    literals = ", ".join(_literal(argument) for argument in arguments)
    plan = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE tested ({literals})"))
    await transaction.rollback()
    await connection.close()
    found: dict[str, Any] = plan[0]["Plan"]
    return found


def _require_index_walks(plan: dict[str, Any]) -> None:
    scans = [
        node for node in _nodes(plan) if node.get("Relation Name") in INDEXED and node["Node Type"] != "ModifyTable"
    ]
    assert scans
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    for node in scans:
        # An index scan without a condition is a sequential scan in disguise.
        assert "Index Cond" in node, node


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _literal(argument: list[Any] | int | str | None) -> str:
    if argument is None:
        return "NULL"
    if isinstance(argument, int):
        return str(argument)
    if isinstance(argument, str):
        return f"'{argument}'"
    return "'{" + ",".join("NULL" if item is None else f'"{item}"' for item in argument) + "}'"
