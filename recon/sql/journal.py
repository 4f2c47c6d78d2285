"""All SQL that reads contacts together with their journal. Each statement is a named constant above its function."""

import json
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NamedTuple

from recon.database.transactions import Connection
from recon.rules.journal import Event, Kind, Record
from recon.sql.contacts import LARGE


def date_of(column: str) -> str:
    """The expression that selects a date. PostgreSQL has dates that Python has not, such as infinity: the nearest."""
    return (
        f"CASE WHEN {column} > timestamptz '9999-12-31Z' THEN '9999-12-31Z' "
        f"WHEN {column} < timestamptz '0001-01-01Z' THEN '0001-01-01Z' ELSE {column} END AS {column}"
    )


def _columns_of(value: type[Record | Event]) -> str:
    """The columns of contacts or events. They have the names of the fields, in their order: a row is its arguments."""
    names = [field.name for field in fields(value)]
    return ", ".join(date_of(name) if name in {"created_at", "deleted_at", "at"} else name for name in names)


RECORD_COLUMNS = _columns_of(Record)
EVENT_COLUMNS = _columns_of(Event)
_KIND, _DETAIL = (EVENT_COLUMNS.split(", ").index(name) for name in ("kind", "detail"))
_KINDS = {str(kind): kind for kind in Kind}

# The contact that leads to an identity: one of this id, or else a live one with this email or match key. Where rows of
# other programs share an identifier across identities, any of these is found: the next request that has it merges them.
# The walk along the index for the size ends after LARGE rows. No EXISTS: its plan may be to read the whole table once.
FIND_ROOT = f"""
SELECT id, (SELECT count(*) FROM (SELECT FROM contact WHERE linked_id = root.id LIMIT {LARGE}) AS other) = {LARGE},
    coalesce(
        (SELECT true FROM contact WHERE contact.id = root.id AND deleted_at IS NULL),
        (SELECT true FROM contact WHERE linked_id = root.id AND deleted_at IS NULL LIMIT 1),
        false
    )
FROM (
    SELECT coalesce(linked_id, id) AS id FROM contact WHERE id = $1::bigint
    UNION ALL
    SELECT coalesce(linked_id, id) FROM contact WHERE email = $2::text AND deleted_at IS NULL
    UNION ALL
    SELECT coalesce(linked_id, id) FROM contact WHERE phone_key = $3::text AND deleted_at IS NULL
    LIMIT 1
) AS root
"""


class Root(NamedTuple):
    """The id that the contacts of an identity are linked to.

    Attributes
    ----------
    is_large : whether the identity has more than LARGE contacts, soft-deleted ones included.
    is_live : whether any of them is live.
    """

    id: int
    is_large: bool
    is_live: bool


async def find_root(
    connection: Connection, *, contact_id: int | None = None, email: str | None = None, phone_key: str | None = None
) -> Root | None:
    """The root of the identity of a contact, live or soft-deleted, or of an identifier. None if there is no such."""
    row = await connection.fetchrow(FIND_ROOT, contact_id, email, phone_key)
    return None if row is None else Root(*row)


# Whether the identity of a contact was erased.
IS_ERASED = "SELECT EXISTS (SELECT FROM erased WHERE contact_id = $1::bigint)"


async def is_erased(connection: Connection, contact_id: int) -> bool:
    """Tell whether the identity of this contact was erased."""
    erased: bool = await connection.fetchval(IS_ERASED, contact_id)
    return erased


# Whether a correction divided an identity, ever.
IS_DIVIDED = """
SELECT EXISTS (
    SELECT FROM event_contact WHERE contact_id = ANY (ARRAY(
        SELECT $1::bigint UNION ALL SELECT id FROM contact WHERE linked_id = $1::bigint
    ))
)
"""


async def is_divided(connection: Connection, root: int) -> bool:
    """Tell whether the identity with this root was divided, so that its past may take more than its own contacts."""
    divided: bool = await connection.fetchval(IS_DIVIDED, root)
    return divided


# The roots of contacts, wherever they are now.
FIND_ROOTS_OF = "SELECT DISTINCT coalesce(linked_id, id) FROM contact WHERE id = ANY ($1::bigint[])"


async def find_roots_of(connection: Connection, contacts: Iterable[int]) -> set[int]:
    """The roots of the identities that these contacts are part of now; none for a contact that is gone."""
    return {row[0] for row in await connection.fetch(FIND_ROOTS_OF, list(contacts))}


# All contacts of identities by position, or a page of them.
FETCH_RECORDS = f"""
SELECT {RECORD_COLUMNS}
FROM (
    SELECT * FROM contact WHERE id = ANY ($1::bigint[])
    UNION ALL
    SELECT * FROM contact WHERE linked_id = ANY ($1::bigint[])
) AS member
WHERE $2::bigint IS NULL OR id > $2::bigint
ORDER BY id LIMIT $3::bigint
"""


async def fetch_records(
    connection: Connection, *roots: int, after: int | None = None, limit: int | None = None
) -> list[Record]:
    """The contacts of the identities with these roots, soft-deleted ones included, by position.

    With `after` and `limit`, only the first `limit` contacts after that position.
    """
    return [Record(*row) for row in await connection.fetch(FETCH_RECORDS, roots, after, limit)]


# All events that name a contact of identities, by position, or a page of them. Several walks, since one along all
# indexes (OR) would be a bitmap scan. Most events are found twice; UNION would ask for their order, and so for a walk
# along the whole of the primary key's index in a small journal.
FETCH_EVENTS = f"""
WITH member AS MATERIALIZED (
    SELECT unnest($1::bigint[]) AS id UNION ALL SELECT id FROM contact WHERE linked_id = ANY ($1::bigint[])
)
SELECT {EVENT_COLUMNS} FROM event
WHERE id = ANY (ARRAY(
    SELECT id FROM event WHERE primary_id = ANY (ARRAY(SELECT id FROM member))
    UNION ALL
    SELECT id FROM event WHERE other_id = ANY (ARRAY(SELECT id FROM member))
    UNION ALL
    SELECT event_id FROM event_contact WHERE contact_id = ANY (ARRAY(SELECT id FROM member))
)) AND ($2::bigint IS NULL OR id > $2::bigint)
ORDER BY id LIMIT $3::bigint
"""


async def fetch_events(
    connection: Connection, *roots: int, after: int | None = None, limit: int | None = None
) -> list[Event]:
    """The events about any contact of the identities with these roots, by position.

    With `after` and `limit`, only the first `limit` events after that position.
    """
    rows = await connection.fetch(FETCH_EVENTS, roots, after, limit)
    return [event_of(row) for row in rows]


def event_of(row: Iterable[Any]) -> Event:
    """The event of a row with EVENT_COLUMNS. The driver returns its kind and its detail as text."""
    values = list(row)
    values[_KIND] = _KINDS[values[_KIND]]
    if values[_DETAIL] is not None:
        values[_DETAIL] = json.loads(values[_DETAIL])
    return Event(*values)
