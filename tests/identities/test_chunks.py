"""Chunks: requests in order that share transactions, also with held rows, large identities and bad requests."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.errors import DeadlineExceeded, OutcomeUnknown, RetriesExhausted, Unavailable
from recon.identities.batching import coalesced
from recon.identities.chunks import MAX_CHUNK, Chunks, Course, Failed, Result
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Applied, Identify, Partial, Refused
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Reason
from recon.settings import DatabaseSettings
from recon.sql import invariants
from recon.sql.contacts import LARGE
from tests.harness.databases import execute, fetch
from tests.identities.test_contention import HOLDS, PEOPLE, holding, somebody_waits

REFUSE_BAD = """
CREATE FUNCTION refuse_bad() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.email LIKE 'bad%' THEN RAISE EXCEPTION 'bad'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse_bad BEFORE INSERT ON contact FOR EACH ROW EXECUTE FUNCTION refuse_bad()
"""

BUSY = """
SELECT FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'recon schema%' AND state <> 'idle'
"""


def said(email: str | None, phone: str | None = None) -> Identifiers:
    """A request in canonical form."""
    return Identifiers(email, phone, phone)


@asynccontextmanager
async def serving(url: str, seconds: float = 30, **options: Any) -> AsyncIterator[tuple[Chunks, Identify]]:
    """Run recon in this process, with a deadline in seconds for each chunk."""
    async with Database(url, DatabaseSettings(**options)).opened() as database:
        identify = Identify(database, identify_response)
        yield Chunks(identify, 1000, Deadlines(seconds)), identify
        # What goes on after its client has an answer ends first: a session in use would be left open.
        while await fetch(url, BUSY):
            await asyncio.sleep(0.01)


async def all_of(course: Course, requests: Sequence[Identifiers]) -> list[Result]:
    """The results of all requests."""
    results: list[Result] = []
    while len(results) < len(requests):
        some = await course.answer(requests[len(results) :])
        assert some
        results += some
    return results


def emails(result: Result) -> list[str]:
    """The emails of the identity that answers a request."""
    assert isinstance(result, Applied)
    assert isinstance(result.outcome, bytes)
    found: list[str] = json.loads(result.outcome)["contact"]["emails"]
    return found


def reasons(results: Sequence[Result]) -> list[Reason | type]:
    """Why the requests ended as they did."""
    return [type(each.error) if isinstance(each, Failed) else each.reason for each in results]


async def test_known_requests_come_from_the_read(database_url: str) -> None:
    """Up to the first request that changes something, nothing is written; from there on, one transaction has all."""
    async with serving(database_url) as (chunks, _):
        course = Course(chunks)
        known = [said("a", "1"), said("b", "2")]
        assert reasons(await course.answer(known)) == [Reason.CREATED, Reason.CREATED]

        assert reasons(await course.answer([*known, said("a")])) == [Reason.KNOWN] * 3
        results = await course.answer([*known, said("c"), said("a", "2"), said("b")])

    assert reasons(results) == [Reason.KNOWN, Reason.KNOWN, Reason.CREATED, Reason.MERGED, Reason.KNOWN]
    assert [emails(each) for each in results] == [["a"], ["b"], ["c"], ["a", "b"], ["a", "b"]]


async def test_what_is_blocked_is_refused_in_its_place(database_url: str) -> None:
    """A request with nothing but blocked values changes nothing, in the read and in the write."""
    async with serving(database_url) as (chunks, _):
        results = await Course(chunks).answer([said("null"), said("a"), said("null"), said("a", "null")])

    assert reasons(results) == [Reason.REFUSED, Reason.CREATED, Reason.REFUSED, Reason.KNOWN]
    outcomes = [each.outcome for each in results if isinstance(each, Applied)]
    assert [type(outcome) for outcome in outcomes] == [Refused, bytes, Refused, Partial]


async def test_a_withheld_link_is_recorded_once(database_url: str) -> None:
    """A known request whose withheld link is not on the review list is a write; later it is a read."""
    await execute(database_url, "UPDATE setting SET max_phones = 1")
    async with serving(database_url) as (chunks, _):
        course = Course(chunks)
        for _ in range(2):
            results = await all_of(course, [said("a", "1"), said("a", "2"), said("a", "1")])
            assert [isinstance(each, Applied) and type(each.outcome) for each in results] == [bytes, Partial, bytes]

    assert len(await fetch(database_url, "SELECT FROM event WHERE kind = 'withheld'")) == 1


@pytest.mark.parametrize("statement", HOLDS)
async def test_a_held_row_holds_up_what_comes_after_it(statement: str, database_url: str) -> None:
    """Requests before the one that needs the row are done, and none after it; single requests are answered."""
    await execute(database_url, *PEOPLE)
    async with serving(database_url) as (chunks, identify), asyncio.timeout(20):
        submit, course = coalesced(identify, 100, Deadlines(30)), Course(chunks)
        requests = [said("first"), said("new", "2"), said("last"), said("last", "3")]
        async with holding(database_url, statement) as other:
            done = await course.answer(requests)
            assert reasons(done) == [Reason.CREATED]
            waiting = asyncio.ensure_future(course.answer(requests[1:]))
            await somebody_waits(other)
            await submit(said("single"))
            await Course(chunks).answer([said("other batch")])
            assert not waiting.done()
            assert not await fetch(database_url, "SELECT FROM contact WHERE email = 'last'")

        results = await waiting

    assert reasons(results) == [Reason.EXTENDED, Reason.CREATED, Reason.EXTENDED]
    assert emails(results[0]) == ["young", "young-too", "new"]


async def test_a_row_that_is_held_too_long(database_url: str) -> None:
    """The chunk has the time limit of a request; then it is known whether something was changed."""
    await execute(database_url, *PEOPLE)
    async with serving(database_url, seconds=0.5) as (chunks, _), holding(database_url, HOLDS[0]):
        with pytest.raises(DeadlineExceeded):
            await Course(chunks).answer([said("new", "2"), said("last")])

    assert len(await fetch(database_url, "SELECT FROM contact")) == 3


async def test_a_chunk_that_waits_for_the_database(database_url: str) -> None:
    """A time limit that ends during the write leaves the outcome unknown."""
    held = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
    CREATE TRIGGER wait BEFORE INSERT ON contact FOR EACH ROW EXECUTE FUNCTION wait()
    """
    await execute(database_url, held)
    async with serving(database_url, seconds=0.5) as (chunks, _):
        with pytest.raises(OutcomeUnknown):
            await Course(chunks).answer([said("new")])
        async with asyncio.timeout(10):  # the transaction goes on: here it commits
            while not await fetch(database_url, "SELECT FROM contact"):
                await asyncio.sleep(0.01)
        await execute(database_url, "DROP TRIGGER wait ON contact")
        assert reasons(await Course(chunks).answer([said("next")])) == [
            Reason.CREATED
        ]  # after the end of the other one


async def test_large_identities_are_apart_from_small_ones(database_url: str) -> None:
    """A chunk ends before a request about a large identity; requests about the same one share a chunk."""
    large = f"SELECT 'large ' || n, '1', 1, 'secondary' FROM generate_series(1, {LARGE + 10}) AS n"
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('large', '1'), ('small', '2')",
        f"INSERT INTO contact (email, phone_number, linked_id, link_precedence) {large}",
    )
    requests = [said("small"), said("new"), said("large"), said("more", "1"), said("more"), said("small"), said("x")]
    async with serving(database_url) as (chunks, _):
        course = Course(chunks)
        assert reasons(await course.answer(requests)) == [Reason.KNOWN, Reason.CREATED]
        assert reasons(await course.answer(requests[2:3])) == [Reason.KNOWN]
        results = await course.answer(requests[2:])
        assert reasons(results) == [Reason.KNOWN, Reason.EXTENDED]
        assert len(emails(results[0])) == LARGE + 11
        assert emails((await course.answer(requests[4:]))[0])[-1] == "more"
        assert reasons(await course.answer(requests[5:])) == [Reason.KNOWN, Reason.CREATED]


async def test_a_bad_request_fails_alone(database_url: str) -> None:
    """The chunk is halved in order until the bad request has failed; all others are done, in order."""
    await execute(database_url, REFUSE_BAD)
    requests = [said(f"bad{n}" if n in {7, 8, 19} else f"e{n}", f"{n // 2}") for n in range(30)]
    async with serving(database_url) as (chunks, _):
        results = await all_of(Course(chunks), requests)
        again = await all_of(Course(chunks), requests)

    failed = [place for place, each in enumerate(results) if isinstance(each, Failed)]
    assert failed == [7, 8, 19]
    assert reasons(results)[7:10] == [asyncpg.RaiseError, asyncpg.RaiseError, Reason.CREATED]
    assert set(reasons(again)) == {Reason.KNOWN, asyncpg.RaiseError}
    rows = await fetch(database_url, "SELECT email FROM contact ORDER BY id")
    assert [row["email"] for row in rows] == [
        each.email for each in requests if not (each.email or "").startswith("bad")
    ]


class Sizes(Chunks):
    """Notes the sizes of chunks, and fails those that are too large."""

    def __init__(self, most: int) -> None:
        self.sizes: list[int] = []
        self.most = most
        self.largest = MAX_CHUNK

    def submit(self, requests: Sequence[Identifiers]) -> "asyncio.Future[list[Applied]]":
        """Answer a chunk at once."""
        self.sizes.append(len(requests))
        future: asyncio.Future[list[Applied]] = asyncio.get_running_loop().create_future()
        if len(requests) > self.most:
            future.set_exception(RetriesExhausted())
        else:
            future.set_result([Applied(b"", Reason.KNOWN)] * len(requests))
        return future


async def test_smaller_chunks_after_conflicts() -> None:
    """A chunk that has too many serialization conflicts is halved; after it, chunks grow again."""
    sizes = Sizes(3)
    requests = [said("a")] * 16

    results = await all_of(Course(sizes), requests)

    assert len(results) == 16
    assert sizes.sizes[:6] == [16, 8, 4, 2, 4, 2]
    sizes.most = 0
    with pytest.raises(RetriesExhausted):
        await Course(sizes).answer(requests)


async def test_a_chunk_has_a_largest_size(database_url: str) -> None:
    """However many requests there are, a transaction has a chunk of them."""
    async with serving(database_url) as (chunks, _):
        results = await Course(chunks).answer([said(f"e{n}") for n in range(MAX_CHUNK + 1)])

    assert len(results) == MAX_CHUNK


async def test_a_database_that_is_away(database_url: str) -> None:
    """A chunk that cannot be done raises what a single request would, and the next one is done when it can be."""
    async with serving(database_url) as (chunks, _):
        course = Course(chunks)
        await execute(database_url, "ALTER TABLE contact RENAME TO hidden")
        with pytest.raises(asyncpg.UndefinedTableError):
            await course.answer([said("a"), said("b")])
        await execute(database_url, "ALTER TABLE hidden RENAME TO contact")
        assert len(await course.answer([said("a"), said("b")])) == 2


async def test_a_client_that_leaves_while_its_chunk_waits(database_url: str) -> None:
    """A chunk whose client has left is not begun, and others are answered."""
    async with serving(database_url) as (chunks, _):
        async with holding(database_url, "LOCK TABLE writer_lane IN EXCLUSIVE MODE") as other:
            gone = [chunks.submit([said(name)]) for name in ("gone", "gone too")]
            await somebody_waits(other)
            for future in gone:
                future.cancel()
        results = await Course(chunks).answer([said("here")])

    assert reasons(results) == [Reason.CREATED]
    assert [row["email"] for row in await fetch(database_url, "SELECT email FROM contact")] == ["here"]


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
async def test_batches_and_single_requests_about_the_same_people(lane: bool, database_url: str) -> None:
    """Whatever races, each request is answered with its identifiers, in order, and the invariants hold."""

    def request(number: int) -> Identifiers:
        return said(f"e{number % 13}", f"{number % 17}")

    async with serving(database_url, writer_lane=lane) as (chunks, identify):
        submit = coalesced(identify, 1000, Deadlines(30))

        async def batch(first: int) -> None:
            course, requests = Course(chunks), [request(first * 100 + 7 * n) for n in range(60)]
            for result, each in zip(await all_of(course, requests), requests, strict=True):
                assert each.email in emails(result)

        async def single(first: int) -> None:
            for number in range(30):
                await submit(request(first + 5 * number))

        await asyncio.gather(*map(batch, range(4)), *map(single, range(8)))

    violations, _ = await invariants.check(database_url)
    assert violations == []


async def test_unavailable_is_passed_on() -> None:
    """A database that was never there."""
    database = Database("postgresql://127.0.0.1:1/nothing")
    with pytest.raises(Unavailable):
        await Course(Chunks(Identify(database, identify_response), 10, Deadlines(5))).answer([said("a")])
