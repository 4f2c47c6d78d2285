"""The schema: whether a database has it, and giving it to one that does not. Knows no contacts."""

import asyncio
import random
from importlib.resources import files
from typing import TypeAlias

import asyncpg

from recon.errors import SchemaMismatch

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OLDEST_SERVER = 150_000  # PostgreSQL 15, as `server_version_num` says it
SCHEMA = files("recon").joinpath("schema.sql").read_text()
SCHEMA_VERSION = 1  # what the last line of schema.sql says
SCHEMA_COMMENT = "SELECT obj_description(to_regclass('contact'), 'pg_class')"
# All that a role needs that serves, and nothing more.
GRANTS = """
-- UPDATE is what a merge changes; SELECT ... FOR UPDATE asks for it too.
GRANT SELECT,
    INSERT (id, email, phone_number, phone_key, linked_id, link_precedence, created_at, updated_at),
    UPDATE (linked_id, link_precedence, updated_at)
    ON contact TO {role};
GRANT USAGE ON SEQUENCE contact_id_seq TO {role};
-- The least that LOCK TABLE is content with; the table has nothing to update.
GRANT UPDATE ON writer_lane TO {role};
"""
_GRANTED = """
SELECT has_table_privilege('contact', 'SELECT')
    AND has_column_privilege('contact', 'phone_key', 'INSERT')
    AND has_column_privilege('contact', 'linked_id', 'UPDATE')
    AND has_sequence_privilege('contact_id_seq', 'USAGE, UPDATE')
    AND has_table_privilege('writer_lane', 'UPDATE, DELETE, TRUNCATE')
"""
_SERVER = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
    to_regclass('contact') IS NOT NULL AS has_contact
"""
# What two processes that create the same things at once may get; the second finds them made.
_CREATION_RACES = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateFunctionError,
    asyncpg.InternalServerError,  # "tuple concurrently updated"
    asyncpg.DeadlockDetectedError,
)
_CREATION_TRIES = 20
_LONGEST_PAUSE = 0.1  # seconds before the next try


async def require_schema(connection: Connection) -> None:
    """Raise SchemaMismatch unless the database has this version's schema."""
    comment = await connection.fetchval(SCHEMA_COMMENT)
    if comment is None:
        raise SchemaMismatch(
            f"the database does not have recon's schema {SCHEMA_VERSION}; `recon schema --apply` makes it"
        )
    if comment != _comment(SCHEMA_VERSION):
        raise _mismatch(comment)


async def require_grants(connection: Connection) -> None:
    """Raise SchemaMismatch unless the database has the schema, and this role what it takes to serve it."""
    await require_schema(connection)
    try:
        granted = await connection.fetchval(_GRANTED)
    except asyncpg.UndefinedTableError as error:
        raise SchemaMismatch(f"the database has only a part of recon's schema: {error}") from None
    if not granted:
        raise SchemaMismatch(
            "this role may not do all that serving takes: run `recon schema --apply --grant ROLE` as the tables' owner"
        )


def grants(role: str) -> str:
    """The statements that let `role` serve."""
    quoted = role.replace('"', '""')
    return GRANTS.format(role=f'"{quoted}"')


async def apply_grants(connection: Connection, role: str) -> None:
    """Let `role` serve. Raises SchemaMismatch when this role may not say so, or there is no such role."""
    try:
        await connection.execute(grants(role))
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError) as error:
        raise SchemaMismatch(f"the grants were not made: {error}") from None


async def apply_schema(connection: Connection) -> bool:
    """Give the database the schema unless it has it; True when it was missing at first look.

    Safe when several do so at once. Raises SchemaMismatch, with what to do, when the database is too
    old, not in UTF-8, or has another schema than this version's.
    """
    for _ in range(_CREATION_TRIES):
        server = await connection.fetchrow(_SERVER)
        comment = await connection.fetchval(SCHEMA_COMMENT)
        if server is None or server["version"] < OLDEST_SERVER:
            raise SchemaMismatch("recon needs PostgreSQL 15 or newer")
        if server["encoding"] != "UTF8":
            raise SchemaMismatch(f"recon needs a database in UTF8; this one is in {server['encoding']}")
        if comment == _comment(SCHEMA_VERSION):
            return False
        if server["has_contact"]:
            raise _mismatch(comment)
        try:
            async with connection.transaction():
                await connection.execute(SCHEMA)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError):
            raise SchemaMismatch(
                "the database has no schema yet, and this role may not make it: run `recon schema --apply` as its owner"
            ) from None
        except _CREATION_RACES:
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311
        else:
            return True
    raise SchemaMismatch("the schema could not be created: others keep changing it")


def _comment(version: int) -> str:
    return f"recon schema {version}"


def _mismatch(comment: str | None) -> SchemaMismatch:
    found = f"schema {comment.rpartition(' ')[2]}" if comment else "a table contact that is not recon's"
    return SchemaMismatch(f"this recon serves schema {SCHEMA_VERSION}, but the database has {found}")
