"""An erasure is complete: nothing of the person is found in any column of any table, nor in what pg_dump writes."""

import json
from typing import Any

import pytest

from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient
from tests.harness.remains import dump, found

EMAIL, PHONE = "george@hillvalley.edu", "(919) 191-5550"
OTHERS = [EMAIL, PHONE, "9191915550", "mcfly@hillvalley.edu", "31-41-59", "314159", "before@hillvalley.edu", "2718281"]


async def post(client: Any, path: str, body: dict[str, Any], **headers: str) -> Any:
    """The answer to a request."""
    response = await client.post(path, json=body, headers=headers)
    assert response.status == 200, await response.text()
    return await response.json()


@pytest.fixture
async def story(make_client: MakeClient, database_url: str) -> Any:
    """George, whose identifiers have got into every place that recon has for them; Biff, who stays."""
    client = await make_client(suppress_key="k" * 32)
    for email, phone in (
        (EMAIL, PHONE),  # 1
        ("mcfly@hillvalley.edu", "31-41-59"),  # 2
        ("biff@hillvalley.edu", "717171"),  # 3
        ("mcfly@hillvalley.edu", "9191915550"),  # merges 2 into 1
        (EMAIL, "717171"),  # merges 3 into 1
    ):
        await post(client, "/identify", {"email": email, "phoneNumber": phone})
    await post(
        client,
        "/identities/1/split",
        {"parts": [[{"email": "biff@hillvalley.edu"}, {"phoneNumber": "717171"}]], "note": f"not {EMAIL}: a bully"},
        **{"Idempotency-Key": "split-1"},
    )
    await post(client, "/identities/1/link", {"contactId": 3, "release": True}, **{"Idempotency-Key": "link-1"})
    await post(client, "/identities/1/split", {"parts": [[{"email": EMAIL}, {"phoneNumber": "31-41-59"}]]})
    separate = (await (await client.post("/lookup", json={"email": EMAIL})).json())["contacts"][0]["primaryContactId"]
    await post(client, f"/identities/{separate}/link", {"contactId": 2, "release": True})
    await execute(
        database_url,
        "UPDATE contact SET email = 'before@hillvalley.edu' WHERE email = 'mcfly@hillvalley.edu' AND id = 2",
        "UPDATE contact SET email = 'mcfly@hillvalley.edu' WHERE email = 'before@hillvalley.edu'",
        "INSERT INTO event (id, kind, primary_id, email, phone_number, phone_key, detail) "
        "SELECT nextval(pg_get_serial_sequence('contact', 'id')), 'withheld', 1, 'mcfly@hillvalley.edu', '2718281', "
        "'2718281', '{\"reason\": \"limit\"}'",
    )
    await post(client, "/identities/3/keep-apart", {"contactId": 1, "note": "Biff is not (919) 191-5550"})
    response = await client.patch("/guards", json={"maxEmails": 9, "note": f"because of {EMAIL.upper()}."})
    assert response.status == 200
    return client


async def test_nothing_is_left(story: Any, database_url: str) -> None:
    """The person's identifiers are in no table and in no dump; those of the other person are all there."""
    before = await found(database_url, OTHERS)
    assert set(before) >= {EMAIL, PHONE, "mcfly@hillvalley.edu", "before@hillvalley.edu", "2718281"}
    identity = (await (await story.post("/lookup", json={"email": EMAIL})).json())["contacts"]
    biff = (await (await story.post("/lookup", json={"phoneNumber": "717171"})).json())["contacts"]
    assert identity != biff

    erased = await post(story, f"/identities/{identity[0]['primaryContactId']}/erase", {}, **{"Idempotency-Key": "e"})

    assert await found(database_url, OTHERS) == {}
    written = await dump(database_url)
    assert "biff@hillvalley.edu" in written
    assert [text for text in OTHERS if text in written] == []
    digests = await fetch(database_url, "SELECT FROM blocked")
    assert digests == []
    assert (await (await story.post("/lookup", json={"phoneNumber": "717171"})).json())["contacts"] == biff
    for contact_id in erased["contactIds"]:
        response = await story.post(f"/identities/{contact_id}/keep-apart", json={"contactId": 3})
        assert response.status == 410
    again = (
        await post(story, "/identities/1/erase", {}, **{"Idempotency-Key": "e"}) if 1 in erased["contactIds"] else None
    )
    assert again is None or again["eventId"] == erased["eventId"]


async def test_what_another_identity_has_stays(make_client: MakeClient, database_url: str) -> None:
    """An identifier that another identity has, because other programs wrote it, is not only the erased person's."""
    client = await make_client()
    await post(client, "/identify", {"email": EMAIL, "phoneNumber": PHONE})
    await execute(database_url, f"INSERT INTO contact (email) VALUES ('{EMAIL}')")

    await post(client, "/identities/1/erase", {"note": EMAIL})

    assert set(await found(database_url, OTHERS)) == {EMAIL}
    assert [tuple(row) for row in await fetch(database_url, "SELECT id, email FROM contact")] == [(2, EMAIL)]


async def test_what_another_contact_had_before(make_client: MakeClient, database_url: str) -> None:
    """Events about contacts of other identities lose the identifiers, too, and nothing else."""
    client = await make_client()
    await post(client, "/identify", {"email": EMAIL})
    await execute(database_url, "UPDATE contact SET email = 'doc@hillvalley.edu', phone_number = '5', phone_key = '5'")
    await post(client, "/identify", {"email": EMAIL, "phoneNumber": PHONE})

    await post(client, "/identities/3/erase", {})

    assert await found(database_url, OTHERS) == {}
    [edited] = await fetch(database_url, "SELECT detail FROM event WHERE kind = 'edited'")
    assert json.loads(edited["detail"]) == {"phoneKey": None, "phoneNumber": None}


async def test_what_is_written_while_the_erasure_is_planned(make_client: MakeClient, database_url: str) -> None:
    """Traces that come between the search and the lane are removed, too."""
    from recon.identities.erasing import _Search

    client = await make_client()
    await post(client, "/identify", {"email": EMAIL, "phoneNumber": PHONE})
    await post(client, "/identify", {"email": "doc@hillvalley.edu"})
    original = _Search.of.__func__  # type: ignore[attr-defined]

    async def slow(cls: Any, *arguments: Any) -> Any:
        search = await original(cls, *arguments)
        await execute(
            database_url,
            "INSERT INTO event (id, kind, primary_id, note) SELECT nextval(pg_get_serial_sequence('contact', 'id')), "
            f"'guards', 2, 'not {EMAIL}'",
        )
        return search

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Search, "of", classmethod(slow))
        await post(client, "/identities/1/erase", {})

    assert await found(database_url, OTHERS) == {}
    assert (
        json.loads((await fetch(database_url, "SELECT detail FROM event WHERE kind = 'erased'"))[0][0])["events"] == 1
    )


async def test_idempotency_keys_that_quote_the_person(make_client: MakeClient, database_url: str) -> None:
    """Their records are deleted, that of the erasure too: repeated, it is in effect already."""
    client = await make_client()
    await post(client, "/identify", {"email": EMAIL, "phoneNumber": PHONE})
    await post(client, "/blocked", {"email": "junk"}, **{"Idempotency-Key": f"not-{EMAIL}"})
    await post(client, "/blocked", {"email": "junk"}, **{"Idempotency-Key": "another"})
    key = {"Idempotency-Key": f"erase-{EMAIL}"}

    erased = await post(client, "/identities/1/erase", {}, **key)

    assert await found(database_url, OTHERS) == {}
    again = await post(client, "/identities/1/erase", {}, **key)
    assert (again["eventId"], again["contactIds"]) == (erased["eventId"], [1])
    assert await found(database_url, OTHERS) == {}
    assert [row["key"] for row in await fetch(database_url, "SELECT key FROM correction")] == ["another"]


async def test_a_value_that_was_blocked_by_mistake(make_client: MakeClient, database_url: str) -> None:
    """It is the person's again; what other contacts lost, or what is blocked still, is not."""
    client = await make_client()
    await post(client, "/identify", {"email": EMAIL, "phoneNumber": "314159"})
    await post(client, "/identify", {"phoneNumber": "9191915550"})
    for said in ("1", "2"):
        await post(client, "/identify", {"email": EMAIL, "phoneNumber": said})
        await execute(database_url, f"INSERT INTO contact (email, phone_number) VALUES ('{said}', '{said}')")
    for number in ("314159", "9191915550", "1", "2"):
        await post(client, "/blocked", {"phoneNumber": number})
    for number in ("314159", "9191915550", "1"):
        await post(client, "/blocked/release", {"phoneNumber": number})

    for contact in (1, 2):
        await post(client, f"/identities/{contact}/erase", {})

    assert await found(database_url, OTHERS) == {}
    events = await fetch(database_url, "SELECT kind, phone_key FROM event WHERE phone_key IS NOT NULL ORDER BY id")
    assert [tuple(row) for row in events] == [("blocked", "1"), ("blocked", "2"), ("unblocked", "1")]


async def test_the_note_of_a_dismissed_link(make_client: MakeClient, database_url: str) -> None:
    """It is about both identities, whichever of the two answered the request; that of another link stays."""
    client = await make_client()
    for email, phone in ((EMAIL, PHONE), ("doc@hillvalley.edu", "5"), ("biff@hillvalley.edu", "717171")):
        await post(client, "/identify", {"email": email, "phoneNumber": phone})
    for contact in (1, 3):
        await post(client, "/identities/2/keep-apart", {"contactId": contact})
    for phone, note in ((PHONE, "it is his son"), ("717171", "it is the bully")):
        await post(client, "/identify", {"email": "doc@hillvalley.edu", "phoneNumber": phone})
        [link] = (await (await client.get("/withheld")).json())["withheld"]
        await post(client, f"/withheld/{link['eventId']}/dismiss", {"note": note})

    await post(client, "/identities/1/erase", {})

    notes = await fetch(database_url, "SELECT note FROM event WHERE kind = 'dismissed' ORDER BY id")
    assert [row["note"] for row in notes] == [None, "it is the bully"]


async def test_an_erasure_that_is_repeated_with_its_state(make_client: MakeClient) -> None:
    """The erased identity has no state any more, and the erasure is in effect."""
    client = await make_client()
    await post(client, "/identify", {"email": EMAIL})
    preview = await post(client, "/identities/1/erase", {"dryRun": True})

    erased, again = [await post(client, "/identities/1/erase", {"ifState": preview["state"]}) for _ in range(2)]

    assert (again["eventId"], again["contactIds"]) == (erased["eventId"], [1])
