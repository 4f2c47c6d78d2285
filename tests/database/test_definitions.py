"""The parts of the schema: compared by definition instead of by name, and added if they are missing."""

import asyncio
from collections import Counter

import asyncpg
import pytest

from recon.database.definitions import PARTS, SCHEMA, TABLES, missing_parts
from recon.database.transactions import Database
from recon.database.upgrade import apply_schema_to
from recon.errors import SchemaMismatch, Unavailable
from recon.sql import invariants
from tests.database.test_roles import serving_role
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient, recon

# The schema of earlier versions, which named every part.
NAMED = [
    "ALTER INDEX contact_email_idx RENAME TO contact_email",
    "ALTER INDEX contact_phone_key_idx RENAME TO contact_phone_key",
    "ALTER TABLE contact RENAME CONSTRAINT contact_id_link_precedence_key TO contact_id_and_precedence",
    "ALTER TABLE contact RENAME CONSTRAINT contact_pkey TO anything",
    "ALTER TRIGGER contact_phone_key ON contact RENAME TO another_name",
]


async def lacking(url: str) -> list[str]:
    """Return the parts that a database lacks."""
    connection = await asyncpg.connect(url)
    try:
        return [str(part) for part in await missing_parts(connection)]
    finally:
        await connection.close()


async def test_the_parts_are_what_the_schema_creates(database_url: str) -> None:
    """PostgreSQL prints each definition as schema.sql has it, with any names."""
    kinds = Counter(part.kind for part in PARTS)
    assert kinds == {"column": 45, "constraint": 16, "index": 10, "trigger": 4, "table": 8}
    assert await lacking(database_url) == []

    await execute(database_url, *NAMED)

    assert await lacking(database_url) == []


LOSSES = {
    "ALTER TABLE contact DROP CONSTRAINT contact_links_to_a_primary, DROP CONSTRAINT contact_pkey CASCADE": 2,
    "ALTER TABLE contact DROP CONSTRAINT contact_says_something": 1,
    "ALTER TABLE contact DROP CONSTRAINT contact_links_to_a_primary, ADD CONSTRAINT contact_links_to_a_primary "
    "FOREIGN KEY (linked_id, linked_precedence) REFERENCES contact(id, link_precedence) NOT VALID": 1,
    "ALTER TABLE contact DISABLE TRIGGER ALL": 5,
    "ALTER TABLE contact DISABLE TRIGGER contact_phone_key": 1,
    "CREATE OR REPLACE FUNCTION contact_phone_key() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'": 1,
    "DROP INDEX contact_email_idx; CREATE INDEX contact_email_idx ON contact (lower(email))": 1,
    "DROP INDEX contact_phone_key_idx; CREATE UNIQUE INDEX ON contact (phone_key) "
    "WHERE deleted_at IS NULL AND phone_key IS NOT NULL": 1,
    "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'contact_linked_id_idx'::regclass": 1,
    "DROP TABLE writer_lane": 1,
    "DROP TABLE setting": 1,
    "DROP TABLE event": 1,
    "ALTER TABLE event DROP COLUMN other_id": 2,
    "ALTER TABLE event DROP CONSTRAINT event_kind": 1,
    "DROP TRIGGER contact_record_edit ON contact": 1,
    "GRANT EXECUTE ON FUNCTION contact_record_edit(), contact_truncate_journal() TO PUBLIC": 2,
    "ALTER TABLE contact DROP COLUMN updated_at": 1,
    "ALTER TABLE contact DROP COLUMN apart": 3,
    "DROP TABLE event_contact": 1,
    "DROP TABLE blocked": 1,
    "DROP TABLE erased": 1,
    "DROP TABLE correction": 1,
    "DROP TABLE import": 1,
    "ALTER TABLE blocked DROP CONSTRAINT blocked_kind": 1,
    "ALTER TABLE correction DROP COLUMN event_id": 2,
    "DROP INDEX event_email_phone_key_idx, event_phone_key_idx, event_id_idx": 3,
    "DROP INDEX contact_email_idx, contact_phone_key_idx, contact_linked_id_idx": 3,
}


@pytest.mark.parametrize(("statement", "lost"), LOSSES.items())
async def test_what_is_missing_is_named_and_added(statement: str, lost: int, database_url: str) -> None:
    """recon does not serve without the part; `check` names it; `schema --apply` adds it and drops nothing."""
    await execute(database_url, "INSERT INTO contact (email) VALUES ('a')", statement)
    missing = await lacking(database_url)
    assert len(missing) == lost

    with pytest.raises(SchemaMismatch, match="lacks parts of recon's schema .* --apply` adds") as caught:
        await Database(database_url).prepare()
    checked = recon("check", "--database-url", database_url)
    applied = recon("schema", "--apply", "--database-url", database_url)

    assert all(each in str(caught.value) for each in missing)
    assert checked.returncode == 1
    assert all(each in checked.stdout + checked.stderr for each in missing)
    assert applied.stdout.splitlines() == [f"added: {each}" for each in missing]
    assert await lacking(database_url) == []
    await Database(database_url).prepare()
    assert recon("check", "--database-url", database_url).returncode == 0
    assert recon("schema", "--apply", "--database-url", database_url).stdout == "the schema is there already\n"


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (
            ["ALTER TABLE contact DROP CONSTRAINT contact_says_something", "INSERT INTO contact DEFAULT VALUES"],
            r"constraint CHECK .*: rows of the table contact violate it",
        ),
        (
            ["ALTER TABLE contact ALTER updated_at TYPE timestamp"],
            r"column updated_at .*: there is one that",
        ),
    ],
)
async def test_what_cannot_be_added(statements: list[str], message: str, database_url: str) -> None:
    """The line says why the part cannot be added, and nothing is changed."""
    await execute(database_url, *statements, "DROP INDEX contact_email_idx")
    missing = await lacking(database_url)

    with pytest.raises(SchemaMismatch, match=message):
        await apply_schema_to(database_url)

    assert await lacking(database_url) == missing


async def test_repairs_at_the_same_time(database_url: str) -> None:
    """Concurrent repairs add each part once."""
    await execute(database_url, "DROP INDEX contact_email_idx")

    done = await asyncio.gather(*(apply_schema_to(database_url) for _ in range(4)))

    assert sorted(map(len, done)) == [0, 0, 0, 1]


RENAMED = [
    "ALTER TABLE contact RENAME TO contact_old",
    "COMMENT ON TABLE contact_old IS NULL",
    *(f"ALTER TABLE {table} RENAME TO {table}_old" for table in TABLES),
]


async def test_a_table_that_was_renamed_out_of_the_way(database_url: str, make_client: MakeClient) -> None:
    """A new table beside a renamed old one has its own parts, and survives the end of the old table."""
    await execute(database_url, "INSERT INTO contact (email) VALUES ('a'), ('b'), ('c')", *RENAMED)
    client = await make_client()
    assert await lacking(database_url) == []

    for email in ("a", "b"):
        async with client.post("/identify", json={"email": email}) as response:
            assert response.status == 200
    await execute(database_url, "INSERT INTO contact (email) VALUES ('by another program')")
    await execute(database_url, "UPDATE contact_old SET email = 'x'")
    assert await fetch(database_url, "TABLE event") == []
    await execute(database_url, "DROP TABLE contact_old CASCADE")
    async with client.post("/identify", json={"email": "d"}) as response:
        assert response.status == 200

    assert [row["id"] for row in await fetch(database_url, "SELECT id FROM contact ORDER BY id")] == [1, 2, 3, 4]
    assert recon("check", "--database-url", database_url).returncode == 0
    await Database(database_url).prepare()


@pytest.mark.parametrize("left", [TABLES, *((table,) for table in TABLES)])
async def test_tables_without_their_contacts(left: tuple[str, ...], database_url: str) -> None:
    """recon creates no contacts beside the journal of others, or what was decided of them: they would get their ids."""
    kept = [statement for statement in RENAMED if statement.split()[2] not in left]
    await execute(database_url, *kept)
    named = ", ".join(f"`{table}`" for table in left)

    for prepared in (Database(database_url).prepare(), apply_schema_to(database_url)):
        with pytest.raises(SchemaMismatch, match=f"rename or drop {named} too, or restore `contact`"):
            await prepared


async def test_a_table_in_another_schema_of_the_search_path(database_url: str) -> None:
    """recon verifies the table that its statements use."""
    await execute(database_url, "CREATE SCHEMA other", f"SET search_path = other; {SCHEMA}")
    await execute(database_url, "DROP INDEX other.contact_email_idx")
    separator = "&" if "?" in database_url else "?"

    assert await lacking(database_url) == []
    assert len(await lacking(f"{database_url}{separator}search_path=other,public")) == 1


IMPORTED = "INSERT INTO contact (id, email) SELECT id, 'imported ' || id FROM generate_series(1, 1000) AS id"


@pytest.mark.parametrize("form", [{}, {"writer_lane": False, "coalesce": False}, {"pgbouncer": True}])
async def test_ids_that_were_imported_explicitly(
    form: dict[str, bool], database_url: str, make_client: MakeClient
) -> None:
    """If the sequence is behind imported ids, recon moves it past them, and every request is answered."""
    await execute(database_url, IMPORTED)
    checked = recon("check", "--database-url", database_url)
    client = await make_client(**form)

    async def ask(email: str) -> int:
        async with client.post("/identify", json={"email": email}) as response:
            assert response.status == 200
            return (await response.json())["contact"]["primaryContactId"]

    ids = await asyncio.gather(*(ask(f"new {number}") for number in range(20)))

    assert min(ids) > 1000
    assert len(set(ids)) == 20
    assert await ask("imported 7") == 7
    assert "below the id 1000; `recon schema --apply` moves it" in checked.stdout
    assert recon("check", "--database-url", database_url).returncode == 0


@pytest.mark.parametrize(
    ("option", "reported"), [("CACHE 10", "CACHE 10"), ("INCREMENT -1 MINVALUE -9", "INCREMENT -1"), ("CYCLE", "CYCLE")]
)
async def test_a_sequence_that_the_change_feed_cannot_follow(option: str, reported: str, database_url: str) -> None:
    """`recon check` reports settings of the sequence by which positions are drawn out of order."""
    await execute(database_url, f"ALTER SEQUENCE contact_id_seq {option}")

    violations, _ = await invariants.check(database_url)

    [violation] = violations
    assert violation.startswith(
        f"ids: the sequence of contact.id has {reported}, so the change feed can miss contacts;"
    )


async def test_ids_before_the_first_position(database_url: str) -> None:
    """`recon check` reports ids that no page of the change feed has."""
    await execute(database_url, "INSERT INTO contact (id, email) VALUES (0, 'a'), (-7, 'b'), (1, 'c')")
    await execute(database_url, "SELECT nextval('contact_id_seq')")

    violations, _ = await invariants.check(database_url)

    assert violations == [
        f"ids: contact {each} has an id below 1, so the change feed does not have it" for each in (-7, 0)
    ]


async def test_the_sequence_is_moved_by_hand(database_url: str) -> None:
    """`recon schema --apply` moves the sequence before a request needs it."""
    await execute(database_url, IMPORTED)

    assert await apply_schema_to(database_url) == ["moved the sequence of contact.id past the highest id"]

    await execute(database_url, "INSERT INTO contact (email) VALUES ('a')")
    assert (await fetch(database_url, "SELECT max(id) FROM contact"))[0][0] == 1001


async def test_another_unique_constraint_is_no_reason_to_retry(database_url: str) -> None:
    """Only a conflict of ids is retried, with new ids."""
    await execute(database_url, "CREATE UNIQUE INDEX ON contact (email)", "INSERT INTO contact (email) VALUES ('a')")
    async with Database(database_url).opened() as database:
        with pytest.raises(asyncpg.UniqueViolationError):
            await database.serializable(
                "test", lambda connection: connection.execute("INSERT INTO contact (email) VALUES ('a')")
            )


def test_a_role_that_was_granted_by_an_earlier_version(database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Such a role serves. It may not move the sequence: the log says what to do, and requests are still answered."""
    with serving_role(database_url) as url:
        role = url.partition("://")[2].partition(":")[0]
        asyncio.run(execute(database_url, f"REVOKE UPDATE ON SEQUENCE contact_id_seq FROM {role}", IMPORTED))

        async def serve() -> None:
            async with Database(url).opened() as database:
                await database.check()
                with pytest.raises(Unavailable, match="run `recon schema --apply --grant ROLE` as the tables' owner"):
                    await database.serializable(
                        "test", lambda connection: connection.execute("INSERT INTO contact (email) VALUES ('a')")
                    )

        asyncio.run(serve())
    assert "this role may not move the sequence of contact.id" in caplog.text
