"""All SQL that restores a full export in an empty database, in one transaction."""

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

from recon.database.connecting import connected
from recon.database.schema import move_ids, require_suppress_key
from recon.database.transactions import Connection
from recon.errors import ReconError, SchemaMismatch
from recon.sql import invariants
from recon.sql.exports import Section

# Writers wait until the transaction ends, with the lane and without; readers do not.
BEGIN = """
BEGIN ISOLATION LEVEL SERIALIZABLE; SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL jit = off;
LOCK TABLE writer_lane IN EXCLUSIVE MODE; LOCK TABLE contact IN SHARE ROW EXCLUSIVE MODE
"""
_ROW = re.compile(r", line (\d+)")  # in the context of an error of COPY


@asynccontextmanager
async def restoring(url: str) -> AsyncIterator[Connection]:
    """Open a session with a transaction, which is committed at the end, and rolled back after an error."""
    async with connected(url) as connection:
        try:
            await connection.execute(BEGIN)
            yield connection
            await connection.execute("COMMIT")
        except asyncpg.InsufficientPrivilegeError as error:
            raise SchemaMismatch(f"this role may not restore an export ({error}): use the tables' owner") from None
        except asyncpg.SerializationError:
            raise ReconError("another program wrote to the database meanwhile; nothing was restored") from None


IS_EMPTY = """
SELECT NOT (
    EXISTS (SELECT FROM contact) OR EXISTS (SELECT FROM event) OR EXISTS (SELECT FROM event_contact)
    OR EXISTS (SELECT FROM blocked) OR EXISTS (SELECT FROM erased)
)
"""
SET_GUARDS = "UPDATE setting SET max_emails = $1::integer, max_phones = $2::integer, block_common = $3::boolean"


async def is_empty(connection: Connection) -> bool:
    """Tell whether the database has no contact, and no trace of one."""
    found: bool = await connection.fetchval(IS_EMPTY)
    return found


async def set_guards(connection: Connection, guards: dict[str, Any]) -> None:
    """Store the guards of the header of a full export. Raises ReconError if they are none."""
    with _refusing("the header"):
        await connection.execute(
            SET_GUARDS, guards.get("maxEmails"), guards.get("maxPhones"), guards.get("blockCommon")
        )


async def copy_rows(connection: Connection, section: Section, rows: AsyncIterator[bytes]) -> None:
    """Fill a table with rows in the text format of COPY. Raises ReconError if they are no rows of it."""
    with _refusing(f"the lines of the type {section.table}"):
        await connection.copy_to_table(section.table, columns=section.columns, source=rows)


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turn errors about the data into ReconError. PostgreSQL's own text is not passed on: it quotes identifiers."""
    try:
        yield
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        row = _ROW.search(getattr(error, "context", None) or "")
        constraint = getattr(error, "constraint_name", None)
        why = f"{type(error).__qualname__}{f', {constraint}' if constraint else ''}{f', row {row[1]}' if row else ''}"
        raise ReconError(f"{what} cannot be restored ({why})") from None


async def finish(connection: Connection, suppress_check: str | None) -> list[str]:
    """Move the sequence behind all ids, and return the violations of invariants.

    Raises NotPrepared if the digests of suppressed identifiers were made with another key.
    """
    await require_suppress_key(connection, suppress_check)
    await move_ids(connection)
    await connection.execute("ANALYZE contact, event, event_contact, blocked")  # for the plans of what follows
    return await invariants.violations(connection)
