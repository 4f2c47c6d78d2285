"""All SQL that reads what guards keep apart. Each statement is a named constant above its function."""

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from recon.database.transactions import Connection
from recon.rules.guards import Mark
from recon.rules.journal import Event
from recon.rules.review import Facts, Limits
from recon.sql.journal import EVENT_COLUMNS, event_of

# What guards know of identities, by their roots.
FETCH_FACTS = """
SELECT root.id,
    coalesce(
        (SELECT id FROM contact WHERE contact.id = root.id AND deleted_at IS NULL),
        (SELECT id FROM contact WHERE linked_id = root.id AND deleted_at IS NULL ORDER BY created_at, id LIMIT 1)
    ),
    facts.*
FROM unnest($1::bigint[]) AS root (id), LATERAL (
    SELECT count(DISTINCT email), count(DISTINCT phone_key),
        jsonb_agg(DISTINCT to_jsonb(apart)) FILTER (WHERE apart IS NOT NULL)
    FROM (
        SELECT email, phone_key, apart, deleted_at FROM contact WHERE contact.id = root.id
        UNION ALL
        SELECT email, phone_key, apart, deleted_at FROM contact WHERE linked_id = root.id
    ) AS member
    WHERE deleted_at IS NULL
) AS facts
"""


async def fetch_facts(connection: Connection, roots: Collection[int]) -> dict[int, Facts]:
    """What guards know of the identities with these roots, by root."""
    rows = await connection.fetch(FETCH_FACTS, list(roots)) if roots else []
    return {
        root: Facts(primary, emails, phones, _marks(json.loads(apart) if apart else ()))
        for root, primary, emails, phones, apart in rows
    }


def _marks(aparts: Iterable[Sequence[Sequence[int]]]) -> frozenset[Mark]:
    return frozenset(Mark(*mark) for apart in aparts for mark in apart)


FETCH_LIMITS = "SELECT max_emails, max_phones FROM setting"


async def fetch_limits(connection: Connection) -> Limits:
    """The limits that hold for the database."""
    row = await connection.fetchrow(FETCH_LIMITS)
    return Limits(0, 0) if row is None else Limits(*row)  # there is always one


# Of the detail of these events, only the primaries that they left: the rest can be large.
_BRIEF = EVENT_COLUMNS.replace("detail", "jsonb_build_object('parts', detail -> 'parts')")
FETCH_CONSTRAINTS = f"SELECT {_BRIEF} FROM event WHERE id = ANY ($1::bigint[]) ORDER BY id"


async def fetch_constraints(connection: Connection, ids: Collection[int]) -> list[Event]:
    """The events with these ids, by position, with no more than `parts` in their detail."""
    return [event_of(row) for row in await connection.fetch(FETCH_CONSTRAINTS, list(ids))]


# The primaries that later divides of identities left, by the roots of the identities.
FETCH_LATER_PARTS = """
WITH member AS MATERIALIZED (
    SELECT unnest($1::bigint[]) AS id UNION ALL SELECT id FROM contact WHERE linked_id = ANY ($1::bigint[])
)
SELECT detail -> 'parts' FROM event
WHERE id = ANY (ARRAY(
    SELECT event_id FROM event_contact WHERE contact_id = ANY (ARRAY(SELECT id FROM member)) AND event_id > $2::bigint
)) AND detail IS NOT NULL
"""


async def fetch_later_parts(connection: Connection, roots: Collection[int], after: int) -> set[int]:
    """The primaries that divides after a position left of the identities with these roots."""
    rows = await connection.fetch(FETCH_LATER_PARTS, list(roots), after)
    return {contact for (parts,) in rows if parts is not None for contact in json.loads(parts)}


class Withheld(NamedTuple):
    """A withheld link that no steward dismissed.

    Attributes
    ----------
    email_root, phone_root : the roots of the identities that have its identifiers now.
    is_blocked : whether one of the two was blocked since.
    """

    event: Event
    email_root: int | None
    phone_root: int | None
    is_blocked: bool


_ROOT_OF = "SELECT coalesce(linked_id, id) FROM contact WHERE deleted_at IS NULL AND {} LIMIT 1"
_BLOCKED = "SELECT true FROM blocked WHERE blocked.kind = '{}' AND key = {}"
_WITHHELD = f"""
SELECT {EVENT_COLUMNS}, ({_ROOT_OF.format("contact.email = event.email")}),
    ({_ROOT_OF.format("contact.phone_key = event.phone_key")}),
    coalesce(
        ({_BLOCKED.format("email", "event.email")}), ({_BLOCKED.format("phoneNumber", "event.phone_key")}), false
    )
FROM event
WHERE {{}}
ORDER BY id
"""
# The index of open ones names primary_id in its condition, so that no other statement takes to reading it.
FETCH_WITHHELD = (
    _WITHHELD.format("kind = 'withheld' AND undone_by IS NULL AND primary_id IS NOT NULL AND id > $1::bigint")
    + "LIMIT $2::bigint"
)


async def fetch_withheld(connection: Connection, after: int, limit: int) -> list[Withheld]:
    """The first `limit` withheld links after a position."""
    return [_withheld(row) for row in await connection.fetch(FETCH_WITHHELD, after, limit)]


# Those with an email or a phone number of an identity.
_MEMBER = """
WITH member AS MATERIALIZED (
    SELECT email, phone_key FROM contact WHERE id = $1::bigint AND deleted_at IS NULL
    UNION ALL
    SELECT email, phone_key FROM contact WHERE linked_id = $1::bigint AND deleted_at IS NULL
)
"""
_NAMING = """
SELECT id FROM event WHERE kind = 'withheld' AND undone_by IS NULL AND {0} = ANY (ARRAY(SELECT {0} FROM member))
"""
FETCH_WITHHELD_ABOUT = _MEMBER + _WITHHELD.format(
    f"id = ANY (ARRAY({_NAMING.format('email')} UNION ALL {_NAMING.format('phone_key')}))"
)


async def fetch_withheld_about(connection: Connection, root: int) -> list[Withheld]:
    """The withheld links with an email or a phone number of the identity with this root, by position."""
    return [_withheld(row) for row in await connection.fetch(FETCH_WITHHELD_ABOUT, root)]


def _withheld(row: Iterable[Any]) -> Withheld:
    values = list(row)
    return Withheld(event_of(values[:-3]), *values[-3:])
