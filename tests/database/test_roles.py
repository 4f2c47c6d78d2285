"""Least privilege: recon with a role that owns nothing, created as docs/operations.md says."""

import asyncio
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from recon.database.definitions import SCHEMA
from recon.database.grants import grants
from recon.database.transactions import Database
from recon.errors import SchemaMismatch, Unavailable
from tests.api.test_conformance import SCENARIOS, expect_scenario
from tests.harness import ROOT
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient, StartRecon, recon

OPERATIONS = (ROOT / "docs/operations.md").read_text()
PASSWORD = "a-good-password"  # noqa: S105 (the page's)


def blocks(language: str) -> list[str]:
    """Return the page's code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", OPERATIONS, flags=re.DOTALL | re.MULTILINE)


def logged_in(url: str, role: str) -> str:
    """Return the same database's URL, for the page's role."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD}@{parts.netloc.rpartition('@')[2]}"))


@contextmanager
def serving_role(owner_url: str) -> Iterator[str]:
    """Create the page's role that serves, by the page's statements and with a unique name; yield its URL."""
    with role_of_the_page(owner_url, f"recon_test_role_{os.getpid()}", blocks("sh")[0]) as url:
        yield url


@contextmanager
def role_of_the_page(owner_url: str, role: str, commands: str) -> Iterator[str]:
    """Create the page's role under this name, and grant it what the page's command says; yield its URL."""
    [create, *_] = [block.replace("ROLE recon ", f"ROLE {role} ") for block in blocks("sql")]
    asyncio.run(execute(owner_url, create))
    try:
        [command] = [line.split() for line in commands.splitlines()]
        where = {"recon": role, "postgresql://owner@db/shop": owner_url}
        done = recon(*(where.get(word, word) for word in command[1:]))
        assert done.returncode == 0, done.stderr
        yield logged_in(owner_url, role)
    finally:
        asyncio.run(execute(owner_url, f"DROP OWNED BY {role}", f"DROP ROLE {role}"))


@pytest.fixture(scope="module")
def role_url(shared_database_url: str) -> Iterator[str]:
    """The module's database, for the role that serves."""
    with serving_role(shared_database_url) as url:
        yield url


async def test_it_serves_everything(role_url: str, shared_database_url: str, make_client: MakeClient) -> None:
    """Every scenario of the contract passes."""
    client = await make_client(database_url=role_url)
    assert (await client.get("/readyz")).status == 200

    for scenario in SCENARIOS:
        await execute(shared_database_url, "TRUNCATE contact RESTART IDENTITY")
        await expect_scenario(scenario, client, shared_database_url)


def test_it_serves_and_checks_as_commands(role_url: str, start_recon: StartRecon) -> None:
    """`recon serve`, with one and several processes, and `recon check` work with the role."""
    start_recon("--database-url", role_url, "--workers", "2")

    done = recon("check", "--database-url", role_url)

    assert (done.returncode, done.stderr) == (0, "")


FORBIDDEN = [
    "TRUNCATE contact",
    "TRUNCATE event",
    "TRUNCATE blocked",
    "TRUNCATE erased",
    "TRUNCATE writer_lane",
    "UPDATE contact SET created_at = now()",
    "UPDATE contact SET id = 1",
    "UPDATE contact SET source = 'x'",
    "INSERT INTO contact (email, deleted_at) VALUES ('x', now())",
    "INSERT INTO writer_lane DEFAULT VALUES",
    "DELETE FROM writer_lane",
    "UPDATE setting SET default_region = 'US'",
    "INSERT INTO setting DEFAULT VALUES",
    "DELETE FROM setting",
    "UPDATE event SET primary_id = 1",
    "UPDATE event SET other_id = 1",
    "UPDATE event SET kind = 'merged', at = now(), source = 'x'",
    "DELETE FROM event",
    "ALTER TABLE contact DROP COLUMN email",
    "ALTER TABLE contact DISABLE TRIGGER ALL",
    "DROP TABLE contact",
    "DROP INDEX contact_email_idx",
    "CREATE TABLE other ()",
    "CREATE SCHEMA other",
    "CREATE OR REPLACE FUNCTION contact_phone_key() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
    "CREATE ROLE other",
    "COPY contact TO PROGRAM 'true'",
]
# What corrections need, and serving does not.
FOR_STEWARDS = [
    "DELETE FROM contact",
    "UPDATE setting SET max_emails = 0",
    "UPDATE setting SET max_phones = 0",
    "UPDATE setting SET block_common = false",
    "UPDATE event SET undone_by = 1",
    "UPDATE event SET email = 'x', phone_number = 'x', phone_key = 'x', note = 'x', detail = '{}'",
    "INSERT INTO contact (email, apart) VALUES ('x', '{{1, 0, 0}}')",
    "INSERT INTO blocked (kind, key, event_id) VALUES ('email', 'x', 1)",
    "UPDATE blocked SET key = 'x'",
    "DELETE FROM blocked",
    "INSERT INTO erased VALUES (1, 1)",
    "UPDATE erased SET event_id = 1",
    "DELETE FROM erased",
    "INSERT INTO event_contact VALUES (1, 1)",
    "UPDATE event_contact SET event_id = 1",
    "DELETE FROM event_contact",
    "SELECT FROM correction",
    "INSERT INTO correction (key, source, request, answer) VALUES ('x', '', '', '{}')",
    "UPDATE correction SET answer = '{}'",
    "DELETE FROM correction",
]


@pytest.mark.parametrize("statement", [*FORBIDDEN, *FOR_STEWARDS])
async def test_it_can_do_no_more(role_url: str, statement: str) -> None:
    """Statements that serving does not need are refused."""
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(role_url, statement)


ALLOWED = [
    # The guards take a value away from rows that another program wrote, and mark the contacts that are kept apart.
    "UPDATE contact SET email = NULL, updated_at = now() WHERE phone_key IS NOT NULL",
    "UPDATE contact SET phone_number = NULL, phone_key = NULL WHERE email IS NOT NULL",
    "UPDATE contact SET deleted_at = now()",
    "UPDATE contact SET apart = '{{1, 0, 0}}'",
]


@pytest.mark.parametrize("statement", ALLOWED)
async def test_it_can_repair_rows_of_other_programs(role_url: str, statement: str) -> None:
    """The guards repair what other programs write, so the role may edit identifiers, which the trigger records."""
    await execute(role_url, f"BEGIN; {statement}; ROLLBACK")


async def answers(database: Database) -> bool:
    """Whether recon can serve the database."""
    try:
        await database.check()
    except Unavailable:
        return False
    return True


REVOCATIONS = [
    "SELECT ON contact",
    "INSERT (source) ON contact",
    "UPDATE (linked_id) ON contact",
    "UPDATE (apart) ON contact",
    "UPDATE (email, deleted_at) ON contact",
    "USAGE ON SEQUENCE contact_id_seq",
    "UPDATE ON writer_lane",
    "SELECT ON setting",
    "SELECT ON blocked",
    "SELECT ON erased",
    "SELECT ON event_contact",
    "INSERT ON event",
    "SELECT ON event",
]


def named(privilege: str) -> str:
    """Return how recon names a privilege that is missing."""
    return privilege.replace("ON SEQUENCE contact_id_seq", "on the sequence of contact.id").replace(" ON ", " on ")


@pytest.mark.parametrize("privilege", REVOCATIONS)
async def test_a_missing_grant_is_told(role_url: str, shared_database_url: str, privilege: str) -> None:
    """At start and while serving, recon logs which privilege its role lacks, and how to grant it."""
    role = urlsplit(role_url).username or ""
    async with Database(role_url).opened() as database:
        await execute(shared_database_url, f"REVOKE {privilege} FROM {role}")
        try:
            with pytest.raises(Unavailable, match="run `recon schema --apply --grant ROLE` as the tables' owner"):
                await database.check()
            lacks = re.escape(f"this role lacks privileges that serving needs ({named(privilege)}): run")
            with pytest.raises(SchemaMismatch, match=f"^{lacks}"):
                await Database(role_url).prepare()
        finally:
            await execute(shared_database_url, grants(role))
        async with asyncio.timeout(10):
            while not await answers(database):
                await asyncio.sleep(0.05)


def test_a_database_without_the_schema(role_url: str, bare_database_url: str) -> None:
    """A role that may not create the schema gets one line, and recon does not serve."""
    done = recon("serve", "--database-url", logged_in(bare_database_url, str(urlsplit(role_url).username)))

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("recon: the database has no schema yet, and this role may not")
    assert "Traceback" not in done.stderr


def test_the_grants_are_printed() -> None:
    """Without --apply, `recon schema` prints the schema and the grants, for any role name."""
    done = recon("schema", "--grant", 'we"ird')

    assert done.stdout == "BEGIN;\n\n" + SCHEMA + grants('we"ird') + "\nCOMMIT;\n"
    assert 'TO "we""ird";' in done.stdout


def test_grants_to_nobody(shared_database_url: str) -> None:
    """A role that does not exist is an error in one line."""
    done = recon("schema", "--apply", "--grant", "nobody at all", "--database-url", shared_database_url)

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == 'recon: the grants were not made: role "nobody at all" does not exist'


async def test_another_schema_than_public(
    server_url: str, role_url: str, bare_database_url: str, make_client: MakeClient
) -> None:
    """The page's statements create recon's tables in a separate schema."""
    role, owner = str(urlsplit(role_url).username), (await fetch(server_url, "SELECT current_user"))[0][0]
    statements = blocks("sql")[1].replace("TO recon;", f"TO {role};").replace("ROLE recon ", f"ROLE {role} ")
    database = urlsplit(bare_database_url).path[1:]
    statements = statements.replace("DATABASE shop", f"DATABASE {database}").replace("ROLE owner", f'ROLE "{owner}"')
    await execute(bare_database_url, statements)
    done = recon("schema", "--apply", "--grant", role, "--database-url", bare_database_url)
    assert done.returncode == 0, done.stderr

    client = await make_client(database_url=logged_in(bare_database_url, role))
    await expect_scenario(SCENARIOS[0], client, bare_database_url)

    tables = (
        "SELECT DISTINCT relnamespace::regnamespace::text FROM pg_class WHERE relname IN ('contact', 'writer_lane')"
    )
    assert [row[0] for row in await fetch(bare_database_url, tables)] == ["identities"]


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("search_path=nowhere", "the database has no schema yet, and this role may not create it"),
        ("channel_binding=require", "the database URL cannot be used: unrecognized configuration parameter"),
        ("connect_timeout=5", "the database URL cannot be used: unrecognized configuration parameter"),
        ("work_mem=much", "the database URL cannot be used: invalid value for parameter"),
        ("sslmode=perhaps", "the database URL cannot be used: `sslmode` parameter must be one of"),
    ],
)
def test_a_url_that_cannot_be_used(database_url: str, parameter: str, message: str) -> None:
    """A failure that a retry cannot repair ends recon with one line."""
    done = recon("serve", "--database-url", f"{database_url}{'&' if '?' in database_url else '?'}{parameter}")

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"recon: {message}")
    assert "Traceback" not in done.stderr


async def test_the_trigger_looks_in_no_other_schema(database_url: str) -> None:
    """The trigger uses PostgreSQL's own functions, whatever the search_path of the inserting role."""
    await execute(
        database_url,
        "CREATE SCHEMA other",
        "CREATE FUNCTION other.lower(text) RETURNS text LANGUAGE sql AS $$ SELECT 'taken over' $$",
        "CREATE FUNCTION other.translate(text, text, text) RETURNS text LANGUAGE sql AS $$ SELECT '0' $$",
        "CREATE FUNCTION other.btrim(text, text) RETURNS text LANGUAGE sql AS $$ SELECT '0' $$",
        "SET search_path = other, pg_catalog, public; INSERT INTO contact (phone_number) VALUES ('Ab'), ('1-2')",
    )

    rows = await fetch(database_url, "SELECT phone_key FROM contact ORDER BY id")

    assert [row[0] for row in rows] == ["ab", "12"]


async def test_a_part_of_the_schema(database_url: str) -> None:
    """recon refuses a database that has lost a part of the schema, and the line names the part."""
    await execute(database_url, "DROP TABLE writer_lane")

    with pytest.raises(SchemaMismatch, match=r"lacks parts of recon's schema \(table writer_lane\); `recon"):
        await Database(database_url).prepare()
