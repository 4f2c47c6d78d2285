"""SQL of imports: a chunk of requests, fetched piece by piece and written in one go; and where an import stands."""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from recon.database.transactions import Connection
from recon.rules.clusters import Contact
from recon.rules.guards import Digest, Guards
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Entry, Plan
from recon.sql.contacts import DRAW, FETCH_CLUSTERS_BY_AGE, RELINK, change_contacts, fetch_rows


@dataclass(slots=True)
class Standing:
    """Where an import of a file stands.

    Attributes
    ----------
    file : its absolute path.
    form : how the file is read: format, columns, source.
    characters, line : so much of the file's text is done.
    digest : the SHA-256 of that text.
    rejects : the length of the file of rejects, in bytes.
    counts : what the records came to, by name.
    finished : whether the file is done.
    """

    file: str
    form: dict[str, Any]
    characters: int = 0
    line: int = 0
    digest: bytes = b""
    rejects: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    finished: bool = False


FIND_STANDING = "SELECT form, characters, line, digest, rejects, counts, finished FROM import WHERE file = $1::text"


async def find_standing(connection: Connection, file: str) -> Standing | None:
    """Where the last import of a file stands, if there was one."""
    row = await connection.fetchrow(FIND_STANDING, file)
    if row is None:
        return None
    form, characters, line, digest, rejects, counts, finished = row
    return Standing(file, json.loads(form), characters, line, digest, rejects, json.loads(counts), finished)


BEGIN_STANDING = """
INSERT INTO import (file, form, characters, line, digest, rejects, counts, finished)
VALUES ($1::text, $2::jsonb, $3::bigint, $4::bigint, $5::bytea, $6::bigint, $7::jsonb, $8::boolean)
ON CONFLICT (file) DO UPDATE SET form = excluded.form, characters = excluded.characters, line = excluded.line,
    digest = excluded.digest, rejects = excluded.rejects, counts = excluded.counts, finished = excluded.finished
"""


async def begin_standing(connection: Connection, standing: Standing) -> None:
    """Store that an import begins, in the place of an earlier one of the same file."""
    await connection.execute(BEGIN_STANDING, standing.file, *_columns(standing))


# Whether another writer waits for the lane, which this transaction has.
IS_AWAITED = """EXISTS (
    SELECT FROM pg_locks
    WHERE locktype = 'relation' AND relation = 'writer_lane'::regclass AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
)"""
# Only from where this process has left it: another process may import the same file.
ADVANCE_STANDING = f"""
UPDATE import SET form = $2::jsonb, characters = $3::bigint, line = $4::bigint, digest = $5::bytea,
    rejects = $6::bigint, counts = $7::jsonb, finished = $8::boolean
WHERE file = $1::text AND characters = $9::bigint AND digest = $10::bytea AND NOT finished
RETURNING {IS_AWAITED}
"""


async def advance_standing(connection: Connection, before: Standing, after: Standing) -> bool | None:
    """Store where the import stands now, and tell whether another writer waits for the lane.

    None if the import did not stand where it stood before.
    """
    arguments = [after.file, *_columns(after), before.characters, before.digest]
    awaited: bool | None = await connection.fetchval(ADVANCE_STANDING, *arguments)
    return awaited


async def is_lane_awaited(connection: Connection) -> bool:
    """Tell whether another writer waits for the lane, which this transaction has."""
    return bool(await connection.fetchval(f"SELECT {IS_AWAITED}"))


def _columns(standing: Standing) -> list[Any]:
    return [
        json.dumps(standing.form),
        standing.characters,
        standing.line,
        standing.digest,
        standing.rejects,
        json.dumps(standing.counts),
        standing.finished,
    ]


# A date is so many microseconds, in which PostgreSQL counts; `infinity` is as far as the limit.
_FARTHEST = 2**62
_ID_BITS = 64
# Above the rank of every contact of the table.
NEW_RANK = 2 * _FARTHEST << _ID_BITS


async def fetch_piece(
    connection: Connection, requests: Sequence[Identifiers], digest: Digest | None
) -> tuple[list[Any], Guards]:
    """The rows of all clusters that these requests touch, oldest first, and the guards. Nothing is locked."""
    return await fetch_rows(connection, FETCH_CLUSTERS_BY_AGE, requests, digest)


def contacts_of(rows: Sequence[Any], known: Collection[int]) -> list[Contact]:
    """The contacts of rows whose root is not known yet, ranked so that those of all pieces have one order."""
    return [
        Contact(_rank(seconds, id_), id_, linked_id, email, phone_number, phone_key, apart)
        for id_, linked_id, email, phone_number, phone_key, apart, seconds in rows
        if (id_ if linked_id is None else linked_id) not in known
    ]


def _rank(seconds: float, id_: int) -> int:
    microseconds = round(min(max(seconds * 1e6, -_FARTHEST), _FARTHEST))  # a float is exact enough for this century
    return (microseconds << _ID_BITS) + id_


# The roots that get new contacts or become part of another cluster.
LOCK_ROWS = """
SELECT id FROM contact WHERE id = ANY ($1::bigint[])
ORDER BY id  -- one order everywhere, so no deadlocks
FOR UPDATE
"""
# As many ids as there are contacts and events. Every writer locks the table before it draws an id. No row is dated
# before the newest that was fetched, as for `CHANGE_CONTACTS`.
DRAW_IDS = f"""
WITH locked AS (UPDATE contact SET updated_at = updated_at WHERE false)
SELECT array_agg({DRAW}) AS ids,
    greatest(statement_timestamp(), (SELECT created_at FROM contact WHERE id = $2::bigint)) AS now
FROM generate_series(1, $1::int)
"""
RECORD = """
INSERT INTO event (id, at, kind, primary_id, other_id, email, phone_number, phone_key, source, detail)
SELECT id, $1::timestamptz, kind, primary_id, other_id, email, phone_number, phone_key, source, detail::jsonb
FROM unnest(
    $2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[], $8::text[], $9::text[], $10::text[]
) AS given (id, kind, primary_id, other_id, email, phone_number, phone_key, source, detail)
"""
_COPIED = (
    *("id", "email", "phone_number", "phone_key"),
    *("linked_id", "link_precedence", "created_at", "updated_at", "source"),
)


async def write(connection: Connection, plan: Plan) -> None:
    """Write what a chunk comes to, as `change_contacts` does. The plan has neither losses nor marks."""
    if plan.newest is not None and plan.newest.rank >= _FARTHEST << _ID_BITS:  # the driver cannot send `infinity`
        await change_contacts(connection, plan)
        return
    roots = {primary.id for _, primary in plan.inserts if primary.id is not None}
    roots.update(*plan.relinks)
    if roots:
        await connection.fetch(LOCK_ROWS, sorted(roots))
    newest = plan.newest and plan.newest.id
    ids, now = await connection.fetchrow(DRAW_IDS, len(plan.inserts) + len(plan.events), newest)  # type: ignore[misc]
    ids.sort()
    event_ids = [ids[event.place - 1] for event in plan.events]
    taken = set(event_ids)
    free = [each for each in ids if each not in taken] if taken else ids
    for (contact, _), new_id in zip(plan.inserts, free, strict=True):
        contact.id = new_id
    if plan.relinks:
        await connection.execute(RELINK, [root for root, _ in plan.relinks], [new for _, new in plan.relinks])
    if plan.events:
        await connection.execute(RECORD, now, event_ids, *_event_columns(plan.events))
    if plan.inserts:
        await connection.copy_records_to_table("contact", records=_copied(plan, now), columns=_COPIED)


def _event_columns(events: Sequence[Entry]) -> list[list[Any]]:
    return [
        [event.kind for event in events],
        [event.primary.id for event in events],
        [event.other.id if isinstance(event.other, Contact) else event.other for event in events],
        [event.email for event in events],
        [event.phone_number for event in events],
        [event.phone_key for event in events],
        [event.source for event in events],
        [None if event.detail is None else json.dumps(event.detail) for event in events],
    ]


def _copied(plan: Plan, now: datetime) -> Iterator[tuple[Any, ...]]:
    for contact, primary in plan.inserts:
        link = (None, "primary") if primary is contact else (primary.id, "secondary")
        yield contact.id, contact.email, contact.phone_number, contact.phone_key, *link, now, now, contact.source


async def wait_for_rows(connection: Connection, requests: Sequence[Identifiers], digest: Digest | None) -> None:
    """Return when no other session holds a row of the clusters that these requests touch."""
    rows, _ = await fetch_piece(connection, requests, digest)
    await connection.fetch(LOCK_ROWS, sorted(row[0] for row in rows))
