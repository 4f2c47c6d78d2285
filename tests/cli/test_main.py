"""The command: its output, its errors, its exit codes."""

from typing import Any

import pytest

from recon import __version__
from recon.database.definitions import SCHEMA, SCHEMA_VERSION
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient, recon


def test_version() -> None:
    """--version prints the version."""
    assert recon("--version").stdout == f"recon, version {__version__}\n"


def test_schema_is_printed() -> None:
    """`recon schema` prints schema.sql unchanged, in a transaction; running it twice changes nothing."""
    done = recon("schema")

    assert done.stdout == f"BEGIN;\n\n{SCHEMA}\nCOMMIT;\n"
    assert done.returncode == 0


async def test_schema_is_applied(bare_database_url: str) -> None:
    """`recon schema --apply` creates the schema once."""
    first = recon("schema", "--apply", "--database-url", bare_database_url)
    second = recon("schema", "--apply", "--database-url", bare_database_url)

    assert (first.returncode, first.stdout) == (0, "the schema was applied\n")
    assert (second.returncode, second.stdout) == (0, "the schema is there already\n")
    assert await fetch(bare_database_url, "SELECT FROM contact") == []


def test_an_unknown_option_is_a_usage_error() -> None:
    """An unknown option is an error with a hint."""
    done = recon("serve", "--prot", "8000")

    assert done.returncode == 2
    assert "No such option" in done.stderr
    assert "--port" in done.stderr


def test_a_data_folder_that_cannot_be() -> None:
    """A data folder that cannot be created is an error in one line."""
    done = recon("serve", "--data-dir", "/dev/null/data")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "/dev/null/data" in done.stderr


def test_check_without_a_schema(bare_database_url: str) -> None:
    """`recon check` refuses a database without recon's schema, and changes nothing."""
    done = recon("check", "--database-url", bare_database_url)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"recon: the database does not have recon's schema {SCHEMA_VERSION};")


def test_check_without_a_database() -> None:
    """A database that does not exist is an error in one line."""
    done = recon("check", "--database-url", "postgresql://127.0.0.1:1/nothing")

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("recon: PostgreSQL at 127.0.0.1:1, database nothing, user ")
    assert done.stderr.endswith(": Connection refused\n")


async def test_check_of_a_clean_database(database_url: str) -> None:
    """Without violations, the exit code is 0, and the summary says how much was checked."""
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('a', '+1 (2)'), ('b', 'x')",
        "INSERT INTO contact (email, link_precedence, linked_id) VALUES ('c', 'secondary', 1)",
    )

    done = recon("check", "--database-url", database_url)

    assert (done.returncode, done.stdout) == (0, "3 contacts of 2 people, 1 unexplained link: no violations\n")


async def test_check_counts_unexplained_links(make_client: MakeClient, database_url: str) -> None:
    """What no request explains is counted: a merge before the journal, or rows written by other programs."""
    client = await make_client()
    for body in ("a", "1"), ("b", "2"), ("a", "2"), ("c", "3"), ("d", "4"), ("c", "4"), ("e", None):
        assert (
            await client.post("/identify", json=dict(zip(("email", "phoneNumber"), body, strict=True)))
        ).status == 200
    explained = recon("check", "--database-url", database_url)
    await execute(database_url, "DELETE FROM event WHERE primary_id = 1")
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE email = 'd'")

    unexplained = recon("check", "--database-url", database_url)

    assert (explained.returncode, explained.stdout) == (0, "5 contacts of 3 people: no violations\n")
    assert unexplained.stdout == "4 contacts of 3 people, 1 unexplained link: no violations\n"


MERGED = "INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key) VALUES (9, 'merged',"
EXPLAINED = {
    "an event that names its primary": [f"{MERGED} 2, 1, 'b', '2', '2')"],
    "an event that names another of its contacts": [f"{MERGED} 1, 3, 'b', '2', '2')"],
    "an event of the primary that a correction made": [
        f"{MERGED} 1, 99, 'b', '2', '2')",
        "INSERT INTO event_contact VALUES (2, 9)",
    ],
}


@pytest.mark.parametrize("statements", EXPLAINED.values(), ids=EXPLAINED)
async def test_check_finds_what_explains_a_link(statements: list[str], database_url: str) -> None:
    """A merge explains its link also when a correction left the primaries of that time in other identities."""
    await execute(
        database_url,
        f"{PRIMARY} ('a', '1'), ('b', NULL), (NULL, '2')",
        "UPDATE contact SET linked_id = 2, link_precedence = 'secondary' WHERE id = 3",
    )
    unexplained = recon("check", "--database-url", database_url)
    await execute(database_url, *statements, "SELECT setval('contact_id_seq', 9)")

    explained = recon("check", "--database-url", database_url)

    assert unexplained.stdout == "3 contacts of 2 people, 1 unexplained link: no violations\n"
    assert explained.stdout == "3 contacts of 2 people: no violations\n"


@pytest.mark.parametrize(
    ("rows", "summary"),
    [
        ([], "0 contacts of 0 people"),
        (["('a', 'primary', NULL)"], "1 contact of 1 person"),
        (["('a', 'primary', NULL)", "('b', 'secondary', 1)"], "2 contacts of 1 person, 1 unexplained link"),
    ],
)
async def test_the_summary_of_a_check(rows: list[str], summary: str, database_url: str) -> None:
    """The summary uses the singular for one."""
    insert = "INSERT INTO contact (email, link_precedence, linked_id) VALUES"
    await execute(database_url, *(f"{insert} {row}" for row in rows))

    done = recon("check", "--database-url", database_url)

    assert done.stdout == f"{summary}: no violations\n"


# The schema refuses most of these rows, so the test first drops its constraints.
UNPROTECTED = (
    "ALTER TABLE contact DROP CONSTRAINT contact_links_to_a_primary",
    "ALTER TABLE contact DROP CONSTRAINT contact_only_secondaries_link",
)
PRIMARY = "INSERT INTO contact (email, phone_number) VALUES"
SECONDARY = "INSERT INTO contact (email, link_precedence, linked_id) VALUES"
VIOLATIONS: dict[str, tuple[list[str], list[str]]] = {
    "two primaries": (
        [f"{PRIMARY} ('a', '1')", "INSERT INTO contact (email, linked_id) VALUES ('b', 1)"],
        ["I1: the cluster of contact 1 has 2 live primaries (contacts 1, 2)"],
    ),
    "no primary": (
        [
            f"{PRIMARY} ('a', '1')",
            f"{SECONDARY} ('b', 'secondary', 1)",
            "UPDATE contact SET deleted_at = now() WHERE id = 1",
        ],
        ["I1: the cluster of contact 1 has 0 live primaries (contact 2)"],
    ),
    "a secondary older than its primary": (
        [
            f"{PRIMARY} ('a', '1')",
            f"{SECONDARY} ('b', 'secondary', 1)",
            "UPDATE contact SET created_at = '2001-01-01' WHERE id = 2",
        ],
        ["I1: secondary 2 is older than its primary 1"],
    ),
    "a secondary under a secondary": (
        [f"{PRIMARY} ('a', '1')", f"{SECONDARY} ('b', 'secondary', 1)", f"{SECONDARY} ('c', 'secondary', 2)"],
        [
            "I1: the cluster of contact 2 has 0 live primaries (contact 3)",
            "I2: contact 3 points at 2, which is no primary",
        ],
    ),
    "a secondary under nothing": (
        [f"{SECONDARY} ('a', 'secondary', 99)"],
        [
            "I1: the cluster of contact 99 has 0 live primaries (contact 1)",
            "I2: contact 1 points at 99, which is no primary",
        ],
    ),
    "one email twice": (
        [f"{PRIMARY} ('a', '1')", f"{PRIMARY} ('a', '2')"],
        ["I3: one email is in the clusters 1, 2 (contacts 1, 2)"],
    ),
    "one phone twice, written in two ways": (
        [f"{PRIMARY} ('a', '1 2')", f"{PRIMARY} ('b', '1-2')"],
        ["I3: one phone is in the clusters 1, 2 (contacts 1, 2)"],
    ),
    "a repetition": (
        [f"{PRIMARY} ('a', NULL)", f"{SECONDARY} ('b', 'secondary', 1)", f"{SECONDARY} ('b', 'secondary', 1)"],
        ["I5: contacts 2, 3 say the same"],
    ),
    "an email in capitals": (
        [f"{PRIMARY} ('A', '1')"],
        ["form: the email of contact 1 is not in the form that requests are matched in"],
    ),
    "an email in decomposed form": (
        [f"{PRIMARY} (normalize('büro@example.org', NFD), '1')"],
        ["form: the email of contact 1 is not in the form that requests are matched in"],
    ),
    "full-width digits, matched by themselves": (
        ["INSERT INTO contact (phone_number, phone_key) VALUES ('\uff11\uff12', '\uff11\uff12')"],
        ["form: the phone_key of contact 1 is not what its phone_number is matched by"],
    ),
    "a key that does not fit": (
        [f"{PRIMARY} ('a', '1')", "UPDATE contact SET phone_key = '2'"],
        ["form: the phone_key of contact 1 is not what its phone_number is matched by"],
    ),
    "identifiers that no request can have": (
        [
            f"{PRIMARY} (E'a\\tb', NULL), (repeat('a', 321), NULL), ('', NULL), (' c', NULL), (NULL, E'1\\t2')",
            f"{PRIMARY} (NULL, repeat('3', 65)), (NULL, ' '), (NULL, ' x'), (NULL, ' 4 ')",
            f"{PRIMARY} (E'\\u0085', E'\\u009f'), ('d', 'e')",
        ],
        [
            *(f"form: no request can match the email of contact {each}" for each in (1, 2, 3)),
            "form: the email of contact 4 is not in the form that requests are matched in",
            *(f"form: no request can match the phone_number of contact {each}" for each in (5, 6, 7)),
            "form: no request can match the email of contact 10",
            "form: no request can match the phone_number of contact 10",
        ],
    ),
    "both sides of a constraint": (
        [
            f"{PRIMARY} ('a', '1'), ('b', '2')",
            f"{SECONDARY} ('c', 'secondary', 1), ('d', 'secondary', 1), ('e', 'secondary', 1), ('f', 'secondary', 2)",
            "UPDATE contact SET apart = '{{9, 0, 0}}' WHERE id = 1",
            "UPDATE contact SET apart = '{{9, 0, 1}, {8, 2, 0}}' WHERE id IN (3, 4)",
            "UPDATE contact SET apart = '{{9, 0, 2}, {8, 1, 1}, {7, 0, 0}}' WHERE id = 5",
            "UPDATE contact SET apart = '{{9, 0, 1}, {7, 0, 1}}' WHERE id = 6",
        ],
        ["I7: the cluster of contact 1 has 3 sides of what event 9 keeps apart (contacts 1, 3, 5)"],
    ),
    "two sides in one constraint of an event that has several": (
        [
            f"{PRIMARY} ('a', '1')",
            f"{SECONDARY} ('b', 'secondary', 1)",
            "UPDATE contact SET apart = '{{9, 1, 0}, {9, 2, 0}, {9, 3, 0}}' WHERE id = 1",
            "UPDATE contact SET apart = '{{9, 1, 0}, {9, 2, 1}, {9, 3, 1}}' WHERE id = 2",
        ],
        ["I7: the cluster of contact 1 has 2 sides of what event 9 keeps apart (contacts 1, 2)"] * 2,
    ),
    "a blocked value": (
        [
            f"{PRIMARY} ('a', '1'), ('b', '2'), ('gone', '3-3')",
            f"{SECONDARY} ('a', 'secondary', 1)",
            "UPDATE contact SET deleted_at = now() WHERE email = 'gone'",
            # From 6 on: the soft delete is an event, which takes an id.
            "INSERT INTO contact (phone_number) SELECT '5-5' FROM generate_series(1, 7)",
            "UPDATE contact SET linked_id = 6, link_precedence = 'secondary', email = id WHERE id > 6",
            """INSERT INTO blocked (kind, key, event_id) VALUES
                ('email', 'a', 20), ('phoneNumber', '55', 21), ('email', '2', 22), ('phoneNumber', 'b', 23),
                ('email', 'gone', 24), ('phoneNumber', '33', 25), ('emailDigest', 'a', 26)""",
        ],
        [
            "I7: the email that event 20 blocked is in 2 contacts (1, 4)",
            "I7: the phone number that event 21 blocked is in 7 contacts (6, 7, 8, 9, 10, …)",
        ],
    ),
    "values of recon's own list": (
        [
            f"{PRIMARY} ('null', '000-0000'), ('b', 'N/A'), ('-', NULL), ('000000', '00000'), ('unknown', 'none')",
            f"{SECONDARY} ('null', 'secondary', 1)",
            "UPDATE contact SET deleted_at = now() WHERE id = 5",
        ],
        [
            "I7: an email of recon's own list is in 2 contacts (1, 6); `recon guards --apply` blocks it",
            "I7: a phone number of recon's own list is in 1 contact (1); `recon guards --apply` blocks it",
            "I7: a phone number of recon's own list is in 1 contact (2); `recon guards --apply` blocks it",
            "I7: an email of recon's own list is in 1 contact (3); `recon guards --apply` blocks it",
        ],
    ),
    "a deleted row harms nobody": (
        [f"{PRIMARY} ('a', '1')", f"{PRIMARY} ('a', '2')", "UPDATE contact SET deleted_at = now() WHERE id = 2"],
        [],
    ),
}


@pytest.mark.parametrize(("statements", "violations"), VIOLATIONS.values(), ids=VIOLATIONS)
async def test_check_finds(statements: list[str], violations: list[str], database_url: str) -> None:
    """A violated invariant is a line with the ids of its rows, as is each missing part of the schema; exit code 1."""
    await execute(database_url, *UNPROTECTED, *statements)

    done = recon("check", "--database-url", database_url)

    *lines, summary = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("schema: ")] == violations
    assert summary.endswith(f": {len(lines)} violations")
    assert done.returncode == 1


JUNK = f"{PRIMARY} ('null', '1'), ('a', '0000000'), ('none', 'null')"


@pytest.mark.parametrize(
    ("statements", "summary", "lines"),
    [
        ((), "3 contacts of 3 people, 4 values of recon's own list: 4 violations", 4),
        (
            ("UPDATE setting SET block_common = false",),
            "3 contacts of 3 people, 4 values of recon's own list, which is off: no violations",
            0,
        ),
        (
            ("UPDATE setting SET block_common = false", "UPDATE contact SET email = 'b' WHERE email = 'none'"),
            "3 contacts of 3 people, 3 values of recon's own list, which is off: no violations",
            0,
        ),
    ],
)
async def test_check_counts_values_of_recons_own_list(
    statements: tuple[str, ...], summary: str, lines: int, database_url: str
) -> None:
    """They are violations while the list is on; a migrated database, where it is off, learns what it would block."""
    await execute(database_url, JUNK, *statements)

    done = recon("check", "--database-url", database_url)

    assert done.stdout.splitlines()[-1] == summary
    assert done.stdout.count("I7: ") == lines
    assert done.returncode == (1 if lines else 0)
    assert "null" not in done.stdout


def test_check_knows_the_region(database_url: str) -> None:
    """`check` computes phone keys with the database's default region, and reports a different own one."""
    import asyncio

    asyncio.run(execute(database_url, "UPDATE setting SET default_region = 'US'"))
    key = "INSERT INTO contact (phone_number, phone_key) VALUES ('(201) 555-0123', '12015550123')"
    asyncio.run(execute(database_url, key))

    with_region = recon("check", "--database-url", database_url, "--default-region", "us")
    without = recon("check", "--database-url", database_url)

    assert (with_region.returncode, without.returncode) == (0, 1)
    [line, _] = without.stdout.splitlines()
    assert line == (
        "region: recon is configured with the default region none, but the database has US: "
        "set --default-region (RECON_DEFAULT_REGION) to US"
    )


def test_check_finds_numbers_whose_extension_was_ignored(database_url: str) -> None:
    """A key without the number's extension is a violation, also with a default region."""
    import asyncio

    key = "INSERT INTO contact (phone_number, phone_key) VALUES ('201-555-0199 ext. 5', '12015550199')"
    asyncio.run(execute(database_url, "UPDATE setting SET default_region = 'US'", key))

    done = recon("check", "--database-url", database_url, "--default-region", "US")

    assert done.returncode == 1
    assert done.stdout.startswith("form: the phone_key of contact 1 is not what its phone_number is matched by\n")


@pytest.mark.parametrize("command", [[], ["serve"], ["check"], ["reset"], ["schema"]])
def test_help(command: list[str]) -> None:
    """Every command's help says what it does and what its options mean."""
    done: Any = recon(*command, "--help")

    assert done.returncode == 0
    assert "Usage: recon" in done.stdout
