"""Dates that PostgreSQL has and Python has not: other programs may write any into the table."""

from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from recon.sql.invariants import check
from tests.harness.databases import execute, fetch

INSERT = """
INSERT INTO contact (email, phone_number, created_at, deleted_at)
VALUES ('doc@hillvalley.edu', '1955', '{0}', NULL), ('doc@hillvalley.edu', '1885', '{0}', '{0}')
"""
SHOWN = {
    "-infinity": "0001-01-01T00:00:00Z",
    "0044-03-15 BC": "0001-01-01T00:00:00Z",
    "1985-10-26T01:20:00Z": "1985-10-26T01:20:00Z",
    "12015-10-21": "9999-12-31T00:00:00Z",
    "infinity": "9999-12-31T00:00:00Z",
}


@pytest.mark.parametrize("date", SHOWN)
async def test_any_date(client: TestClient[Any, Any], database_url: str, date: str) -> None:
    """A contact of any date is shown, explained, divided and followed. Beyond Python's dates, the nearest is shown."""
    await execute(database_url, INSERT.format(date))
    await client.post("/identify", json={"email": "doc@hillvalley.edu", "phoneNumber": "1985"})
    await client.post("/identify", json={"email": "marty@hillvalley.edu", "phoneNumber": "1985"})
    await client.post("/identify", json={"email": "emmett@hillvalley.edu", "phoneNumber": "1885"})
    await execute(database_url, "UPDATE contact SET deleted_at = NULL WHERE id = 2")  # an event with the old date

    async def answer(method: str, path: str, **body: Any) -> Any:
        response = await client.request(method, path, **({"json": body} if body else {}))
        assert response.status == 200, (path, await response.text())
        return await response.json()

    await answer("POST", "/identify", email="doc@hillvalley.edu", phoneNumber="1885")
    shown = await answer("GET", "/identities/1/links")
    history = await answer("GET", "/identities/1/history")
    await answer("GET", "/identities/1?asOf=2")
    then = await client.get("/identities/1?asOf=2026-01-01T00:00:00Z")
    why = {"from": {"email": "doc@hillvalley.edu"}, "to": {"phoneNumber": "1885"}}
    path = (await answer("POST", "/why", **why))["path"]
    split = await answer("POST", "/identities/1/split", links=["contact:1"])
    changes = await answer("GET", "/changes")

    assert {each["createdAt"] for each in shown["contacts"] if each["contactId"] < 3} == {SHOWN[date]}
    assert history["entries"][0]["at"] == SHOWN[date]
    assert then.status == (404 if SHOWN[date] > "2026" else 200)
    assert len(path) == 1
    assert len(split["contacts"]) == len(changes["identities"]) == 2
    [[copied]] = await fetch(database_url, f"SELECT created_at = '{date}' FROM contact WHERE phone_number = '1955'")
    assert copied  # to the contact that the split made
    assert (await check(database_url))[0] == []
