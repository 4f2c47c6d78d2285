"""SQL that gives all that is stored new match keys. Each statement is a named constant above the function that runs it.

Which key a phone number gets is a function of its text and the region alone. So the new keys are computed before the
transaction that writes them, into a temporary table; in that transaction only those of later texts are missing.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from recon.database.transactions import Connection
from recon.rules.journal import Kind
from recon.rules.rekeying import Key, new_key, old_keys, rekeyed

_CHUNK = 10_000  # texts that are in memory at a time: a few megabytes
_DETAILS_CHUNK = 100  # details of events: one of a large identity may have thousands of contacts
_MOST_SHOWN = 5  # examples

Progress: TypeAlias = Callable[[int], None]  # takes how many rows were done since the last call

# Each text once, with its key; NULL if no request can have this text. It is the session's own and has no index:
# statements read it as a whole.
OWNER = "SELECT obj_description(to_regclass('pg_temp.rekey_phone'), 'pg_class')"
# A pooler may give a transaction a session of another command, with the keys of another region.
BEGIN_KEYS = """
DROP TABLE IF EXISTS pg_temp.rekey_phone;
CREATE TEMPORARY TABLE rekey_phone (phone_number text NOT NULL, phone_key text);
COMMENT ON TABLE rekey_phone IS '{owner}';
"""
COUNT_PHONES = "SELECT count(*) FROM contact WHERE phone_number IS NOT NULL"
# A cursor in SQL, because a driver's cursor prepares a statement, which poolers do not bear.
MISSING_TEXTS = """
DECLARE rekey NO SCROLL CURSOR FOR SELECT DISTINCT phone_number FROM (
    SELECT phone_number FROM contact WHERE phone_number IS NOT NULL
    UNION ALL
    SELECT phone_number FROM event WHERE phone_number IS NOT NULL
    UNION ALL
    SELECT phone_number FROM blocked WHERE phone_number IS NOT NULL
) AS stored
WHERE NOT EXISTS (SELECT FROM pg_temp.rekey_phone AS known WHERE known.phone_number = stored.phone_number)
"""
_CLOSE = "CLOSE rekey"
_ANALYZE = "ANALYZE pg_temp.rekey_phone"


async def compute_keys(connection: Connection, owner: str, key: Key, progress: Progress) -> None:
    """Compute the new key of each phone number of the snapshot that the session has none for. In a transaction.

    `owner` names the command, in letters and digits: keys that another one has left are not used.
    """
    if await connection.fetchval(OWNER) != owner:
        await connection.execute(BEGIN_KEYS.format(owner=owner))
    async for page in _pages(connection, MISSING_TEXTS, _CHUNK):
        records = [(phone, new_key(phone, key)) for (phone,) in page]
        await connection.copy_records_to_table("rekey_phone", records=records, schema_name="pg_temp")
        progress(len(page))
    await connection.execute(_ANALYZE)


async def count_phones(connection: Connection) -> int:
    """How many contacts have a phone number: there are at most about so many keys to compute."""
    found: int = await connection.fetchval(COUNT_PHONES)
    return found


async def _pages(connection: Connection, cursor: str, rows: int) -> AsyncIterator[Sequence[Any]]:
    await connection.execute(cursor)
    while page := await connection.fetch(f"FETCH {rows} FROM rekey"):
        yield page
    await connection.execute(_CLOSE)


_STALE_PHONE = "known.phone_key <> contact.phone_key"
_STALE_EMAIL = "contact.email IS NOT NFC NORMALIZED"
_KNOWN = "pg_temp.rekey_phone AS known"
COUNT_STALE = f"""
SELECT count(*) FILTER (WHERE {_STALE_PHONE} OR {_STALE_EMAIL}) AS contacts,
    count(*) FILTER (WHERE {_STALE_EMAIL}) AS emails,
    (
        SELECT count(*) FROM blocked JOIN {_KNOWN} USING (phone_number)
        WHERE kind = 'phoneNumber' AND known.phone_key <> blocked.key
    ) AS blocked,
    (SELECT count(*) FROM blocked WHERE kind = 'phoneNumberDigest') AS suppressed
FROM contact LEFT JOIN {_KNOWN} USING (phone_number)
"""


class Stale(NamedTuple):
    """How much has another match key than its new one.

    Attributes
    ----------
    contacts : contacts, soft-deleted ones included.
    emails : those of these contacts whose email is not composed (NFC).
    blocked : blocked phone numbers.
    suppressed : digests of phone numbers, whose new ones nobody can compute.
    """

    contacts: int
    emails: int
    blocked: int
    suppressed: int


async def count_stale(connection: Connection) -> Stale:
    """How much is to be changed. All new keys must be computed, of the same snapshot."""
    [row] = await connection.fetch(COUNT_STALE)
    return Stale(*row)


# The phone numbers of live contacts, and the emails that are not composed or are the composed form of one, by their
# keys before and afterwards.
_PHONES = f"""
        SELECT 'phoneNumber' AS kind, contact.phone_key AS was, coalesce(known.phone_key, contact.phone_key) AS becomes,
            coalesce(linked_id, id) AS root
        FROM contact LEFT JOIN {_KNOWN} USING (phone_number)
        WHERE deleted_at IS NULL AND contact.phone_key IS NOT NULL"""
_EMAILS = f"""
        SELECT 'email', email, normalize(email, NFC), coalesce(linked_id, id) FROM contact
        WHERE deleted_at IS NULL AND normalize(email, NFC) IN (
            SELECT normalize(email, NFC) FROM contact WHERE deleted_at IS NULL AND {_STALE_EMAIL}
        )"""
# The keys that several identities have afterwards, unless all of these had one key in common before.
SHARED = f"""
WITH
    pair AS ({_PHONES}
        UNION{_EMAILS}
    ),
    holding AS (SELECT kind, becomes, was, count(*) AS roots FROM pair GROUP BY kind, becomes, was),
    shared AS (
        SELECT kind, becomes, array_agg(DISTINCT root ORDER BY root) AS roots FROM pair
        GROUP BY kind, becomes HAVING min(root) <> max(root) AND min(was) <> max(was)
    ),
    found AS MATERIALIZED (
        SELECT shared.* FROM shared
        JOIN (SELECT kind, becomes, max(roots) AS most FROM holding GROUP BY kind, becomes) AS before
            USING (kind, becomes)
        WHERE cardinality(shared.roots) > most
    )
SELECT kind, becomes AS key, roots[:{_MOST_SHOWN}] AS roots, count(*) OVER () AS keys,
    (SELECT count(DISTINCT root) FROM found, unnest(roots) AS root) AS identities
FROM found ORDER BY found.roots, kind LIMIT {_MOST_SHOWN}
"""
# The keys of which one becomes several.
DIVIDED = f"""
WITH pair AS ({_PHONES})
SELECT was AS key, array_agg(DISTINCT becomes ORDER BY becomes) AS becomes, count(*) OVER () AS keys FROM pair
GROUP BY was HAVING min(becomes) <> max(becomes) ORDER BY min(root), was LIMIT {_MOST_SHOWN}
"""


class Shared(NamedTuple):
    """A key that several identities come to have: "email" or "phoneNumber", and the roots of the first few."""

    kind: str
    key: str
    roots: list[int]


class Divided(NamedTuple):
    """A match key of phone numbers of which several keys come."""

    key: str
    becomes: list[str]


class Forecast(NamedTuple):
    """What new match keys mean for identities.

    Attributes
    ----------
    identities : how many identities would share a key that they do not share now.
    shared_keys, shared : how many such keys, and the first few.
    divided_keys, divided : how many keys would become several, and the first few.
    """

    identities: int
    shared_keys: int
    shared: list[Shared]
    divided_keys: int
    divided: list[Divided]


async def forecast(connection: Connection) -> Forecast:
    """What the new keys mean for identities. All must be computed, of the same snapshot."""
    shared = await connection.fetch(SHARED)
    divided = await connection.fetch(DIVIDED)
    return Forecast(
        identities=shared[0]["identities"] if shared else 0,
        shared_keys=shared[0]["keys"] if shared else 0,
        shared=[Shared(row["kind"], row["key"], row["roots"]) for row in shared],
        divided_keys=divided[0]["keys"] if divided else 0,
        divided=[Divided(row["key"], row["becomes"]) for row in divided],
    )


# What becomes of each key that events name, by the contacts that have it.
CHANGES = f"""
CREATE TEMPORARY TABLE rekey_key ON COMMIT DROP AS
SELECT contact.phone_key AS was, coalesce(known.phone_key, contact.phone_key) AS becomes, min(id) AS contact_id
FROM contact LEFT JOIN {_KNOWN} USING (phone_number)
WHERE contact.phone_key IN (
    SELECT phone_key FROM event WHERE phone_key IS NOT NULL
    UNION
    SELECT jsonb_path_query(detail, 'lax $.**.phoneNumber') #>> '{{}}' FROM event
    WHERE kind IN ('linked', 'split', 'blocked')
    UNION
    SELECT detail ->> 'phoneKey' FROM event WHERE kind IN ('edited', 'deleted')
)
GROUP BY 1, 2
"""
# The phone number of an event's request may have another text than that of the contact which had its key. An event
# keeps to the contact: it says why that contact is part of an identity. A blocked value keeps to its own text.
REKEY_EVENTS = f"""
WITH
    own AS (
        SELECT event.id, event.kind, event.phone_key AS was, coalesce(known.phone_key, event.phone_key) AS becomes
        FROM event LEFT JOIN {_KNOWN} USING (phone_number) WHERE event.phone_key IS NOT NULL
    ),
    oldest AS (SELECT DISTINCT ON (was) was, becomes FROM pg_temp.rekey_key ORDER BY was, contact_id),
    chosen AS (
        SELECT own.id, CASE
            WHEN own.kind IN ('blocked', 'unblocked') OR held.was IS NOT NULL THEN own.becomes
            ELSE coalesce(oldest.becomes, own.becomes)
        END AS becomes
        FROM own
        LEFT JOIN pg_temp.rekey_key AS held ON held.was = own.was AND held.becomes = own.becomes
        LEFT JOIN oldest ON oldest.was = own.was
    )
UPDATE event SET phone_key = chosen.becomes FROM chosen
WHERE event.id = chosen.id AND event.phone_key <> chosen.becomes
RETURNING event.id
"""
DETAILS = """
DECLARE rekey NO SCROLL CURSOR FOR
SELECT id, kind, detail FROM event
WHERE (kind IN ('linked', 'split', 'blocked') AND jsonb_path_exists(detail, 'lax $.**.phoneNumber'))
    OR (kind IN ('edited', 'deleted') AND detail ->> 'phoneKey' IS NOT NULL)
"""
BECOME = """
SELECT was, array_agg(becomes ORDER BY contact_id) FROM pg_temp.rekey_key WHERE was = ANY ($1::text[]) GROUP BY was
"""
REKEY_DETAILS = """
UPDATE event SET detail = given.detail::jsonb FROM unnest($1::bigint[], $2::text[]) AS given (id, detail)
WHERE event.id = given.id
"""


async def rekey_events(connection: Connection, key: Key) -> int:
    """Give events new match keys, before contacts get theirs; how many were changed."""
    await connection.execute(CHANGES)
    changed = {row["id"] for row in await connection.fetch(REKEY_EVENTS)}
    async for page in _pages(connection, DETAILS, _DETAILS_CHUNK):
        before = {row["id"]: (Kind(row["kind"]), json.loads(row["detail"])) for row in page}
        named = set().union(*(old_keys(detail) for _, detail in before.values()))
        keys = {row[0]: row[1] for row in await connection.fetch(BECOME, sorted(named))}
        after = {each: rekeyed(kind, detail, keys, key) for each, (kind, detail) in before.items()}
        stale = [each for each in after if after[each] != before[each][1]]
        await connection.execute(REKEY_DETAILS, stale, [json.dumps(after[each]) for each in stale])
        changed.update(stale)
    return len(changed)


# Taken out and put back, because one value's new key may be another one's old key.
TAKE_BLOCKED = f"""
DELETE FROM blocked USING {_KNOWN}
WHERE kind = 'phoneNumber' AND blocked.phone_number = known.phone_number AND blocked.key <> known.phone_key
RETURNING known.phone_key, blocked.phone_number, blocked.event_id
"""
PUT_BLOCKED = """
INSERT INTO blocked (kind, key, phone_number, event_id)
SELECT DISTINCT ON (key) 'phoneNumber', key, phone_number, event_id
FROM unnest($1::text[], $2::text[], $3::bigint[]) AS given (key, phone_number, event_id)
ORDER BY key, event_id
ON CONFLICT (key, kind) DO UPDATE SET phone_number = excluded.phone_number, event_id = excluded.event_id
WHERE excluded.event_id < blocked.event_id
"""
BLOCKING = "SELECT event_id FROM blocked WHERE kind = 'phoneNumber'"


async def rekey_blocked(connection: Connection) -> list[int]:
    """Give blocked phone numbers new match keys. Of two that become one, the older stays; the events of the others."""
    before = {row["event_id"] for row in await connection.fetch(BLOCKING)}
    taken = await connection.fetch(TAKE_BLOCKED)
    await connection.execute(
        PUT_BLOCKED, *(list(column) for column in zip(*taken, strict=True)) if taken else ([],) * 3
    )
    return sorted(before - {row["event_id"] for row in await connection.fetch(BLOCKING)})


REKEY_PHONES = f"""
UPDATE contact SET phone_key = known.phone_key, updated_at = statement_timestamp() FROM {_KNOWN}
WHERE contact.phone_number = known.phone_number AND {_STALE_PHONE}
"""
COMPOSE_EMAILS = f"""
UPDATE contact SET email = normalize(email, NFC), updated_at = statement_timestamp() WHERE {_STALE_EMAIL}
"""
DROP_SUPPRESSED = "DELETE FROM blocked WHERE kind = 'phoneNumberDigest'"


async def rekey_contacts(connection: Connection) -> None:
    """Give contacts new match keys, and emails their composed form (NFC), soft-deleted contacts included."""
    await connection.execute(REKEY_PHONES)
    await connection.execute(COMPOSE_EMAILS)


async def drop_suppressed(connection: Connection) -> None:
    """Forget the suppressed phone numbers. The digests of emails stay."""
    await connection.execute(DROP_SUPPRESSED)
