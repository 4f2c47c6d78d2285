"""SQL that writes what a division changes. Each statement is a named constant above its function."""

from collections.abc import Mapping
from dataclasses import dataclass

from recon.database.transactions import Connection
from recon.rules.changes import Change, New, id_of

# What a contact gets besides its own columns comes from the contact that it was made of: its date, who brought it, and
# its sides.
INSERT_CREATED = """
INSERT INTO contact (
    id, email, phone_number, phone_key, linked_id, link_precedence, created_at, updated_at, source, apart
)
SELECT new.id, new.email, new.phone_number, new.phone_key, nullif(new.root, new.id),
    CASE new.root WHEN new.id THEN 'primary' ELSE 'secondary' END, origin.created_at, statement_timestamp(),
    origin.source,
    CASE WHEN new.marks IS NULL THEN origin.apart ELSE coalesce(origin.apart, '{}') || new.marks::bigint[] END
FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::text[])
    AS new (id, email, phone_number, phone_key, root, origin, marks)
JOIN contact AS origin ON origin.id = new.origin
"""
# Each contact once, whatever changes of it: every update of a contact writes it anew, with all its index entries. One
# statement, because the foreign key between contacts is checked at its end.
CHANGE = """
UPDATE contact SET
    email = CASE WHEN loses_email THEN NULL ELSE email END,
    phone_number = CASE WHEN loses_phone THEN NULL ELSE phone_number END,
    phone_key = CASE WHEN loses_phone THEN NULL ELSE phone_key END,
    linked_id = CASE WHEN root IS NULL THEN linked_id ELSE nullif(root, contact.id) END,
    link_precedence = CASE
        WHEN root IS NULL THEN link_precedence WHEN root = contact.id THEN 'primary' ELSE 'secondary'
    END,
    deleted_at = CASE WHEN is_deleted THEN statement_timestamp() ELSE deleted_at END,
    apart = CASE WHEN marks IS NULL THEN apart ELSE coalesce(apart, '{}') || marks::bigint[] END,
    updated_at = statement_timestamp()
FROM unnest($1::bigint[], $2::bigint[], $3::boolean[], $4::boolean[], $5::boolean[], $6::text[])
    AS given (id, root, loses_email, loses_phone, is_deleted, marks)
WHERE contact.id = given.id
"""
# The events that hold a part together without naming a contact of it.
NAME_EVENTS = """
INSERT INTO event_contact (contact_id, event_id) SELECT * FROM unnest($1::bigint[], $2::bigint[]) ON CONFLICT DO NOTHING
"""


@dataclass(slots=True)
class _Row:
    """What changes of a contact that is there."""

    root: int | None = None
    loses_email: bool = False
    loses_phone: bool = False
    is_deleted: bool = False


async def write_change(connection: Connection, change: Change, event_id: int) -> None:
    """Write a division; its new contacts must have their ids. `event_id` is that of the constraints that it makes."""
    marks = _marks(change, event_id)
    roots = {record.id: id_of(part.root) for part in change.parts for record in part.records if isinstance(record, New)}
    # A root first, and what is linked to one that was a secondary last: the foreign key wants a primary.
    await _insert(connection, [new for new in change.created if roots[new.id] == new.id], roots, marks)
    await _change(connection, change, marks)
    await _insert(connection, [new for new in change.created if roots[new.id] != new.id], roots, marks)
    if change.about:
        about = [(id_of(contact), event) for contact, event in change.about]
        await connection.execute(NAME_EVENTS, *map(list, zip(*about, strict=True)))


async def _insert(
    connection: Connection, created: list[New], roots: Mapping[int | None, int], marks: Mapping[int, str]
) -> None:
    if created:
        await connection.execute(
            INSERT_CREATED,
            [new.id for new in created],
            [new.email for new in created],
            [new.phone_number for new in created],
            [new.phone_key for new in created],
            [roots[new.id] for new in created],
            [new.origin for new in created],
            [marks.get(id_of(new)) for new in created],
        )


async def _change(connection: Connection, change: Change, marks: Mapping[int, str]) -> None:
    rows: dict[int, _Row] = {}
    for loss in change.losses:
        row = rows.setdefault(loss.contact_id, _Row())
        row.loses_email |= loss.kind == "email"
        row.loses_phone |= loss.kind == "phoneNumber"
    for contact_id in change.deleted:
        rows.setdefault(contact_id, _Row()).is_deleted = True
    for root, _, contacts in change.roots:
        for contact_id in contacts:
            rows.setdefault(contact_id, _Row()).root = id_of(root)
    created = {id_of(new) for new in change.created}
    for contact_id in marks:
        if contact_id not in created:
            rows.setdefault(contact_id, _Row())
    if rows:
        await connection.execute(
            CHANGE,
            list(rows),
            [row.root for row in rows.values()],
            [row.loses_email for row in rows.values()],
            [row.loses_phone for row in rows.values()],
            [row.is_deleted for row in rows.values()],
            [marks.get(contact_id) for contact_id in rows],
        )


def _marks(change: Change, event_id: int) -> dict[int, str]:
    """The new marks of each contact, as PostgreSQL reads a two-dimensional array."""
    found: dict[int, list[str]] = {}
    for contact, group, side in change.marks:
        found.setdefault(id_of(contact), []).append(f"{{{event_id},{group},{side}}}")
    return {contact_id: f"{{{','.join(marks)}}}" for contact_id, marks in found.items()}
