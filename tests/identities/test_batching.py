"""Batches: who shares one, who gets which result, and whom a failure concerns."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import asyncpg
import pytest

from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.errors import DeadlineExceeded, OutcomeUnknown, Overloaded, Unavailable
from recon.identities import batching
from recon.identities.batching import Lane, coalesced, plain
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify, Outcome
from recon.rules.identifiers import Identifiers
from tests.harness.databases import execute

Take: TypeAlias = Callable[[], Sequence[int]]


class Gate:
    """Work that waits until it is let go, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.most: int | None = None  # outcomes for so many of a batch

    async def __call__(self, take: Take) -> list[int]:
        batch = take()
        self.batches.append(list(batch))
        await self.open.wait()
        if 13 in batch:
            raise ValueError("thirteen")
        return [-item for item in batch][: self.most]


async def test_one_request_alone_waits_for_nothing() -> None:
    """With nothing under way a request is a batch of one, begun at once."""
    gate = Gate()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5))

    future = lane.submit(1)
    await asyncio.sleep(0)

    assert gate.batches == [[1]]
    gate.open.set()
    assert await future == -1


async def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    """One batch at a time; the next has all that came while it was under way, in order."""
    gate = Gate()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5))
    futures = [lane.submit(1)]
    await asyncio.sleep(0)

    futures += [lane.submit(item) for item in (2, 3, 4)]
    gate.open.set()

    assert await asyncio.gather(*futures) == [-1, -2, -3, -4]
    assert gate.batches == [[1], [2, 3, 4]]


async def test_the_next_batch_takes_its_items_at_its_turn() -> None:
    """Two under way: one works; one waits for its turn and has whatever came until then; there is no third."""
    turn, done = asyncio.Semaphore(1), asyncio.Semaphore(0)
    begun: list[list[int]] = []
    waiting = 0

    async def work(take: Take) -> list[int]:
        nonlocal waiting
        waiting += 1
        async with turn:
            waiting -= 1
            begun.append(list(take()))
            assert take() == begun[-1], "asked again, the same"
            await done.acquire()
        return begun[-1]

    lane = Lane("test", work, limit=10, deadlines=Deadlines(5), width=2)
    futures = []
    for item in range(6):
        futures.append(lane.submit(item))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (begun, waiting) == ([[0]], min(item, 1))

    done.release()
    assert await futures[0] == 0
    assert begun == [[0], [1, 2, 3, 4, 5]]
    done.release()
    assert await asyncio.gather(*futures) == [0, 1, 2, 3, 4, 5]


async def test_who_waits_for_a_turn_that_never_comes_is_told() -> None:
    """Work that fails before it has taken its items fails for those that waited, and the lane goes on."""
    failing = True

    async def work(take: Take) -> list[int]:
        if failing:
            raise Unavailable
        return list(take())

    lane = Lane("test", work, limit=10, deadlines=Deadlines(5), width=2)

    outcomes = await asyncio.gather(*(lane.submit(item) for item in range(3)), return_exceptions=True)
    failing = False

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    async with asyncio.timeout(1):
        assert await lane.submit(7) == 7


@pytest.mark.parametrize("width", [1, 2])
async def test_no_wake_up_is_lost(width: int) -> None:
    """A request that comes just as the lane runs empty is served, at every possible moment."""

    async def work(take: Take) -> list[int]:
        return list(take())

    lane = Lane("test", work, limit=10, deadlines=Deadlines(5), width=width)
    for turns in range(50):
        first = lane.submit(0)
        for _ in range(turns % 7):
            await asyncio.sleep(0)
        second = lane.submit(1)
        async with asyncio.timeout(1):
            assert await asyncio.gather(first, second) == [0, 1]


async def test_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backlog is worked off in batches of the largest size."""
    monkeypatch.setattr(batching, "MAX_BATCH", 2)
    gate = Gate()
    gate.open.set()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5))

    await asyncio.gather(*(lane.submit(item) for item in range(5)))

    assert gate.batches == [[0, 1], [2, 3], [4]]


async def test_the_bad_one_fails_alone() -> None:
    """A batch that fails is split until only the request to blame has failed."""
    gate = Gate()
    gate.open.set()
    lane = Lane("test", gate, limit=100, deadlines=Deadlines(5))

    outcomes = await asyncio.gather(*(lane.submit(item) for item in range(10, 20)), return_exceptions=True)

    assert [repr(outcome) for outcome in outcomes] == [
        "ValueError('thirteen')" if item == 13 else repr(-item) for item in range(10, 20)
    ]


async def test_when_the_database_is_away_nothing_is_split() -> None:
    """Trying again in halves is no use when nobody is to blame: everyone is told at once."""
    tried = []

    async def work(take: Take) -> list[int]:
        tried.append(len(take()))
        raise Unavailable

    lane = Lane("test", work, limit=100, deadlines=Deadlines(5))

    outcomes = await asyncio.gather(*(lane.submit(item) for item in range(10)), return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {Unavailable}
    assert tried == [10]


async def test_who_leaves_takes_nobody_along() -> None:
    """A caller that went away, waiting or under way, changes nothing for the others."""
    gate = Gate()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5))
    under_way, waiting, others = lane.submit(1), lane.submit(2), [lane.submit(3)]
    await asyncio.sleep(0)
    late = lane.submit(4)
    others.append(lane.submit(5))

    under_way.cancel()
    late.cancel()
    gate.open.set()

    assert await asyncio.gather(waiting, *others) == [-2, -3, -5]
    assert gate.batches == [[1, 2, 3], [5]]


async def test_a_failure_after_its_caller_has_left() -> None:
    """A request that fails when its caller went away fails nothing else, and the lane goes on."""
    gate = Gate()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5))
    left = lane.submit(13)
    await asyncio.sleep(0)

    left.cancel()
    gate.open.set()

    assert await lane.submit(5) == -5
    assert gate.batches == [[13], [5]]


async def test_the_queue_is_bounded() -> None:
    """More than the limit may not wait; who is refused is told at once, and room is made by working."""
    gate = Gate()
    lane = Lane("test", gate, limit=2, deadlines=Deadlines(5))
    accepted = [lane.submit(1)]
    await asyncio.sleep(0)
    accepted += [lane.submit(2), lane.submit(3)]

    with pytest.raises(Overloaded):
        await lane.submit(4)

    gate.open.set()
    assert await asyncio.gather(*accepted) == [-1, -2, -3]
    assert await lane.submit(5) == -5


async def test_a_batch_waits_for_room_for_its_answers() -> None:
    """While memory has no room for more answers, requests wait; what has arrived by then is one batch."""
    gate, room = Gate(), asyncio.Event()
    gate.open.set()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5), room=room.wait)
    futures = [lane.submit(item) for item in (1, 2)]
    await asyncio.sleep(0.01)
    assert gate.batches == []

    room.set()

    assert await asyncio.gather(*futures) == [-1, -2]
    assert gate.batches == [[1, 2]]


async def test_concurrent_requests_share_transactions(database_url: str) -> None:
    """On PostgreSQL: many requests, few transactions, and each gets its own answer."""
    async with Database(database_url).opened() as database:
        identify = Identify(database, identify_response)
        sizes: list[int] = []
        write = identify.write

        async def counted(take: Callable[[], Sequence[Identifiers]]) -> list[bytes]:
            answers = await write(take)
            sizes.append(len(answers))
            return answers

        identify.write = counted  # type: ignore[method-assign]
        one = coalesced(identify, limit=1000, deadlines=Deadlines(5))

        answers = await asyncio.gather(*(one(Identifiers(f"e{n}", str(n), str(n))) for n in range(100)))

    assert all(f'"e{n}"'.encode() in answer for n, answer in enumerate(answers))
    assert sum(sizes) == 100
    assert len(sizes) < 10


REFUSE_THIRTEEN = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'thirteen'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON contact FOR EACH ROW WHEN (NEW.email = 'e13') EXECUTE FUNCTION refuse();
"""


async def test_a_request_that_the_database_refuses_fails_alone(database_url: str) -> None:
    """On PostgreSQL: a batch with one request that cannot be written is written but for that one."""
    await execute(database_url, REFUSE_THIRTEEN)
    async with Database(database_url).opened() as database:
        one = coalesced(Identify(database, identify_response), limit=1000, deadlines=Deadlines(5))

        outcomes = await asyncio.gather(
            *(one(Identifiers(f"e{n}", str(n), str(n))) for n in range(30)), return_exceptions=True
        )

    assert [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [13]


async def test_what_no_request_is_to_blame_for_is_not_split(database_url: str) -> None:
    """On PostgreSQL: with a column gone every request fails, once, and not in ever smaller batches."""
    async with Database(database_url).opened() as database:
        await execute(database_url, "ALTER TABLE contact RENAME COLUMN updated_at TO changed_at")
        tried = []
        identify = Identify(database, identify_response)
        write = identify.write

        async def counted(take: Callable[[], Sequence[Identifiers]]) -> Sequence[Outcome]:
            tried.append(len(take()))
            return await write(take)

        identify.write = counted  # type: ignore[method-assign, assignment]
        one = coalesced(identify, limit=1000, deadlines=Deadlines(5))

        outcomes = await asyncio.gather(
            *(one(Identifiers(f"e{n}", str(n), str(n))) for n in range(30)), return_exceptions=True
        )

    assert {type(outcome) for outcome in outcomes} == {asyncpg.UndefinedColumnError}
    assert sum(tried) == 30


async def test_what_is_left_undone_is_the_next_batch() -> None:
    """Work that has outcomes for the first of its requests only gets the others again, after those that came since."""
    gate = Gate()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(5))
    futures = [lane.submit(item) for item in (1, 2, 3)]
    await asyncio.sleep(0)
    futures.append(lane.submit(4))
    gate.most = 2

    gate.open.set()

    assert await asyncio.gather(*futures) == [-1, -2, -3, -4]
    assert gate.batches == [[1, 2, 3], [4, 3]]


@pytest.mark.parametrize("changes", [False, True])
async def test_who_waits_too_long_is_told_so(changes: bool) -> None:
    """At the deadline a batch under way is given up, what it changes unknown; what waits is given up and never done."""
    gate = Gate()
    lane = Lane("test", gate, limit=10, deadlines=Deadlines(0.1), changes=changes)
    under_way = lane.submit(1)
    await asyncio.sleep(0)
    waiting = lane.submit(2)

    async with asyncio.timeout(1):
        outcomes = await asyncio.gather(under_way, waiting, return_exceptions=True)
    later = lane.submit(3)
    gate.open.set()

    assert [type(outcome) for outcome in outcomes] == [
        OutcomeUnknown if changes else DeadlineExceeded,
        DeadlineExceeded,
    ]
    assert await later == -3
    assert gate.batches == [[1], [3]]


async def test_halves_of_a_batch_have_deadlines_too() -> None:
    """Who is told that nothing was changed, while another half of its batch is tried, is not tried any more."""
    given_up = asyncio.Event()
    tried: list[list[int]] = []

    async def work(take: Take) -> list[int]:
        batch = take()
        tried.append(list(batch))
        if len(batch) > 1:
            raise ValueError("split")
        await given_up.wait()
        return list(batch)

    lane = Lane("test", work, limit=10, deadlines=Deadlines(0.1), changes=True)

    outcomes = await asyncio.gather(lane.submit(1), lane.submit(2), return_exceptions=True)
    given_up.set()
    assert await lane.submit(3) == 3

    assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown, DeadlineExceeded]
    assert [batch for batch in tried if batch] == [[1, 2], [1], [3]]


async def test_the_plain_form_shares_nothing(database_url: str) -> None:
    """On PostgreSQL: as many transactions as requests."""
    async with Database(database_url).opened() as database:
        identify = Identify(database, identify_response)
        sizes: list[int] = []
        for name in ("read", "write"):
            work = getattr(identify, name)

            async def counted(take: Callable[[], Sequence[Identifiers]], work: Any = work) -> Sequence[Outcome]:
                sizes.append(len(take()))
                outcomes: Sequence[Outcome] = await work(take)
                return outcomes

            setattr(identify, name, counted)
        one = plain(identify, limit=1000, deadlines=Deadlines(5), at_once=4)

        await asyncio.gather(*(one(Identifiers(f"e{n}", str(n), str(n))) for n in range(20)))

    assert sizes == [1] * 40


async def test_plain_requests_share_nothing() -> None:
    """In the plain form each request is a batch of its own, several at once, and the queue is bounded all the same."""
    gate = Gate()
    lane = Lane("test", gate, limit=1, deadlines=Deadlines(5), width=2, largest=1)
    futures = []
    for item in (1, 2, 3):
        futures.append(lane.submit(item))
        await asyncio.sleep(0)

    with pytest.raises(Overloaded):
        await lane.submit(4)

    assert gate.batches == [[1], [2]]
    gate.open.set()
    assert await asyncio.gather(*futures) == [-1, -2, -3]
