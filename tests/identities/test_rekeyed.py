"""Processes beside a rekey: no request of a process with the old region writes or finds an old match key."""

import asyncio
from typing import Any

import asyncpg
import pytest

from recon.database.exclusive import BEGIN_EXCLUSIVE
from recon.database.transactions import Database
from recon.errors import Unavailable
from recon.identities.identify import Identify
from tests.harness.databases import fetch
from tests.harness.processes import MakeClient

PHONE, PLAIN, E164 = "(201) 555-0123", "2015550123", "12015550123"
COMPLAINT = "recon is configured with the default region none, but the database has US"
TO_US = (
    f"UPDATE contact SET phone_key = '{E164}' WHERE phone_key = '{PLAIN}'",
    "UPDATE setting SET default_region = 'US'",
)


async def waiting(url: str) -> None:
    """Return when a session waits for the writer lane."""
    statement = "SELECT count(*) FROM pg_locks WHERE relation = 'writer_lane'::regclass AND NOT granted"
    async with asyncio.timeout(30):
        while not (await fetch(url, statement))[0][0]:
            await asyncio.sleep(0.01)


async def beside_a_rekey(client: Any, url: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The status and the answer of a request that waits for the lane that a rekey has."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(BEGIN_EXCLUSIVE)
        request = asyncio.create_task(client.post(path, json=body))
        await waiting(url)
        for statement in TO_US:
            await connection.execute(statement)
        await connection.execute("COMMIT")
        response = await request
        return response.status, await response.json(content_type=None)
    finally:
        await connection.close()


WRITES = [
    ("/identify", {"email": "b", "phoneNumber": PHONE}),
    ("/blocked", {"phoneNumber": PHONE}),
]


@pytest.mark.parametrize(("path", "body"), WRITES)
async def test_without_the_protection(
    path: str, body: dict[str, Any], make_client: MakeClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that waits for a rekey writes an old match key, if it does not look at the region in its snapshot."""
    client = await make_client()
    await client.post("/identify", json={"email": "a", "phoneNumber": PHONE})
    monkeypatch.setattr(Database, "require_region", lambda *_: None)

    status, _ = await beside_a_rekey(client, database_url, path, body)

    assert status == 200
    table, key = ("contact", "phone_key") if path == "/identify" else ("blocked", "key")
    written = await fetch(database_url, f"SELECT {key} FROM {table} WHERE {key} <> '{E164}'")
    assert [row[0] for row in written] == [PLAIN]


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
@pytest.mark.parametrize(("path", "body"), WRITES)
async def test_with_the_protection(
    path: str, body: dict[str, Any], lane: bool, make_client: MakeClient, database_url: str
) -> None:
    """The request gets a 503 that says why, and nothing is changed; the process serves no more."""
    client = await make_client(writer_lane=lane)
    await client.post("/identify", json={"email": "a", "phoneNumber": PHONE})

    if lane:
        status, answer = await beside_a_rekey(client, database_url, path, body)
    else:
        status, answer = await without_the_lane(client, database_url, path, body)

    assert (status, answer["type"]) == (503, "urn:recon:unavailable")
    assert answer["detail"].startswith(COMPLAINT)
    assert [row[0] for row in await fetch(database_url, "SELECT phone_key FROM contact")] == [E164]
    assert await fetch(database_url, "SELECT FROM blocked") == []
    assert (await client.get("/readyz")).status == 503


async def without_the_lane(client: Any, url: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """The same for a request whose snapshot is older than what the rekey commits."""
    connection = await asyncpg.connect(url)
    statement = "SELECT count(*) FROM pg_locks WHERE relation = 'contact'::regclass AND NOT granted"
    try:
        await connection.execute(BEGIN_EXCLUSIVE)
        await connection.fetch("SELECT * FROM contact")  # as a rekey does
        request = asyncio.create_task(client.post(path, json=body))
        async with asyncio.timeout(30):
            while not (await fetch(url, statement))[0][0]:
                await asyncio.sleep(0.01)
        for each in TO_US:
            await connection.execute(each)
        await connection.execute("COMMIT")
        response = await request
        return response.status, await response.json(content_type=None)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/identify", {"phoneNumber": PHONE}),
        ("/lookup", {"phoneNumber": PHONE}),
        ("/why", {"from": {"phoneNumber": PHONE}, "to": {"email": "a"}}),
        ("/blocked", {"phoneNumber": PHONE, "dryRun": True}),
    ],
)
async def test_reads(path: str, body: dict[str, Any], make_client: MakeClient, database_url: str) -> None:
    """A request that only reads gets a 503, too, at once: it would not find what it asks for."""
    client = await make_client()
    await client.post("/identify", json={"email": "a", "phoneNumber": PHONE})
    connection = await asyncpg.connect(database_url)
    for statement in TO_US:
        await connection.execute(statement)
    await connection.close()

    response = await client.post(path, json=body)

    assert response.status == 503
    assert (await response.json(content_type=None))["detail"].startswith(COMPLAINT)


async def test_a_batch(make_client: MakeClient, database_url: str) -> None:
    """A batch of known customers does not begin."""
    client = await make_client()
    await client.post("/identify", json={"email": "a", "phoneNumber": PHONE})
    connection = await asyncpg.connect(database_url)
    await connection.execute(TO_US[1])
    await connection.close()

    headers = {"Content-Type": "application/x-ndjson"}
    response = await client.post("/identify/batch", data=b'{"email": "a"}\n', headers=headers)

    assert response.status == 503
    assert (await response.json(content_type=None))["detail"].startswith(COMPLAINT)


async def test_large_identities(database_url: str) -> None:
    """So does the read of a large identity."""
    async with Database(database_url).opened() as database:
        identify = Identify(database, lambda _: b"")
        connection = await asyncpg.connect(database_url)
        await connection.execute(TO_US[1])
        await connection.close()

        with pytest.raises(Unavailable, match=COMPLAINT):
            await identify.read_large(list)
