"""What must always hold (I1 to I3, I5, I7 and I8), looked for in a whole database."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import asyncpg

from recon.database.connecting import connected
from recon.database.definitions import TABLES, missing_parts
from recon.database.schema import fetch_region, require_parts, require_region, require_schema
from recon.errors import NotPrepared
from recon.quantities import quantity
from recon.rules.guards import is_common
from recon.rules.identifiers import normal_email, normal_phone, phone_key_for
from recon.rules.journal import Event, Record
from recon.rules.links import Identifier, LinkKind, links_of
from recon.sql.journal import EVENT_COLUMNS, RECORD_COLUMNS, event_of

_LOWEST_ID = -(2**63)
_NOUNS = {"email": "email", "phoneNumber": "phone number"}
_MOST_NAMED = 5  # contacts that a line about a value names: junk is in many
_LIVE = "live AS (SELECT *, coalesce(linked_id, id) AS root FROM contact WHERE deleted_at IS NULL)"

# Each yields one row a violation, with one column: what is wrong, by ids and never by identifiers.
ONE_PRIMARY = f"""
WITH {_LIVE}
SELECT format('I1: the cluster of contact %s has %s live primaries (%s %s)',
    root, count(*) FILTER (WHERE link_precedence = 'primary'),
    CASE count(*) WHEN 1 THEN 'contact' ELSE 'contacts' END, string_agg(id::text, ', ' ORDER BY id))
FROM live GROUP BY root HAVING count(*) FILTER (WHERE link_precedence = 'primary') <> 1 ORDER BY root
"""
OLDEST_PRIMARY = f"""
WITH {_LIVE}
SELECT format('I1: secondary %s is older than its primary %s', s.id, p.id)
FROM live s JOIN live p ON p.id = s.linked_id WHERE (s.created_at, s.id) < (p.created_at, p.id) ORDER BY s.id
"""
STRAIGHT_LINKS = f"""
WITH {_LIVE}
SELECT format('I2: contact %s points at %s, which is no primary', s.id, s.linked_id)
FROM live s LEFT JOIN contact p ON p.id = s.linked_id
WHERE s.linked_id IS NOT NULL AND p.link_precedence IS DISTINCT FROM 'primary' ORDER BY s.id
"""
ONE_CLUSTER = """
WITH {live}
SELECT format('I3: one {name} is in the clusters %s (contacts %s)',
    string_agg(DISTINCT root::text, ', '), string_agg(id::text, ', ' ORDER BY id))
FROM live WHERE {column} IS NOT NULL GROUP BY {column} HAVING min(root) <> max(root) ORDER BY min(id)
"""
EMAIL_IN_ONE_CLUSTER = ONE_CLUSTER.format(live=_LIVE, name="email", column="email")
PHONE_IN_ONE_CLUSTER = ONE_CLUSTER.format(live=_LIVE, name="phone", column="phone_key")
# A contact may say what another one says once a guard or a correction has taken one of its identifiers.
NO_REPETITION = f"""
WITH {_LIVE},
    lost AS MATERIALIZED (
        SELECT (moved ->> 0)::bigint AS id FROM event, jsonb_array_elements(detail -> 'moved') AS moved
        WHERE kind IN ('split', 'blocked', 'withheld')
    )
SELECT format('I5: contacts %s say the same', string_agg(id::text, ', ' ORDER BY id))
FROM live WHERE id NOT IN (SELECT id FROM lost)
GROUP BY root, email, phone_key HAVING count(*) > 1 ORDER BY min(id)
"""
# A constraint is in force as long as contacts carry its marks. One contact of each side is named.
KEPT_APART = f"""
WITH {_LIVE},
    mark AS (
        SELECT root, id, apart[place][1] AS event, apart[place][2] AS part, apart[place][3] AS side
        FROM live, generate_subscripts(apart, 1) AS place WHERE apart IS NOT NULL
    ),
    sides AS (SELECT root, event, part, side, min(id) AS id FROM mark GROUP BY root, event, part, side)
SELECT format('I7: the cluster of contact %s has %s sides of what event %s keeps apart (contacts %s)',
    root, count(*), event, string_agg(id::text, ', ' ORDER BY id))
FROM sides GROUP BY root, event, part HAVING count(*) > 1 ORDER BY root, event, part
"""
# Ids from 1 to the highest are then drawn again. The next insert of recon moves the sequence; other programs' fail.
SEQUENCE_BEHIND = """
WITH
    sequence AS MATERIALIZED (
        SELECT oid FROM pg_class
        WHERE oid = pg_get_serial_sequence('contact', 'id')::regclass AND has_sequence_privilege(oid, 'USAGE, SELECT')
    ),
    ids AS (
        SELECT coalesce(pg_sequence_last_value(oid), 0) AS place,
            greatest(
                (SELECT max(id) FROM contact), (SELECT max(id) FROM event), (SELECT max(contact_id) FROM erased)
            ) AS highest
        FROM sequence
    )
SELECT format('ids: the sequence of contact.id is at %s, below the id %s; `recon schema --apply` moves it',
    place, highest)
FROM ids WHERE highest > place
"""
# The change feed tells from the last value of the sequence which positions may have been drawn.
UNORDERED_SEQUENCE = """
SELECT format('ids: the sequence of contact.id has %s, so the change feed can miss contacts; set %s', what, mend)
FROM pg_sequence, LATERAL (VALUES
    (seqcache > 1, format('CACHE %s', seqcache), 'CACHE 1'),
    (seqincrement < 0, format('INCREMENT %s', seqincrement), 'INCREMENT 1'),
    (seqcycle, 'CYCLE', 'NO CYCLE')
) AS option (is_wrong, what, mend)
WHERE seqrelid = pg_get_serial_sequence('contact', 'id')::regclass AND is_wrong
"""
# Positions begin at 1, and so do pages.
LOWEST_ID = """
SELECT format('ids: contact %s has an id below 1, so the change feed does not have it', id)
FROM contact WHERE id < 1 ORDER BY id
"""
ROW_CHECKS = (
    ONE_PRIMARY,
    OLDEST_PRIMARY,
    STRAIGHT_LINKS,
    EMAIL_IN_ONE_CLUSTER,
    PHONE_IN_ONE_CLUSTER,
    NO_REPETITION,
    KEPT_APART,
    LOWEST_ID,
)
CHECKS = (*ROW_CHECKS, SEQUENCE_BEHIND, UNORDERED_SEQUENCE)

SUMMARY = f"""
WITH {_LIVE} SELECT count(*), count(DISTINCT root) FROM live
"""
# Which of the values that a steward blocked are in live contacts. Digests are of values that recon does not have.
BLOCKED = """
SELECT kind, event_id, array_agg(id ORDER BY id) AS ids
FROM (
    SELECT kind, key, event_id, id FROM blocked JOIN contact ON email = key WHERE kind = 'email' AND deleted_at IS NULL
    UNION ALL
    SELECT kind, key, event_id, id FROM blocked JOIN contact ON phone_key = key
    WHERE kind = 'phoneNumber' AND deleted_at IS NULL
) AS held
GROUP BY kind, key, event_id ORDER BY event_id, min(id)
"""
BLOCKS_COMMON = "SELECT block_common FROM setting"
# Page by page, since a driver's cursor prepares a statement, which poolers do not bear.
IDENTIFIERS = """
SELECT id, email, phone_number, phone_key FROM contact
WHERE id > $1 AND deleted_at IS NULL ORDER BY id LIMIT 10000
"""

# Identities of more than one contact, page by page: a contact alone needs no link.
LINKED = """
SELECT DISTINCT linked_id FROM contact WHERE linked_id > $1 AND deleted_at IS NULL ORDER BY linked_id LIMIT 1000
"""
MEMBERS = f"""
SELECT {RECORD_COLUMNS} FROM contact
WHERE id = ANY ($1::bigint[]) OR linked_id = ANY ($1::bigint[]) ORDER BY created_at, id
"""
# The events that make links or take them back, with each contact that they name.
EXPLAINING = f"""
WITH named AS (
    SELECT primary_id AS contact_id, id FROM event WHERE primary_id = ANY ($1::bigint[])
    UNION ALL
    SELECT other_id, id FROM event WHERE other_id = ANY ($1::bigint[])
    UNION ALL
    SELECT contact_id, event_id FROM event_contact WHERE contact_id = ANY ($1::bigint[])
)
SELECT contact_id, {EVENT_COLUMNS} FROM named JOIN event USING (id)
WHERE kind IN ('merged', 'linked', 'split', 'blocked')
"""


async def check(url: str, default_region: str | None = None) -> tuple[list[str], str]:
    """All violations in the database at `url`, a line each, and a line that says how much was looked at.

    One snapshot, taken without locks: safe while recon serves. `default_region` is the processes'; the match keys are
    compared with the database's.
    Raises SchemaMismatch when the database is not recon's, Unavailable when it is not there.
    """
    async with connected(url) as connection, connection.transaction(isolation="repeatable_read", readonly=True):
        await require_schema(connection)
        missing = await missing_parts(connection)
        if any(part.kind == "column" or part.table in {"setting", *TABLES} for part in missing):
            await require_parts(connection)  # nothing to scan, or no region to compare match keys with, or no journal
        found = [f"schema: the database lacks the {part}; `recon schema --apply` adds it" for part in missing]
        try:
            await require_region(connection, default_region)
        except NotPrepared as error:
            found.append(f"region: {error}")
        found += [row[0] for statement in CHECKS for row in await connection.fetch(statement)]
        found += await _blocked_values(connection)
        scan = await _scan_identifiers(connection, await fetch_region(connection))
        [(count, people)] = await connection.fetch(SUMMARY)
        summary = f"{quantity(count, 'contact')} of {quantity(people, 'person', 'people')}"
        if common := scan.common:
            summary += f", {quantity(len(common), 'value')} of recon's own list"
            if await connection.fetchval(BLOCKS_COMMON):
                found += [_common_value(value, contacts) for value, contacts in common.items()]
            else:
                summary += ", which is off"
        found += scan.unmatchable
        if unexplained := await _unexplained_links(connection):
            summary += f", {quantity(unexplained, 'unexplained link')}"
        return found, summary


async def violations(connection: asyncpg.Connection) -> list[str]:
    """The violations in the rows of a snapshot: those that are the same in a copy of the database."""
    found = [row[0] for statement in ROW_CHECKS for row in await connection.fetch(statement)]
    found += await _blocked_values(connection)
    scan = await _scan_identifiers(connection, await fetch_region(connection))
    if await connection.fetchval(BLOCKS_COMMON):
        found += [_common_value(value, contacts) for value, contacts in scan.common.items()]
    return found + scan.unmatchable


async def _unexplained_links(connection: asyncpg.Connection) -> int:
    """How many links nothing explains: those of merges before the journal, and of rows written by other programs."""
    count, last = 0, _LOWEST_ID
    while page := [row["linked_id"] for row in await connection.fetch(LINKED, last)]:
        identities: dict[int, list[Record]] = {}
        for row in await connection.fetch(MEMBERS, page):
            record = Record(*row)
            identities.setdefault(record.linked_id or record.id, []).append(record)
        roots = {record.id: root for root, records in identities.items() for record in records}
        events: dict[int, dict[int, Event]] = {}
        for contact, *columns in await connection.fetch(EXPLAINING, list(roots)):
            event = event_of(columns)
            events.setdefault(roots[contact], {})[event.id] = event
        for root, records in identities.items():
            live = [record for record in records if record.deleted_at is None]
            links = links_of(live, events.get(root, {}).values())
            count += sum(link.kind is LinkKind.UNEXPLAINED for link in links)
        last = page[-1]
    return count


async def _blocked_values(connection: asyncpg.Connection) -> list[str]:
    """The values that a steward blocked and that contacts have nevertheless, a line each."""
    return [
        f"I7: the {_NOUNS[kind]} that event {event} blocked is in {_named(contacts)}"
        for kind, event, contacts in await connection.fetch(BLOCKED)
    ]


def _common_value(value: Identifier, contacts: Sequence[int]) -> str:
    held = f"I7: {'an' if value.kind == 'email' else 'a'} {_NOUNS[value.kind]} of recon's own list"
    return f"{held} is in {_named(contacts)}; `recon guards --apply` blocks it"


def _named(contacts: Sequence[int]) -> str:
    """How many contacts there are, and the ids of the first ones."""
    ids = ", ".join(map(str, contacts[:_MOST_NAMED])) + (", …" if len(contacts) > _MOST_NAMED else "")
    return f"{quantity(len(contacts), 'contact')} ({ids})"


class _Scan(NamedTuple):
    """What the identifiers of all live contacts show.

    Attributes
    ----------
    unmatchable : lines about rows that no request would find: what they are filed under is not what requests are
        normalized to.
    common : the other values that recon's own list has, each with the ids of its contacts.
    """

    unmatchable: list[str]
    common: dict[Identifier, list[int]]


async def _scan_identifiers(connection: asyncpg.Connection, default_region: str | None) -> _Scan:
    key = phone_key_for(default_region)
    scan = _Scan([], {})
    last_id = _LOWEST_ID
    while page := await connection.fetch(IDENTIFIERS, last_id):
        for contact, email, phone, phone_key in page:
            if email is not None:
                if wrong := _wrong_email(contact, email):
                    scan.unmatchable.append(wrong)
                elif is_common("email", email):
                    scan.common.setdefault(Identifier("email", email), []).append(contact)
            if phone is not None:
                if wrong := _wrong_phone(contact, phone, phone_key, key):
                    scan.unmatchable.append(wrong)
                elif is_common("phoneNumber", phone_key):
                    scan.common.setdefault(Identifier("phoneNumber", phone_key), []).append(contact)
        last_id = page[-1]["id"]
    return scan


def _wrong_email(contact: int, email: str) -> str | None:
    """Why no request finds this email, or None."""
    normal = _normal(normal_email, email)
    if normal is None:
        return f"form: no request can match the email of contact {contact}"
    if normal != email:
        return f"form: the email of contact {contact} is not in the form that requests are matched in"
    return None


def _wrong_phone(contact: int, phone: str, phone_key: str, key: Callable[[str], str]) -> str | None:
    """Why no request finds this phone number, or None; `key` derives match keys."""
    normal = _normal(normal_phone, phone)
    if normal is None:
        return f"form: no request can match the phone_number of contact {contact}"
    if phone_key != key(normal):
        return f"form: the phone_key of contact {contact} is not what its phone_number is matched by"
    return None


def _normal(form: Callable[[str], str | None], identifier: str) -> str | None:
    """The identifier in the form that requests are matched in; None when a request that has it is refused."""
    try:
        return form(identifier)
    except ValueError:
        return None
