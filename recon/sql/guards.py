"""All other SQL about the guards, which are read with contacts. Each statement is a constant above its function."""

import json
from collections.abc import Collection, Sequence

from recon.database.transactions import Connection
from recon.rules.clusters import Contact, Loss, Mend
from recon.rules.guards import Values
from recon.rules.reconcile import Pair

# Which of these values a steward blocked.
BLOCKED_AMONG = """
SELECT kind, key FROM blocked WHERE kind = 'email' AND key = ANY ($1::text[])
UNION ALL
SELECT kind, key FROM blocked WHERE kind = 'phoneNumber' AND key = ANY ($2::text[])
"""


async def blocked_among(connection: Connection, mends: Collection[Mend]) -> Values:
    """The values that are blocked among those that identities shared."""
    emails = [mend.email for mend in mends if mend.email is not None]
    phone_keys = [mend.phone_key for mend in mends if mend.phone_key is not None]
    rows = await connection.fetch(BLOCKED_AMONG, emails, phone_keys)
    return frozenset((row["kind"], row["key"]) for row in rows)


# Which of these withheld links are on the review list: a walk along an index for each.
RECORDED = """
SELECT email, phone_key FROM unnest($1::text[], $2::text[]) AS pair (email, phone_key)
WHERE (
    SELECT true FROM event
    WHERE kind = 'withheld' AND undone_by IS NULL AND event.email = pair.email AND event.phone_key = pair.phone_key
    LIMIT 1
)
"""


async def recorded(connection: Connection, pairs: Sequence[Pair]) -> set[Pair]:
    """The links among these whose withheld event is open."""
    rows = await connection.fetch(RECORDED, [email for email, _ in pairs], [phone_key for _, phone_key in pairs])
    return {(row["email"], row["phone_key"]) for row in rows}


# A contact that has nothing else keeps the value, and is soft-deleted.
LOSE = """
UPDATE contact SET updated_at = statement_timestamp(),
    email = CASE WHEN $2::text = 'phoneNumber' OR id = ANY ($3::bigint[]) THEN email END,
    phone_number = CASE WHEN $2::text = 'email' OR id = ANY ($3::bigint[]) THEN phone_number END,
    phone_key = CASE WHEN $2::text = 'email' OR id = ANY ($3::bigint[]) THEN phone_key END,
    deleted_at = CASE WHEN id = ANY ($3::bigint[]) THEN statement_timestamp() END
WHERE id = ANY ($1::bigint[])
"""


async def lose(connection: Connection, loss: Loss) -> None:
    """Take a value from contacts."""
    await connection.execute(LOSE, [contact.id for contact in loss.losers], loss.kind, loss.kept)


_BRACES = str.maketrans("[]", "{}")  # from a list in JSON to an array literal

MARK = """
UPDATE contact SET apart = given.apart::bigint[] FROM unnest($1::bigint[], $2::text[]) AS given (id, apart)
WHERE contact.id = given.id
"""


async def mark(connection: Connection, contacts: Sequence[Contact]) -> None:
    """Store the marks of new contacts."""
    apart = [json.dumps(contact.apart).translate(_BRACES) for contact in contacts]
    await connection.execute(MARK, [contact.id for contact in contacts], apart)
