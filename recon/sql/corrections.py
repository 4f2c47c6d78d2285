"""All SQL that stewards' corrections share. Each statement is a named constant above its function."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from recon.database.transactions import Connection
from recon.rules.journal import Kind
from recon.sql.contacts import WAIT_FOR_TABLE
from recon.sql.journal import date_of


class State(NamedTuple):
    """What tells whether an identity has changed.

    Attributes
    ----------
    position : the highest id of its contacts and of the events that name its root. Every change adds one or the other.
    contacts : how many contacts it has, soft-deleted ones included.
    """

    position: int
    contacts: int

    def __str__(self) -> str:
        """Return the text that `ifState` takes."""
        return f"{self.position}.{self.contacts}"


# `id + 0`, because a walk from the end of the primary key's index to the first event of a root may be one through all.
FETCH_STATES = """
SELECT root, greatest(member.newest, named.newest) AS position, member.contacts
FROM unnest($1::bigint[]) AS given (root), LATERAL (
    SELECT max(id) AS newest, count(*) AS contacts FROM (
        SELECT id FROM contact WHERE id = root AND linked_id IS NULL
        UNION ALL
        SELECT id FROM contact WHERE linked_id = root
    ) AS contact
) AS member, LATERAL (
    SELECT max(id) AS newest FROM (
        SELECT max(id + 0) AS id FROM event WHERE primary_id = root
        UNION ALL
        SELECT max(id + 0) FROM event WHERE other_id = root
        UNION ALL
        SELECT max(event_id + 0) FROM event_contact WHERE contact_id = root
    ) AS event
) AS named
WHERE member.contacts > 0
"""


async def fetch_states(connection: Connection, roots: Iterable[int]) -> dict[int, State]:
    """The state of each identity, by root. A root that another identity has absorbed since has none."""
    rows = await connection.fetch(FETCH_STATES, sorted(roots))
    return {row["root"]: State(row["position"], row["contacts"]) for row in rows}


# A root stands for its identity, as in `contacts.LOCK_CLUSTERS`.
LOCK_ROOTS = """
SELECT id FROM contact WHERE id = ANY ($1::bigint[])
ORDER BY id  -- one order everywhere, so no deadlocks
FOR UPDATE
"""


async def lock_roots(connection: Connection, roots: Iterable[int]) -> None:
    """Lock these identities until COMMIT, and keep others from changing the definition of `contact`.

    The statement that changes nothing takes the lock of a writer on the table, also for a correction that changes no
    contact: by this lock, readers of the journal see which transactions may have drawn an id (see `draw_ids`).
    """
    await connection.execute(WAIT_FOR_TABLE)
    await connection.execute(LOCK_ROOTS, sorted(roots))


DRAW_IDS = "SELECT nextval(pg_get_serial_sequence('contact', 'id')::regclass) FROM generate_series(1, $1::int)"
# The last value that was drawn, without drawing one. It is NULL until the first.
LAST_ID = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('contact', 'id')::regclass), 0)"


async def draw_ids(connection: Connection, number: int) -> list[int]:
    """So many new ids, in order."""
    return sorted(row[0] for row in await connection.fetch(DRAW_IDS, number))


async def last_id(connection: Connection) -> int:
    """The last id that was drawn."""
    found: int = await connection.fetchval(LAST_ID)
    return found


@dataclass(slots=True)
class Written:
    """The event that a correction writes; the columns of `event` have the same names.

    Attributes
    ----------
    contacts : further contacts whose history has the event, besides `primary_id` and `other_id`.
    undoes : the events that it takes back.
    """

    kind: Kind
    primary_id: int | None = None
    other_id: int | None = None
    email: str | None = None
    phone_number: str | None = None
    phone_key: str | None = None
    detail: Mapping[str, Any] | None = None
    contacts: Sequence[int] = ()
    undoes: Sequence[int] = ()


WRITE_EVENT = """
WITH
    named AS (
        INSERT INTO event_contact (contact_id, event_id)
        SELECT DISTINCT contact_id, $1::bigint FROM unnest($11::bigint[]) AS given (contact_id)
    ),
    undone AS (UPDATE event SET undone_by = $1::bigint WHERE id = ANY ($12::bigint[]))
INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key, source, note, detail)
VALUES ($1::bigint, $2::text, $3::bigint, $4::bigint, $5::text, $6::text, $7::text, $8::text, $9::text, $10::jsonb)
"""


async def write_event(
    connection: Connection, event_id: int, event: Written, source: str | None, note: str | None
) -> None:
    """Add a correction's event to the journal, and mark the events that it takes back."""
    detail = None if event.detail is None else json.dumps(event.detail)
    await connection.execute(
        WRITE_EVENT,
        event_id,
        event.kind.value,
        event.primary_id,
        event.other_id,
        event.email,
        event.phone_number,
        event.phone_key,
        source,
        note,
        detail,
        event.contacts,
        event.undoes,
    )


FIND_CORRECTION = "SELECT request, answer FROM correction WHERE key = $1::text AND source = $2::text"
STORE_CORRECTION = """
INSERT INTO correction (key, source, request, event_id, answer)
VALUES ($1::text, $2::text, $3::bytea, $4::bigint, $5::jsonb)
"""


class Stored(NamedTuple):
    """The digest of the request that an Idempotency-Key came with first, and its answer."""

    request: bytes
    answer: dict[str, Any]


async def find_correction(connection: Connection, key: str, source: str) -> Stored | None:
    """What the holder of the API key `source` made under this Idempotency-Key."""
    row = await connection.fetchrow(FIND_CORRECTION, key, source)
    return None if row is None else Stored(row["request"], json.loads(row["answer"]))


async def store_correction(connection: Connection, key: str, source: str, event_id: int, done: Stored) -> None:
    """Keep the answer of a correction for when its request comes again."""
    await connection.execute(STORE_CORRECTION, key, source, done.request, event_id, json.dumps(done.answer))


# All rows of the identity at a root ($1), soft-deleted ones too, point at its new primary ($2), which may be one of
# them. One statement, because the foreign key is checked at its end.
RELINK = """
WITH pair AS MATERIALIZED (SELECT * FROM unnest($1::bigint[], $2::bigint[]) AS pair (root, primary_id)),
    relinked_root AS (
        UPDATE contact SET linked_id = nullif(primary_id, contact.id),
            link_precedence = CASE primary_id WHEN contact.id THEN 'primary' ELSE 'secondary' END,
            updated_at = statement_timestamp()
        FROM pair WHERE contact.id = pair.root
    )
UPDATE contact SET linked_id = nullif(primary_id, contact.id),
    link_precedence = CASE primary_id WHEN contact.id THEN 'primary' ELSE 'secondary' END,
    updated_at = statement_timestamp()
FROM pair WHERE contact.linked_id = pair.root
"""


async def relink(connection: Connection, pairs: Mapping[int, int]) -> None:
    """Make the contacts of each identity, by its root, contacts of another primary."""
    await connection.execute(RELINK, list(pairs.keys()), list(pairs.values()))


# Marks are rows of a two-dimensional array. Each contact is updated once, however many marks it gets.
ADD_MARKS = """
UPDATE contact SET apart = coalesce(apart, '{}') || added.marks
FROM (
    SELECT contact_id, array_agg(ARRAY[$1::bigint, "group", side]) AS marks
    FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS given (contact_id, "group", side)
    GROUP BY contact_id
) AS added
WHERE contact.id = added.contact_id
"""


async def add_marks(connection: Connection, event_id: int, marks: Iterable[tuple[int, int, int]]) -> None:
    """Put contacts on sides of the event's constraints: by contact id, group and side."""
    columns = [list(column) for column in zip(*marks, strict=True)] or [[], [], []]
    await connection.execute(ADD_MARKS, event_id, *columns)


# All contacts on a side of one of these events. The partial index has nothing but contacts on sides.
_ON_SIDES = """
contact.apart IS NOT NULL AND EXISTS (
    SELECT FROM generate_subscripts(contact.apart, 1) AS n WHERE contact.apart[n][1] = ANY ($1::bigint[])
)"""
FIND_SIDES = f"""
SELECT DISTINCT coalesce(linked_id, id) FROM contact WHERE {_ON_SIDES}
"""
REMOVE_MARKS = f"""
UPDATE contact SET apart = (
    SELECT array_agg(ARRAY[apart[n][1], apart[n][2], apart[n][3]] ORDER BY n)
    FROM generate_subscripts(apart, 1) AS n WHERE apart[n][1] <> ALL ($1::bigint[])
)
WHERE {_ON_SIDES}
"""


async def find_sides(connection: Connection, events: Iterable[int]) -> list[int]:
    """The roots of all identities on a side of a constraint of these events."""
    return sorted(row[0] for row in await connection.fetch(FIND_SIDES, sorted(events)))


async def remove_marks(connection: Connection, events: Iterable[int]) -> None:
    """Lift all constraints of these events, as a whole."""
    await connection.execute(REMOVE_MARKS, sorted(events))


FETCH_MARKS = """
SELECT coalesce(linked_id, id) AS root, apart FROM contact
WHERE id = ANY ($1::bigint[]) AND apart IS NOT NULL
UNION ALL
SELECT linked_id, apart FROM contact
WHERE linked_id = ANY ($1::bigint[]) AND apart IS NOT NULL
"""


async def fetch_marks(connection: Connection, roots: Iterable[int]) -> dict[int, list[Sequence[Sequence[int]]]]:
    """The marks of the contacts of each identity, by root."""
    found: dict[int, list[Sequence[Sequence[int]]]] = {root: [] for root in roots}
    for row in await connection.fetch(FETCH_MARKS, sorted(found)):
        found[row["root"]].append(row["apart"])
    return found


# Who decided, when and why.
FETCH_DECISIONS = f"""
SELECT id, kind, {date_of("at")}, source, note FROM event WHERE id = ANY ($1::bigint[]) ORDER BY id
"""


async def fetch_decisions(connection: Connection, events: Iterable[int]) -> list[dict[str, Any]]:
    """When, by whom and why these events were, with their ids and kinds, oldest first."""
    return [dict(row) for row in await connection.fetch(FETCH_DECISIONS, sorted(events))]


# Which event erased the contact, and all contacts that it erased.
FIND_ERASED = """
SELECT contact_id, event_id FROM erased
WHERE event_id = (SELECT event_id FROM erased WHERE contact_id = $1::bigint) ORDER BY contact_id
"""
WAS_ERASED = "SELECT event_id FROM erased WHERE contact_id = $1::bigint"


async def was_erased(connection: Connection, contact_id: int) -> int | None:
    """The event that erased the identity of this contact, or None."""
    found: int | None = await connection.fetchval(WAS_ERASED, contact_id)
    return found


async def find_erased(connection: Connection, contact_id: int) -> list[int]:
    """The ids of all contacts that were erased together with this one."""
    return [row["contact_id"] for row in await connection.fetch(FIND_ERASED, contact_id)]
