"""Earlier schemas with data of every shape, to migrate."""

import asyncpg

from tests.harness import ROOT
from tests.harness.databases import execute, fetch

SCHEMAS = ROOT / "tests" / "schemas"
# Each schema before this one as the last version with it created it, and the first one as the first version did, too.
OLD = {name: (SCHEMAS / f"{name}.sql").read_text() for name in ("1_first", "1_last", "2_last", "3_last")}
MIGRATED = [
    "applied the migration 2 (setting)",
    "applied the migration 3 (journal)",
    "applied the migration 4 (guards)",
]
GUARDS = "SELECT max_emails, max_phones, block_common FROM setting"
OFF, ON = (0, 0, False), (1000, 1000, True)

# Identities as recon stored them, merged and soft-deleted ones too, and rows of other programs: without a match key,
# without an email, with full-width digits, with an extension, in another case, and with an explicit id.
ROWS = [
    "INSERT INTO contact (email, phone_number, phone_key) VALUES ('a@x.io', '+1 201-555-0123', '12015550123')",
    "INSERT INTO contact (email, phone_number, phone_key) VALUES ('b@x.io', '919191', '919191')",
    "INSERT INTO contact (email) VALUES ('c@x.io')",
    "UPDATE contact SET linked_id = 1, link_precedence = 'secondary', updated_at = statement_timestamp() WHERE id > 1",
    "INSERT INTO contact (email, phone_number, deleted_at) VALUES ('gone@x.io', '(201) 555-0199', now())",
    "INSERT INTO contact (phone_number) VALUES ('717171'), ('55-5'), ('\uff15\uff15-5'), ('555 EXT. 5'), ('0800 Call')",
    "INSERT INTO contact (id, email, created_at) VALUES (1000, 'Imported@X.io', '2001-01-01')",
]
# Events as recon recorded them, one of each kind that schema 3 had.
EVENTS = [
    """INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key, source)
        VALUES (nextval('contact_id_seq'), 'merged', 1, 2, 'a@x.io', '919191', '919191', 'checkout')""",
    """INSERT INTO event (id, kind, primary_id, other_id, email, detail)
        VALUES (nextval('contact_id_seq'), 'mended', 1, 3, 'c@x.io', '{"contacts": [3]}')""",
    "UPDATE contact SET phone_number = '717172', phone_key = '717172' WHERE phone_key = '717171'",
    "UPDATE contact SET deleted_at = now() WHERE phone_key = '717172'",
]
# What `recon schema --grant` of each old version granted, besides the sequence and the lane.
OLD_GRANTS = {
    "1": """
        GRANT SELECT, INSERT (id, email, phone_number, phone_key, linked_id, link_precedence, created_at, updated_at),
            UPDATE (linked_id, link_precedence, updated_at) ON contact TO {role};
        GRANT USAGE, UPDATE ON SEQUENCE contact_id_seq TO {role};
        GRANT UPDATE ON writer_lane TO {role};""",
    "2": "GRANT SELECT ON setting TO {role};",
    "3": "GRANT INSERT (source) ON contact TO {role}; GRANT SELECT, INSERT ON event TO {role};",
}


def rows_of(schema: str, *, explicit_ids: bool = False) -> list[str]:
    """The statements that fill an old schema: contacts, and the journal if it has one."""
    return [*(ROWS if explicit_ids else ROWS[:-1]), *(EVENTS if has_journal(schema) else ())]


def has_journal(schema: str) -> bool:
    """Whether an old schema has the journal."""
    return schema >= "3"


def migrated_from(schema: str) -> list[str]:
    """What the command says of the migrations from an old schema."""
    return MIGRATED[int(schema[0]) - 1 :]


async def prepare(url: str, schema: str, *statements: str) -> None:
    """Create an old schema with these rows."""
    await execute(url, OLD[schema], *statements)


async def guards_of(url: str) -> tuple[int, int, bool]:
    """The settings of the guards: the most emails, the most phone numbers, and whether recon's own list is on."""
    [row] = await fetch(url, GUARDS)
    return tuple(row)


async def contacts(url: str) -> list[asyncpg.Record]:
    """Return all rows of the table contact."""
    return await fetch(url, "SELECT * FROM contact ORDER BY id")
