"""The endpoints that look identities up and explain them, by HTTP."""

import asyncio
from datetime import datetime
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestClient

from recon.keys import new_key
from tests.harness.databases import execute
from tests.harness.processes import MakeClient
from tests.harness.steward import NOTE, erase, split_george_and_biff, withhold

Client = TestClient[Any, Any]
GEORGE = {"email": "george@hillvalley.edu", "phoneNumber": "919191"}
BIFF = {"email": "biffsucks@hillvalley.edu", "phoneNumber": "717171"}
MERGED = {
    "primaryContactId": 1,
    "primaryContatctId": 1,
    "emails": ["george@hillvalley.edu", "biffsucks@hillvalley.edu"],
    "phoneNumbers": ["919191", "717171"],
    "secondaryContactIds": [2],
}


@pytest.fixture
async def asked(client: Client) -> Client:
    """A client of a recon that knows George (contact 1) and Biff (contact 2) as one person (event 3)."""
    await _merge(client)
    return client


async def _merge(client: Client) -> None:
    for said in (GEORGE, BIFF, {"email": GEORGE["email"], "phoneNumber": BIFF["phoneNumber"]}):
        assert (await client.post("/identify", json=said)).status == 200


async def _got(client: Client, path: str) -> Any:
    response = await client.get(path)
    assert response.status == 200, await response.text()
    assert response.headers["Content-Type"] == "application/json"
    return await response.json()


async def _problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status == status
    assert response.headers["Content-Type"] == "application/problem+json"
    problem: dict[str, Any] = await response.json(content_type=None)
    assert problem["status"] == status
    return problem


async def test_lookup(asked: Client) -> None:
    """Identifiers match as in /identify, whatever their form; what nobody holds gives an empty list."""
    for said in ({"email": " GEORGE@hillvalley.edu"}, {"phoneNumber": 717171}, {"phoneNumber": "91-91 91"}, GEORGE):
        response = await asked.post("/lookup", json=said)
        assert (response.status, await response.json()) == (200, {"contacts": [MERGED]})
    unknown = await asked.post("/lookup", json={"email": "marty@hillvalley.edu"})
    assert await unknown.json() == {"contacts": []}

    # And nothing was stored.
    assert await (await asked.post("/lookup", json={"email": "marty@hillvalley.edu"})).json() == {"contacts": []}


async def test_lookup_in_a_region(make_client: MakeClient) -> None:
    """The match keys are those of the default region, in /why too."""
    client = await make_client(default_region="US")
    await client.post("/identify", json={"email": "a", "phoneNumber": "(201) 555-0123"})

    found = await (await client.post("/lookup", json={"phoneNumber": "+1 201 555 0123"})).json()
    why = await client.post("/why", json={"from": {"phoneNumber": "+1 201 555 0123"}, "to": {"email": "a"}})

    assert [contact["emails"] for contact in found["contacts"]] == [["a"]]
    assert (await why.json())["same"] is True


async def test_show(asked: Client) -> None:
    """The identity of any of its contacts, now and as it was; HEAD gives the head alone."""
    now = {"contact": MERGED}
    before = await _got(asked, "/identities/2?asOf=2")
    head = await asked.head("/identities/2")

    assert await _got(asked, "/identities/1") == await _got(asked, "/identities/2?asOf=3") == now
    assert (before["contact"]["primaryContactId"], before["contact"]["emails"]) == (2, [BIFF["email"]])
    assert (head.status, await head.text()) == (200, "")


async def test_show_as_of_a_time(asked: Client, database_url: str) -> None:
    """A time stands for the last position written by then, in any time zone."""
    await execute(
        database_url,
        "UPDATE contact SET created_at = '2026-11-21 12:00Z' WHERE id = 1",
        "UPDATE contact SET created_at = '2026-11-21 13:00Z' WHERE id = 2",
        "UPDATE event SET at = '2026-11-21 14:00Z'",
    )

    for time in ("2026-11-21T13:59:59Z", "2026-11-21T13:00:00%2B00:00", "2026-11-21T08:30:00-05:00", "20261121T1330Z"):
        contact = (await _got(asked, f"/identities/1?asOf={time}"))["contact"]
        assert contact["emails"] == [GEORGE["email"]]
    assert await _got(asked, "/identities/2?asOf=2026-11-21T14:00:00Z") == {"contact": MERGED}
    await _problem(await asked.get("/identities/1?asOf=2026-11-21T11:59:59Z"), 404)


async def test_links(asked: Client) -> None:
    """Contacts with dates and sources, and links with what they join."""
    page = await _got(asked, "/identities/2/links")

    dates = [datetime.fromisoformat(contact.pop("createdAt")) for contact in page["contacts"]]
    assert [datetime.fromisoformat(link.pop("at")) for link in page["links"]][:2] == dates
    assert dates == sorted(dates)
    assert page == {
        "contacts": [
            {"contactId": 1, **GEORGE, "source": None},
            {"contactId": 2, **BIFF, "source": None},
        ],
        "links": [
            _link("contact:1", "contact", GEORGE["email"], "919191"),
            _link("contact:2", "contact", BIFF["email"], "717171"),
            _link("event:3", "merge", GEORGE["email"], "717171"),
        ],
        "keptApart": [],
        "withheld": [],
        "next": None,
    }


def _link(name: str, kind: str, email: str, phone: str) -> dict[str, Any]:
    return {"name": name, "kind": kind, "joins": [{"email": email}, {"phoneNumber": phone}], "source": None}


async def test_history(asked: Client, database_url: str) -> None:
    """Contacts and events, oldest first, changes by other programs with the values before."""
    await execute(database_url, "UPDATE contact SET email = 'griff@hillvalley.edu' WHERE id = 2")

    history = await _got(asked, "/identities/2/history")

    assert all(datetime.fromisoformat(entry.pop("at")).tzinfo for entry in history["entries"])
    nothing = {"source": None, "note": None, "primaryContactId": None, "otherContactId": None, "detail": None}
    merged = {"email": GEORGE["email"], "phoneNumber": "717171", "primaryContactId": 1, "otherContactId": 2}
    edited = {"email": None, "phoneNumber": None, "primaryContactId": 1, "otherContactId": 2}
    assert history == {
        "entries": [
            nothing | {"position": 1, "kind": "contact"} | GEORGE,
            nothing | {"position": 2, "kind": "contact"} | BIFF | {"email": "griff@hillvalley.edu"},
            nothing | {"position": 3, "kind": "merged"} | merged,
            nothing | {"position": 4, "kind": "edited"} | edited | {"detail": {"email": BIFF["email"]}},
        ],
        "next": None,
    }


@pytest.mark.parametrize("of", ["links", "history"])
async def test_pages(of: str, asked: Client) -> None:
    """Each page leads to the next one by `next`, which is null at the end."""
    seen, after = [], 0
    while after is not None:
        page = await _got(asked, f"/identities/1/{of}?after={after}&limit=1")
        seen.append([item["name"] for item in page["links"]] if of == "links" else page["entries"][0]["position"])
        after = page["next"]

    assert seen == ([["contact:1"], ["contact:2"], ["event:3"]] if of == "links" else [1, 2, 3])


async def test_why(asked: Client) -> None:
    """The path between two, by identifiers and by contacts, in data and in a sentence."""
    response = await asked.post("/why", json={"from": {"email": " GEORGE@hillvalley.edu"}, "to": {"contactId": 2}})

    answer = await response.json()
    assert response.status == 200
    assert (answer["same"], answer["keptApart"], answer["withheld"]) == (True, [], [])
    assert [link["name"] for link in answer["path"]] == ["event:3", "contact:2"]
    assert answer["sentence"].startswith("george@hillvalley.edu and contact 2 are one person: the request of ")


async def test_why_not(asked: Client) -> None:
    """Two people have no path; somebody unknown is not found."""
    await asked.post("/identify", json={"email": "marty@hillvalley.edu"})
    ask = {"from": {"email": "marty@hillvalley.edu"}, "to": {"phoneNumber": 717171}}

    answer = await (await asked.post("/why", json=ask)).json()
    unknown = await asked.post("/why", json=ask | {"to": {"phoneNumber": "1"}})

    assert (answer["same"], answer["path"]) == (False, None)
    assert answer["sentence"].startswith("No link connects marty@hillvalley.edu and 717171")
    assert (await _problem(unknown, 404))["type"] == "urn:recon:not-found"


async def test_what_is_kept_apart(asked: Client, database_url: str) -> None:
    """Links, why and the review list say from whom an identity is kept apart, and which links were withheld."""
    await split_george_and_biff(database_url)
    await withhold(database_url, 6, ("george@hillvalley.edu", "717171"), "kept-apart", (1, 2))

    links = await _got(asked, "/identities/1/links")
    why = await (await asked.post("/why", json={"from": {"contactId": 1}, "to": {"contactId": 4}})).json()
    review = await _got(asked, "/withheld")

    withheld = {
        "eventId": 6,
        "reason": "kept-apart",
        "email": "george@hillvalley.edu",
        "phoneNumber": "717171",
        "contactId": 1,
        "otherContactId": 2,
        "source": "shop",
    }
    kept = {"eventId": 5, "source": "desk", "note": NOTE}
    for found in (*links["withheld"], *links["keptApart"], *why["withheld"], *why["keptApart"], *review["withheld"]):
        assert datetime.fromisoformat(found.pop("at")).tzinfo
    assert links["keptApart"] == [kept | {"contactIds": [2]}]
    assert why["keptApart"] == [kept | {"contactIds": [1, 2]}]
    assert links["withheld"] == why["withheld"] == review["withheld"] == [withheld]
    assert (why["same"], why["path"], review["next"]) == (False, None, None)
    assert f"(event 5): {NOTE}; recon withheld a link between" in why["sentence"]


async def test_the_history_of_a_divided_identity(asked: Client, database_url: str) -> None:
    """The event of the split has its note and its detail, on both sides."""
    await split_george_and_biff(database_url)

    for contact_id in (1, 2):
        split = (await _got(asked, f"/identities/{contact_id}/history"))["entries"][-1]
        assert (split["position"], split["kind"], split["source"], split["note"]) == (5, "split", "desk", NOTE)
        assert split["detail"]["parts"] == [1, 2]


async def test_an_erased_identity(asked: Client, database_url: str) -> None:
    """It is a 410 in every answer, also for a time before the erasure."""
    await asked.post("/identify", json={"email": "marty@hillvalley.edu"})
    await erase(database_url, 4)

    gone = [await asked.get(f"/identities/4{path}") for path in ("", "?asOf=4", "?asOf=1", "/links", "/history")]
    gone.append(await asked.post("/why", json={"from": {"contactId": 4}, "to": {"contactId": 2}}))

    for response in gone:
        assert (await _problem(response, 410))["type"] == "urn:recon:erased"


@pytest.mark.parametrize("path", ["", "/links", "/history"])
async def test_no_such_contact(path: str, asked: Client) -> None:
    """An id that no contact ever had is a 404, also that of an event."""
    for contact_id in (3, 99, 2**63 - 1):
        problem = await _problem(await asked.get(f"/identities/{contact_id}{path}"), 404)
        assert problem["type"] == "urn:recon:not-found"
    assert (await _problem(await asked.get("/identities/2?asOf=1"), 404))["detail"] == "No contact had this id then."


async def test_a_deleted_identity(asked: Client, database_url: str) -> None:
    """Without a live contact it is a 410, but for its history and its past."""
    await execute(database_url, "UPDATE contact SET deleted_at = now()")  # events 4 and 5

    gone = [await asked.get(f"/identities/1{path}") for path in ("", "/links", "?asOf=5")]
    gone.append(await asked.post("/why", json={"from": {"contactId": 1}, "to": {"contactId": 2}}))

    for response in gone:
        assert (await _problem(response, 410))["type"] == "urn:recon:deleted"
    assert await _got(asked, "/identities/1?asOf=3") == {"contact": MERGED}
    assert [entry["kind"] for entry in (await _got(asked, "/identities/1/history"))["entries"]][3:] == ["deleted"] * 2


@pytest.mark.parametrize(
    "path",
    [
        "/identities/george@hillvalley.edu",
        "/identities/-1",
        "/identities/1.5",
        "/identities/%D9%A1",
        "/identities/9223372036854775808",
        "/identities/99999999999999999999",
        "/identities/x/links",
        "/identities/x/history",
        "/identities/1?asOf=",
        "/identities/1?asOf=yesterday",
        "/identities/1?asOf=-1",
        "/identities/1?asOf=2026-11-21",
        "/identities/1?asOf=2026-11-21T12:00:00",
        "/identities/1?asOf=2026-11-21T12:00:00+00:00",
        "/identities/1?asOf=9223372036854775808",
        "/identities/1?asOf=1&asOf=2",
        "/identities/1?asof=1",
        "/identities/1?email=george@hillvalley.edu",
        "/identities/1/links?asOf=1",
        "/identities/1/links?limit=0",
        "/identities/1/links?limit=1001",
        "/identities/1/links?limit=ten",
        "/identities/1/history?after=-1",
        "/withheld?limit=0",
        "/withheld?asOf=1",
        "/identities/1/history?after=",
        "/identities/1/history?after=1&limit=1&page=2",
    ],
)
async def test_invalid_parameters(path: str, asked: Client) -> None:
    """A parameter that is unknown, given twice or malformed is a 400 that says what it must be, and quotes nothing."""
    problem = await _problem(await asked.get(path), 400)

    assert problem["type"] == "urn:recon:invalid-parameter"
    assert problem["detail"]
    assert "george" not in str(problem)


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ("", [""]),
        ("[]", [""]),
        ("{}", ["/from", "/to"]),
        ('{"from": {"email": "a"}}', ["/to"]),
        ('{"from": {"email": "a"}, "to": {"email": "b"}, "email": "c"}', [""]),
        ('{"from": {"email": "a"}, "to": NaN}', [""]),
        ('{"from": {"email": "a"}, "to": null}', ["/to"]),
        ('{"from": {"email": "a", "phoneNumber": "1"}, "to": {}}', ["/from", "/to"]),
        ('{"from": {"email": "a\\u0000b"}, "to": {"contactId": "1"}}', ["/from/email", "/to"]),
        ('{"from": {"email": " "}, "to": {"phoneNumber": ""}}', ["/from/email", "/to/phoneNumber"]),
        ('{"from": {"contactId": 9223372036854775808}, "to": {"contactId": -1}}', ["/from", "/to"]),
        ('{"from": {"contactId": true}, "to": {"phoneNumber": 1.5}}', ["/from", "/to"]),
    ],
)
async def test_invalid_questions(body: str, pointers: list[str], asked: Client) -> None:
    """A question that is not one has an error for each end that is wrong."""
    response = await asked.post("/why", data=body, headers={"Content-Type": "application/json"})

    problem = await _problem(response, 400)
    assert problem["type"] == "urn:recon:invalid-request"
    assert [error["pointer"] for error in problem["errors"]] == pointers


async def test_bodies_are_checked_as_those_of_identify(asked: Client) -> None:
    """No JSON, another type, too large, not as declared, parameters in the query: each has its status."""
    for path in ("/lookup", "/why"):
        await _problem(await asked.post(path, data="x=1"), 415)
        await _problem(await asked.post(path, json={"email": "a" * 100_000}), 413)
        await _problem(await asked.post(path, json={"phoneNumber": True}), 400)
        await _problem(await asked.post(f"{path}?email=a", json=GEORGE), 400)
        zipped = {"Content-Type": "application/json", "Content-Encoding": "gzip", "Connection": "close"}
        await _problem(await asked.post(path, data=b"no gzip", headers=zipped), 400)
        await _problem(await asked.get(path), 405)


async def test_keys_with_the_scope_read(make_client: MakeClient) -> None:
    """A key needs the scope `read`; the names of keys are the sources of what their requests brought."""
    (shop, line), (desk, other) = new_key("shop", ["identify"]), new_key("desk", ["read"])
    client = await make_client(api_keys=f"{line} {other}")
    may, may_not = {"Authorization": f"Bearer {desk}"}, {"Authorization": f"Bearer {shop}"}
    assert (await client.post("/identify", json=GEORGE, headers=may_not)).status == 200

    for path in ("/identities/1", "/identities/1/links", "/identities/1/history", "/withheld"):
        assert (await client.get(path, headers=may)).status == 200
        await _problem(await client.get(path, headers=may_not), 403)
        await _problem(await client.get(path), 401)
    for path, body in (("/lookup", GEORGE), ("/why", {"from": {"contactId": 1}, "to": {"contactId": 1}})):
        assert (await client.post(path, json=body, headers=may)).status == 200
        await _problem(await client.post(path, json=body, headers=may_not), 403)
    page = await (await client.get("/identities/1/links", headers=may)).json()
    assert [item["source"] for item in (*page["contacts"], *page["links"])] == ["shop", "shop"]


async def test_pages_of_other_origins_may_ask(make_client: MakeClient) -> None:
    """A browser may send these requests from the allowed origins, after it has asked (CORS preflight)."""
    client = await make_client(cors_origins="https://desk.example")

    for path in ("/lookup", "/why", "/identities/1", "/identities/1/links", "/identities/1/history"):
        response = await client.options(path, headers={"Origin": "https://desk.example"})
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "https://desk.example"


async def test_deadlines(make_client: MakeClient, database_url: str) -> None:
    """A read that the database keeps waiting is a 503 at its deadline, and the next one is answered."""
    client = await make_client(request_timeout=1, statement_timeout=0.9)
    await _merge(client)

    locking = await asyncpg.connect(database_url)
    async with locking.transaction():
        await locking.execute("LOCK TABLE contact IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(10):
            problem = await _problem(await client.get("/identities/1"), 503)
    await locking.close()

    assert problem["type"] in {"urn:recon:deadline-exceeded", "urn:recon:unavailable"}
    assert await _got(client, "/identities/1") == {"contact": MERGED}
