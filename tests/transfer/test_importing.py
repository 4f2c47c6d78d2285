"""Imports against the model: what the records come to is what single requests in their order come to."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recon.database.transactions import Database
from recon.errors import Unavailable
from recon.sql import invariants
from recon.transfer.pieces import Piece
from tests.harness.databases import execute, fetch
from tests.harness.imports import import_pieces, piece_of
from tests.harness.model import Model, Request

# Few values, so that records of different pieces and chunks often share one.
EMAILS = st.sampled_from([None, "a", "b", "c", "d", "e"])
PHONES = st.sampled_from([None, "1", "2", "3", "4", "5"])
SAID = st.tuples(EMAILS, PHONES).filter(any)
PIECES = st.lists(st.lists(SAID, min_size=1, max_size=5), min_size=1, max_size=8)


async def take_rows(url: str) -> tuple[list[asyncpg.Record], list[asyncpg.Record]]:
    """The contacts and the merges, which are removed."""
    rows = await fetch(url, "SELECT id, email, phone_number, linked_id FROM contact ORDER BY id")
    merges = await fetch(url, "SELECT id, email, phone_number FROM event ORDER BY id")
    await execute(url, "TRUNCATE contact RESTART IDENTITY")
    return rows, merges


async def test_another_default_region(database_url: str, tmp_path: Path) -> None:
    """An import beside `recon rekey` writes no match keys of the old region: it ends, and its chunk is not written."""

    def beside_a_rekey() -> Iterator[Piece]:
        yield piece_of([("a", "1")], 1)
        asyncio.run(execute(database_url, "UPDATE setting SET default_region = 'US'"))
        yield piece_of([("b", "2")], 2)

    async with Database(database_url).opened() as database:
        with pytest.raises(Unavailable, match="configured with the default region none, but the database has US"):
            await import_pieces(database, beside_a_rekey(), tmp_path, most_pieces=1)

    assert await fetch(database_url, "SELECT email FROM contact WHERE email = 'b'") == []


@pytest.mark.parametrize("most_pieces", [1, 3])
def test_an_import_agrees_with_the_model(most_pieces: int, database_url: str, tmp_path: Path) -> None:
    """Contacts, links, merges, ids and counts are those of the requests one by one, wherever chunks begin."""

    async def scenario(pieces: list[list[Request]]) -> None:
        model = Model()
        async with Database(database_url).opened() as database:
            done = await import_pieces(
                database,
                [piece_of(requests, number) for number, requests in enumerate(pieces, start=1)],
                tmp_path,
                most_pieces=most_pieces,
            )
        for requests in pieces:
            for request in requests:
                model.identify(request)
        assert (await invariants.check(database_url))[0] == []
        rows, merges = await take_rows(database_url)
        assert [tuple(row) for row in rows] == model.table()
        assert [tuple(row) for row in merges] == model.merges
        counts = done.standing.counts
        assert counts["requests"] == sum(map(len, pieces))
        assert counts.get("created", 0) + counts.get("extended", 0) == len(model.rows)
        assert counts.get("merged", 0) == len(model.merges)
        assert done.standing.finished

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(PIECES)
    def holds(pieces: list[list[Request]]) -> None:
        asyncio.run(scenario(pieces))

    holds()
