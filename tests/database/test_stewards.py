"""A role that serves and makes corrections, created as docs/operations.md says: what it may do, and what it may not."""

import asyncio
import os
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import pytest

from recon.database.definitions import SCHEMA
from recon.database.grants import grants, missing_steward_grants, steward_grants
from recon.errors import SchemaMismatch
from tests.api.test_conformance import SCENARIOS, expect_scenario
from tests.database.test_roles import FORBIDDEN, blocks, named, role_of_the_page, serving_role
from tests.harness.databases import execute
from tests.harness.processes import MakeClient, recon

[COMMAND] = [block for block in blocks("sh") if "--grant-steward" in block]


@pytest.fixture(scope="module")
def steward_url(shared_database_url: str) -> Iterator[str]:
    """The module's database, for the role that makes corrections."""
    with role_of_the_page(shared_database_url, f"recon_test_steward_{os.getpid()}", COMMAND) as url:
        yield url


async def missing(url: str) -> list[str]:
    """Return what this role lacks for corrections."""
    connection = await asyncpg.connect(url)
    try:
        return await missing_steward_grants(connection)
    finally:
        await connection.close()


ROWS = [
    "INSERT INTO contact (id, email, phone_number) VALUES (1001, 'a@x.io', '1'), (1002, 'b@x.io', NULL)",
    (
        "INSERT INTO event (id, kind, primary_id, other_id, email, note, detail) "
        "VALUES (1003, 'split', 1001, 1002, 'a@x.io', 'why', '{}')"
    ),
    "INSERT INTO event_contact VALUES (1001, 1003)",
    "INSERT INTO blocked (kind, key, event_id) VALUES ('email', 'junk@x.io', 1003)",
    "INSERT INTO erased VALUES (999, 1003)",
    "INSERT INTO correction (key, source, request, event_id, answer) VALUES ('k', 's', 'r', 1003, '{}')",
]
DRAWN = "nextval(pg_get_serial_sequence('contact', 'id')::regclass)"
ALLOWED = [
    "LOCK TABLE writer_lane IN EXCLUSIVE MODE",
    "LOCK TABLE contact IN ROW EXCLUSIVE MODE",
    "SELECT FROM contact ORDER BY id FOR UPDATE",
    (
        f"INSERT INTO contact (id, email, created_at, updated_at, source, apart) "
        f"VALUES ({DRAWN}, 'c@x.io', now(), now(), 'steward', '{{{{1003, 0, 1}}}}')"
    ),
    "UPDATE contact SET email = NULL, updated_at = now() WHERE id = 1001",
    "UPDATE contact SET phone_number = NULL, phone_key = NULL WHERE id = 1001",
    "UPDATE contact SET deleted_at = now()",
    "UPDATE contact SET linked_id = 1001, link_precedence = 'secondary' WHERE id = 1002",
    "UPDATE contact SET apart = '{{1003, 0, 0}}'",
    "DELETE FROM contact",
    (
        f"INSERT INTO event (id, at, kind, primary_id, other_id, email, phone_number, phone_key, source, note, detail) "
        f"VALUES ({DRAWN}, now(), 'split', 1001, 1002, 'a@x.io', '1', '1', 'steward', 'a note', '{{}}')"
    ),
    "UPDATE event SET undone_by = 1004",
    "UPDATE event SET email = NULL, phone_number = NULL, phone_key = NULL, note = NULL, detail = NULL",
    *(f"SELECT FROM {table}" for table in ("event", "event_contact", "blocked", "erased", "correction", "setting")),
    "INSERT INTO event_contact VALUES (1002, 1003)",
    "UPDATE event_contact SET contact_id = 1002",
    "DELETE FROM event_contact",
    "INSERT INTO blocked (kind, key, phone_number, event_id) VALUES ('phoneNumber', '0', '0', 1003)",
    "UPDATE blocked SET event_id = 1004",
    "DELETE FROM blocked",
    "INSERT INTO erased VALUES (1001, 1003)",
    "UPDATE erased SET event_id = 1004",
    "DELETE FROM erased",
    "INSERT INTO correction (key, source, request, event_id, answer) VALUES ('k', 't', 'r', 1003, '{}')",
    "UPDATE correction SET answer = '[]'",
    "DELETE FROM correction",
    "UPDATE setting SET max_emails = 7, max_phones = 7, block_common = false",
]


@pytest.mark.parametrize("statement", ALLOWED)
async def test_it_makes_corrections(statement: str, steward_url: str, shared_database_url: str) -> None:
    """The role may do everything that corrections need, to rows that there are."""
    await execute(shared_database_url, "TRUNCATE contact, blocked", *ROWS)

    await execute(steward_url, f"BEGIN; {statement}; ROLLBACK")


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_it_can_do_no_more(statement: str, steward_url: str) -> None:
    """The role cannot change what an event is, the date or the id of a contact, the region, or the schema."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(steward_url, statement)


async def test_it_serves(steward_url: str, shared_database_url: str, make_client: MakeClient) -> None:
    """A process with the role serves, and has all privileges that corrections need."""
    client = await make_client(database_url=steward_url)
    await execute(shared_database_url, "TRUNCATE contact RESTART IDENTITY")

    await expect_scenario(SCENARIOS[0], client, shared_database_url)

    assert await missing(steward_url) == []
    assert recon("check", "--database-url", steward_url).returncode == 0


REVOCATIONS = [
    "UPDATE (apart) ON contact",
    "INSERT (apart) ON contact",
    "DELETE ON contact",
    "UPDATE (undone_by, detail) ON event",
    "INSERT ON event",
    "INSERT ON event_contact",
    "UPDATE ON blocked",
    "DELETE ON erased",
    "SELECT ON correction",
    "UPDATE (max_phones) ON setting",
    "UPDATE ON writer_lane",
    "USAGE ON SEQUENCE contact_id_seq",
]


async def test_each_missing_grant_is_named(steward_url: str, shared_database_url: str) -> None:
    """recon can say which privileges the role lacks, of columns too, and granting them again adds them all."""
    role = urlsplit(steward_url).username or ""
    found = []
    for privilege in REVOCATIONS:
        await execute(shared_database_url, f"REVOKE {privilege} FROM {role}")
        found.append(await missing(steward_url))
        await execute(shared_database_url, steward_grants(role))

    assert found == [[named(privilege)] for privilege in REVOCATIONS]
    assert await missing(steward_url) == []


def test_what_a_role_that_serves_lacks(shared_database_url: str) -> None:
    """A role that only serves lacks what corrections need besides, and nothing else; the owner lacks nothing."""
    with serving_role(shared_database_url) as url:
        lacks = asyncio.run(missing(url))

    assert lacks[:4] == [
        "INSERT (apart) on contact",
        "DELETE on contact",
        "UPDATE (undone_by, email, phone_number, phone_key, note, detail) on event",
        "INSERT on event_contact",
    ]
    assert lacks[-1] == "UPDATE (max_emails, max_phones, block_common) on setting"
    assert len(lacks) == 3 + 20 - 3 + 1  # of the five tables, it may read three
    assert asyncio.run(missing(shared_database_url)) == []


async def test_a_part_of_the_schema(database_url: str) -> None:
    """Without a table of the schema, recon says that, not that a privilege is missing."""
    await execute(database_url, "DROP TABLE blocked")

    with pytest.raises(SchemaMismatch, match="the database has only a part of recon's schema: .*blocked"):
        await missing(database_url)


def test_the_grants_are_printed() -> None:
    """Without --apply, `recon schema` prints the schema and the grants, for any role names."""
    done = recon("schema", "--grant", "serves", "--grant-steward", 'we"ird')

    assert done.stdout == "BEGIN;\n\n" + SCHEMA + grants("serves") + steward_grants('we"ird') + "\nCOMMIT;\n"
    assert 'GRANT DELETE ON contact TO "we""ird";' in done.stdout
    assert 'GRANT DELETE ON contact TO "serves";' not in done.stdout


async def test_the_printed_grants_are_complete(bare_database_url: str, steward_url: str) -> None:
    """A database that was created with the printed SQL lets the role make corrections."""
    steward = urlsplit(steward_url)
    done = recon("schema", "--grant-steward", str(steward.username))

    await execute(bare_database_url, done.stdout)

    try:
        assert await missing(steward._replace(path=urlsplit(bare_database_url).path).geturl()) == []
    finally:
        await execute(bare_database_url, f"DROP OWNED BY {steward.username}")


def test_grants_to_nobody(shared_database_url: str) -> None:
    """A role that does not exist is an error in one line."""
    done = recon("schema", "--apply", "--grant-steward", "nobody at all", "--database-url", shared_database_url)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'recon: the grants were not made: role "nobody at all" does not exist'
