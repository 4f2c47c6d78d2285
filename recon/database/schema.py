"""The schema: whether a database has it, and creating, migrating and repairing it. Knows no contacts."""

import asyncio
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from recon.database.definitions import (
    MIGRATIONS,
    SCHEMA,
    SCHEMA_VERSION,
    TABLES,
    Connection,
    Migration,
    Part,
    missing_parts,
)
from recon.database.grants import require_grants
from recon.errors import NotPrepared, SchemaMismatch

OLDEST_SERVER = 150_000  # PostgreSQL 15, as `server_version_num` says it
SCHEMA_COMMENT = "SELECT obj_description(to_regclass('contact'), 'pg_class')"
# No ids up to the highest that any contact or event has or had are drawn again. Ids drawn meanwhile may be drawn
# twice: the transaction that comes second is retried.
_MOVE_IDS = """
WITH ids AS MATERIALIZED (
    SELECT pg_get_serial_sequence('contact', 'id')::regclass AS sequence,
        greatest((SELECT max(id) FROM contact), (SELECT max(id) FROM event), (SELECT max(contact_id) FROM erased))
            AS highest
)
SELECT setval(sequence, highest) FROM ids WHERE highest > coalesce(pg_sequence_last_value(sequence), 0)
"""
_REGION = "SELECT default_region FROM setting"
_HAS_OTHER_KEY = """
SELECT EXISTS (SELECT FROM blocked WHERE kind = 'digestCheck')
    AND NOT EXISTS (SELECT FROM blocked WHERE kind = 'digestCheck' AND key = $1)
"""
_SET_REGION = "UPDATE setting SET default_region = $1"
_MAY_SET_REGION = "SELECT has_column_privilege('setting', 'default_region', 'UPDATE')"
# Writers wait until the transaction ends; readers do not. It conflicts with itself: one migration or repair at a time.
_LOCK_CONTACTS = "LOCK TABLE contact IN SHARE ROW EXCLUSIVE MODE"
# Whether a constraint of that name is about the ids of contacts or events.
_IS_ABOUT_IDS = """
SELECT EXISTS (
    SELECT FROM pg_constraint JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1]
    WHERE conrelid IN (to_regclass('contact'), to_regclass('event')) AND conname = $1 AND contype IN ('p', 'u')
        AND attname = 'id'
)
"""
_SERVER = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
    to_regclass('contact') IS NOT NULL AS has_contact,
    ARRAY(SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass(name) IS NOT NULL) AS others
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
        raise _missing()
    if comment != _comment(SCHEMA_VERSION):
        raise _mismatch(comment)


async def require_region(connection: Connection, region: str | None) -> None:
    """Raise NotPrepared unless the database has this default region: it decides the match keys that are stored."""
    require_same_region(await fetch_region(connection), region)


def require_same_region(found: str | None, region: str | None) -> None:
    """Raise NotPrepared unless the default region that was found in the database is this one."""
    if found == region:
        return
    advice = f"set --default-region (RECON_DEFAULT_REGION) to {found}" if found else "leave --default-region unset"
    if region:  # otherwise the setting was probably forgotten
        advice += f", or run `recon rekey --default-region {region}`, which computes all match keys anew"
    raise NotPrepared(
        f"recon is configured with the default region {region or 'none'}, but the database has {found or 'none'}: "
        + advice
    )


async def require_suppress_key(connection: Connection, check: str | None) -> None:
    """Raise NotPrepared if the database has suppressed identifiers whose digests another key made than this process's.

    `check` is the process's, as in DatabaseSettings.
    """
    if check != "" and await connection.fetchval(_HAS_OTHER_KEY, check or ""):
        raise NotPrepared(
            "the database has suppressed identifiers: set RECON_SUPPRESS_KEY to the key that made their digests"
        )


async def fetch_region(connection: Connection) -> str | None:
    """The default region of the database, which must have the table setting."""
    region: str | None = await connection.fetchval(_REGION)
    return region


async def set_region(connection: Connection, region: str | None) -> None:
    """Record the default region of the database. The caller has checked the match keys that are there."""
    try:
        await connection.execute(_SET_REGION, region)
    except asyncpg.InsufficientPrivilegeError:
        raise SchemaMismatch("this role may not set the default region: run the command as the tables' owner") from None


async def require_region_right(connection: Connection) -> None:
    """Raise SchemaMismatch unless this role may set the default region."""
    if not await connection.fetchval(_MAY_SET_REGION):
        raise SchemaMismatch("this role may not set the default region: run `recon rekey` as the tables' owner")


async def require_served(connection: Connection, region: str | None) -> None:
    """Raise SchemaMismatch unless the database has schema and default region, and lets this role serve it."""
    await require_schema(connection)
    await require_grants(connection)
    await require_region(connection, region)


async def require_parts(connection: Connection) -> None:
    """Raise SchemaMismatch, which names what is missing, unless the database has every part of the schema."""
    if missing := await missing_parts(connection):
        named = "; ".join(map(str, missing))
        raise SchemaMismatch(f"the database lacks parts of recon's schema ({named}); `recon schema --apply` adds them")


async def skip_taken_ids(connection: Connection, constraint: str | None) -> bool:
    """Whether the violated constraint is about ids; then the sequence is moved past all ids, for the next try.

    Another program may have inserted contacts with explicit ids and left the sequence where it was. Raises
    SchemaMismatch when this role may not move it.
    """
    if not await connection.fetchval(_IS_ABOUT_IDS, constraint):
        return False
    try:
        # Not serializable, as sessions are: it would conflict with every insert.
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(_MOVE_IDS)
    except asyncpg.InsufficientPrivilegeError:
        raise SchemaMismatch(
            "another program has given contacts explicit ids, and this role may not move the sequence of contact.id "
            "past them: run `recon schema --apply --grant ROLE` as the tables' owner"
        ) from None
    return True


async def move_ids(connection: Connection) -> bool:
    """Move the sequence past all ids of contacts and events; return whether it was not."""
    return bool(await connection.fetch(_MOVE_IDS))


def script(region: str | None, granted: str) -> str:
    """The SQL that creates the schema with this default region, and makes the grants, as `grants` gives them."""
    # All or nothing: run on a database that has the schema, it would add the indexes a second time.
    setting = f"UPDATE setting SET default_region = '{region}';\n" if region else ""  # noqa: S608 (two letters)
    return f"BEGIN;\n\n{SCHEMA}{setting}{granted}\nCOMMIT;"


async def apply_schema(connection: Connection, region: str | None = None, *, create: bool = True) -> bool:
    """Create the schema, with this default region, in a database that has none; return whether it had none.

    Safe when several do so at once. Raises SchemaMismatch, with what to do, when the database is too
    old, not in UTF-8, or has another schema than this version's, or none and `create` is false; NotPrepared when
    its schema can be migrated.
    """
    cause = ""
    for _ in range(_CREATION_TRIES):
        if await _has_schema(connection):
            return False
        if not create:
            raise _missing()
        try:
            async with connection.transaction():
                with _creating():
                    await connection.execute(SCHEMA)
                await set_region(connection, region)
        except (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError):
            raise SchemaMismatch(
                "the database has no schema yet, and this role may not create it: "
                "run `recon schema --apply` as its owner"
            ) from None
        except _CREATION_RACES as error:
            cause = str(error)
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311
        else:
            return True
    raise SchemaMismatch(f"the schema could not be created: {cause}")


async def _has_schema(connection: Connection) -> bool:
    """Whether the database has this version's schema; False if none. Raises SchemaMismatch if it cannot have it."""
    server = await connection.fetchrow(_SERVER, TABLES)
    comment = await connection.fetchval(SCHEMA_COMMENT)
    if server is None or server["version"] < OLDEST_SERVER:
        raise SchemaMismatch("recon needs PostgreSQL 15 or newer")
    if server["encoding"] != "UTF8":
        raise SchemaMismatch(f"recon needs a database in UTF8; this one is in {server['encoding']}")
    if comment == _comment(SCHEMA_VERSION):
        return True
    if server["has_contact"]:
        raise _mismatch(comment)
    if server["others"]:
        named = ", ".join(f"`{name}`" for name in server["others"])
        raise SchemaMismatch(
            f"the database has no table `contact`, but {named}, which would tell of other contacts; "
            f"rename or drop {named} too, or restore `contact`"
        )
    return False


async def pending_migrations(connection: Connection) -> list[Migration]:
    """The migrations from the database's schema to this version's, in order."""
    return _from(await connection.fetchval(SCHEMA_COMMENT))


async def lock_contacts(connection: Connection) -> None:
    """Lock out writers and other migrations until the transaction ends. Raises SchemaMismatch if this role may not."""
    try:
        await connection.execute(_LOCK_CONTACTS)
    except asyncpg.InsufficientPrivilegeError:
        raise SchemaMismatch(
            "this role may not change the schema: run `recon schema --apply` as the tables' owner"
        ) from None


async def migrate(connection: Connection) -> list[str]:
    """Apply the migrations that the database needs, in order; what was done.

    In the caller's transaction, after `lock_contacts`: another process may have migrated before that got the lock.
    """
    pending = await pending_migrations(connection)
    for migration in pending:
        try:
            with _creating():
                await connection.execute(migration.statements)
        except asyncpg.DuplicateTableError as error:
            raise SchemaMismatch(f"the migration {migration} meets a table that is not recon's: {error}") from None
        except asyncpg.InsufficientPrivilegeError as error:
            raise SchemaMismatch(
                f"this role may not apply the migration {migration}: {error}; run `recon schema --apply` as the owner"
            ) from None
    return [f"applied the migration {migration}" for migration in pending]


@contextmanager
def _creating() -> Iterator[None]:
    """Raise SchemaMismatch for a table of the name `setting` that is another program's."""
    try:
        yield
    except asyncpg.UndefinedColumnError as error:
        raise SchemaMismatch(f"the database has a table `setting` that is not recon's: {error}") from None


async def repair_schema(connection: Connection) -> list[str]:
    """Add what is missing of the schema, under free names, and move the sequence past all ids; what was done.

    It drops and changes nothing. Raises SchemaMismatch when a part cannot be added.
    """
    async with connection.transaction():
        try:
            await connection.execute(_LOCK_CONTACTS)
        except asyncpg.InsufficientPrivilegeError:
            await require_parts(connection)
            return []
        missing = await missing_parts(connection)
        for part in missing:
            await _add(connection, part)
        done = [f"added: {part}" for part in missing]
        if await move_ids(connection):
            done.append("moved the sequence of contact.id past the highest id")
        return done


async def _add(connection: Connection, part: Part) -> None:
    try:
        await connection.execute(part.statements)
    except asyncpg.IntegrityConstraintViolationError:
        why = "rows of the table contact violate it; `recon check` finds most of them"
    except (asyncpg.DuplicateColumnError, asyncpg.InvalidTableDefinitionError):
        why = "there is one that is defined in another way"
    except asyncpg.PostgresError as error:
        why = f"SQLSTATE {error.sqlstate}, {type(error).__qualname__}"
    else:
        return
    raise SchemaMismatch(f"this part of recon's schema could not be added: {part}: {why}")


def _comment(version: int) -> str:
    return f"recon schema {version}"


def _from(comment: str | None) -> list[Migration]:
    """The migrations that lead on from the schema that a comment names. None lead on from a schema before the first."""
    named = re.fullmatch(r"recon schema (\d+)", comment or "")
    number = int(named[1]) if named else 0
    return [migration for migration in MIGRATIONS if MIGRATIONS[0].number <= number + 1 <= migration.number]


def _missing() -> SchemaMismatch:
    return SchemaMismatch(
        f"the database does not have recon's schema {SCHEMA_VERSION}; `recon schema --apply` creates it"
    )


def _mismatch(comment: str | None) -> SchemaMismatch:
    found = f"schema {comment.rpartition(' ')[2]}" if comment else "a table contact that is not recon's"
    message = f"this recon serves schema {SCHEMA_VERSION}, but the database has {found}"
    if _from(comment):
        return NotPrepared(f"{message}; `recon schema --apply` migrates it")
    return SchemaMismatch(message)
