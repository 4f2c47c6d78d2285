"""All SQL of the change feed. Each statement is a named constant above its function."""

from collections.abc import Iterable

from recon.database.transactions import Connection
from recon.rules.journal import Event, Record
from recon.sql.journal import EVENT_COLUMNS, RECORD_COLUMNS, event_of

# The transactions that hold the lock of a writer on `contact`, or a stronger one: those of sessions, and those that are
# prepared for a commit in two phases, which get another name when they are. To look at the locks takes none.
FETCH_WRITERS = """
SELECT DISTINCT virtualtransaction FROM pg_locks
WHERE locktype = 'relation' AND granted AND relation = 'contact'::regclass
    AND mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_PREPARED = "-1/"  # how the names of prepared transactions begin


async def fetch_writers(connection: Connection) -> set[str]:
    """The transactions that may have drawn an id of a contact or event, by the names of PostgreSQL."""
    return {row[0] for row in await connection.fetch(FETCH_WRITERS)}


def still_open(before: set[str], now: set[str]) -> set[str]:
    """Those of the writers that have not ended since; a prepared one can be any of them."""
    return {each for each in now if each in before or each.startswith(_PREPARED)}


# The contacts and events after one position, up to another one.
FETCH_CONTACTS = f"""
SELECT {RECORD_COLUMNS} FROM contact WHERE id > $1::bigint AND id <= $2::bigint ORDER BY id LIMIT $3::bigint
"""
FETCH_EVENTS = f"""
SELECT {EVENT_COLUMNS} FROM event WHERE id > $1::bigint AND id <= $2::bigint ORDER BY id LIMIT $3::bigint
"""


async def fetch_entries(connection: Connection, after: int, last: int, limit: int) -> list[Record | Event]:
    """The first `limit` contacts and events after a position, up to the position `last`, in order."""
    entries: list[Record | Event] = [Record(*row) for row in await connection.fetch(FETCH_CONTACTS, after, last, limit)]
    entries += [event_of(row) for row in await connection.fetch(FETCH_EVENTS, after, last, limit)]
    entries.sort(key=lambda entry: entry.id)
    return entries[:limit]


# The contacts that these events erased. There is no index by event: erased contacts are few, and erasures rare.
FETCH_ERASED = "SELECT contact_id FROM erased WHERE event_id = ANY ($1::bigint[])"


async def fetch_erased(connection: Connection, events: Iterable[int]) -> list[int]:
    """The ids of the contacts that these events erased."""
    return [row[0] for row in await connection.fetch(FETCH_ERASED, list(events))]
