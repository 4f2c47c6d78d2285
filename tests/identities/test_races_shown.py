"""Each race without the protection, to show that it fails; then with the protection, with the same timing."""

import asyncio
from functools import partial
from typing import Any

import asyncpg
import pytest

from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.identities.identify import Identify
from recon.rules.identifiers import Identifiers
from recon.settings import DatabaseSettings
from recon.sql import contacts as sql
from tests.harness.databases import fetch
from tests.harness.races import RACES, AllHaveRead, Request

AT_ONCE = 8


async def _run(
    url: str, isolation: str, at_once: list[Request], before: list[Request], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    """Run requests that all read before any of them writes, each in its own transaction; return the outcomes."""
    async with Database(
        url, DatabaseSettings(pool_size=len(at_once) + 1, writer_lane=False, isolation=isolation)
    ).opened() as database:
        identify = Identify(database, identify_response)
        for request in before:
            await identify.write(partial(list, [_identifiers(request)]))
        # Without FOR UPDATE, which would already order some of them: this test is about SERIALIZABLE.
        monkeypatch.setattr(sql, "lock_clusters", AllHaveRead(len(at_once), sql.FETCH_CLUSTERS))
        return await asyncio.gather(
            *(identify.write(partial(list, [_identifiers(request)])) for request in at_once), return_exceptions=True
        )


def _identifiers(request: Request) -> Identifiers:
    email, phone = request
    return Identifiers(email, phone, phone)


async def _clusters(url: str) -> list[tuple[int, list[Request]]]:
    """Return every cluster in the table: its number of primaries, and the identifiers of its rows."""
    rows = await fetch(url, "SELECT id, coalesce(linked_id, id) AS root, email, phone_number FROM contact ORDER BY id")
    clusters: dict[int, list[asyncpg.Record]] = {}
    for row in rows:
        clusters.setdefault(row["root"], []).append(row)
    return [
        (sum(row["id"] == root for row in members), sorted((row["email"], row["phone_number"]) for row in members))
        for root, members in clusters.items()
    ]


@pytest.mark.parametrize("name", RACES)
async def test_without_protection(name: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In READ COMMITTED, the race loses data, duplicates it, or violates a constraint of the schema."""
    race = RACES[name](AT_ONCE)

    outcomes = await _run(database_url, "READ COMMITTED", race.at_once, race.before, monkeypatch)

    refused = any(isinstance(outcome, asyncpg.PostgresError) for outcome in outcomes)
    assert refused or await _clusters(database_url) != [(1, sorted(race.rows))]


@pytest.mark.parametrize("name", RACES)
async def test_with_protection(name: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In SERIALIZABLE with retries, the same timing ends as a serial run."""
    race = RACES[name](AT_ONCE)

    outcomes = await _run(database_url, "SERIALIZABLE", race.at_once, race.before, monkeypatch)

    assert all(isinstance(outcome, list) for outcome in outcomes), outcomes
    assert await _clusters(database_url) == [(1, sorted(race.rows))]
