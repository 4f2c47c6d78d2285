"""The endpoints of corrections, by HTTP: what each answers, and the rules that hold for all."""

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
    assert kept.pop("at").endswith("Z")
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
    # No record of an erased identity is kept: its key could quote the person.
    kept = {} if name == "erase" else {"repeated": True}
    assert await made(ready, path, body, "k-2", method_of(path)) == again | kept


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
    """No JSON, no object, a wrong note, a query, a wrong or second Idempotency-Key are a 400, another type a 415."""
    path, body = CORRECTIONS[name]
    json = {"Content-Type": "application/json"}

    for content in ("", "[]", "null", '{"note": 1}', '{"note": "a\\u0000"}', '{"dryRun": "yes"}', '{"note": NaN}'):
        assert (await ready.request(method_of(path), path, data=content, headers=json)).status == 400, content
    long = await ready.request(method_of(path), path, json=body | {"note": "n" * 1001})
    query = await ready.request(method_of(path), f"{path}?dryRun=1", json=body)
    key = await ready.request(method_of(path), path, json=body, headers={"Idempotency-Key": "a b"})
    keys = await ready.request(
        method_of(path), path, json=body, headers=[("Idempotency-Key", "a"), ("Idempotency-Key", "a")]
    )
    plain = await ready.request(method_of(path), path, data="x=1")
    assert [response.status for response in (long, query, key, keys, plain)] == [400, 400, 400, 400, 415]


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


async def test_a_link_that_another_guard_withholds_by_now(client: Client) -> None:
    """It stays on the review list, where it is once, as long as any guard withholds it."""
    await made(client, "/guards", {"maxPhones": 1}, method="PATCH")
    for said in ({"email": "doc", "phoneNumber": "1"}, {"email": "doc", "phoneNumber": "2"}, {"phoneNumber": "2"}):
        assert (await client.post("/identify", json=said)).status == 200
    await made(client, "/identities/2/keep-apart", {"contactId": 4})
    await made(client, "/blocked", {"phoneNumber": "1"})

    response = await client.post("/identify", json={"email": "doc", "phoneNumber": "2"})

    assert [each["reason"] for each in (await response.json())["withheld"]] == ["kept-apart"]
    listed = (await (await client.get("/withheld")).json())["withheld"]
    assert [(each["email"], each["phoneNumber"]) for each in listed] == [("doc", "2")]
