"""Identities of many contacts: answered completely, encoded once for each state, and in separate batches."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest
from prometheus_client import REGISTRY

from recon.api.messages import identify_response
from recon.database.transactions import Connection, Database
from recon.identities import identify
from recon.identities.batching import Submit, coalesced
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify, Large
from recon.rules.clusters import Clusters, Identity
from recon.rules.identifiers import Identifiers
from recon.sql import contacts as sql
from tests.harness.databases import execute, fetch

SIZE = 3 * sql.LARGE
LARGE_IDENTITY = [
    "INSERT INTO contact (email, phone_number) VALUES ('large-1', '1')",
    f"""INSERT INTO contact (email, phone_number, linked_id, link_precedence)
    SELECT 'large-' || n, '1', 1, 'secondary' FROM generate_series(2, {SIZE}) AS n""",
]


def _request(email: str | None, phone: str | None = None) -> Identifiers:
    return Identifiers(email, phone, phone)


@pytest.fixture
async def submit(database_url: str) -> Any:
    """Run recon in this process, on a database with one large identity."""
    await execute(database_url, *LARGE_IDENTITY)
    async with Database(database_url).opened() as database:
        yield coalesced(Identify(database, identify_response), 1000, Deadlines(30), 4)


def _contact(answer: bytes) -> dict[str, Any]:
    contact: dict[str, Any] = json.loads(answer)["contact"]
    return contact


EMAILS = [f"large-{n}" for n in range(1, SIZE + 1)]


@pytest.mark.parametrize("request_", [_request("large-1"), _request(f"large-{SIZE}"), _request(None, "1")])
async def test_a_large_identity_is_answered_whole(request_: Identifiers, submit: Submit) -> None:
    """A request by any of its identifiers returns all of its contacts."""
    contact = _contact(await submit(request_))

    assert contact["emails"] == EMAILS
    assert contact["secondaryContactIds"] == list(range(2, SIZE + 1))


async def test_a_large_identity_grows_and_merges(submit: Submit) -> None:
    """It is extended and merged like any other identity, from both sides."""
    await submit(_request("small", "2"))

    extended = _contact(await submit(_request("another", "1")))
    merged = _contact(await submit(_request("small", "1")))

    assert extended["emails"] == [*EMAILS, "another"]
    assert merged["primaryContactId"] == 1
    assert (set(merged["emails"]), merged["phoneNumbers"]) == ({*EMAILS, "another", "small"}, ["1", "2"])


async def test_concurrent_requests_for_it_have_each_their_state(submit: Submit) -> None:
    """Of twenty concurrent new emails, each answer has its own email and a different number of contacts."""
    answers = await asyncio.gather(*(submit(_request(f"new-{n}", "1")) for n in range(20)))

    contacts = [_contact(answer) for answer in answers]
    assert sorted(len(contact["emails"]) for contact in contacts) == [SIZE + n for n in range(1, 21)]
    assert all(f"new-{n}" in contact["emails"] for n, contact in enumerate(contacts))


async def test_a_state_is_encoded_once(database_url: str) -> None:
    """Thirty requests in a batch that leave an identity in three states share three encoded answers."""
    await execute(database_url, *LARGE_IDENTITY)
    batch = [_request(f"new-{n % 3}", "1") for n in range(30)]
    encoded: list[Identity] = []

    def encode(identity: Identity) -> bytes:
        encoded.append(identity)
        return identify_response(identity)

    async with Database(database_url).opened() as database:
        answers = await Identify(database, encode).write(lambda: batch)
        known = await Identify(database, encode).read_large(lambda: batch)

    assert [len(identity.emails) for identity in encoded] == [SIZE + 1, SIZE + 2, SIZE + 3, SIZE + 3]
    # The same object, so that a thousand unsent answers need the memory of one.
    assert len(set(map(id, answers))) == 3
    assert len(set(map(id, known))) == 1


async def test_its_batches_are_counted_apart(submit: Submit) -> None:
    """The metrics distinguish batches of large identities from others."""

    def counted(step: str) -> float:
        return REGISTRY.get_sample_value("recon_batch_requests_count", {"step": step}) or 0

    before = counted("read"), counted("read large")
    await submit(_request("large-1"))

    assert (counted("read"), counted("read large")) == (before[0] + 1, before[1] + 1)


async def test_what_a_batch_answers_is_bounded(
    database_url: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch whose answers would have too many contacts ends early; its other requests are the next batch."""
    monkeypatch.setattr(identify, "MOST_ANSWERED", 2 * SIZE)
    async with Database(database_url).opened() as database:
        outcomes = await Identify(database, identify_response).write(
            lambda: [_request(f"new-{n}", "1") for n in range(5)]
        )

    assert len(outcomes) == 2
    assert len(await fetch(database_url, "SELECT FROM contact")) == SIZE + 2
    answers = await asyncio.gather(*(submit(_request(f"new-{n}", "1")) for n in range(20)))
    assert {len(_contact(answer)["emails"]) for answer in answers} == set(range(SIZE + 2, SIZE + 21))


async def test_what_a_read_fetches_is_bounded(database_url: str) -> None:
    """The read pass stops at a bounded number of rows, and leaves large identities to a separate batch."""
    await execute(database_url, *LARGE_IDENTITY, "INSERT INTO contact (email) VALUES ('small')")
    fetched: list[int] = []
    batch = [_request(f"large-{n}") for n in range(1, 9)] + [_request("small"), _request("unknown", "1")]
    async with Database(database_url).opened() as database:

        async def counted(connection: Connection) -> None:
            clusters = await sql.fetch_small_clusters(connection, batch)
            fetched.append(sum(len(cluster.contacts) for cluster in clusters.all))

        await database.snapshot("test", counted)
        outcomes = await Identify(database, identify_response).read(lambda: batch)

    assert fetched[0] <= sql.LARGE + 3
    assert outcomes == [Large(frozenset({1}))] * 8 + [outcomes[8], Large(frozenset({1}))]
    assert _contact(outcomes[8])["emails"] == ["small"]  # type: ignore[arg-type]


async def test_a_value_that_many_identities_share(database_url: str) -> None:
    """Rows of another program that share a phone number become one identity with the first request by it."""
    await execute(
        database_url,
        f"INSERT INTO contact (email, phone_number) SELECT 'e' || n, '1' FROM generate_series(1, {SIZE}) AS n",
    )
    async with Database(database_url).opened() as database:
        answer = await coalesced(Identify(database, identify_response), 100, Deadlines(30))(_request("e7", "1"))

    assert set(_contact(answer)["emails"]) == {f"e{n}" for n in range(1, SIZE + 1)}
    assert len(await fetch(database_url, "SELECT FROM contact WHERE linked_id IS NULL")) == 1


@pytest.mark.parametrize("step", ["fetch_clusters", "lock_clusters"], ids=["read", "written"])
async def test_it_holds_up_nobody(step: str, submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a large identity is read, small ones are read and written; while it is written, they are read."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    original: Callable[..., Any] = getattr(sql, step)

    async def held(connection: Connection, batch: Sequence[Identifiers], *more: Any) -> Clusters:
        clusters: Clusters = await original(connection, batch, *more)
        if clusters.larger_than(SIZE - 1):
            reached.set()
            await go_on.wait()
        return clusters

    await submit(_request("small", "2"))
    monkeypatch.setattr(sql, step, held)
    large = submit(_request("large-9") if step == "fetch_clusters" else _request("new", "1"))
    async with asyncio.timeout(10):
        await reached.wait()
        assert _contact(await submit(_request("small")))["emails"] == ["small"]
        if step == "fetch_clusters":
            assert _contact(await submit(_request("other", "2")))["emails"] == ["small", "other"]

    assert not large.done()
    go_on.set()
    assert len(_contact(await large)["emails"]) >= SIZE


async def test_large_identities_take_turns(submit: Submit, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of large identities has only one of them, with all requests about it."""
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('second', '3')",
        "INSERT INTO contact (email, phone_number, linked_id, link_precedence) SELECT 'second-' || n, '3', "
        f"(SELECT id FROM contact WHERE email = 'second'), 'secondary' FROM generate_series(2, {SIZE}) AS n",
    )
    batches: list[list[str | None]] = []
    original = sql.fetch_clusters

    async def noted(connection: asyncpg.Connection, batch: Sequence[Identifiers], *more: Any) -> Clusters:
        batches.append([request.email for request in batch])
        return await original(connection, batch, *more)

    monkeypatch.setattr(sql, "fetch_clusters", noted)
    asked = ["large-1", "second", "large-2", "second-2", "large-3"]

    answers = await asyncio.gather(*(submit(_request(email)) for email in asked))

    assert batches == [["large-1", "large-2", "large-3"], ["second", "second-2"]]
    assert all(email in _contact(answer)["emails"] for email, answer in zip(asked, answers, strict=True))
