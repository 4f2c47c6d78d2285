"""All SQL of exports: every identity as a line of text that PostgreSQL makes, and every row for a full export.

PostgreSQL streams the lines by COPY, so that this process only passes bytes on.
"""

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg

from recon.database.connecting import connected
from recon.database.schema import require_schema
from recon.database.transactions import Connection
from recon.errors import SchemaMismatch

# Gets the next bytes of an export.
Sink = Callable[[bytes], Coroutine[Any, Any, None]]

# Of the transaction of an export. It may take hours, and its reader may stop for a while. Compiling a statement (jit)
# takes longer than it saves. Dates are the same text in every session.
_LOCAL = """;
SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = 0;
SET LOCAL jit = off; SET LOCAL work_mem = '32MB'; SET LOCAL TimeZone = 'UTC'
"""
# With the lane, the order of the commits is a serial order, and every snapshot is a state of it. Without it, a
# deferrable transaction waits for a snapshot of which this is so; then it is part of no serialization conflict.
WITH_LANE = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" + _LOCAL
WITHOUT_LANE = "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY DEFERRABLE" + _LOCAL


@asynccontextmanager
async def session(url: str) -> AsyncIterator[Connection]:
    """Open a session of a database that has the schema. Raises SchemaMismatch also if the role may not read it."""
    async with connected(url) as connection:
        try:
            await require_schema(connection)
            yield connection
        except asyncpg.InsufficientPrivilegeError:
            raise SchemaMismatch(
                "this role may not read all that an export has: "
                "run `recon schema --apply --grant-reader ROLE` as the tables' owner"
            ) from None


@asynccontextmanager
async def snapshot(connection: Connection, *, has_lane: bool) -> AsyncIterator[None]:
    """Have all statements meanwhile see one snapshot, with which no writer ever conflicts."""
    await connection.execute(WITH_LANE if has_lane else WITHOUT_LANE)
    try:
        yield
    except BaseException:
        connection.terminate()  # it may be amid a COPY
        raise
    await connection.execute("ROLLBACK")  # nothing was changed


# The highest position up to another one that a contact or an event has. It is committed, so no crash lets PostgreSQL
# draw it again.
LAST_POSITION = """
SELECT greatest(
    (SELECT max(id) FROM contact WHERE id <= $1::bigint), (SELECT max(id) FROM event WHERE id <= $1::bigint), 0
)
"""


async def last_position(connection: Connection, settled: int) -> int:
    """The highest position up to `settled` that the snapshot shows; 0 if there is none."""
    found: int = await connection.fetchval(LAST_POSITION, settled)
    return found


# The live contacts of each identity besides the one that the others link to, oldest first. `keys` and `phones` go
# together.
_OTHERS = """
SELECT linked_id, array_agg(id ORDER BY created_at, id) AS ids,
    array_agg(email ORDER BY created_at, id) FILTER (WHERE email IS NOT NULL) AS emails,
    array_agg(phone_key ORDER BY created_at, id) FILTER (WHERE phone_key IS NOT NULL) AS keys,
    array_agg(phone_number ORDER BY created_at, id) FILTER (WHERE phone_key IS NOT NULL) AS phones
FROM contact WHERE linked_id IS NOT NULL AND deleted_at IS NULL GROUP BY linked_id
"""
# Every identity that has a live contact: what its primary has, and what the others add to that. While the primary is
# soft-deleted, the oldest of the others stands in for it, so that it adds nothing. A primary is found by walking along
# the ids, and the others are sorted by it, so PostgreSQL holds no more of them than `work_mem`.
_IDENTITIES = f"""
SELECT own.*, others.*, array_remove(others.emails, email) AS more_emails, array_remove(others.keys, key) AS more_keys
FROM (
    SELECT id, deleted_at IS NULL AS is_live, CASE WHEN deleted_at IS NULL THEN email END AS email,
        CASE WHEN deleted_at IS NULL THEN phone_key END AS key,
        CASE WHEN deleted_at IS NULL THEN phone_number END AS phone
    FROM contact WHERE linked_id IS NULL
) AS own LEFT JOIN ({_OTHERS}) AS others ON others.linked_id = own.id
WHERE is_live OR others.linked_id IS NOT NULL
ORDER BY own.id
"""
# Up to so many values, it is quicker to look through all that came before each of them than to sort them.
_FEW = 64
# Each email once, in the order in which they came; nearly always there is at most one.
_EMAILS = f"""array_remove(email || CASE
    WHEN cardinality(more_emails) < 2 THEN more_emails
    WHEN cardinality(more_emails) < {_FEW} THEN ARRAY(
        SELECT value FROM unnest(more_emails) WITH ORDINALITY AS each (value, place)
        WHERE place = array_position(more_emails, value)
    )
    ELSE (
        SELECT array_agg(value ORDER BY place) FROM (
            SELECT value, min(place) AS place FROM unnest(more_emails) WITH ORDINALITY AS each (value, place)
            GROUP BY value
        ) AS first
    )
END, NULL)"""
# Each phone number once by its match key, in the form that came first.
_PHONES = f"""array_remove(phone || CASE
    WHEN cardinality(more_keys) = 0 THEN '{{}}'
    WHEN cardinality(more_keys) = 1 THEN ARRAY[phones[array_position(keys, more_keys[1])]]
    WHEN cardinality(keys) < {_FEW} THEN ARRAY(
        SELECT value FROM unnest(keys, phones) WITH ORDINALITY AS each (key, value, place)
        WHERE place = array_position(keys, each.key) AND each.key IS DISTINCT FROM identity.key
    )
    ELSE (
        SELECT array_agg(value ORDER BY place) FROM (
            SELECT DISTINCT ON (each.key) value, place
            FROM unnest(keys, phones) WITH ORDINALITY AS each (key, value, place)
            WHERE each.key IS DISTINCT FROM identity.key ORDER BY each.key, place
        ) AS first
    )
END, NULL)"""
_SHAPE = '{{"primaryContactId":%1$s,"primaryContatctId":%1$s,"emails":{},"phoneNumbers":{},"secondaryContactIds":{}}}'
# Each identity as `contact` of an answer. Most have one contact, and are made in a quicker way.
IDENTITIES_AS_JSON = f"""
SELECT CASE
    WHEN linked_id IS NULL
    THEN format('{_SHAPE.format("[%2$s]", "[%3$s]", "[]")}', id, to_json(email), to_json(phone))
    ELSE format(
        '{_SHAPE.format("%2$s", "%3$s", "%4$s")}', CASE WHEN is_live THEN id ELSE ids[1] END,
        array_to_json({_EMAILS}), array_to_json({_PHONES}), array_to_json(CASE WHEN is_live THEN ids ELSE ids[2:] END)
    )
END
FROM ({_IDENTITIES}) AS identity
"""
# Each identity as the records of which an import makes it again: the first email with each phone number, and each
# further email with the first phone number.
IDENTITIES_AS_RECORDS = f"""
SELECT id AS primary_contact_id,
    unnest(array_fill(emails[1], ARRAY[greatest(1, cardinality(phones))]) || emails[2:]) AS email,
    unnest(phones || array_fill(phones[1], ARRAY[greatest(0, cardinality(emails) - 1)])) AS phone_number
FROM (
    SELECT CASE WHEN is_live THEN id ELSE ids[1] END AS id,
        CASE WHEN linked_id IS NULL THEN array_remove(ARRAY[email], NULL) ELSE {_EMAILS} END AS emails,
        CASE WHEN linked_id IS NULL THEN array_remove(ARRAY[phone], NULL) ELSE {_PHONES} END AS phones
    FROM ({_IDENTITIES}) AS identity
) AS identity
"""


async def copy_identities(connection: Connection, sink: Sink) -> None:
    """Give the sink every identity, each as a line of JSON."""
    await _copy_lines(connection, IDENTITIES_AS_JSON, sink)


async def copy_records(connection: Connection, sink: Sink) -> None:
    """Give the sink every identity as CSV."""
    await connection.copy_from_query(IDENTITIES_AS_RECORDS, output=sink, format="csv", header=True)


class Section(NamedTuple):
    """The rows of a table in a full export, a line each.

    Attributes
    ----------
    table : its name, and the type of the lines.
    columns : those that are exported.
    order : the columns that order the lines.
    """

    table: str
    columns: tuple[str, ...]
    order: str

    @property
    def statement(self) -> str:
        """What gives the lines."""
        return (
            f"SELECT row_to_json(line) FROM ("
            f"SELECT '{self.table}' AS type, {', '.join(self.columns)} FROM {self.table} ORDER BY {self.order}) AS line"
        )


# All that tells what identities are and were, in the order in which it is restored.
SECTIONS = (
    Section(
        "contact",
        (
            *("id", "email", "phone_number", "phone_key", "linked_id", "link_precedence"),
            *("created_at", "updated_at", "deleted_at", "source", "apart"),
        ),
        "id",
    ),
    Section(
        "event",
        (
            *("id", "at", "kind", "primary_id", "other_id", "email", "phone_number", "phone_key", "source", "note"),
            *("detail", "undone_by"),
        ),
        "id",
    ),
    Section("event_contact", ("contact_id", "event_id"), "contact_id, event_id"),
    Section("blocked", ("kind", "key", "phone_number", "event_id"), 'kind COLLATE "C", key COLLATE "C"'),
    Section("erased", ("contact_id", "event_id"), "contact_id"),
)

# The settings of the database, as the header of a full export has them.
SETTING = """
SELECT json_build_object(
    'defaultRegion', default_region,
    'guards', json_build_object('maxEmails', max_emails, 'maxPhones', max_phones, 'blockCommon', block_common)
) FROM setting
"""


async def fetch_setting(connection: Connection) -> dict[str, Any]:
    """The settings of the database, as the header of a full export has them."""
    found: dict[str, Any] = json.loads(await connection.fetchval(SETTING))
    return found


async def copy_rows(connection: Connection, section: Section, sink: Sink) -> None:
    """Give the sink all rows of a table, each as a line of JSON."""
    await _copy_lines(connection, section.statement, sink)


async def _copy_lines(connection: Connection, statement: str, sink: Sink) -> None:
    """Give the sink the lines that a statement makes, as they are.

    COPY doubles backslashes, and escapes nothing else of JSON, which has no control characters. The driver gives whole
    rows, so no pair is divided.
    """

    async def unescaped(data: bytes) -> None:
        await sink(data.replace(b"\\\\", b"\\"))

    await connection.copy_from_query(statement, output=unescaped)
