"""The change feed, by HTTP."""

import asyncio
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from recon.identities import changes
from tests.harness.databases import execute, fetch
from tests.harness.feed import Copy, identities_of, read_to_the_end
from tests.harness.processes import MakeClient

Client = TestClient[Any, Any]
GEORGE, BIFF = "george@hillvalley.edu", "biffsucks@hillvalley.edu"
HELD = "INSERT INTO contact (email) VALUES ('held@hillvalley.edu') RETURNING id"


async def _identify(client: Client, email: str | None = None, phone: str | None = None) -> Any:
    response = await client.post("/identify", json={"email": email, "phoneNumber": phone})
    assert response.status == 200
    return (await response.json())["contact"]


async def _correct(client: Client, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status == 200, await response.text()
    return await response.json()


async def _page(client: Client, **parameters: int) -> Any:
    response = await client.get("/changes", params=parameters)
    assert response.status == 200, await response.text()
    return await response.json()


async def _merge(client: Client) -> None:
    """George is contact 1, Biff contact 2, and event 3 merges them."""
    for email, phone in ((GEORGE, "919191"), (BIFF, "717171"), (GEORGE, "717171")):
        await _identify(client, email, phone)


async def test_a_page(client: Client) -> None:
    """A page has contacts and events in order, the identities that they touched, and the ids that are gone."""
    await _merge(client)

    page = await _page(client)

    assert [(entry["position"], entry["kind"]) for entry in page["entries"]] == [
        (1, "contact"),
        (2, "contact"),
        (3, "merged"),
    ]
    assert (page["entries"][2]["primaryContactId"], page["entries"][2]["otherContactId"]) == (1, 2)
    assert page["identities"] == [
        {
            "primaryContactId": 1,
            "primaryContatctId": 1,
            "emails": [GEORGE, BIFF],
            "phoneNumbers": ["919191", "717171"],
            "secondaryContactIds": [2],
        }
    ]
    assert page["gone"] == [{"contactId": 2, "primaryContactId": 1}]
    assert (page["next"], page["more"]) == (3, False)


async def test_pages(client: Client) -> None:
    """Pages follow each other; an identity may be newer than its page. After the last one there is nothing."""
    await _merge(client)

    pages = [await _page(client, after=after, limit=1) for after in range(4)]

    assert [[entry["position"] for entry in page["entries"]] for page in pages] == [[1], [2], [3], []]
    assert [page["next"] for page in pages] == [1, 2, 3, 3]
    assert [page["more"] for page in pages] == [True, True, False, False]
    assert [[each["primaryContactId"] for each in page["identities"]] for page in pages] == [[1], [1], [1], []]
    assert [page["gone"] for page in pages] == [[], [], [{"contactId": 2, "primaryContactId": 1}], []]


async def test_an_empty_database(client: Client) -> None:
    """The first page of an empty database is empty, and ends where it begins."""
    assert await _page(client) == {"entries": [], "identities": [], "gone": [], "next": 0, "more": False}


async def test_a_split(client: Client) -> None:
    """Every part of a split identity comes, and what a link unites again leads to one of them."""
    await _merge(client)
    split = await _correct(client, "/identities/1/split", links=["event:3"])
    first = await _page(client, after=3)
    await _correct(client, "/identities/2/link", contactId=1, release=True)
    second = await _page(client, after=first["next"])

    assert [entry["kind"] for entry in first["entries"]] == ["split"]
    assert first["identities"] == split["contacts"]
    assert first["gone"] == []
    assert [each["primaryContactId"] for each in second["identities"]] == [1]
    assert second["gone"] == [{"contactId": 2, "primaryContactId": 1}]


async def test_an_erasure(client: Client) -> None:
    """The ids of an erased identity lead nowhere, and no page has its values any more, also not an earlier one."""
    await _merge(client)
    await _identify(client, "doc@hillvalley.edu", "1955")

    await _correct(client, "/identities/2/erase")
    response = await client.get("/changes?after=0")
    text, page = await response.text(), await response.json()

    assert [(entry["position"], entry["kind"]) for entry in page["entries"]] == [
        (3, "merged"),
        (4, "contact"),
        (5, "erased"),
    ]
    assert page["gone"] == [{"contactId": each, "primaryContactId": None} for each in (1, 2)]
    assert [each["primaryContactId"] for each in page["identities"]] == [4]
    for value in (GEORGE, BIFF, "919191", "717171"):
        assert value not in text


async def test_a_block(client: Client) -> None:
    """A block touches all identities that it leaves; one without a live contact leads nowhere."""
    for number in range(3):
        await _identify(client, f"p{number}@hillvalley.edu", "555")
    await _identify(client, None, "555")
    junk = await _identify(client, "junk@hillvalley.edu")
    copy = Copy()
    await read_to_the_end(client, "", copy)  # type: ignore[arg-type]

    await _correct(client, "/blocked", phoneNumber="555")
    await _correct(client, "/blocked", email="junk@hillvalley.edu")
    page = await _page(client, after=copy.after)
    copy.take(page)

    assert [each["emails"] for each in page["identities"]] == [[f"p{number}@hillvalley.edu"] for number in range(3)]
    assert page["gone"] == [{"contactId": junk["primaryContactId"], "primaryContactId": None}]
    assert [each["primaryContactId"] for each in page["identities"]] == sorted(copy.identities)


async def test_rows_of_other_programs(client: Client, database_url: str) -> None:
    """Rows that other programs write, edit, soft-delete and restore are in the feed, whoever becomes the primary."""
    await _merge(client)
    copy = Copy()
    for statement in (
        "INSERT INTO contact (email) VALUES ('other@hillvalley.edu')",
        f"INSERT INTO contact (email, linked_id, link_precedence) VALUES ('{GEORGE}2', 1, 'secondary')",
        "UPDATE contact SET deleted_at = now() WHERE id = 1",  # contact 2 stands in
        "UPDATE contact SET email = 'edited@hillvalley.edu' WHERE id = 2",
        # An older contact stands in now.
        "INSERT INTO contact (email, linked_id, link_precedence, created_at) VALUES ('o', 1, 'secondary', '2000-1-1')",
        "UPDATE contact SET deleted_at = now() WHERE email = 'o'",  # contact 2 again
        "UPDATE contact SET deleted_at = NULL WHERE id = 1",
        "UPDATE contact SET deleted_at = now() WHERE id = 1",
        "UPDATE contact SET deleted_at = now() WHERE email LIKE '%hillvalley%'",
    ):
        await execute(database_url, statement)
        await read_to_the_end(client, "", copy)  # type: ignore[arg-type]

        assert copy.identities == await identities_of(database_url), statement
    assert copy.identities == {}


async def test_a_stand_in_is_linked(client: Client, database_url: str) -> None:
    """What stood in for a soft-deleted primary is gone when its identity becomes part of another one."""
    for number in range(3):
        await _identify(client, f"p{number}@hillvalley.edu", str(number))
    await _identify(client, "p1@hillvalley.edu", "11")
    await _identify(client, "p2@hillvalley.edu", "22")
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE id IN (2, 3)")
    copy = Copy()
    await read_to_the_end(client, "", copy)  # type: ignore[arg-type]
    assert sorted(copy.identities) == [1, 4, 5]

    await _correct(client, "/identities/2/link", contactId=1)
    await _identify(client, "p0@hillvalley.edu", "22")
    await read_to_the_end(client, "", copy)  # type: ignore[arg-type]

    assert copy.identities == await identities_of(database_url)
    assert sorted(copy.identities) == [1]


async def test_a_transaction_held_open(
    make_client: MakeClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed ends before the position of an open transaction, where "id greater than" would skip its contact.

    Meanwhile a page waits for a bounded time, and has the changes beyond its end too.
    """
    monkeypatch.setattr(changes, "PATIENCE", 0.05)
    client = await make_client()
    await _identify(client, "before@hillvalley.edu")
    connection = await asyncpg.connect(database_url)
    try:
        transaction = connection.transaction()
        await transaction.start()
        held = await connection.fetchval(HELD)
        after = (await _identify(client, "after@hillvalley.edu"))["primaryContactId"]
        copy, naive = Copy(), 0
        naive = max(row["id"] for row in await fetch(database_url, "SELECT id FROM contact WHERE id > $1", naive))
        await read_to_the_end(client, "", copy)  # type: ignore[arg-type]
        assert sorted(copy.identities) == [1, after]
        while_held = copy.after
        await transaction.commit()
    finally:
        await connection.close()

    naively = await fetch(database_url, "SELECT id FROM contact WHERE id > $1", naive)
    await read_to_the_end(client, "", copy)  # type: ignore[arg-type]

    assert naively == []  # and it will never see `held`
    assert while_held < held < after
    assert copy.positions == [1, held, after]
    assert copy.identities == await identities_of(database_url)


@pytest.mark.parametrize("way", ["identify", "other program"])
async def test_wait(way: str, client: Client, database_url: str) -> None:
    """A request that waits is answered when something happens."""
    waiting = asyncio.create_task(_page(client, wait=30))
    await _page(client)  # a round after the other request has come

    assert not waiting.done()
    if way == "identify":
        await _identify(client, GEORGE)
    else:
        await execute(database_url, "INSERT INTO contact (email) VALUES ('other@hillvalley.edu')")
    page = await waiting

    assert [entry["position"] for entry in page["entries"]] == [1]


async def test_the_wait_ends(client: Client) -> None:
    """A request that waits is answered with an empty page when nothing happens."""
    await _identify(client, GEORGE)

    assert await _page(client, after=1, wait=1) == {
        "entries": [],
        "identities": [],
        "gone": [],
        "next": 1,
        "more": False,
    }


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", "limit=1001", "wait=31", "wait=0.5", "before=1"])
async def test_invalid_parameters(query: str, client: Client) -> None:
    """What is no position, number of entries or seconds is refused; the error says the maximum."""
    response = await client.get(f"/changes?{query}")
    problem = await response.json(content_type=None)

    assert (response.status, problem["type"]) == (400, "urn:recon:invalid-parameter")
    if query.startswith("wait"):
        assert problem["detail"] == "wait must be a whole number from 0 to 30."


async def test_a_position_of_another_database(client: Client) -> None:
    """A position that the database has not got to is a conflict: its consumer has to start again."""
    await _identify(client, GEORGE)

    response = await client.get("/changes?after=2")

    assert response.status == 409
    assert (await response.json(content_type=None))["type"] == "urn:recon:position-ahead"


async def test_head(client: Client) -> None:
    """HEAD has the head of a page, at once."""
    response = await client.head("/changes?wait=30")

    assert (response.status, await response.text()) == (200, "")
