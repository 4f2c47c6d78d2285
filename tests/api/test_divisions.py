"""The endpoints that divide identities, block values and erase people, by HTTP."""

import hashlib
import hmac
from typing import Any

import pytest

from recon.sql.invariants import check
from tests.api.test_corrections import (
    BIFF,
    BOTH,
    BRIDGE,
    GEORGE,
    ONE,
    TWO,
    WITHHELD,
    Client,
    contents,
    made,
    refused,
    shown,
    two,
)
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

__all__ = ["two"]  # a fixture


@pytest.fixture
async def merged(two: Client) -> Client:
    """A client of a recon that knows George and Biff as one person, by a request that had an identifier of each."""
    assert (await two.post("/identify", json=BRIDGE)).status == 200
    return two


async def test_split_by_links(merged: Client, database_url: str) -> None:
    """Cutting the link of a merge gives both their former ids back, and keeps them apart."""
    split = await made(merged, "/identities/2/split", {"links": ["event:3"], "note": "two people"})

    assert split == {"contacts": [ONE, TWO], "cut": ["event:3"], "eventId": 4, "state": "3.2"}
    events = await fetch(database_url, "SELECT kind, primary_id, undone_by, note FROM event ORDER BY id")
    assert [tuple(row) for row in events] == [("merged", 1, 4, None), ("split", 1, None, "two people")]
    named = await fetch(database_url, "SELECT contact_id, event_id FROM event_contact ORDER BY 1")
    assert [tuple(row) for row in named] == [(1, 4), (2, 4)]
    marks = [row["apart"] for row in await fetch(database_url, "SELECT apart FROM contact ORDER BY id")]
    assert [[event for event, _, _ in mark] for mark in marks] == [[4], [4]]
    problem = await refused(merged, "/identities/1/link", {"contactId": 2}, 409)
    assert problem["keptApart"][0]["note"] == "two people"


async def test_split_by_parts(client: Client, database_url: str) -> None:
    """An identifier that moves out of a contact gets one of its own, with the date of the old one."""
    await client.post("/identify", json=GEORGE)
    await client.post("/identify", json={"email": BIFF["email"], "phoneNumber": "919191"})
    body = {"parts": [[{"phoneNumber": " 91-91-91"}]], "rest": "together", "keepApart": False}

    preview = await made(client, "/identities/1/split", body | {"dryRun": True})
    split = await made(client, "/identities/1/split", body | {"ifState": preview["state"]})

    assert split == preview
    assert split["contacts"] == [shown(1, [GEORGE["email"], BIFF["email"]], [], 2), shown(3, [], ["919191"])]
    assert (split["cut"], split["eventId"]) == (["contact:1", "contact:2"], 4)
    rows = await fetch(database_url, "SELECT id, email, phone_number, linked_id, apart FROM contact ORDER BY id")
    assert [tuple(row) for row in rows] == [
        (1, GEORGE["email"], None, None, None),
        (2, BIFF["email"], None, 1, None),
        (3, None, "919191", None, None),
    ]
    assert (await fetch(database_url, "SELECT count(DISTINCT created_at) FROM contact WHERE id <> 2"))[0][0] == 1
    assert await (await client.get("/identities/3")).json() == {"contact": split["contacts"][1]}


async def test_a_part_that_an_earlier_merge_holds_together(merged: Client, database_url: str) -> None:
    """What the request of the merge joined moves out of both its contacts: the event is found by the new root."""
    parts = [[{"email": GEORGE["email"]}, {"phoneNumber": BIFF["phoneNumber"]}]]

    split = await made(merged, "/identities/1/split", {"parts": parts, "rest": "together"})

    [new] = [each for each in split["contacts"] if GEORGE["email"] in each["emails"]]
    assert new["emails"] == [GEORGE["email"]]
    assert new["phoneNumbers"] == [BIFF["phoneNumber"]]
    named = await fetch(database_url, "SELECT contact_id FROM event_contact WHERE event_id = 3")
    assert [row["contact_id"] for row in named] == [new["primaryContactId"]]
    links = await (await merged.get(f"/identities/{new['primaryContactId']}/links")).json()
    assert [link["name"] for link in links["links"]] == ["event:3"]


@pytest.mark.parametrize("form", ["parts", "links"])
async def test_a_split_and_the_link_that_undoes_it(form: str, merged: Client) -> None:
    """The split gives both former identities and ids back, and the link the one. Then the link itself is cut."""
    before = await (await merged.get("/identities/1")).json()
    biff = [{"email": BIFF["email"]}, {"phoneNumber": "717171"}]
    for _ in range(2):
        newest = (await (await merged.get("/identities/1/links")).json())["links"][-1]["name"]
        split = {"parts": [biff]} if form == "parts" else {"links": [newest]}
        assert (await made(merged, "/identities/1/split", split))["contacts"] == [ONE, TWO]

        linked = await made(merged, "/identities/2/link", {"contactId": 1, "release": True})

        assert {"contact": linked["contact"]} == before == {"contact": BOTH}
        for contact_id in (1, 2):
            assert await (await merged.get(f"/identities/{contact_id}")).json() == before


async def test_what_does_not_divide(merged: Client, database_url: str) -> None:
    """If other links still connect everything, the problem has their path."""
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number, linked_id, link_precedence) "
        f"VALUES ('{BIFF['email']}', '919191', 1, 'secondary')",
    )

    problem = await refused(merged, "/identities/1/split", {"links": ["event:3"]}, 409)

    assert problem["type"] == "urn:recon:not-divided"
    assert [(link["name"], link["joins"]) for link in problem["path"]] == [
        ("contact:1", [{"email": GEORGE["email"]}, {"phoneNumber": "919191"}]),
        ("contact:4", [{"email": BIFF["email"]}, {"phoneNumber": "919191"}]),
        ("contact:2", [{"email": BIFF["email"]}, {"phoneNumber": "717171"}]),
    ]


@pytest.mark.parametrize(
    "body",
    [
        {"links": []},
        {"links": ["contact:9"]},
        {"links": [GEORGE["email"]]},
        {"parts": []},
        {"parts": [[]]},
        {"parts": [[{"email": "marty"}]]},
        {"parts": [[{"email": GEORGE["email"]}, {"email": GEORGE["email"]}]]},
        {"parts": [[{"email": GEORGE["email"]}], [{"email": GEORGE["email"].upper()}]]},
        {"parts": [[{"email": GEORGE["email"]}, {"email": BIFF["email"]}, {"phoneNumber": 1}]]},
        {"parts": [[{"email": e} for e in (GEORGE["email"], BIFF["email"])] + [{"phoneNumber": 919191}] * 2]},
    ],
)
async def test_splits_that_cannot_be(body: dict[str, Any], merged: Client, database_url: str) -> None:
    """An empty or repeated list, a link or an identifier that the identity does not have: a 422 that quotes nothing."""
    before = await contents(database_url)

    problem = await refused(merged, "/identities/1/split", body, 422)

    assert problem["type"] == "urn:recon:invalid-correction"
    assert "hillvalley" not in str(problem)
    assert await contents(database_url) == before


async def test_one_list_that_names_all(merged: Client) -> None:
    """Nothing would separate."""
    everything = [{"email": GEORGE["email"]}, {"email": BIFF["email"]}, {"phoneNumber": 919191}]

    problem = await refused(merged, "/identities/1/split", {"parts": [[*everything, {"phoneNumber": "717171"}]]}, 422)

    assert problem["detail"] == "/parts/0 names all of the identity: nothing would separate."


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, [""]),
        ({"links": ["event:3"], "parts": [[{"email": "a"}]]}, [""]),
        ({"links": "event:3"}, ["/links"]),
        ({"parts": [{"email": "a"}]}, ["/parts/0"]),
        ({"parts": [["a"]]}, ["/parts/0/0"]),
        ({"parts": [[{"email": "a"}, {"email": "a", "phoneNumber": "1"}]]}, ["/parts/0/1"]),
        ({"parts": [[{"email": "a\u0000"}]]}, ["/parts/0/0"]),
        ({"parts": [[{"contactId": 1}]]}, ["/parts/0/0"]),
        ({"links": ["event:3"], "rest": "apart"}, ["/rest"]),
        ({"links": ["event:3"], "keepApart": 1}, ["/keepApart"]),
    ],
)
async def test_invalid_splits(body: dict[str, Any], pointers: list[str], merged: Client) -> None:
    """What is no split is a 400 with a pointer to what is wrong."""
    problem = await refused(merged, "/identities/1/split", body, 400)

    assert [error["pointer"] for error in problem["errors"]] == pointers


async def test_block_and_unblock(client: Client, database_url: str) -> None:
    """A blocked value leaves all contacts, what only it connected separates, and it is on the list."""
    for email, phone in (("a", "0800"), ("b", "0800"), ("c", "0800")):
        await client.post("/identify", json={"email": email, "phoneNumber": phone})
    await client.post("/identify", json={"email": "c", "phoneNumber": "3"})

    blocked = await made(client, "/blocked", {"phoneNumber": "08-00", "note": "the shop's own"})
    again = await made(client, "/blocked", {"phoneNumber": "0800"})
    listed = await (await client.get("/blocked")).json()
    released = await made(client, "/blocked/release", {"phoneNumber": 800})
    freed = await made(client, "/blocked/release", {"phoneNumber": "0800"})

    separated = [shown(1, ["a"], []), shown(2, ["b"], []), shown(3, ["c"], ["3"], 4)]
    assert blocked == {"contacts": separated, "eventId": 5}
    assert again == {"contacts": [], "eventId": 5}
    [value] = listed["blocked"]
    assert value.pop("at")
    assert (value, listed["next"]) == (
        {"phoneNumber": "08-00", "eventId": 5, "source": None, "note": "the shop's own"},
        None,
    )
    assert released == {"eventId": None}
    assert freed == {"eventId": 6}
    assert await (await client.get("/blocked")).json() == {"blocked": [], "next": None}
    events = await fetch(database_url, "SELECT kind, primary_id, phone_number, phone_key, undone_by FROM event")
    assert sorted(tuple(row) for row in events) == [
        ("blocked", 1, "08-00", "0800", 6),
        ("unblocked", None, "0800", "0800", None),
    ]


async def test_a_contact_that_has_only_the_blocked_value(client: Client, database_url: str) -> None:
    """It is soft-deleted and keeps the value; a value that nobody has can be blocked, too."""
    await client.post("/identify", json={"email": "noreply@shop.example"})
    await execute(database_url, WITHHELD.format("limit").replace(GEORGE["email"], "noreply@shop.example"))

    blocked = await made(client, "/blocked", {"email": "NoReply@shop.example"})
    nobody = await made(client, "/blocked", {"email": "nobody@shop.example"})

    assert (blocked, nobody) == ({"contacts": [], "eventId": 3}, {"contacts": [], "eventId": 4})
    [row] = await fetch(database_url, "SELECT email, deleted_at IS NOT NULL AS gone FROM contact")
    assert tuple(row) == ("noreply@shop.example", True)
    assert (await fetch(database_url, "SELECT undone_by FROM event WHERE kind = 'withheld'"))[0][0] == 3
    pages = [await (await client.get(f"/blocked?after={after}&limit=1")).json() for after in (0, 3)]
    assert [(page["blocked"][0]["eventId"], page["next"]) for page in pages] == [(3, 3), (4, None)]


@pytest.mark.parametrize("path", ["/blocked", "/blocked/release"])
@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, [""]),
        (GEORGE, [""]),
        ({"email": " "}, ["/email"]),
        ({"phoneNumber": True}, ["/phoneNumber"]),
        ({"email": None}, [""]),
    ],
)
async def test_invalid_values(path: str, body: dict[str, Any], pointers: list[str], client: Client) -> None:
    """A value is either an email or a phone number."""
    problem = await refused(client, path, body, 400)

    assert [error["pointer"] for error in problem["errors"]] == pointers


async def test_erase(two: Client, database_url: str) -> None:
    """The contacts are gone, their ids are never used again and answer 410, and the same person returns anew."""
    await two.post("/identify", json={"email": "son@hillvalley.edu", "phoneNumber": "919191"})
    await made(two, "/identities/1/keep-apart", {"contactId": 2, "note": "George is not Biff"})

    preview = await made(two, "/identities/3/erase", {"dryRun": True, "note": "asked by letter"})
    erased = await made(two, "/identities/3/erase", {"ifState": preview["state"], "note": "asked by letter"})
    again = await made(two, "/identities/1/erase", {})
    back = await (await two.post("/identify", json=GEORGE)).json()

    assert erased == preview
    assert erased.pop("reminder")
    assert erased == {"contactIds": [1, 3], "keptApart": [2], "eventId": 5, "state": "4.2"}
    assert again == {"contactIds": [1, 3], "keptApart": [], "eventId": 5, "reminder": again["reminder"]}
    assert back == {"contact": shown(6, [GEORGE["email"]], ["919191"])}
    events = await fetch(database_url, "SELECT kind, primary_id, note, detail::text FROM event ORDER BY id")
    assert [tuple(row) for row in events] == [
        ("kept_apart", 1, None, None),
        ("erased", 1, None, '{"events": 1, "contacts": 2}'),
    ]
    gone = await fetch(database_url, "SELECT contact_id, event_id FROM erased ORDER BY 1")
    assert [tuple(row) for row in gone] == [(1, 5), (3, 5)]
    assert (await refused(two, "/identities/3/link", {"contactId": 2}, 410))["type"] == "urn:recon:erased"


async def test_erase_of_a_deleted_identity(two: Client, database_url: str) -> None:
    """An identity of which no contact is live can be erased, too."""
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE id = 1")

    assert (await made(two, "/identities/1/erase", {}))["contactIds"] == [1]
    assert (await refused(two, "/identities/99/erase", {}, 404))["type"] == "urn:recon:not-found"


async def test_suppress(make_client: MakeClient, database_url: str) -> None:
    """With `suppress`, a digest of each identifier stays; without a key, that is refused and erases nothing."""
    without, key = await make_client(), "k" * 32
    client = await make_client(suppress_key=key)
    await client.post("/identify", json=GEORGE)

    problem = await refused(without, "/identities/1/erase", {"suppress": True}, 422)
    assert problem["type"] == "urn:recon:invalid-correction"
    assert "RECON_SUPPRESS_KEY" in problem["detail"]
    assert len(await fetch(database_url, "SELECT FROM contact")) == 1
    await made(client, "/identities/1/erase", {"suppress": True})

    digests = {tuple(row) for row in await fetch(database_url, "SELECT kind, key FROM blocked")}
    assert digests == {
        (kind, hmac.new(key.encode(), text, hashlib.sha256).hexdigest())
        for kind, text in (
            ("emailDigest", b"email\0george@hillvalley.edu"),
            ("phoneNumberDigest", b"phoneNumber\x00919191"),
            ("digestCheck", b"\0"),  # tells the key
        )
    }
    assert await (await client.get("/blocked")).json() == {"blocked": [], "next": None}


async def test_what_is_suppressed_does_not_return(make_client: MakeClient) -> None:
    """A request with a suppressed identifier is answered as with a blocked one; others are as ever."""
    client = await make_client(suppress_key="k" * 32)
    await client.post("/identify", json=GEORGE)
    await made(client, "/identities/1/erase", {"suppress": True})

    again = await client.post("/identify", json={"email": " GEORGE@hillvalley.edu", "phoneNumber": "91-91-91"})
    partly = await (await client.post("/identify", json={"email": "mcfly@x.io", "phoneNumber": "919191"})).json()
    swapped = await (await client.post("/identify", json={"email": "919191"})).json()

    assert (again.status, (await again.json(content_type=None))["type"]) == (422, "urn:recon:blocked")
    assert partly["contact"]["phoneNumbers"] == []
    assert [each["reason"] for each in partly["withheld"]] == ["blocked"]
    assert swapped["contact"]["emails"] == ["919191"]  # it was a phone number that was suppressed


async def test_the_key_of_what_is_suppressed(make_client: MakeClient) -> None:
    """A process without this key does not start to serve: it would let the person return. Nor does another key do."""
    client = await make_client(suppress_key="k" * 32)
    for said in (GEORGE, BIFF):
        await client.post("/identify", json=said)
    other = await make_client(suppress_key="x" * 32)
    await made(client, "/identities/1/erase", {"suppress": True})

    problem = await refused(other, "/identities/2/erase", {"suppress": True}, 422)
    assert "another key" in problem["detail"]
    for settings in ({}, {"suppress_key": "x" * 32}):
        late = await make_client(**settings)
        assert (await late.post("/identify", json=GEORGE)).status == 503
        assert (await late.get("/readyz")).status == 503
    assert (await (await make_client(suppress_key="k" * 32)).post("/identify", json=GEORGE)).status == 422


async def test_contacts_that_say_the_same_after_a_block(client: Client, database_url: str) -> None:
    """A contact that lost its phone number may be left with what another one says: that violates nothing."""
    for said in ({"email": "a"}, {"email": "a", "phoneNumber": "1"}):
        await client.post("/identify", json=said)

    await made(client, "/blocked", {"phoneNumber": "1"})

    assert [row["email"] for row in await fetch(database_url, "SELECT email FROM contact")] == ["a", "a"]
    assert (await check(database_url))[0] == []
