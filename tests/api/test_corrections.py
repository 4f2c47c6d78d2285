"""The endpoints of corrections, by HTTP: what each answers, and the rules that hold for all."""

import hashlib
import hmac
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from recon.keys import new_key
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

Client = TestClient[Any, Any]
GEORGE = {"email": "george@hillvalley.edu", "phoneNumber": "919191"}
BIFF = {"email": "biffsucks@hillvalley.edu", "phoneNumber": "717171"}
BRIDGE = {"email": GEORGE["email"], "phoneNumber": BIFF["phoneNumber"]}


def shown(primary: int, emails: list[str], phones: list[str], *others: int) -> dict[str, Any]:
    """An identity as answers show it."""
    return {
        "primaryContactId": primary,
        "primaryContatctId": primary,
        "emails": emails,
        "phoneNumbers": phones,
        "secondaryContactIds": list(others),
    }


ONE = shown(1, [GEORGE["email"]], ["919191"])
TWO = shown(2, [BIFF["email"]], ["717171"])
BOTH = shown(1, [GEORGE["email"], BIFF["email"]], ["919191", "717171"], 2)


@pytest.fixture
async def two(client: Client) -> Client:
    """A client of a recon that knows George (contact 1) and Biff (contact 2), two people."""
    for said in (GEORGE, BIFF):
        assert (await client.post("/identify", json=said)).status == 200
    return client


async def made(client: Client, path: str, body: dict[str, Any], key: str | None = None, method: str = "POST") -> Any:
    """The answer to a correction, which must be made."""
    headers = {"Idempotency-Key": key} if key else {}
    response = await client.request(method, path, json=body, headers=headers)
    assert response.status == 200, await response.text()
    return await response.json()


async def refused(client: Client, path: str, body: Any, status: int, key: str | None = None) -> dict[str, Any]:
    """The problem of a correction that cannot be made."""
    response = await client.post(path, json=body, headers={"Idempotency-Key": key} if key else {})
    assert response.status == status, await response.text()
    problem: dict[str, Any] = await response.json(content_type=None)
    return problem


async def contents(url: str) -> dict[str, list[Any]]:
    """All rows of all tables."""
    tables = ("contact", "event", "event_contact", "blocked", "erased", "correction", "setting")
    return {table: [tuple(row) for row in await fetch(url, f"SELECT * FROM {table} ORDER BY 1, 2")] for table in tables}


async def test_link(two: Client, database_url: str) -> None:
    """Two identities become one by the rule for merges: the older primary stays. The link has an identifier of each."""
    linked = await made(two, "/identities/2/link", {"contactId": 1, "note": "called"})

    assert linked == {"contact": BOTH, "eventId": 3, "state": "2.2"}
    [event] = await fetch(database_url, "SELECT * FROM event")
    assert (event["kind"], event["primary_id"], event["other_id"], event["note"]) == ("linked", 1, 2, "called")
    assert event["detail"] == (
        '{"joins": [{"email": "biffsucks@hillvalley.edu"}, {"email": "george@hillvalley.edu"}], "contacts": [2]}'
    )
    assert await (await two.get("/identities/2")).json() == {"contact": BOTH}


async def test_keep_apart_and_release(two: Client, database_url: str) -> None:
    """Two identities are kept apart, all their contacts on a side each, until that is released."""
    apart = await made(two, "/identities/1/keep-apart", {"contactId": 2, "note": "father and son"})
    marks = await fetch(database_url, "SELECT id, apart FROM contact ORDER BY id")
    released = await made(two, "/identities/2/release", {"contactId": 1})

    assert apart == {"contacts": [ONE, TWO], "eventId": 3}
    assert [tuple(row) for row in marks] == [(1, [[3, 0, 0]]), (2, [[3, 0, 1]])]
    assert released == {"contacts": [ONE, TWO], "eventId": 4, "released": [[1, 2]]}
    assert [row["apart"] for row in await fetch(database_url, "SELECT apart FROM contact")] == [None, None]
    events = await fetch(database_url, "SELECT kind, primary_id, other_id, detail, undone_by FROM event ORDER BY id")
    assert [tuple(row) for row in events] == [
        ("kept_apart", 1, 2, None, 4),
        ("released", 2, 1, '{"events": [3]}', None),
    ]


async def test_release_of_an_event(two: Client) -> None:
    """`eventId` names the constraint; one of an event that keeps nothing apart is not found."""
    await made(two, "/identities/1/keep-apart", {"contactId": 2})

    assert (await refused(two, "/identities/1/release", {"eventId": 2}, 404))["type"] == "urn:recon:not-found"
    assert (await made(two, "/identities/1/release", {"eventId": 3}))["released"] == [[1, 2]]
    assert (await made(two, "/identities/1/release", {"eventId": 3}))["eventId"] is None


async def test_what_is_kept_apart_by_another_event_is_not_freed(two: Client) -> None:
    """The pairs that a release frees are those that nothing else keeps apart."""
    await two.post("/identify", json={"email": "marty"})
    for one, other in ((1, 2), (3, 2)):
        await made(two, f"/identities/{one}/keep-apart", {"contactId": other})
    await made(two, "/identities/1/link", {"contactId": 3})

    first = await made(two, "/identities/1/release", {"eventId": 4})
    second = await made(two, "/identities/1/release", {"contactId": 2})

    assert (first["released"], second["released"]) == ([], [[1, 2]])


async def test_link_of_identities_that_are_kept_apart(two: Client, database_url: str) -> None:
    """Refused with who decided it, when and why; with `release`, the constraint is lifted in the same correction."""
    await made(two, "/identities/1/keep-apart", {"contactId": 2, "note": "father and son"})

    problem = await refused(two, "/identities/1/link", {"contactId": 2}, 409)
    linked = await made(two, "/identities/1/link", {"contactId": 2, "release": True})

    assert problem["type"] == "urn:recon:kept-apart"
    [kept] = problem["keptApart"]
    assert kept.pop("at")
    assert kept == {"eventId": 3, "source": None, "note": "father and son"}
    assert linked == {"contact": BOTH, "released": [[1, 2]], "eventId": 4, "state": "3.2"}
    events = await fetch(
        database_url, "SELECT id, kind, undone_by, detail ->> 'released' AS released FROM event ORDER BY 1"
    )
    assert [tuple(row) for row in events] == [(3, "kept_apart", 4, None), (4, "linked", None, "[3]")]
    assert [row["apart"] for row in await fetch(database_url, "SELECT apart FROM contact")] == [None, None]


async def test_contacts_of_one_identity_are_not_kept_apart(two: Client) -> None:
    """They are one identity: it can be split."""
    await made(two, "/identities/1/link", {"contactId": 2})

    problem = await refused(two, "/identities/1/keep-apart", {"contactId": 2}, 409)

    assert problem["type"] == "urn:recon:one-identity"
    assert "split" in problem["detail"]


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


async def test_a_split_and_the_link_that_undoes_it(merged: Client) -> None:
    """The link gives the same identity and ids back."""
    before = await (await merged.get("/identities/1")).json()
    await made(merged, "/identities/1/split", {"parts": [[{"email": BIFF["email"]}, {"phoneNumber": "717171"}]]})

    linked = await made(merged, "/identities/2/link", {"contactId": 1, "release": True})

    assert {"contact": linked["contact"]} == before == {"contact": BOTH}


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

    digests = {row["key"] for row in await fetch(database_url, "SELECT key FROM blocked WHERE kind = 'digest'")}
    assert digests == {
        hmac.new(key.encode(), text, hashlib.sha256).hexdigest()
        for text in (b"email\0george@hillvalley.edu", b"phoneNumber\x00919191")
    }
    assert await (await client.get("/blocked")).json() == {"blocked": [], "next": None}


async def test_guards(client: Client, database_url: str) -> None:
    """The settings of the guards are those of the database; what is not given stays."""
    before = await (await client.get("/guards")).json()
    changed = await made(client, "/guards", {"maxEmails": 5, "note": "families"}, method="PATCH")
    same = await made(client, "/guards", {"maxEmails": 5}, method="PATCH")

    assert before == {"maxEmails": 1000, "maxPhones": 1000, "blockCommon": True}
    assert changed == before | {"maxEmails": 5, "eventId": 1}
    assert same == before | {"maxEmails": 5, "eventId": None}
    assert await (await client.get("/guards")).json() == before | {"maxEmails": 5}
    [event] = await fetch(database_url, "SELECT kind, note, detail::text FROM event")
    assert tuple(event[:2]) == ("guards", "families")
    assert '"maxEmails": 1000' in event["detail"]


WITHHELD = (
    "INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key, detail) "
    "SELECT nextval(pg_get_serial_sequence('contact', 'id')), 'withheld', 1, 2, 'george@hillvalley.edu', '717171', "
    "'717171', '{{\"reason\": \"{}\"}}'"
)


async def test_dismiss(two: Client, database_url: str) -> None:
    """A withheld link is taken off the review list once; another id is not found."""
    await execute(database_url, WITHHELD.format("limit"))

    assert await made(two, "/withheld/3/dismiss", {"note": "seen"}) == {"eventId": 4}
    assert await made(two, "/withheld/3/dismiss", {}) == {"eventId": 4}
    assert (await refused(two, "/withheld/4/dismiss", {}, 404))["type"] == "urn:recon:not-found"
    events = await fetch(database_url, "SELECT kind, primary_id, other_id, undone_by, note FROM event ORDER BY id")
    assert [tuple(row) for row in events] == [
        ("withheld", 1, 2, 4, None),
        ("dismissed", 1, 3, None, "seen"),
    ]


async def test_lifting_a_guard_closes_what_it_withheld(two: Client, database_url: str) -> None:
    """A withheld link leaves the review list when its constraint is released, or its limit raised far enough."""
    await execute(database_url, WITHHELD.format("kept-apart"), WITHHELD.format("limit"))
    await made(two, "/guards", {"maxEmails": 1}, method="PATCH")
    still = await fetch(database_url, "SELECT undone_by FROM event WHERE kind = 'withheld' ORDER BY id")
    await made(two, "/guards", {"maxEmails": 2}, method="PATCH")
    await made(two, "/identities/1/keep-apart", {"contactId": 2})
    await made(two, "/identities/1/release", {"contactId": 2})

    closed = await fetch(database_url, "SELECT undone_by FROM event WHERE kind = 'withheld' ORDER BY id")
    assert [row[0] for row in still] == [None, None]
    assert [row[0] for row in closed] == [8, 6]


CORRECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "link": ("/identities/1/link", {"contactId": 2}),
    "keep-apart": ("/identities/1/keep-apart", {"contactId": 2}),
    "release": ("/identities/1/release", {"contactId": 3}),
    "dismiss": ("/withheld/4/dismiss", {}),
    "guards": ("/guards", {"maxEmails": 5}),
    "block": ("/blocked", {"email": GEORGE["email"]}),
    "unblock": ("/blocked/release", {"phoneNumber": "555"}),
    "split": ("/identities/2/split", {"links": ["contact:2"]}),
    "erase": ("/identities/1/erase", {}),
}
# What was divided is not in effect, but cannot be divided again in the same way.
REPEATABLE = [name for name in CORRECTIONS if name != "split"]


@pytest.fixture
async def ready(two: Client, database_url: str) -> Client:
    """A client of a recon in which each correction of CORRECTIONS can be made."""
    await two.post("/identify", json={"email": "marty"})
    await execute(database_url, WITHHELD.format("limit"))
    await made(two, "/identities/1/keep-apart", {"contactId": 3})
    await made(two, "/blocked", {"phoneNumber": "555"})
    return two


def method_of(path: str) -> str:
    """The method of a correction."""
    return "PATCH" if path == "/guards" else "POST"


@pytest.mark.parametrize("name", CORRECTIONS)
async def test_a_dry_run_changes_nothing(name: str, ready: Client, database_url: str) -> None:
    """It gives the answer that the correction then has, ids included, and leaves every table and the sequence alone."""
    path, body = CORRECTIONS[name]
    before = await contents(database_url)

    preview = await made(ready, path, body | {"dryRun": True}, "k", method_of(path))

    assert await contents(database_url) == before
    assert await made(ready, path, body, "k", method_of(path)) == preview
    assert await contents(database_url) != before


@pytest.mark.parametrize("name", CORRECTIONS)
async def test_an_idempotency_key(name: str, ready: Client, database_url: str) -> None:
    """The same request returns the first answer and changes nothing; another one with this key is a 422."""
    path, body = CORRECTIONS[name]
    first = await made(ready, path, body, "k-1", method_of(path))
    before = await contents(database_url)

    again = await made(ready, path, dict(reversed(body.items())) | {"dryRun": False}, "k-1", method_of(path))
    other = await ready.request(
        method_of(path), path, json=body | {"note": "other"}, headers={"Idempotency-Key": "k-1"}
    )

    assert again == first | {"repeated": True}
    assert other.status == 422
    assert (await other.json(content_type=None))["type"] == "urn:recon:idempotency-key-reused"
    assert await contents(database_url) == before


@pytest.mark.parametrize("name", REPEATABLE)
async def test_what_is_in_effect_is_not_made_again(name: str, ready: Client, database_url: str) -> None:
    """Without a key, a correction that is in effect answers 200 and adds no event; with one, its answer is kept."""
    path, body = CORRECTIONS[name]
    await made(ready, path, body, None, method_of(path))
    events = await fetch(database_url, "SELECT * FROM event ORDER BY id")

    again = await made(ready, path, body, None, method_of(path))
    with_key = await made(ready, path, body, "k-2", method_of(path))

    assert await fetch(database_url, "SELECT * FROM event ORDER BY id") == events
    assert again == with_key
    assert await made(ready, path, body, "k-2", method_of(path)) == again | {"repeated": True}


@pytest.mark.parametrize("name", CORRECTIONS)
async def test_unknown_members(name: str, ready: Client, database_url: str) -> None:
    """A member that the correction does not have is a 400 that does not quote it."""
    path, body = CORRECTIONS[name]
    before = await contents(database_url)

    response = await ready.request(method_of(path), path, json=body | {"george@hillvalley.edu": 1})

    problem = await response.json(content_type=None)
    assert (response.status, problem["type"]) == (400, "urn:recon:invalid-request")
    assert [error["pointer"] for error in problem["errors"]] == [""]
    assert "george" not in str(problem)
    assert await contents(database_url) == before


@pytest.mark.parametrize("name", CORRECTIONS)
async def test_bodies_and_parameters(name: str, ready: Client) -> None:
    """No JSON, no object, a wrong note, a query, a wrong Idempotency-Key: each is a 400, another type a 415."""
    path, body = CORRECTIONS[name]
    json = {"Content-Type": "application/json"}

    for content in ("", "[]", "null", '{"note": 1}', '{"note": "a\\u0000"}', '{"dryRun": "yes"}', '{"note": NaN}'):
        assert (await ready.request(method_of(path), path, data=content, headers=json)).status == 400, content
    long = await ready.request(method_of(path), path, json=body | {"note": "n" * 1001})
    query = await ready.request(method_of(path), f"{path}?dryRun=1", json=body)
    key = await ready.request(method_of(path), path, json=body, headers={"Idempotency-Key": "a b"})
    plain = await ready.request(method_of(path), path, data="x=1")
    assert [response.status for response in (long, query, key, plain)] == [400, 400, 400, 415]


async def test_if_state(ready: Client) -> None:
    """A correction is made in the state that its dry run had, and in no other."""
    path, body = CORRECTIONS["link"]
    state = (await made(ready, path, body | {"dryRun": True}))["state"]
    await ready.post("/identify", json={"email": "mother@hillvalley.edu", "phoneNumber": BIFF["phoneNumber"]})

    problem = await refused(ready, path, body | {"ifState": state}, 409)
    dry = await refused(ready, path, body | {"ifState": state, "dryRun": True}, 409)
    now = (await made(ready, path, body | {"dryRun": True}))["state"]

    assert problem["type"] == dry["type"] == "urn:recon:changed"
    assert (await made(ready, path, body | {"ifState": now}))["state"] == now
    assert (await refused(ready, path, body | {"ifState": "now"}, 400))["errors"][0]["pointer"] == "/ifState"


@pytest.mark.parametrize("path", ["link", "keep-apart", "release"])
async def test_unknown_and_deleted_contacts(path: str, two: Client, database_url: str) -> None:
    """A contact that never was is a 404, one of an identity without a live contact a 410, erased or deleted."""
    assert (await refused(two, f"/identities/99/{path}", {"contactId": 1}, 404))["type"] == "urn:recon:not-found"
    assert (await refused(two, f"/identities/1/{path}", {"contactId": 99}, 404))["type"] == "urn:recon:not-found"
    await execute(
        database_url,
        "UPDATE contact SET deleted_at = now() WHERE id = 2",
        "INSERT INTO erased (contact_id, event_id) VALUES (77, 78)",
    )
    assert (await refused(two, f"/identities/1/{path}", {"contactId": 2}, 410))["type"] == "urn:recon:deleted"
    assert (await refused(two, f"/identities/77/{path}", {"contactId": 1}, 410))["type"] == "urn:recon:erased"


async def test_scopes(make_client: MakeClient) -> None:
    """Corrections need the scope `steward`, which may read, too; the name of the key is the source of the event."""
    keys = {scope: new_key(scope, [scope]) for scope in ("identify", "read", "steward", "erase", "admin")}
    client = await make_client(api_keys=" ".join(line for _, line in keys.values()))
    may = {name: {"Authorization": f"Bearer {secret}"} for name, (secret, _) in keys.items()}
    for said in (GEORGE, BIFF):
        assert (await client.post("/identify", json=said, headers=may["identify"])).status == 200
    paths = {path: method_of(path) for name, (path, _) in CORRECTIONS.items() if name != "erase"}
    for path, method in paths.items():
        for name in ("identify", "read", "erase"):
            assert (await client.request(method, path, json={}, headers=may[name])).status == 403, (path, name)
        for name in ("steward", "admin"):
            response = await client.request(method, path, json={"unknown": 1}, headers=may[name])
            assert response.status == 400, (path, name)
    for path in ("/guards", "/blocked", "/identities/1"):
        statuses = {name: (await client.get(path, headers=may[name])).status for name in may}
        assert statuses == {"identify": 403, "read": 200, "steward": 200, "erase": 403, "admin": 200}, path

    for name in ("identify", "read", "steward"):
        assert (await client.post("/identities/1/erase", json={}, headers=may[name])).status == 403
    for name in ("erase", "admin"):
        assert (await client.post("/identities/1/erase", json={"dryRun": True}, headers=may[name])).status == 200
    await client.post("/identities/1/link", json={"contactId": 2}, headers=may["steward"])
    history = await (await client.get("/identities/1/history", headers=may["read"])).json()
    assert [(entry["kind"], entry["source"]) for entry in history["entries"]][-1] == ("linked", "steward")
