"""SQL of erasures: where an identity has left traces, and their removal."""

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from recon.database.transactions import Connection
from recon.rules.digests import Digested
from recon.rules.erasure import Traces
from recon.rules.journal import Event
from recon.rules.links import Identifier
from recon.sql.journal import EVENT_COLUMNS, event_of

# The highest position that the snapshot shows.
NEWEST = "SELECT greatest((SELECT max(id) FROM contact), (SELECT max(id) FROM event))"


async def newest(connection: Connection) -> int:
    """The highest position that the snapshot shows; with the lane, what is committed later has higher ones."""
    found: int | None = await connection.fetchval(NEWEST)
    return found or 0


# Which of these identifiers a live contact of another identity has.
FIND_SHARED = """
SELECT 'email' AS kind, email AS key FROM contact
WHERE email = ANY ($2::text[]) AND deleted_at IS NULL AND coalesce(linked_id, id) <> $1::bigint
UNION
SELECT 'phoneNumber', phone_key FROM contact
WHERE phone_key = ANY ($3::text[]) AND deleted_at IS NULL AND coalesce(linked_id, id) <> $1::bigint
UNION
SELECT kind, key FROM blocked WHERE kind = 'email' AND key = ANY ($2::text[])
UNION
SELECT kind, key FROM blocked WHERE kind = 'phoneNumber' AND key = ANY ($3::text[])
"""


async def find_shared(connection: Connection, root: int, values: Iterable[Identifier]) -> set[Identifier]:
    """Those of the identifiers that are not this identity's own: another one has them, or they are blocked."""
    emails, keys = _columns(values)
    return {Identifier(*row) for row in await connection.fetch(FIND_SHARED, root, emails, keys)}


# `strict`, because the lax mode would visit the members of arrays twice.
_QUOTES = """EXISTS (
        SELECT FROM jsonb_path_query({}, 'strict $.**') AS leaf
        WHERE jsonb_typeof(leaf) = 'string' AND leaf #>> '{{}}' IN (SELECT unnest({}::text[]))
    )"""
# Events after a position that name the contacts or have the identifiers, with those that have a note, which may quote
# them. The whole journal is read for this, outside the lane: nothing else finds an identifier that was merged, edited
# and moved, wherever it came from. IN (SELECT unnest(...)) is looked up in a hash table.
FIND_TRACES = f"""
SELECT {EVENT_COLUMNS} FROM event
WHERE id > $1::bigint AND (
    primary_id IN (SELECT unnest($5::bigint[]))
    OR other_id IN (SELECT unnest($5::bigint[]))
    OR email IN (SELECT unnest($2::text[]))
    OR phone_key IN (SELECT unnest($3::text[]))
    OR note IS NOT NULL
    OR id IN (SELECT event_id FROM event_contact WHERE contact_id = ANY ($5::bigint[]))
    OR (detail IS NOT NULL AND {_QUOTES.format("detail", "$4")})
)
ORDER BY id
"""
FIND_NAMING = "SELECT event_id FROM event_contact WHERE contact_id = ANY ($1::bigint[])"
FIND_ANSWERS = f"""
SELECT key, source FROM correction
WHERE event_id > $1::bigint AND (
    event_id IN (SELECT unnest($2::bigint[]))
    OR {_QUOTES.format("answer", "$3")}
)
"""


class Answer(NamedTuple):
    """The key of a correction's record."""

    key: str
    source: str


async def find_traces(connection: Connection, traces: Traces, after: int = 0) -> tuple[list[Event], set[int]]:
    """Events after a position that may have traces, and the ids of those that `event_contact` links to the contacts."""
    emails, keys = _columns(traces.values)
    contacts = list(traces.contacts)
    rows = await connection.fetch(FIND_TRACES, after, emails, keys, list(traces.texts), contacts)
    naming = {row["event_id"] for row in await connection.fetch(FIND_NAMING, contacts)}
    return [event_of(row) for row in rows], naming


async def find_answers(connection: Connection, traces: Traces, events: Collection[int], after: int = 0) -> set[Answer]:
    """The records of corrections after a position that are of these events, or quote the identifiers."""
    rows = await connection.fetch(FIND_ANSWERS, after, list(events), list(traces.texts))
    return {Answer(*row) for row in rows}


# All but UUIDs, which quote nothing, and of which there may be very many.
FIND_KEYS = """
SELECT key, source FROM correction
WHERE event_id > $1::bigint AND key !~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$'
"""


async def find_keys(connection: Connection, after: int = 0) -> list[Answer]:
    """The keys of the records of corrections after a position: clients choose them, and may quote identifiers."""
    return [Answer(*row) for row in await connection.fetch(FIND_KEYS, after)]


FETCH_EVENTS = f"SELECT {EVENT_COLUMNS} FROM event WHERE id = ANY ($1::bigint[]) ORDER BY id"
WIPE_EVENTS = """
UPDATE event SET email = NULL, phone_number = NULL, phone_key = NULL, note = NULL, detail = NULL
WHERE id = ANY ($1::bigint[])
"""
SCRUB_EVENTS = """
UPDATE event SET email = given.email, phone_number = given.phone_number, phone_key = given.phone_key,
    note = given.note, detail = given.detail::jsonb
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    AS given (id, email, phone_number, phone_key, note, detail)
WHERE event.id = given.id
"""


async def fetch_events(connection: Connection, ids: Iterable[int]) -> list[Event]:
    """The events of these ids."""
    return [event_of(row) for row in await connection.fetch(FETCH_EVENTS, sorted(ids))]


async def wipe_events(connection: Connection, ids: Iterable[int]) -> None:
    """Leave of these events only what kind they were of, when, and which contacts they named."""
    await connection.execute(WIPE_EVENTS, sorted(ids))


async def scrub_events(connection: Connection, events: Sequence[Event]) -> None:
    """Write what is left of these events."""
    await connection.execute(
        SCRUB_EVENTS,
        [event.id for event in events],
        [event.email for event in events],
        [event.phone_number for event in events],
        [event.phone_key for event in events],
        [event.note for event in events],
        [_json(event.detail) for event in events],
    )


DELETE_ANSWERS = """
DELETE FROM correction USING unnest($1::text[], $2::text[]) AS given (key, source)
WHERE correction.key = given.key AND correction.source = given.source
"""
DELETE_CONTACTS = "DELETE FROM contact WHERE id = ANY ($1::bigint[])"
RECORD_ERASED = "INSERT INTO erased (contact_id, event_id) SELECT unnest($1::bigint[]), $2::bigint"
SUPPRESS = """
INSERT INTO blocked (kind, key, event_id)
SELECT kind, key, $3::bigint FROM unnest($1::text[], $2::text[]) AS given (kind, key)
ON CONFLICT DO NOTHING
"""


async def delete_answers(connection: Connection, answers: Iterable[Answer]) -> None:
    """Delete these records of corrections."""
    found = list(answers)
    await connection.execute(DELETE_ANSWERS, [each.key for each in found], [each.source for each in found])


async def delete_contacts(connection: Connection, ids: Sequence[int], event_id: int) -> None:
    """Delete contacts, and note that their ids were erased by this event."""
    await connection.execute(DELETE_CONTACTS, ids)
    await connection.execute(RECORD_ERASED, ids, event_id)


HAS_OTHER_KEY = """
SELECT EXISTS (SELECT FROM blocked WHERE kind = 'digestCheck')
    AND NOT EXISTS (SELECT FROM blocked WHERE kind = 'digestCheck' AND key = $1::text)
"""


async def has_other_key(connection: Connection, check: str) -> bool:
    """Tell whether there are digests that another key made than the one of this check (`digests.check_of`)."""
    found: bool = await connection.fetchval(HAS_OTHER_KEY, check)
    return found


async def suppress(connection: Connection, digests: Sequence[Digested], event_id: int) -> None:
    """Keep digests of identifiers, so that no request brings these back."""
    await connection.execute(
        SUPPRESS, [digest.kind for digest in digests], [digest.key for digest in digests], event_id
    )


def _columns(values: Iterable[Identifier]) -> tuple[list[str], list[str]]:
    """The emails, and the match keys of phone numbers."""
    found = list(values)
    return [each.key for each in found if each.kind == "email"], [each.key for each in found if each.kind != "email"]


def _json(detail: dict[str, Any] | None) -> str | None:
    return None if detail is None else json.dumps(detail)
