"""All SQL about contacts. Each statement is a named constant above the function that runs it."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from recon.database.transactions import Connection
from recon.rules.clusters import Clusters, Contact
from recon.rules.digests import DIGEST_OF
from recon.rules.guards import Digest, Guards, Value, Values, common_among
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Entry, Plan
from recon.sql.guards import lose, mark

# An identity with more contacts is large. The read pass fetches one more than that of each identity, which tells the
# large ones apart, and bounds what a batch reads and answers: 512 requests with two identities each, a few
# milliseconds for each thousand contacts. Few people have ten.
LARGE = 100

# The roots of the clusters that the given emails and phone keys touch: the ids that their rows link to.
_ROOTS = """
    root AS MATERIALIZED (
        SELECT coalesce(linked_id, id) AS id FROM contact WHERE email = ANY ($1::text[]) AND deleted_at IS NULL
        UNION ALL
        SELECT coalesce(linked_id, id) FROM contact WHERE phone_key = ANY ($2::text[]) AND deleted_at IS NULL
    )"""

# A contact's columns have the names of its fields. They are selected by these names, in the order of the fields, so
# that a row is a contact's values behind its rank: looking up each value by name would take 150 ns more a contact.
_COLUMNS = ", ".join(field.name for field in fields(Contact) if field.name not in {"rank", "source"})

# The guards, in the snapshot that decides. They come behind the contacts as a row without an id, which has the settings
# in place of marks and the default region in place of a phone number; as one for each value of the batch that is
# blocked, also by its digest ($3), if there is any.
_WITH_GUARDS = f"""
SELECT {_COLUMNS}{{more}} FROM (
    {{members}}
    UNION ALL
    SELECT NULL, NULL, kind, default_region, key, ARRAY[max_emails, max_phones, block_common::int]::bigint[], NULL
    FROM setting LEFT JOIN blocked ON key = ANY ($1::text[] || $2::text[] || $3::text[])
    WHERE only_row
) AS found
ORDER BY created_at, id"""

# All their live rows, oldest first: `Contact.rank` is the place in this order.
_MEMBERS = _WITH_GUARDS.format(
    more="{more}",
    members=f"""
    SELECT {_COLUMNS}, created_at FROM contact
    WHERE id = ANY (ARRAY(SELECT id FROM {{roots}})) AND deleted_at IS NULL
    UNION ALL
    SELECT {_COLUMNS}, created_at FROM contact
    WHERE linked_id = ANY (ARRAY(SELECT id FROM {{roots}})) AND deleted_at IS NULL""",
)

# Everything about the identities that a batch asks for, as one statement and one snapshot.
FETCH_CLUSTERS = f"""
WITH {_ROOTS}
{_MEMBERS.format(roots="root", more="")}
"""
# The same with the date of each contact in seconds, for an import, which compares the contacts of several fetches.
FETCH_CLUSTERS_BY_AGE = f"""
WITH {_ROOTS}
{_MEMBERS.format(roots="root", more=", date_part('epoch', created_at)")}
"""


async def fetch_clusters(
    connection: Connection, batch: Sequence[Identifiers], digest: Digest | None = None, blocked: Values = frozenset()
) -> Clusters:
    """Every cluster that the batch touches, with the guards; `blocked` are other values that a steward blocked."""
    return await _clusters(connection, FETCH_CLUSTERS, batch, digest, blocked)


# Read pass: the same for small identities; of a large one, only LARGE + 1 contacts or a few more. Each walk along an
# index ends there, so a phone number that 10,000 contacts share costs no more than one that 100 share.
_FIRST = f"SELECT coalesce(linked_id, id) AS id FROM contact WHERE deleted_at IS NULL AND {{}} LIMIT {LARGE + 1}"
_SMALL_ROOTS = f"""
    root AS MATERIALIZED (
        SELECT found.id FROM unnest($1::text[]) AS given (email),
            LATERAL ({_FIRST.format("contact.email = given.email")}) AS found
        UNION ALL
        SELECT found.id FROM unnest($2::text[]) AS given (phone_key),
            LATERAL ({_FIRST.format("contact.phone_key = given.phone_key")}) AS found
    )"""
FETCH_SMALL_CLUSTERS = f"""
WITH {_SMALL_ROOTS}
""" + _WITH_GUARDS.format(
    more="",
    members=f"""
    SELECT {_COLUMNS}, created_at FROM (SELECT DISTINCT id FROM root) AS root (root_id), LATERAL (
        SELECT * FROM contact WHERE id = root_id AND deleted_at IS NULL
        UNION ALL
        (SELECT * FROM contact WHERE linked_id = root_id AND deleted_at IS NULL LIMIT {LARGE + 1})
    ) AS member""",
)


async def fetch_small_clusters(
    connection: Connection, batch: Sequence[Identifiers], digest: Digest | None = None
) -> Clusters:
    """Every cluster that the batch touches, with the guards; of one with more than LARGE contacts, not all of them."""
    return await _clusters(connection, FETCH_SMALL_CLUSTERS, batch, digest)


# Which cluster each identifier of a batch leads to, for the batches that touch a large identity. One is enough: where
# rows of other programs share an identifier across clusters, these are merged by the request that meets them.
_ROOT_OF = "SELECT coalesce(linked_id, id) FROM contact WHERE deleted_at IS NULL AND {} LIMIT 1"
FIND_ROOTS = f"""
SELECT ({_ROOT_OF.format("contact.email = given.email")}), ({_ROOT_OF.format("contact.phone_key = given.phone_key")})
FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS given (email, phone_key, place)
ORDER BY place
"""


async def find_roots(connection: Connection, batch: Sequence[Identifiers]) -> list[frozenset[int]]:
    """The roots of the clusters that each request touches, none to two."""
    rows = await connection.fetch(
        FIND_ROOTS, [request.email for request in batch], [request.phone_key for request in batch]
    )
    return [frozenset(root for root in row if root is not None) for row in rows]


# Write pass: the same, holding each cluster's root row so that no one else changes the cluster.
# The root stands for its whole cluster: every transaction that inserts into a cluster or relinks it takes its root
# first, so a cluster of 10,000 rows costs one lock and not 10,000.
LOCK_CLUSTERS = f"""
WITH {_ROOTS},
    locked AS MATERIALIZED (
        SELECT id FROM contact
        WHERE id = ANY (ARRAY(SELECT id FROM root))
        ORDER BY id  -- one order everywhere, so no deadlocks
        FOR UPDATE
    )
{_MEMBERS.format(roots="locked", more="")}
"""


async def lock_clusters(
    connection: Connection, batch: Sequence[Identifiers], digest: Digest | None = None, blocked: Values = frozenset()
) -> Clusters:
    """The same, locked until COMMIT."""
    return await _clusters(connection, LOCK_CLUSTERS, batch, digest, blocked)


# When another session holds a row that a batch needs: lock the rows that are free, without waiting for the others.
LOCK_FREE_ROWS = """
SELECT id FROM contact WHERE id = ANY ($1::bigint[])
ORDER BY id  -- one order everywhere, so no deadlocks
FOR UPDATE SKIP LOCKED
"""


async def lock_free_rows(connection: Connection, ids: set[int]) -> set[int]:
    """Lock these rows, but for those that another session holds, which are returned."""
    return ids - {row["id"] for row in await connection.fetch(LOCK_FREE_ROWS, sorted(ids))}


# Ends when the session that holds the row has ended its transaction.
WAIT_FOR_ROW = "SELECT FROM contact WHERE id = $1::bigint FOR UPDATE"


async def wait_for_row(connection: Connection, row: int) -> None:
    """Return when no other session holds this row any more."""
    await connection.execute(WAIT_FOR_ROW, row)


# The lock on the table that every writer takes.
WAIT_FOR_TABLE = "UPDATE contact SET updated_at = updated_at WHERE false"


async def wait_for_table(connection: Connection) -> None:
    """Return when no other session keeps writers from the whole table."""
    await connection.execute(WAIT_FOR_TABLE)


async def _clusters(
    connection: Connection,
    statement: str,
    batch: Sequence[Identifiers],
    digest: Digest | None,
    blocked: Values = frozenset(),
) -> Clusters:
    rows, guards = await fetch_rows(connection, statement, batch, digest)
    if blocked:
        guards.blocked |= blocked
    return Clusters([Contact(rank, *row) for rank, row in enumerate(rows)], guards)


async def fetch_rows(
    connection: Connection, statement: str, batch: Sequence[Identifiers], digest: Digest | None
) -> tuple[list[Any], Guards]:
    """The rows of contacts that a statement finds for a batch, and the guards."""
    # Sets, as many concurrent requests may be about the same person.
    emails = {request.email for request in batch if request.email is not None}
    phone_keys = {request.phone_key for request in batch if request.phone_key is not None}
    digests = {} if digest is None else _digests(digest, emails, phone_keys)
    common: Values = frozenset()
    common_emails, common_phones = common_among("email", emails), common_among("phoneNumber", phone_keys)
    less = list(emails), list(phone_keys)
    if common_emails or common_phones:
        # Thousands of identities may still have a value that is blocked since: it leads to none of them.
        common = frozenset(_values(common_emails, common_phones))
        less = list(emails.difference(common_emails)), list(phone_keys.difference(common_phones))
    rows = await connection.fetch(statement, *less, list(digests))
    guards = _guards(rows, digests)
    if common and not guards.block_common:
        rows = await connection.fetch(statement, list(emails), list(phone_keys), list(digests))
        guards = _guards(rows, digests)
    if guards.block_common:
        guards.blocked |= common
    return rows, guards


def _digests(digest: Digest, emails: Iterable[str], phone_keys: Iterable[str]) -> dict[str, Value]:
    """The identifiers by their digests."""
    return {digest(value): value for value in _values(emails, phone_keys)}


def _values(emails: Iterable[str], phone_keys: Iterable[str]) -> list[Value]:
    return [*(("email", email) for email in emails), *(("phoneNumber", key) for key in phone_keys)]


def _guards(rows: list[Any], digests: Mapping[str, Value]) -> Guards:
    """Take the rows without an id, which come last, off the rows of contacts: the guards."""
    blocked: set[Value] = set()
    while rows and rows[-1][0] is None:
        _, _, kind, region, key, settings, *_ = rows.pop()
        if kind in DIGEST_OF.values() and key in digests:
            blocked.add(digests[key])
        elif key is not None:
            blocked.add((kind, key))
    max_emails, max_phones, block_common = settings
    return Guards(max_emails, max_phones, bool(block_common), frozenset(blocked), region)


# The new contacts of a batch. A secondary's primary may be a row of the same statement ($5: its place there, from 1),
# so ids are drawn beforehand. No row is dated before the newest that it was decided upon ($7): clocks get set back, and
# a standby's may be behind, but the primary must stay the oldest.
DRAW = "nextval((SELECT pg_get_serial_sequence('contact', 'id')::regclass))"
_NOW = "greatest(statement_timestamp(), (SELECT created_at FROM contact WHERE id = $7::bigint)) AS now"
_NEW = "$1::text[], $2::text[], $3::text[], $4::bigint[], $5::int[], $6::text[]"
_INSERT = """
INSERT INTO contact (id, email, phone_number, phone_key, linked_id, link_precedence, created_at, updated_at, source)
SELECT new.id, email, phone_number, phone_key, primary_id,
    CASE WHEN primary_id IS NULL THEN 'primary' ELSE 'secondary' END, batch.now, batch.now, source
FROM batch, new, LATERAL (SELECT coalesce(new.linked_id, batch.ids[new.linked_place])) AS link (primary_id)
ORDER BY place
RETURNING id
"""
INSERT_CONTACTS = f"""
WITH new AS MATERIALIZED (
        SELECT given.*, {DRAW} AS id
        FROM unnest({_NEW}) WITH ORDINALITY
            AS given (email, phone_number, phone_key, linked_id, linked_place, source, place)
    ),
    batch AS MATERIALIZED (SELECT array_agg(id ORDER BY place) AS ids, {_NOW} FROM new)
{_INSERT}"""
# The same with events and merges: every row of the cluster at a root ($8), dead ones too, points at that root's new
# primary ($9) from now on, which may be one of those rows, when the old primary is gone. Contacts and events draw their
# ids as one list, in decision order: $10 and $11 are their places in it. An event also names contacts that have no ids
# yet by their places. It is a form of its own, because nearly no batch of new customers has any, and the empty lists
# cost such a batch of one request 14 %.
_LINK = """
        (linked_id, link_precedence, updated_at) = (
            SELECT nullif(primary_id, contact.id),
                CASE primary_id WHEN contact.id THEN 'primary' ELSE 'secondary' END, statement_timestamp()
            FROM merge WHERE root = coalesce(contact.linked_id, contact.id)
        )"""
_MERGE = """merge AS MATERIALIZED (
        SELECT * FROM unnest({roots}::bigint[], {primaries}::bigint[]) AS pair (root, primary_id)
    )"""
CHANGE_CONTACTS = f"""
WITH drawn AS MATERIALIZED (
        SELECT place, {DRAW} AS id FROM generate_series(1, cardinality($10::int[]) + cardinality($11::int[])) AS place
    ),
    batch AS MATERIALIZED (SELECT array_agg(id ORDER BY place) AS ids, {_NOW} FROM drawn),
    new AS MATERIALIZED (
        SELECT given.*, batch.ids[place] AS id
        FROM batch, unnest({_NEW}, $10::int[])
            AS given (email, phone_number, phone_key, linked_id, linked_place, source, place)
    ),
    recorded AS (
        INSERT INTO event (id, at, kind, primary_id, other_id, email, phone_number, phone_key, source, detail)
        SELECT batch.ids[place], batch.now, kind, coalesce(primary_id, batch.ids[primary_place]),
            coalesce(other_id, batch.ids[other_place]), email, phone_number, phone_key, source, detail::jsonb
        FROM batch, unnest(
            $11::int[], $12::text[], $13::bigint[], $14::int[], $15::bigint[], $16::int[],
            $17::text[], $18::text[], $19::text[], $20::text[], $21::text[]
        ) AS given (
            place, kind, primary_id, primary_place, other_id, other_place,
            email, phone_number, phone_key, source, detail
        )
    ),
    {_MERGE.format(roots="$8", primaries="$9")},
    relinked_root AS (UPDATE contact SET {_LINK} WHERE id = ANY ($8::bigint[])),
    relinked_rest AS (UPDATE contact SET {_LINK} WHERE linked_id = ANY ($8::bigint[]))
{_INSERT}"""
# The merges alone.
RELINK = f"""
WITH {_MERGE.format(roots="$1", primaries="$2")},
    relinked_root AS (UPDATE contact SET {_LINK} WHERE id = ANY ($1::bigint[]))
UPDATE contact SET {_LINK} WHERE linked_id = ANY ($1::bigint[])
"""


async def change_contacts(connection: Connection, plan: Plan) -> None:
    """Insert the plan's contacts, which get their ids, and apply its merges, with their events in the journal."""
    for loss in plan.losses:  # rare, as the marks are
        await lose(connection, loss)
    contacts = [contact for contact, _ in plan.inserts]
    places = _places(plan)
    place_of = dict(zip(map(id, contacts), places, strict=True))
    arguments = [
        [contact.email for contact in contacts],
        [contact.phone_number for contact in contacts],
        [contact.phone_key for contact in contacts],
        [primary.id for _, primary in plan.inserts],
        [
            None if primary is contact or primary.id is not None else place_of[id(primary)]
            for contact, primary in plan.inserts
        ],
        [contact.source for contact in contacts],
        plan.newest and plan.newest.id,
    ]
    if plan.events:  # every merge is one
        relinks = [root for root, _ in plan.relinks], [primary for _, primary in plan.relinks]
        rows = await connection.fetch(CHANGE_CONTACTS, *arguments, *relinks, places, *_columns(plan.events, place_of))
    else:
        rows = await connection.fetch(INSERT_CONTACTS, *arguments)
    # Ids were drawn in the order of the contacts, whatever order the rows come back in.
    for contact, new_id in zip(contacts, sorted(row["id"] for row in rows), strict=True):
        contact.id = new_id
    if marked := [contact for contact in contacts if contact.apart]:
        await mark(connection, marked)


def _places(plan: Plan) -> Sequence[int]:
    """The places of the plan's contacts among its contacts and events together, from 1."""
    if not plan.events:
        return range(1, 1 + len(plan.inserts))
    taken = {event.place for event in plan.events}
    return [place for place in range(1, 1 + len(plan.inserts) + len(taken)) if place not in taken]


def _columns(events: Sequence[Entry], place_of: dict[int, int]) -> list[list[Any]]:
    """The events as columns, in the order of the statement."""
    others = [event.other if isinstance(event.other, Contact) else None for event in events]
    gone = [event.other if isinstance(event.other, int) else None for event in events]
    return [
        [event.place for event in events],
        [event.kind for event in events],
        [event.primary.id for event in events],
        [_place(event.primary, place_of) for event in events],
        [root if other is None else other.id for other, root in zip(others, gone, strict=True)],
        [None if other is None else _place(other, place_of) for other in others],
        [event.email for event in events],
        [event.phone_number for event in events],
        [event.phone_key for event in events],
        [event.source for event in events],
        [None if event.detail is None else json.dumps(event.detail) for event in events],
    ]


def _place(contact: Contact, place_of: dict[int, int]) -> int | None:
    """The place of a contact that has no id yet."""
    return None if contact.id is not None else place_of[id(contact)]
