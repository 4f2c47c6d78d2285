"""Corrections beside requests, other programs and failures: made once and whole, or not at all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from recon.api.decisions import decided, many
from recon.api.messages import identify_response
from recon.database import transactions
from recon.database.transactions import Connection, Database
from recon.errors import Changed, DeadlineExceeded, OutcomeUnknown, Overloaded, RowsHeld
from recon.identities.batching import plain
from recon.identities.corrections import Correction, Corrections, Plan, Result, Terms
from recon.identities.deadlines import Deadlines
from recon.identities.dividing import Block, Split, Unblock
from recon.identities.erasing import Erase
from recon.identities.guarding import Dismiss, SetGuards
from recon.identities.identify import Identify
from recon.identities.linking import KeepApart, Link, Release
from recon.rules.identifiers import Identifiers, plain_key
from recon.rules.links import Identifier
from recon.settings import DatabaseSettings
from recon.sql.invariants import check
from tests.harness.databases import execute, fetch

SECONDS = 30.0


def _said(email: str | None, phone: str | None = None) -> Identifiers:
    return Identifiers(email, phone, phone)


@asynccontextmanager
async def opened(url: str, **settings: Any) -> AsyncIterator[Database]:
    """A database of this test's own."""
    async with Database(url, DatabaseSettings(**settings)).opened() as database:
        yield database


def requests_to(database: Database) -> Callable[[Identifiers], Awaitable[bytes]]:
    """What answers a request in transactions of its own."""
    return plain(Identify(database, identify_response), 100, Deadlines(30), 8)


async def prepare(database: Database) -> None:
    """George is contact 1, Biff 2, merged by event 3; Marty (4) and Doc (5) are kept apart by event 6."""
    one = requests_to(database)
    for said in (
        _said("george", "919191"),
        _said("biff", "717171"),
        _said("george", "717171"),
        _said("marty", "4"),
        _said("doc", "5"),
    ):
        await one(said)
    await Corrections(database, SECONDS).make(KeepApart(4, 5), Terms(), many)
    await database.serializable(
        "test",
        lambda connection: connection.execute(
            "INSERT INTO event (id, kind, primary_id, email, phone_number, phone_key, detail) "
            "VALUES (nextval(pg_get_serial_sequence('contact', 'id')), 'withheld', 1, 'george', '3', '3', "
            '\'{"reason": "limit"}\')'
        ),
    )
    await Corrections(database, SECONDS).make(Block(_said("junk")), Terms(), many)


CORRECTIONS: dict[str, Correction] = {
    "split by links": Split(2, links=["event:3"]),
    "split by parts": Split(1, parts=[[Identifier("phoneNumber", "919191")]]),
    "link": Link(4, 1),
    "link and release": Link(4, 5, release=True),
    "keep apart": KeepApart(1, 4),
    "release": Release(5, 4),
    "block": Block(_said(None, "919191")),
    "unblock": Unblock(_said("junk")),
    "dismiss": Dismiss(7),
    "guards": SetGuards(max_emails=7),
    "erase": Erase(2, plain_key),
}
# Requests about the same people: known, new on each side, and one that links two.
SAID = [
    _said("george", "717171"),
    _said("new", "919191"),
    _said("new", "717171"),
    _said("marty", "6"),
    _said("doc", "7"),
    _said("einstein", "4"),
    _said("george", "4"),
    _said("biff", "9"),
]


class Interrupted:
    """A correction after whose plan something else happens first, so many times."""

    def __init__(self, correction: Correction, happens: Callable[[], Awaitable[Any]], times: int = 1) -> None:
        self._correction = correction
        self._happens = happens
        self._times = times
        self.plans = 0

    async def plan(self, connection: Connection) -> Plan:
        """Plan it, and let the other thing happen."""
        self.plans += 1
        planned = await self._correction.plan(connection)
        if self.plans <= self._times:
            await self._happens()
        return planned


async def violations(url: str) -> list[str]:
    """What `recon check` finds."""
    found, _ = await check(url)
    return found


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
@pytest.mark.parametrize("name", CORRECTIONS)
async def test_a_request_between_plan_and_write(name: str, lane: bool, database_url: str) -> None:
    """What a request changed meanwhile is seen: the correction is planned again, and no invariant is broken."""
    async with opened(database_url, writer_lane=lane) as database:
        await prepare(database)
        one = requests_to(database)
        interrupted = Interrupted(CORRECTIONS[name], lambda: one(_said("new", "717171" if name != "release" else "5")))

        answer = await Corrections(database, SECONDS).make(interrupted, Terms(), lambda result: result._asdict())

    assert answer["event_id"] is not None
    assert await violations(database_url) == []
    concerns_it = name not in {"link and release", "unblock", "guards"}
    assert interrupted.plans == (2 if concerns_it and name != "keep-apart" else 1)
    assert len(await fetch(database_url, "SELECT FROM event WHERE id = $1", answer["event_id"])) == 1


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
@pytest.mark.parametrize("name", CORRECTIONS)
async def test_requests_at_the_same_time(name: str, lane: bool, database_url: str) -> None:
    """Eight requests about the same people begin with the correction: all are answered, and none breaks anything."""
    async with opened(database_url, writer_lane=lane) as database:
        await prepare(database)
        one, corrections = requests_to(database), Corrections(database, SECONDS)
        barrier = asyncio.Barrier(len(SAID) + 1)

        async def request(said: Identifiers) -> bytes:
            await barrier.wait()
            return await one(said)

        async def correct() -> Result:
            await barrier.wait()
            made: Any = await corrections.make(CORRECTIONS[name], Terms(), lambda result: result._asdict())
            return Result(**made)

        made, *answers = await asyncio.gather(correct(), *map(request, SAID), return_exceptions=True)

    # It gives up after four plans, each of which can meet one of the requests.
    assert isinstance(made, Result | Changed), made
    assert [answer for answer in answers if isinstance(answer, BaseException)] == []
    assert await violations(database_url) == []


@pytest.mark.parametrize("lane", [True, False], ids=["lane", "no lane"])
async def test_corrections_at_the_same_time(lane: bool, database_url: str) -> None:
    """Eight corrections of one identity: each is made or refused, no invariant is broken, and each event is whole."""
    async with opened(database_url, writer_lane=lane) as database:
        await prepare(database)
        corrections = Corrections(database, SECONDS, at_once=8)
        names = ["split by links", "split by parts", "link", "keep apart", "block", "erase", "guards", "dismiss"]
        outcomes = await asyncio.gather(
            *(corrections.make(CORRECTIONS[name], Terms(), lambda result: result._asdict()) for name in names),
            return_exceptions=True,
        )

    made = [outcome["event_id"] for outcome in outcomes if isinstance(outcome, dict)]
    unexpected = [outcome for outcome in outcomes if not isinstance(outcome, dict) and not hasattr(outcome, "code")]
    assert unexpected == []
    assert len(made) >= 3
    events = {row["id"] for row in await fetch(database_url, "SELECT id FROM event")}
    assert {event for event in made if event is not None} <= events
    assert await violations(database_url) == []


async def test_one_key_at_the_same_time(database_url: str) -> None:
    """Eight requests with one Idempotency-Key make the correction once, and all get its answer."""
    async with opened(database_url) as database:
        await prepare(database)
        corrections = Corrections(database, SECONDS, at_once=8)
        terms = Terms(key="k", request=b"r")
        answers = await asyncio.gather(*(corrections.make(Link(1, 4), terms, decided) for _ in range(8)))

    assert len({answer["eventId"] for answer in answers}) == 1
    assert sum("repeated" in answer for answer in answers) == 7
    assert len(await fetch(database_url, "SELECT FROM event WHERE kind = 'linked'")) == 1


async def test_one_key_between_plan_and_write(database_url: str) -> None:
    """The same request is made while this one has its plan: it gets the first result."""
    terms = Terms(key="k", request=b"r")
    async with opened(database_url) as database:
        await prepare(database)
        corrections = Corrections(database, SECONDS)
        first: list[Any] = []

        async def make_it() -> None:
            first.append(await corrections.make(Link(1, 4), terms, decided))

        again = await corrections.make(Interrupted(Link(1, 4), make_it), terms, decided)

    assert again == {**first[0], "repeated": True}


async def test_an_identity_that_changes_all_the_time(database_url: str) -> None:
    """After four plans the correction gives up, and has changed nothing."""
    async with opened(database_url) as database:
        await prepare(database)
        one, numbers = requests_to(database), iter(range(1000, 2000))
        interrupted = Interrupted(Split(1, links=["event:3"]), lambda: one(_said(f"e{next(numbers)}", "919191")), 99)

        with pytest.raises(Changed):
            await Corrections(database, SECONDS).make(interrupted, Terms(), many)

    assert interrupted.plans == 4
    assert await fetch(database_url, "SELECT FROM event WHERE kind = 'split'") == []


@pytest.mark.parametrize("row", [1, 2])
async def test_a_row_that_another_session_holds(row: int, database_url: str) -> None:
    """It is waited for outside the lane: requests are answered meanwhile. When it is free, the correction is made."""
    async with opened(database_url) as database:
        await prepare(database)
        holder = await asyncpg.connect(database_url)
        await holder.execute(f"BEGIN; SELECT FROM contact WHERE id = {row} FOR UPDATE")

        making = asyncio.create_task(Corrections(database, SECONDS).make(Split(1, links=["event:3"]), Terms(), many))
        one = requests_to(database)
        for number in range(20):
            await asyncio.wait_for(one(_said(f"somebody {number}", "4")), 2)
        assert not making.done()
        await holder.execute("ROLLBACK")
        made = await making
        await holder.close()

    assert len(made["contacts"]) == 2


@pytest.mark.parametrize("held", ["SELECT FROM contact WHERE id = 2 FOR UPDATE", "LOCK TABLE contact IN SHARE MODE"])
async def test_rows_that_are_held_too_long(held: str, database_url: str) -> None:
    """At its time limit the correction fails with what it waited for, and has changed nothing."""
    async with opened(database_url) as database:
        await prepare(database)
        before = await fetch(database_url, "SELECT * FROM contact ORDER BY id")
        holder = await asyncpg.connect(database_url)
        await holder.execute(f"BEGIN; {held}")

        with pytest.raises(RowsHeld):
            await Corrections(database, 2.5).make(Split(1, links=["event:3"]), Terms(), many)
        await holder.close()

    assert await fetch(database_url, "SELECT * FROM contact ORDER BY id") == before


async def test_a_lane_that_is_held_too_long(database_url: str) -> None:
    """A correction that never gets the lane has changed nothing."""
    async with opened(database_url) as database:
        await prepare(database)
        holder = await asyncpg.connect(database_url)
        await holder.execute("BEGIN; LOCK TABLE writer_lane IN EXCLUSIVE MODE")

        with pytest.raises(DeadlineExceeded):
            await Corrections(database, 0.5).make(Split(1, links=["event:3"]), Terms(), many)
        await holder.close()

    assert await fetch(database_url, "SELECT FROM event WHERE kind = 'split'") == []


async def test_a_time_limit_of_its_own(database_url: str) -> None:
    """A correction may take longer than a request: neither its statements nor its session have their time limit."""
    async with opened(database_url, statement_timeout=0.2, transaction_timeout=0.3) as database:
        await prepare(database)
        slow = Split(1, links=["event:3"])

        async def pause() -> None:
            await asyncio.sleep(0.5)

        made = await Corrections(database, SECONDS).make(Interrupted(slow, pause), Terms(), many)

    assert len(made["contacts"]) == 2


async def test_more_than_may_wait(database_url: str) -> None:
    """A correction too many is refused at once; the others are made."""
    async with opened(database_url) as database:
        await prepare(database)
        corrections = Corrections(database, SECONDS, limit=1)
        refused: list[Exception] = []

        async def send_another() -> None:
            with pytest.raises(Overloaded) as raised:
                await corrections.make(KeepApart(1, 4), Terms(), decided)
            refused.append(raised.value)

        made = await corrections.make(Interrupted(Split(1, links=["event:3"]), send_another), Terms(), many)

    assert len(refused) == 1
    assert len(made["contacts"]) == 2


async def test_a_commit_that_takes_too_long(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the time limit of the correction its outcome is unknown, since its COMMIT has been sent."""
    commit = transactions._commit

    async def hang(connection: Connection) -> None:
        if await connection.fetchval("SELECT current_setting('transaction_read_only')") == "off":
            await asyncio.sleep(SECONDS)
        await commit(connection)

    async with opened(database_url) as database:
        await prepare(database)
        with monkeypatch.context() as patch:
            patch.setattr(transactions, "_commit", hang)
            with pytest.raises(OutcomeUnknown):
                await Corrections(database, 0.5).make(KeepApart(1, 4), Terms(), decided)


REFUSE_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    WHILE NOT EXISTS (SELECT FROM pg_locks WHERE relation = 'writer_lane'::regclass AND NOT granted) LOOP
        PERFORM pg_sleep(0.01);
    END LOOP;
    RAISE 'as if it had been concurrent' USING ERRCODE = 'serialization_failure';
END $$;
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON event DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse()
"""
HAS_LANE = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'writer_lane'::regclass)"


async def test_a_commit_that_is_refused(database_url: str) -> None:
    """Until the next COMMIT it is known that nothing was changed, here because another session gets the lane."""
    async with opened(database_url) as database:
        await prepare(database)
        await execute(database_url, REFUSE_COMMIT)
        holder = await asyncpg.connect(database_url)
        making = asyncio.create_task(Corrections(database, 3).make(KeepApart(1, 4), Terms(), decided))
        while not await holder.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'writer_lane'::regclass)"
        ):
            await asyncio.sleep(0.01)
        await holder.execute("BEGIN; LOCK TABLE writer_lane IN EXCLUSIVE MODE")

        with pytest.raises(DeadlineExceeded):
            await making
        await holder.close()


@pytest.mark.parametrize("key", [None, "k"])
async def test_an_unknown_outcome(key: str | None, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the connection is lost in COMMIT, the error says what is safe; with the key, the same request is."""
    commit = transactions._commit
    terms = Terms(key=key, request=b"r")

    async def lost(connection: Connection) -> None:
        writes = await connection.fetchval("SELECT current_setting('transaction_read_only')") == "off"
        await commit(connection)
        if writes:
            raise OutcomeUnknown

    async with opened(database_url) as database:
        await prepare(database)
        corrections = Corrections(database, SECONDS)
        with monkeypatch.context() as patch:
            patch.setattr(transactions, "_commit", lost)
            with pytest.raises(OutcomeUnknown) as raised:
                await corrections.make(KeepApart(1, 4), terms, decided)
        again = await corrections.make(KeepApart(1, 4), terms, decided)

    assert ("Repeat it with the same Idempotency-Key" in str(raised.value)) == (key is not None)
    assert ("Look at the history" in str(raised.value)) == (key is None)
    assert again.get("repeated") == (True if key else None)
    assert len(await fetch(database_url, "SELECT FROM event WHERE kind = 'kept_apart'")) == 2


async def test_a_failure_leaves_nothing(database_url: str) -> None:
    """A correction that fails after its first statements has changed nothing."""
    async with opened(database_url) as database:
        await prepare(database)
        before = [await fetch(database_url, f"SELECT * FROM {table}") for table in ("contact", "event", "erased")]
        await execute(
            database_url,
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'no'; END $$",
            "CREATE TRIGGER refuse BEFORE INSERT ON erased EXECUTE FUNCTION refuse()",
        )
        with pytest.raises(asyncpg.RaiseError):
            await Corrections(database, SECONDS).make(Erase(1, plain_key), Terms(), decided)

    assert [await fetch(database_url, f"SELECT * FROM {table}") for table in ("contact", "event", "erased")] == before
