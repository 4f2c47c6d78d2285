"""What a rekey does to the journal, to operator links, and to blocked and suppressed phone numbers."""

import json
from typing import Any

import pytest

from tests.cli.test_identities import ask
from tests.cli.test_rekey import E164, PLAIN, US, everything, keys, rekey
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

INTERNATIONAL = f"+{E164}"
SUPPRESS_KEY = "k" * 32


async def posted(client: Any, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of a request."""
    async with client.post(path, json=body) as response:
        answer: dict[str, Any] = await response.json(content_type=None)
        assert response.status == 200, answer
        return answer


async def identified(client: Any, *requests: tuple[str | None, str | None]) -> list[dict[str, Any]]:
    """The answers to `/identify`."""
    return [await posted(client, "/identify", {"email": email, "phoneNumber": phone}) for email, phone in requests]


async def test_an_operator_link(make_client: MakeClient, database_url: str) -> None:
    """A member whose contacts have several texts becomes several members, so that the link still joins all."""
    client = await make_client(default_region="US")
    await identified(client, (None, US), ("p", INTERNATIONAL), ("q", None))
    await posted(client, "/identities/1/link", {"contactId": 3})

    assert rekey(database_url)["events"] == 1

    [(detail,)] = await fetch(database_url, "SELECT detail FROM event WHERE kind = 'linked'")
    assert json.loads(detail)["joins"] == [{"phoneNumber": PLAIN}, {"phoneNumber": E164}, {"email": "q"}]
    assert ask(database_url, "check").stdout == "3 contacts of 1 person: no violations\n"
    after = await make_client()
    why = await posted(after, "/why", {"from": {"email": "q"}, "to": {"email": "p"}})
    assert [link["name"] for link in why["path"]] == ["event:4", "contact:2"]


async def test_the_past(make_client: MakeClient, database_url: str) -> None:
    """The history still answers, and shows identities as they were, before and after a split."""
    client = await make_client()
    await identified(client, ("a", US), ("b", "5"), ("a", "5"))
    await posted(client, "/identities/1/split", {"links": ["event:3"]})
    before = [await (await client.get(f"/identities/1?asOf={position}")).json() for position in range(1, 6)]

    rekey(database_url, "--default-region", "US")

    after = await make_client(default_region="US")
    assert [await (await after.get(f"/identities/1?asOf={position}")).json() for position in range(1, 6)] == before
    assert (await after.get("/identities/1/history")).status == 200


async def test_a_merge_stays_explained(make_client: MakeClient, database_url: str) -> None:
    """The key of a merge stays one that the identity has, though the request had another text; and comes back."""
    client = await make_client(default_region="US")
    await identified(client, ("a", US), ("b", "5"), ("b", INTERNATIONAL))
    before = await keys(database_url, "event"), await keys(database_url)

    rekey(database_url)

    assert await keys(database_url, "event") == [PLAIN, None]
    assert ask(database_url, "check").stdout == "2 contacts of 1 person: no violations\n"
    unchanged = await everything(database_url)
    rekey(database_url)
    assert await everything(database_url) == unchanged
    rekey(database_url, "--default-region", "US")
    assert (await keys(database_url, "event"))[:1] == before[0]
    assert await keys(database_url) == before[1]


async def test_a_withheld_link(make_client: MakeClient, database_url: str) -> None:
    """It stays on the review list, and is recorded once."""
    client = await make_client()
    await identified(client, ("a", US), ("b", "5"))
    await posted(client, "/identities/1/keep-apart", {"contactId": 2})
    await identified(client, ("b", US))

    rekey(database_url, "--default-region", "US")

    assert await keys(database_url, "event WHERE kind = 'withheld'") == [E164]
    [answer] = await identified(await make_client(default_region="US"), ("b", US))
    assert answer["withheld"][0]["reason"] == "kept-apart"
    assert len(await keys(database_url, "event WHERE kind = 'withheld'")) == 1


async def test_the_edits_of_other_programs(make_client: MakeClient, database_url: str) -> None:
    """The match key before an edit is computed of the phone number before it."""
    await identified(await make_client(), ("a", US), ("b", US))
    await execute(database_url, "UPDATE contact SET phone_number = '6', phone_key = '6' WHERE id = 1")

    rekey(database_url, "--default-region", "US")

    [(detail,)] = await fetch(database_url, "SELECT detail FROM event WHERE kind = 'edited'")
    assert json.loads(detail) == {"phoneNumber": US, "phoneKey": E164}


@pytest.mark.parametrize("values", [(US, INTERNATIONAL), (INTERNATIONAL, US), (US, "201.555.0123x", "+1 201-555-0123")])
async def test_blocked_numbers(values: tuple[str, ...], make_client: MakeClient, database_url: str) -> None:
    """A blocked phone number gets another key. Of two that become one, the older block stays, and can be lifted."""
    client = await make_client()
    for each in values:
        await posted(client, "/blocked", {"phoneNumber": each})
    await identified(client, ("a", "6"))

    answer = rekey(database_url, "--default-region", "US")

    assert answer["blocked"] == 1
    [first, *rest] = await fetch(database_url, "SELECT key, phone_number, event_id FROM blocked ORDER BY event_id")
    assert tuple(first) == (E164, values[0], 1)
    assert len(rest) == len(values) - 2
    after = await make_client(default_region="US")
    async with after.post("/identify", json={"phoneNumber": "201 555 0123"}) as response:
        assert response.status == 422
    await posted(after, "/blocked/release", {"phoneNumber": US})
    undone = await fetch(
        database_url, "SELECT id FROM event WHERE kind = 'blocked' AND undone_by IS NOT NULL ORDER BY 1"
    )
    assert [row["id"] for row in undone] == [1, len(values)]
    assert (await identified(after, (None, US)))[0]["contact"]["phoneNumbers"] == [US]


async def test_suppressed_numbers(make_client: MakeClient, database_url: str) -> None:
    """Their new digests cannot be computed: another region is refused, unless they are to be dropped. Emails stay."""
    client = await make_client(suppress_key=SUPPRESS_KEY)
    await identified(client, ("a", US), ("b", US + "x"))
    await posted(client, "/identities/1/erase", {"suppress": True})
    before = await everything(database_url)

    refused = ask(database_url, "rekey", "--default-region", "US", "--yes")
    same = rekey(database_url)

    assert refused.returncode == 1
    assert refused.stderr.startswith("recon: nothing was changed: the database has only digests of 1 suppressed phone")
    assert same["eventId"] is None
    assert await everything(database_url) == before
    answer = rekey(database_url, "--default-region", "US", "--drop-suppressed")
    assert answer["suppressed"] == 1
    assert await keys(database_url, "blocked", "kind", "1") == ["digestCheck", "emailDigest"]
    after = await make_client(default_region="US", suppress_key=SUPPRESS_KEY)
    [answer] = await identified(after, ("a", US))
    assert (answer["contact"]["emails"], answer["contact"]["phoneNumbers"]) == ([], [US])
