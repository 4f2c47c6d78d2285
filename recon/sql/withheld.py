"""SQL about withheld links that are open: the review list. Each statement is a named constant above its function."""

from collections.abc import Iterable, Sequence

from recon.database.transactions import Connection
from recon.rules.links import Identifier

# The open ones between identities, with the roots of these.
FIND_KEPT_APART = """
SELECT event.id, by_email.root AS email_root, by_phone.root AS phone_root
FROM event,
    LATERAL (
        SELECT coalesce(linked_id, contact.id) AS root FROM contact
        WHERE contact.email = event.email AND deleted_at IS NULL LIMIT 1
    ) AS by_email,
    LATERAL (
        SELECT coalesce(linked_id, contact.id) AS root FROM contact
        WHERE contact.phone_key = event.phone_key AND deleted_at IS NULL LIMIT 1
    ) AS by_phone
WHERE event.kind = 'withheld' AND event.undone_by IS NULL AND event.id > 0 AND detail ->> 'reason' = 'kept-apart'
    AND by_email.root IN (SELECT unnest($1::bigint[])) AND by_phone.root IN (SELECT unnest($1::bigint[]))
ORDER BY event.id
"""


async def find_kept_apart(connection: Connection, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The open links that were withheld because a constraint kept these identities apart; the lower root first."""
    if not pairs:
        return []
    found = await connection.fetch(FIND_KEPT_APART, sorted({root for pair in pairs for root in pair}))
    among = set(pairs)
    return [event_id for event_id, *roots in found if tuple(sorted(roots)) in among]


FIND_WITH_VALUE = """
SELECT id FROM event WHERE kind = 'withheld' AND undone_by IS NULL AND email = ANY ($1::text[])
UNION
SELECT id FROM event WHERE kind = 'withheld' AND undone_by IS NULL AND phone_key = ANY ($2::text[])
ORDER BY id
"""


async def find_with_values(connection: Connection, values: Iterable[Identifier]) -> list[int]:
    """The open links that have one of these identifiers."""
    found = list(values)
    emails = [value.key for value in found if value.kind == "email"]
    keys = [value.key for value in found if value.kind == "phoneNumber"]
    return [row["id"] for row in await connection.fetch(FIND_WITH_VALUE, emails, keys)]


FIND_WITHHELD = "SELECT primary_id, undone_by FROM event WHERE id = $1::bigint AND kind = 'withheld'"


async def find(connection: Connection, event_id: int) -> tuple[int | None, int | None] | None:
    """Of a withheld link: the identity that answered, and the event that closed it. None if there is no such link."""
    row = await connection.fetchrow(FIND_WITHHELD, event_id)
    return None if row is None else (row["primary_id"], row["undone_by"])


# The open ones that limits of $1 emails and $2 phone numbers (0: none) would not withhold. An identifier that nobody
# has adds one to the identity that has the other. Of two identities, the side with fewer of a kind adds its own.
_SIZES = """
    LATERAL (
        SELECT count(DISTINCT email) AS emails, count(DISTINCT phone_key) AS phones
        FROM (
            SELECT email, phone_key FROM contact WHERE contact.id = {root} AND deleted_at IS NULL
            UNION ALL
            SELECT email, phone_key FROM contact WHERE linked_id = {root} AND deleted_at IS NULL
        ) AS member
    )"""
FIND_WITHIN_LIMITS = f"""
SELECT event.id
FROM event,
    LATERAL (
        SELECT (
            SELECT coalesce(linked_id, contact.id) FROM contact
            WHERE contact.email = event.email AND deleted_at IS NULL LIMIT 1
        ) AS by_email, (
            SELECT coalesce(linked_id, contact.id) FROM contact
            WHERE contact.phone_key = event.phone_key AND deleted_at IS NULL LIMIT 1
        ) AS by_phone
    ) AS root,
    {_SIZES.format(root="by_email")} AS one,
    {_SIZES.format(root="by_phone")} AS other
WHERE event.kind = 'withheld' AND event.undone_by IS NULL AND event.id > 0 AND detail ->> 'reason' = 'limit'
    AND CASE
        WHEN by_phone IS NULL THEN $2::int = 0 OR one.phones < $2::int
        WHEN by_email IS NULL THEN $1::int = 0 OR other.emails < $1::int
        ELSE ($1::int = 0 OR least(one.emails, other.emails) = 0 OR one.emails + other.emails <= $1::int)
            AND ($2::int = 0 OR least(one.phones, other.phones) = 0 OR one.phones + other.phones <= $2::int)
    END
ORDER BY event.id
"""


async def find_within_limits(connection: Connection, max_emails: int, max_phones: int) -> list[int]:
    """The open links that were withheld because of a limit, and would not be with these limits."""
    rows = await connection.fetch(FIND_WITHIN_LIMITS, max_emails, max_phones)
    return [row["id"] for row in rows]
