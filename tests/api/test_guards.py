"""Withheld links, by HTTP: what the answer says, what is stored, and what is answered without a write."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from recon.keys import new_key
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

A, B = {"email": "a", "phoneNumber": "1"}, {"email": "b", "phoneNumber": "2"}
# The identities of A (contact 1) and B (contact 2) are on the two sides of the constraint that event 31 made.
APART = [
    "INSERT INTO contact (email, phone_number, apart) VALUES ('a', '1', '{{31, 0, 0}}'), ('b', '2', '{{31, 0, 1}}')",
    "SELECT setval('contact_id_seq', 100)",
]
OPEN = "SELECT * FROM event WHERE kind = 'withheld' AND undone_by IS NULL ORDER BY id"
FORMS = pytest.mark.parametrize(
    "form",
    [
        pytest.param({"coalesce": coalesce, "writer_lane": lane}, id=f"coalesce {coalesce}, lane {lane}")
        for coalesce in (True, False)
        for lane in (True, False)
    ],
)


async def _asked(client: Any, said: dict[str, Any], **more: Any) -> dict[str, Any]:
    response = await client.post("/identify", json=said, **more)
    assert response.status == 200, await response.text()
    answer: dict[str, Any] = await response.json()
    return answer


def _writes() -> float:
    return REGISTRY.get_sample_value("recon_transactions_total", {"step": "write", "outcome": "committed"}) or 0


async def test_a_withheld_link_is_in_the_answer(database_url: str, make_client: MakeClient) -> None:
    """The request is handled as if only its email had been given; the link is on the review list, once."""
    await execute(database_url, *APART)
    client = await make_client()

    answers = [await _asked(client, {"email": "a", "phoneNumber": "2"}) for _ in range(3)]

    assert answers[0]["contact"]["emails"] == ["a"]
    assert answers[0]["contact"]["phoneNumbers"] == ["1"]
    assert answers[0]["withheld"] == [{"identifier": "phoneNumber", "reason": "kept-apart", "primaryContactId": 2}]
    assert answers[1:] == answers[:1] * 2
    [event] = await fetch(database_url, OPEN)
    assert (event["primary_id"], event["other_id"], event["email"], event["phone_number"]) == (1, 2, "a", "2")
    assert "withheld" not in await _asked(client, A)
    assert len(await fetch(database_url, "SELECT FROM contact")) == 2


async def test_a_recorded_link_costs_no_write(database_url: str, make_client: MakeClient) -> None:
    """Once recorded, it is answered by the read pass; once that event is undone, it is recorded again."""
    await execute(database_url, *APART)
    client = await make_client()
    before = _writes()
    for _ in range(3):
        await _asked(client, {"email": "a", "phoneNumber": "2"})
    assert _writes() - before == 1

    await execute(database_url, "UPDATE event SET undone_by = 1000")
    for _ in range(3):
        await _asked(client, {"email": "a", "phoneNumber": "2"})

    assert _writes() - before == 2
    assert len(await fetch(database_url, OPEN)) == 1


@FORMS
async def test_a_hot_pair_is_recorded_once(form: dict[str, bool], database_url: str, make_client: MakeClient) -> None:
    """Fifty requests at once, also to two processes' worth of pools: one event, and all get the same answer."""
    await execute(database_url, *APART)
    clients = [await make_client(**form), await make_client(**form)]
    said = {"email": "a", "phoneNumber": "2"}

    answers = await asyncio.gather(*(_asked(clients[n % 2], said) for n in range(50)))

    assert all(answer == answers[0] for answer in answers)
    assert len(await fetch(database_url, OPEN)) == 1


@FORMS
async def test_kept_apart_under_concurrency(form: dict[str, bool], database_url: str, make_client: MakeClient) -> None:
    """Requests that extend both sides and try to join them, directly and through a third identity, never do."""
    await execute(database_url, *APART)
    client = await make_client(**form)
    asked = [{"email": "a", "phoneNumber": "2"}, {"email": "c", "phoneNumber": "1"}, {"email": "c", "phoneNumber": "2"}]
    asked += [{"email": f"a{n}", "phoneNumber": "1"} for n in range(4)] + [{"email": "b", "phoneNumber": "9"}]
    asked += [{"email": f"a{n}", "phoneNumber": "2"} for n in range(4)] + [{"email": "a", "phoneNumber": "9"}]

    await asyncio.gather(*(_asked(client, said) for said in asked * 3))

    ones, others = [await _asked(client, said) for said in (A, B)]
    assert ones["contact"]["primaryContactId"] != others["contact"]["primaryContactId"]
    assert not set(ones["contact"]["emails"]) & set(others["contact"]["emails"])
    assert not set(ones["contact"]["phoneNumbers"]) & set(others["contact"]["phoneNumbers"])
    # A new contact is on the side of the identity that it joined.
    rows = await fetch(database_url, "SELECT coalesce(linked_id, id) AS root, apart FROM contact")
    assert {(row["root"], row["apart"][0][2]) for row in rows} == {(1, 0), (2, 1)}


async def test_blocked_values(database_url: str, make_client: MakeClient) -> None:
    """Values of recon's own list, and those that a steward blocked, link nobody; nothing but them is a 422."""
    await execute(database_url, "INSERT INTO blocked (kind, key, event_id) VALUES ('phoneNumber', '911', 1)")
    client = await make_client()

    first = await _asked(client, {"email": "a", "phoneNumber": "9-1-1"})
    second = await _asked(client, {"email": "b", "phoneNumber": "911"})
    before = _writes()
    third = await _asked(client, {"email": "b", "phoneNumber": "N/A"})
    refused = await client.post("/identify", json={"email": "null", "phoneNumber": 911})

    withheld = [{"identifier": "phoneNumber", "reason": "blocked", "primaryContactId": None}]
    assert [answer["withheld"] for answer in (first, second, third)] == [withheld] * 3
    assert [answer["contact"]["primaryContactId"] for answer in (first, second, third)] == [1, 2, 2]
    problem = await refused.json(content_type=None)
    assert (refused.status, problem["type"]) == (422, "urn:recon:blocked")
    assert _writes() == before  # the read pass answered both
    assert len(await fetch(database_url, "SELECT FROM contact")) == 2
    assert await fetch(database_url, OPEN) == []


async def test_a_value_that_is_blocked_while_recon_serves(database_url: str, make_client: MakeClient) -> None:
    """No process remembers guards: the next request of every process sees them."""
    clients = [await make_client(), await make_client(coalesce=False)]
    for client, email in zip(clients, "ab", strict=True):
        await _asked(client, {"email": email, "phoneNumber": "911"})
    await execute(database_url, "INSERT INTO blocked (kind, key, event_id) VALUES ('phoneNumber', '911', 1)")

    answers = [await _asked(client, {"email": "c", "phoneNumber": "911"}) for client in clients]

    assert [answer["contact"]["emails"] for answer in answers] == [["c"], ["c"]]
    await execute(database_url, "DELETE FROM blocked", "UPDATE setting SET max_emails = 2")
    limited = [await _asked(client, {"email": "d", "phoneNumber": "911"}) for client in clients]
    assert [answer["withheld"][0]["reason"] for answer in limited] == ["limit", "limit"]


async def test_recons_own_list_can_be_off(database_url: str, make_client: MakeClient) -> None:
    """Then its values are like others, and one that a steward blocked stays blocked."""
    await execute(
        database_url,
        "UPDATE setting SET block_common = false",
        "INSERT INTO blocked (kind, key, event_id) VALUES ('email', 'none', 1)",
    )
    client = await make_client()
    for said in ({"email": "null", "phoneNumber": "1"}, {"email": "null", "phoneNumber": "000000"}):
        assert "withheld" not in await _asked(client, said)
    assert (await _asked(client, {"email": "none", "phoneNumber": "1"}))["withheld"][0]["identifier"] == "email"
    assert len(await fetch(database_url, "SELECT DISTINCT coalesce(linked_id, id) FROM contact")) == 1


async def test_what_a_key_sees(database_url: str, make_client: MakeClient) -> None:
    """A key that may only identify is not told which identity holds the identifier."""
    await execute(database_url, *APART)
    scopes = {"shop": ["identify"], "desk": ["identify", "read"], "root": ["admin"]}
    keys = {name: new_key(name, its) for name, its in scopes.items()}
    client = await make_client(api_keys=" ".join(line for _, line in keys.values()))
    seen = {}
    for name, (secret, _) in keys.items():
        headers = {"Authorization": f"Bearer {secret}"}
        answer = await _asked(client, {"email": "a", "phoneNumber": "2"}, headers=headers)
        seen[name] = answer["withheld"][0].get("primaryContactId", "nothing")

    assert seen == {"shop": "nothing", "desk": 2, "root": 2}
    assert [row["source"] for row in await fetch(database_url, OPEN)] == ["shop"]


async def test_rows_of_other_programs_go_through_the_guards(database_url: str, make_client: MakeClient) -> None:
    """The next write that meets them takes the identifier from the younger contact, and says so in the journal."""
    await execute(
        database_url,
        *APART,
        "INSERT INTO contact (email, phone_number, linked_id, link_precedence, apart) "
        "VALUES ('b2', '1', 2, 'secondary', '{{31, 0, 1}}'), (NULL, '1', 2, 'secondary', '{{31, 0, 1}}')",
    )
    client = await make_client()

    phone = await _asked(client, {"phoneNumber": "1"})
    answers = [await _asked(client, {"email": email}) for email in ("a", "b2")]

    assert phone["contact"]["emails"] == ["a"]
    assert [answer["contact"]["emails"] for answer in answers] == [["a"], ["b", "b2"]]
    rows = await fetch(database_url, "SELECT id, phone_number, deleted_at IS NULL AS live FROM contact ORDER BY id")
    assert [tuple(row) for row in rows] == [(1, "1", True), (2, "2", True), (101, None, True), (102, "1", False)]
    [event] = await fetch(database_url, "SELECT kind, primary_id, other_id, detail::text FROM event")
    assert tuple(event)[:3] == ("withheld", 2, 1)
    assert "kept-apart" in event["detail"]


async def test_a_blocked_value_that_no_request_has(database_url: str, make_client: MakeClient) -> None:
    """Two identities that share it are not united by a request that has other values of both."""
    await execute(
        database_url,
        "INSERT INTO blocked (kind, key, event_id) VALUES ('phoneNumber', '911', 1)",
        "INSERT INTO contact (email, phone_number) VALUES ('a', '911'), ('b', '911')",
        "INSERT INTO contact (phone_number, linked_id, link_precedence) VALUES ('2', 2, 'secondary')",
    )
    client = await make_client()

    answer = await _asked(client, {"email": "a", "phoneNumber": "2"})

    assert answer["contact"] == {
        "primaryContactId": 1,
        "primaryContatctId": 1,
        "emails": ["a", "b"],
        "phoneNumbers": ["2"],
        "secondaryContactIds": [2, 3],
    }


async def test_withheld_links_are_counted(database_url: str, make_client: MakeClient) -> None:
    """The metric counts every withheld link by reason, recorded or not."""
    await execute(database_url, *APART)
    client = await make_client()

    def counted() -> list[float]:
        reasons = ("blocked", "kept-apart")
        return [REGISTRY.get_sample_value("recon_withheld_links_total", {"reason": each}) or 0 for each in reasons]

    before = counted()
    for said in ({"email": "a", "phoneNumber": "2"}, {"email": "a", "phoneNumber": "null"}, {"email": "null"}) * 2:
        await client.post("/identify", json=said)

    assert [now - then for now, then in zip(counted(), before, strict=True)] == [4, 2]
