"""Migrations: from every earlier schema, with data of every shape, to the schema of a new database."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from recon.database.definitions import MIGRATIONS, SCHEMA, SCHEMA_VERSION, missing_parts
from recon.database.grants import grants
from recon.database.schema import SCHEMA_COMMENT
from recon.database.upgrade import apply_schema_to
from recon.errors import SchemaMismatch
from tests.database.test_roles import blocks, serving_role
from tests.harness.catalog import catalog
from tests.harness.databases import execute, fetch
from tests.harness.old_schemas import (
    MIGRATED,
    OFF,
    OLD,
    OLD_GRANTS,
    ON,
    ROWS,
    contacts,
    guards_of,
    has_journal,
    migrated_from,
    prepare,
    rows_of,
)
from tests.harness.processes import RECON, StartRecon, recon


def test_the_migrations_are_numbered() -> None:
    """There is one migration from each schema number to the next, and each one stores its number."""
    assert [migration.number for migration in MIGRATIONS] == list(range(2, SCHEMA_VERSION + 1))
    for statements, number in [(SCHEMA, SCHEMA_VERSION), *((each.statements, each.number) for each in MIGRATIONS)]:
        assert statements.rstrip().endswith(f"COMMENT ON TABLE contact IS 'recon schema {number}';")


@pytest.mark.parametrize("schema", OLD)
async def test_a_migrated_schema_equals_a_new_one(
    schema: str, bare_database_url: str, database_url: str, server_url: str
) -> None:
    """All catalogs are equal, including the privileges of a role that the old version granted."""
    role = f"recon_test_grantee_{urlsplit(database_url).path[1:]}"
    old_grants = "".join(each for number, each in OLD_GRANTS.items() if number <= schema).format(role=role)
    await execute(server_url, f"CREATE ROLE {role}")
    try:
        await prepare(bare_database_url, schema, *rows_of(schema, explicit_ids=True), old_grants)

        migrated = await apply_schema_to(bare_database_url, grants(role))
        assert await apply_schema_to(database_url, grants(role)) == []

        assert migrated == [*migrated_from(schema), "moved the sequence of contact.id past the highest id"]
        assert await catalog(bare_database_url) == await catalog(database_url)
        assert [tuple(row) for row in await fetch(bare_database_url, "TABLE setting")] == [(True, None, *OFF)]
        assert [row[0] for row in await fetch(bare_database_url, SCHEMA_COMMENT)] == ["recon schema 4"]
        assert await apply_schema_to(bare_database_url, grants(role)) == []
    finally:
        for url in (bare_database_url, database_url):
            await execute(url, f"DROP OWNED BY {role}")
        await execute(server_url, f"DROP ROLE {role}")


@pytest.mark.parametrize("schema", ["2_last", "3_last"])
async def test_a_region_is_kept(schema: str, bare_database_url: str, database_url: str) -> None:
    """A database with a region keeps that region, and equals a new one."""
    await prepare(bare_database_url, schema, *ROWS[:-1], "UPDATE setting SET default_region = 'US'")

    assert await apply_schema_to(bare_database_url) == migrated_from(schema)

    assert await catalog(bare_database_url) == await catalog(database_url)
    assert [tuple(row) for row in await fetch(bare_database_url, "TABLE setting")] == [(True, "US", *OFF)]


@pytest.mark.parametrize("how", ["command", "process", "printed"])
async def test_the_guards_of_a_new_database_are_on(how: str, bare_database_url: str, start_recon: StartRecon) -> None:
    """A new database has no values that the guards would have withheld, so they are on, whatever created it."""
    if how == "command":
        await apply_schema_to(bare_database_url)
    elif how == "process":
        start_recon("--database-url", bare_database_url)
    else:
        await execute(bare_database_url, recon("schema").stdout)

    assert await guards_of(bare_database_url) == ON


@pytest.mark.parametrize("schema", OLD)
async def test_applying_the_schema_again_changes_no_guards(schema: str, bare_database_url: str) -> None:
    """The guards of a migrated database stay off until an operator turns them on, and then stay on."""
    await prepare(bare_database_url, schema, *rows_of(schema))
    for _ in range(2):
        await apply_schema_to(bare_database_url)
    assert await guards_of(bare_database_url) == OFF
    await execute(bare_database_url, "UPDATE setting SET max_emails = 7, block_common = true")

    await apply_schema_to(bare_database_url, region="US")

    assert await guards_of(bare_database_url) == (7, 0, True)


FOREIGN_TABLES = {
    "event": ("2_last", "3 (journal)"),
    "event_contact": ("3_last", "4 (guards)"),
    "blocked": ("3_last", "4 (guards)"),
    "erased": ("3_last", "4 (guards)"),
    "correction": ("3_last", "4 (guards)"),
    "import": ("3_last", "4 (guards)"),
}


@pytest.mark.parametrize("table", FOREIGN_TABLES)
async def test_a_table_of_another_program(table: str, bare_database_url: str) -> None:
    """A table with the name of a new one is left alone: the line says so, and the database keeps its schema."""
    schema, migration = FOREIGN_TABLES[table]
    await prepare(bare_database_url, schema, f"CREATE TABLE {table} (name text)")
    before = await catalog(bare_database_url)

    message = re.escape(f"the migration {migration} meets a table that is not recon's: ")
    with pytest.raises(SchemaMismatch, match=f'{message}.*"{table}"'):
        await apply_schema_to(bare_database_url)

    assert await catalog(bare_database_url) == before


@pytest.mark.parametrize("schema", OLD)
async def test_rows_of_every_shape_stay_as_they_are(schema: str, bare_database_url: str) -> None:
    """The migration changes no row; later, rows of other programs get this version's match keys."""
    await prepare(bare_database_url, schema, *rows_of(schema, explicit_ids=True))
    before = [dict(row) for row in await contacts(bare_database_url)]
    journal = await fetch(bare_database_url, "TABLE event") if has_journal(schema) else []
    pending = migrated_from(schema)

    done = recon("schema", "--apply", "--database-url", bare_database_url)

    assert (done.returncode, done.stdout.splitlines()[: len(pending)]) == (0, pending), done.stderr
    added = {"source": None, "apart": None}
    assert [dict(row) for row in await contacts(bare_database_url)] == [added | row for row in before]
    assert await fetch(bare_database_url, "TABLE event") == journal
    assert len(journal) == (4 if has_journal(schema) else 0)
    await execute(bare_database_url, "INSERT INTO contact (phone_number) VALUES ('\uff17\uff17')")
    assert (await contacts(bare_database_url))[-1]["phone_key"] == "77"


async def test_a_part_that_is_missing_is_added_in_the_same_run(bare_database_url: str) -> None:
    """A schema that has lost a part is migrated and repaired in one run."""
    await prepare(bare_database_url, "1_last", *ROWS, "DROP INDEX contact_email_idx")

    done = await apply_schema_to(bare_database_url)

    assert done[: len(MIGRATED)] == MIGRATED
    assert any(line.startswith("added: index USING btree (email)") for line in done)
    connection = await asyncpg.connect(bare_database_url)
    try:
        assert await missing_parts(connection) == []
    finally:
        await connection.close()


async def test_a_part_that_cannot_be_added_leaves_the_old_schema(bare_database_url: str) -> None:
    """Migration and repair are one transaction: if the repair fails, the database keeps its schema 1."""
    rows = ["ALTER TABLE contact DROP CONSTRAINT contact_says_something", "INSERT INTO contact DEFAULT VALUES"]
    await prepare(bare_database_url, "1_last", *rows)
    before = await catalog(bare_database_url)

    with pytest.raises(SchemaMismatch, match="constraint CHECK .*: rows of the table contact violate it"):
        await apply_schema_to(bare_database_url)

    assert await catalog(bare_database_url) == before


@pytest.mark.parametrize("schema", OLD)
async def test_several_migrate_at_once(schema: str, bare_database_url: str, database_url: str) -> None:
    """Of four concurrent processes, one migrates, and the others find the new schema."""
    await prepare(bare_database_url, schema, *rows_of(schema))
    applied = "\n".join([*migrated_from(schema), ""])

    done = await asyncio.gather(
        *(asyncio.to_thread(recon, "schema", "--apply", "--database-url", bare_database_url) for _ in range(4))
    )

    assert [each.returncode for each in done] == [0] * 4
    assert sorted(each.stdout for each in done) == [applied] + ["the schema is there already\n"] * 3
    assert await catalog(bare_database_url) == await catalog(database_url)


# Statements that make a migration wait before its first statement, between two of them, and before its last.
OBSTACLES = {
    "the lock": "LOCK TABLE contact IN ROW EXCLUSIVE MODE",
    "the table": "CREATE TABLE setting ()",
    "the journal": "CREATE TABLE event ()",
    "the guards": "CREATE TABLE blocked ()",
    "the function": "CREATE FUNCTION setting_keep_row() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
    "the number": "UPDATE pg_description SET description = description WHERE objoid = 'contact'::regclass",
}
_WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
_OTHERS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@asynccontextmanager
async def transaction_of_another_program(url: str, statement: str) -> AsyncIterator[asyncpg.Connection]:
    """A transaction that has run the statement and is rolled back at the end."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
        yield connection
        await transaction.rollback()
    finally:
        await connection.close()


async def until(url: str, statement: str, count: int) -> None:
    """Return once the statement counts this many."""
    async with asyncio.timeout(30):
        while (await fetch(url, statement))[0][0] != count:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES)
async def test_killed_in_the_middle(obstacle: str, bare_database_url: str, database_url: str) -> None:
    """A migration that is killed between two statements changes nothing, and the next one succeeds."""
    await prepare(bare_database_url, "1_first", *ROWS[:-1])
    before = await catalog(bare_database_url), await contacts(bare_database_url)
    async with transaction_of_another_program(bare_database_url, obstacle):
        process = subprocess.Popen([RECON, "schema", "--apply", "--database-url", bare_database_url])
        await until(bare_database_url, _WAITING, 1)

        process.kill()
        process.wait(10)

    await until(bare_database_url, _OTHERS, 0)  # the server ends the killed process's session when it notices
    assert (await catalog(bare_database_url), await contacts(bare_database_url)) == before
    assert await apply_schema_to(bare_database_url) == MIGRATED
    assert await catalog(bare_database_url) == await catalog(database_url)


async def test_a_session_that_ends_in_the_middle(bare_database_url: str) -> None:
    """If the server ends the session, the command fails with one line, and nothing is changed."""
    await prepare(bare_database_url, "1_last", *ROWS)
    before = await catalog(bare_database_url)
    async with transaction_of_another_program(bare_database_url, OBSTACLES["the number"]) as other:
        migrating = asyncio.create_task(
            asyncio.to_thread(recon, "schema", "--apply", "--database-url", bare_database_url)
        )
        await until(bare_database_url, _WAITING, 1)

        await other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        done = await migrating

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert await catalog(bare_database_url) == before


async def test_a_table_setting_of_another_program(bare_database_url: str) -> None:
    """A foreign table `setting` is left alone: the line says so, and the database keeps schema 1."""
    await prepare(bare_database_url, "1_last", "CREATE TABLE setting (name text, value text)")
    before = await catalog(bare_database_url)

    done = recon("schema", "--apply", "--database-url", bare_database_url)

    assert done.returncode == 1
    assert "recon: the database has a table `setting` that is not recon's" in done.stderr
    assert await catalog(bare_database_url) == before


def test_a_role_that_owns_nothing_cannot_migrate(bare_database_url: str) -> None:
    """The error says which role can migrate, and nothing is changed."""
    asyncio.run(execute(bare_database_url, SCHEMA))
    with serving_role(bare_database_url) as url:
        asyncio.run(execute(bare_database_url, "DROP TABLE setting", "COMMENT ON TABLE contact IS 'recon schema 1'"))

        done = recon("schema", "--apply", "--database-url", url)

        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last == "recon: this role may not change the schema: run `recon schema --apply` as the tables' owner"


@pytest.mark.parametrize("schema", ["1_last", "2_last", "3_last"])
async def test_the_way_back(schema: str, bare_database_url: str) -> None:
    """The statements of docs/operations.md restore the earlier schema with all rows, and it can be migrated again."""
    beginning = f"-- From schema {SCHEMA_VERSION} back to schema {schema[0]}"
    [way_back] = [block for block in blocks("sql") if block.startswith(beginning)]
    await prepare(bare_database_url, schema, *rows_of(schema))
    before = await catalog(bare_database_url), await contacts(bare_database_url)
    journal = await fetch(bare_database_url, "TABLE event") if has_journal(schema) else []
    await apply_schema_to(bare_database_url)

    await execute(bare_database_url, way_back)

    assert (await catalog(bare_database_url), await contacts(bare_database_url)) == before
    if has_journal(schema):
        assert await fetch(bare_database_url, "TABLE event") == journal
    assert await apply_schema_to(bare_database_url) == migrated_from(schema)


STATEMENTS = [
    "DELETE FROM setting",
    "TRUNCATE setting",
    "INSERT INTO setting DEFAULT VALUES",
    "INSERT INTO setting (only_row) VALUES (false)",
    "UPDATE setting SET only_row = false",
    "UPDATE setting SET default_region = 'us'",
    "UPDATE setting SET default_region = 'USA'",
    "UPDATE setting SET max_emails = -1",
    "UPDATE setting SET max_phones = NULL",
    "UPDATE setting SET block_common = NULL",
]


@pytest.mark.parametrize("statement", STATEMENTS)
async def test_the_table_setting_has_exactly_one_row(statement: str, database_url: str) -> None:
    """No statement can add or delete a row of `setting`, a region has two letters, and each guard has a value."""
    with pytest.raises(asyncpg.IntegrityConstraintViolationError):
        await execute(database_url, statement)

    assert [tuple(row) for row in await fetch(database_url, "TABLE setting")] == [(True, None, *ON)]


OTHERS = ["recon", "recon schema 1", f"recon schema {SCHEMA_VERSION + 1}"]


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "statement", ["INSERT INTO contact (email) VALUES ('b')", "UPDATE contact SET linked_id = NULL"]
)
async def test_a_process_of_another_version_cannot_write(name: str, statement: str, database_url: str) -> None:
    """The database refuses it from the migration on, with an error that version 0.1.0 answers with 503."""
    await execute(database_url, "INSERT INTO contact (email) VALUES ('a')")
    connection = await asyncpg.connect(database_url, server_settings={"application_name": name})
    try:
        with pytest.raises(asyncpg.ObjectNotInPrerequisiteStateError, match="the database has another schema"):
            await connection.execute(statement)
    finally:
        await connection.close()


@pytest.mark.parametrize("name", ["", "reconciler", "schema 1"])
async def test_other_programs_can_write(name: str, database_url: str) -> None:
    """Only sessions that are named as those of recon are refused."""
    connection = await asyncpg.connect(database_url, server_settings={"application_name": name})
    try:
        assert await connection.execute("INSERT INTO contact (email) VALUES ('a')") == "INSERT 0 1"
    finally:
        await connection.close()
