"""SQL about what stewards decide for the whole database: the guards' settings, and the values that identify nobody."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from recon.database.transactions import Connection
from recon.rules.links import Identifier


class Limits(NamedTuple):
    """The settings of the guards, as `guards.Guards` has them."""

    max_emails: int
    max_phones: int
    block_common: bool

    def shown(self) -> dict[str, Any]:
        """Return them by their names in the API."""
        return {"maxEmails": self.max_emails, "maxPhones": self.max_phones, "blockCommon": self.block_common}


FETCH_LIMITS = "SELECT max_emails, max_phones, block_common FROM setting"
SET_LIMITS = "UPDATE setting SET max_emails = $1::int, max_phones = $2::int, block_common = $3::boolean"


async def fetch_limits(connection: Connection) -> Limits:
    """The settings of the guards."""
    [row] = await connection.fetch(FETCH_LIMITS)
    return Limits(*row)


async def set_limits(connection: Connection, limits: Limits) -> None:
    """Change the settings of the guards."""
    await connection.execute(SET_LIMITS, *limits)


class Blocked(NamedTuple):
    """A value that a steward declared to identify nobody, with who did, when and why."""

    kind: str
    key: str
    phone_number: str | None
    event_id: int
    at: datetime
    source: str | None
    note: str | None


_BLOCKED = """
SELECT blocked.kind, blocked.key, blocked.phone_number, blocked.event_id, event.at, event.source, event.note
FROM blocked JOIN event ON event.id = blocked.event_id
WHERE blocked.kind IN ('email', 'phoneNumber')"""
# There is no index by event: lists of blocked values are short compared with contacts.
LIST_BLOCKED = f"{_BLOCKED} AND blocked.event_id > $1::bigint ORDER BY blocked.event_id LIMIT $2::bigint"
FIND_BLOCKED = f"{_BLOCKED} AND blocked.kind = $1::text AND blocked.key = $2::text"


async def list_blocked(connection: Connection, after: int, limit: int) -> list[Blocked]:
    """The first `limit` blocked values whose events come after this position."""
    return [Blocked(*row) for row in await connection.fetch(LIST_BLOCKED, after, limit)]


async def find_blocked(connection: Connection, value: Identifier) -> Blocked | None:
    """What is known about a blocked value; None if no steward blocked it."""
    row = await connection.fetchrow(FIND_BLOCKED, value.kind, value.key)
    return None if row is None else Blocked(*row)


BLOCK = """
INSERT INTO blocked (kind, key, phone_number, event_id) VALUES ($1::text, $2::text, $3::text, $4::bigint)
ON CONFLICT (kind, key) DO UPDATE SET phone_number = excluded.phone_number, event_id = excluded.event_id
"""
UNBLOCK = "DELETE FROM blocked WHERE kind = $1::text AND key = $2::text"


async def block(connection: Connection, value: Identifier, phone_number: str | None, event_id: int) -> None:
    """Declare that a value identifies nobody."""
    await connection.execute(BLOCK, value.kind, value.key, phone_number, event_id)


async def unblock(connection: Connection, value: Identifier) -> None:
    """Allow a value again."""
    await connection.execute(UNBLOCK, value.kind, value.key)


# The identities in which a live contact has a value.
FIND_HOLDERS = """
SELECT coalesce(linked_id, id) AS root FROM contact WHERE email = $1::text AND deleted_at IS NULL
UNION
SELECT coalesce(linked_id, id) FROM contact WHERE phone_key = $2::text AND deleted_at IS NULL
ORDER BY root
"""


async def find_holders(connection: Connection, value: Identifier) -> list[int]:
    """The roots of the identities that have a value."""
    email, key = (value.key, None) if value.kind == "email" else (None, value.key)
    return [row["root"] for row in await connection.fetch(FIND_HOLDERS, email, key)]


# Page by page, since a driver's cursor prepares a statement, which poolers do not bear.
LIVE_VALUES = """
SELECT id, email, phone_number, phone_key FROM contact
WHERE id > $1::bigint AND deleted_at IS NULL ORDER BY id LIMIT 10000
"""
HELD_BLOCKED = """
SELECT blocked.kind, blocked.key, coalesce(blocked.phone_number, blocked.key) FROM blocked
WHERE kind IN ('email', 'phoneNumber') AND (
    EXISTS (SELECT FROM contact WHERE blocked.kind = 'email' AND email = blocked.key AND deleted_at IS NULL)
    OR EXISTS (
        SELECT FROM contact WHERE blocked.kind = 'phoneNumber' AND phone_key = blocked.key AND deleted_at IS NULL
    )
)
ORDER BY event_id
"""


async def held_blocked(connection: Connection) -> list[tuple[Identifier, str]]:
    """The values on the stewards' list that live contacts have, each with its text."""
    return [(Identifier(row[0], row[1]), row[2]) for row in await connection.fetch(HELD_BLOCKED)]


async def live_values(connection: Connection) -> AsyncIterator[tuple[Identifier, str]]:
    """All identifiers of live contacts, each with its text; one that several contacts have comes several times."""
    last = -(2**63)
    while page := await _page_of_values(connection, last):
        for _, email, phone_number, phone_key in page:
            if email is not None:
                yield Identifier("email", email), email
            if phone_key is not None:
                yield Identifier("phoneNumber", phone_key), phone_number
        last = page[-1][0]


async def _page_of_values(connection: Connection, after: int) -> Sequence[Any]:
    return await connection.fetch(LIVE_VALUES, after)
