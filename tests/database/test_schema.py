"""The schema: applied once, refused if it is another, and what it refuses by itself."""

import asyncio

import asyncpg
import pytest

from recon.database.definitions import SCHEMA, SCHEMA_VERSION
from recon.database.schema import apply_schema
from recon.database.upgrade import apply_schema_to
from recon.errors import SchemaMismatch
from tests.harness.databases import at_database, execute, fetch

INSERT = "INSERT INTO contact (email) VALUES ('a')"


TABLES = ["blocked", "contact", "correction", "erased", "event", "event_contact", "import", "setting", "writer_lane"]


async def test_many_may_apply_the_schema_at_once(bare_database_url: str) -> None:
    """Several processes that start on an empty database all come up, and the schema is there, once."""
    made = await asyncio.gather(*(apply_schema_to(bare_database_url) for _ in range(8)))

    assert sorted(made) == [[]] * 7 + [["the schema was applied"]]
    assert await apply_schema_to(bare_database_url) == []
    tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
    assert [row["relname"] for row in await fetch(bare_database_url, tables)] == TABLES


async def test_the_schema_is_not_run_twice(database_url: str) -> None:
    """Running schema.sql on a database that has it fails and changes nothing."""
    await execute(database_url, INSERT)

    with pytest.raises(asyncpg.DuplicateTableError):
        await execute(database_url, SCHEMA)

    assert len(await fetch(database_url, "SELECT FROM contact")) == 1
    assert len(await fetch(database_url, "SELECT FROM pg_index WHERE indrelid = 'contact'::regclass")) == 6


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("COMMENT ON TABLE contact IS 'recon schema 0'", "schema 0"),
        ("COMMENT ON TABLE contact IS 'recon schema 9'", "schema 9"),
        ("COMMENT ON TABLE contact IS NULL", "a table contact that is not recon's"),
    ],
)
async def test_another_schema_is_refused(database_url: str, statement: str, found: str) -> None:
    """A schema that is older, newer or somebody else's is refused in one line, and left alone."""
    await execute(database_url, statement)

    with pytest.raises(
        SchemaMismatch, match=f"^this recon serves schema {SCHEMA_VERSION}, but the database has {found}$"
    ):
        await apply_schema_to(database_url)


async def test_a_database_in_another_encoding_is_refused(server_url: str) -> None:
    """A database that cannot hold every character would fail on some customers: refused at the start."""
    await execute(
        server_url,
        "DROP DATABASE IF EXISTS recon_latin1",
        "CREATE DATABASE recon_latin1 ENCODING LATIN1 LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    try:
        with pytest.raises(SchemaMismatch, match="^recon needs a database in UTF8; this one is in LATIN1$"):
            await apply_schema_to(at_database(server_url, "recon_latin1"))
    finally:
        await execute(server_url, "DROP DATABASE recon_latin1")


async def test_a_role_that_may_not_make_the_schema_is_told(bare_database_url: str) -> None:
    """A role that owns nothing gets told who has to make the schema."""
    role = "recon_test_nobody"
    await execute(bare_database_url, f"DROP ROLE IF EXISTS {role}", f"CREATE ROLE {role}")
    connection = await asyncpg.connect(bare_database_url)
    try:
        await connection.execute(f"SET ROLE {role}")
        with pytest.raises(SchemaMismatch, match="run `recon schema --apply` as its owner"):
            await apply_schema(connection)
    finally:
        await connection.close()
        await execute(bare_database_url, f"DROP ROLE {role}")


REFUSED = [
    ("a secondary needs a primary", "INSERT INTO contact (email, link_precedence) VALUES ('x', 'secondary')"),
    ("a primary links to nobody", "INSERT INTO contact (email, linked_id) VALUES ('x', 1)"),
    (
        "a secondary points at no secondary",
        "INSERT INTO contact (email, link_precedence, linked_id) VALUES ('x', 'secondary', 2)",
    ),
    ("nor at nothing", "INSERT INTO contact (email, link_precedence, linked_id) VALUES ('x', 'secondary', 99)"),
    (
        "who is pointed at stays primary",
        "UPDATE contact SET link_precedence = 'secondary', linked_id = 3 WHERE id = 1",
    ),
    ("a row says something", "INSERT INTO contact DEFAULT VALUES"),
    ("there are two precedences", "UPDATE contact SET link_precedence = 'tertiary' WHERE id = 2"),
    *(
        (f"marks are rows of three numbers, not {apart}", f"UPDATE contact SET apart = '{apart}' WHERE id = 1")
        for apart in ("{}", "{1,0,0}", "{{1,0}}", "{{1,0,0,0}}", "{{1,0,NULL}}", "{{1,0,-1}}", "{{{1,0,0}}}")
    ),
]


@pytest.mark.parametrize("statement", [pytest.param(statement, id=rule) for rule, statement in REFUSED])
async def test_the_schema_refuses(statement: str, database_url: str) -> None:
    """What the schema can refuse by itself, it does, whoever writes."""
    await execute(
        database_url,
        "INSERT INTO contact (email) VALUES ('a')",
        "INSERT INTO contact (email, link_precedence, linked_id) VALUES ('b', 'secondary', 1)",
        "INSERT INTO contact (email) VALUES ('c')",
    )

    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await execute(database_url, statement)


async def test_the_schema_accepts_marks(database_url: str) -> None:
    """A contact has no marks, or some."""
    await execute(
        database_url,
        "INSERT INTO contact (email) VALUES ('a')",
        "UPDATE contact SET apart = '{{1,0,0},{2,1,0}}'",
        "UPDATE contact SET apart = NULL",
    )
