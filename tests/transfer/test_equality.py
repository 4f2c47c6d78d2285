"""Imports of what needs more than the rules of a shop: each leaves what single requests in the same order leave."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recon.api.messages import identify_response
from recon.database.definitions import SCHEMA
from recon.database.transactions import Database
from recon.errors import ReconError
from recon.identities.batching import plain
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify
from recon.sql import invariants
from tests.harness.databases import execute, fetch
from tests.harness.imports import identifiers, import_pieces, piece_of
from tests.harness.model import Request

TWO = "INSERT INTO contact (id, email, phone_number) VALUES (1, 'a', '1'), (2, 'b', '2')"
NEXT = "SELECT setval(pg_get_serial_sequence('contact', 'id'), 10)"
# What the database has beforehand, and what is imported then.
CASES: dict[str, tuple[list[str], list[Request]]] = {
    "another program gave two people one email": (
        [TWO, "INSERT INTO contact (id, email, phone_number) VALUES (3, 'a', '3')"],
        [("c", "9"), ("a", "1"), ("d", "3"), ("b", "9")],
    ),
    "a primary is gone": (
        [
            TWO,
            """INSERT INTO contact (id, email, phone_number, linked_id, link_precedence)
            VALUES (3, 'c', '1', 1, 'secondary'), (4, 'd', '1', 1, 'secondary')""",
            "UPDATE contact SET deleted_at = now() WHERE id = 1",
        ],
        [("b", "5"), ("c", "6"), ("d", "2")],
    ),
    "two identities are kept apart": (
        [TWO, "UPDATE contact SET apart = ARRAY[ARRAY[7, 0, id]]"],
        [("x", "8"), ("a", "2"), ("b", "1"), ("a", "2"), ("e", "1"), ("e", "2")],
    ),
    "an identity is at its limits": (
        [TWO, "UPDATE setting SET max_emails = 1, max_phones = 1"],
        [("a", "5"), ("e", "2"), ("a", "5"), ("a", "2"), ("a", "6"), ("f", "7"), ("a", "5")],
    ),
    "a link is on the review list": (
        [
            TWO,
            "UPDATE setting SET max_phones = 1",
            """INSERT INTO event (id, kind, primary_id, email, phone_number, phone_key)
            VALUES (5, 'withheld', 1, 'a', '5', '5')""",
        ],
        [("a", "5"), ("b", "6")],
    ),
    "values identify nobody": (
        ["INSERT INTO blocked (kind, key, event_id) VALUES ('email', 'junk', 1)"],
        [("junk", "1"), ("a", "1"), ("null", None), ("junk", None), ("null", "1"), ("b", "000000"), ("c", None)],
    ),
    "contacts are dated in the future": (
        [TWO, "UPDATE contact SET created_at = now() + make_interval(days => (3 - id)::int)"],
        [("a", "5"), ("b", "6"), ("a", "7"), ("b", "1"), ("c", "6")],
    ),
    "a contact is dated infinity": (
        [TWO, "UPDATE contact SET created_at = 'infinity' WHERE id = 1"],
        [("a", "5"), ("b", "6"), ("a", "7"), ("b", "1"), ("c", "6")],
    ),
    "merges of merges in several pieces": (
        [TWO, "INSERT INTO contact (id, email, phone_number) VALUES (3, 'c', '3'), (4, 'd', '4')"],
        [("c", "4"), ("n", "9"), ("n", "2"), ("b", "3"), ("d", "9"), ("a", "9"), ("a", "10"), ("d", "10")],
    ),
}
CONTACTS = "SELECT id, email, phone_number, linked_id, deleted_at IS NULL AS live, apart FROM contact ORDER BY id"
EVENTS = "SELECT id, kind, primary_id, other_id, email, phone_number, detail FROM event ORDER BY id"
AGES = "SELECT id FROM contact ORDER BY created_at, id"


async def state(url: str) -> list[list[tuple[Any, ...]]]:
    """Return all that a database has, but for times."""
    return [[tuple(row) for row in await fetch(url, query)] for query in (CONTACTS, EVENTS, AGES)]


# A transaction makes its repairs before it decides its first request, so ids depend on where chunks begin.
REPAIRED = {"another program gave two people one email", "a primary is gone"}
PAIRS = """
SELECT contact.email, contact.phone_number, first.email AS of, contact.deleted_at IS NULL AS live
FROM contact LEFT JOIN contact AS first ON first.id = contact.linked_id ORDER BY 1, 2
"""
KINDS = "SELECT kind, email, phone_number FROM event ORDER BY 1, 2, 3"


async def pairs(url: str) -> list[list[tuple[Any, ...]]]:
    """Return all that a database has, but for ids and times."""
    return [[tuple(row) for row in await fetch(url, query)] for query in (PAIRS, KINDS)]


def in_twos(requests: list[Request]) -> Iterator[list[Request]]:
    """Return the requests two by two."""
    for place in range(0, len(requests), 2):
        yield requests[place : place + 2]


@pytest.mark.parametrize("most_pieces", [1, 8])
@pytest.mark.parametrize("name", CASES)
async def test_as_single_requests(
    name: str, most_pieces: int, database_url: str, bare_database_url: str, tmp_path: Path
) -> None:
    """Contacts, ids, links, events and their order are those of single requests."""
    setup, requests = CASES[name]
    await execute(bare_database_url, SCHEMA)
    for url in (database_url, bare_database_url):
        await execute(url, *setup, NEXT)
    async with Database(bare_database_url).opened() as database:
        one = plain(Identify(database, identify_response), 100, Deadlines(5), 4)
        for request in requests:
            try:
                await one(identifiers(request))
            except ReconError as error:
                assert error.code == "blocked"  # noqa: PT017 (only some of them)

    async with Database(database_url).opened() as database:
        pieces = [piece_of(each, number) for number, each in enumerate(in_twos(requests), start=1)]
        await import_pieces(database, pieces, tmp_path, most_pieces=most_pieces)

    if "infinity" not in name:
        assert (await invariants.check(database_url))[0] == (await invariants.check(bare_database_url))[0]
    if name in REPAIRED:
        assert await pairs(database_url) == await pairs(bare_database_url)
    else:
        # No row is dated before the newest one that its transaction has seen, so dates depend on chunks, too.
        compared = 2 if "dated" in name else 3
        assert (await state(database_url))[:compared] == (await state(bare_database_url))[:compared]


async def test_two_processes_import_one_file(database_url: str, tmp_path: Path) -> None:
    """The one that finds the cursor elsewhere ends with an error, and changes nothing."""
    async with Database(database_url).opened() as database:

        def pieces() -> Iterator[Any]:
            yield piece_of([("a", "1")], 1)

        await execute(
            database_url,
            """CREATE FUNCTION moved() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN UPDATE import SET characters = 5; RETURN NULL; END $$""",
            "CREATE TRIGGER moved AFTER INSERT ON contact FOR EACH STATEMENT EXECUTE FUNCTION moved()",
        )
        with pytest.raises(ReconError, match="another process imports"):
            await import_pieces(database, pieces(), tmp_path)

    assert await fetch(database_url, "TABLE contact") == []
