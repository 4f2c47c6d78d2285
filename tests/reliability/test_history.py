"""The history checker accepts every possible history, and finds every kind of bug in code, rows and answers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import cycle, pairwise
from typing import Any

import asyncpg
import pytest
from aiohttp.test_utils import TestServer

from recon.app import create_app
from recon.database import transactions
from recon.database.transactions import Connection, Database
from recon.errors import Unavailable
from recon.identities import identify
from recon.identities.identify import Answer, Identify, Requests
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Plan
from recon.settings import Settings
from recon.sql import contacts as sql
from tests.harness.exchanges import Exchange, History, Outcome, Request
from tests.harness.history import CONTACTS, Contact, check, contacts
from tests.harness.journal import check_journal, events
from tests.harness.processes import recon_processes
from tests.harness.races import RACES, AllHaveRead
from tests.harness.shop import drive


def kinds(violations: list[str]) -> set[str]:
    """Return the kinds of the violations."""
    return {violation.split(":")[0] for violation in violations}


@dataclass
class Run:
    """A load on two real processes, and the database with its rows."""

    history: History
    database_url: str


@pytest.fixture(scope="module")
def run(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without faults."""
    with recon_processes(tmp_path_factory.mktemp("recon")) as start:
        urls = [start("--database-url", shared_database_url).url for _ in range(2)]
        return Run(asyncio.run(drive(urls, seed=4, requests=3_000)), shared_database_url)


async def test_a_right_run_is_found_right(run: Run) -> None:
    """In thousands of concurrent requests to two processes, all answered, the checker finds no violation."""
    figures = run.history.figures()

    rows = await contacts(run.database_url)
    journal = await events(run.database_url)

    assert check(run.history, rows) == []
    assert check_journal(run.history, rows, journal) == []
    assert len(journal) > 100
    assert figures["requests"] == 3_000
    assert figures["acknowledged"] > 2_500
    assert figures["refused"] == 3_000 - figures["acknowledged"] > 20
    assert figures["unknown"] == figures["retried"] == 0
    assert 0 < figures["longest gap"] < figures["seconds"]


async def test_a_run_races(run: Run) -> None:
    """Requests about the same people overlap, and people are merged."""
    acknowledged = run.history.of(Outcome.ACKNOWLEDGED)
    overlapping = sum(
        later.started < earlier.ended and not {*earlier.request.names}.isdisjoint(later.request.names)
        for earlier, later in pairwise(acknowledged)
    )

    assert overlapping > 100
    assert len(_merged(run.history)) > 100


async def test_what_was_not_answered_has_happened_or_not(run: Run) -> None:
    """The checker accepts acknowledged requests as unknown ones too, and unknown requests without effect."""
    exchanges = [
        replace(each, outcome=Outcome.UNKNOWN, body=b"") if each.status == 200 and each.number % 3 == 0 else each
        for each in run.history.exchanges
    ]
    nobody = [Exchange(-n, 0, "", Request(f"nobody{n}", f"{n}"), exchanges[0].started) for n in range(1, 9)]

    assert check(History([*nobody, *exchanges]), await contacts(run.database_url)) == []


def _merged(history: History) -> dict[int, list[int]]:
    """Return the contacts of each person who was merged with another, as last seen before the merge."""
    seen: dict[int, list[int]] = {}
    for exchange in sorted(history.of(Outcome.ACKNOWLEDGED), key=lambda each: len(each.body)):
        contact = json.loads(exchange.body)["contact"]
        seen[contact["primaryContactId"]] = [contact["primaryContactId"], *contact["secondaryContactIds"]]
    absorbed = {row_id for ids in seen.values() for row_id in ids[1:]}
    return {primary: ids for primary, ids in seen.items() if primary in absorbed}


# Statements that change the rows as a bug would, and the kind of violation that the checker must find.
TO_PRIMARY = "UPDATE contact SET linked_id = NULL, link_precedence = 'primary' WHERE id = {id}"
COPY = "INSERT INTO contact ({columns}) SELECT {columns} FROM contact WHERE id = {{extension}}"
TAMPERED = {
    "a lost merge": (TO_PRIMARY + "; UPDATE contact SET linked_id = {id} WHERE id = ANY ('{{{others}}}')", "lost"),
    "a second primary": (TO_PRIMARY.format(id="{extension}"), "primary"),
    "a younger primary": ("UPDATE contact SET created_at = now() WHERE id = {root}", "primary"),
    "a duplicate row": (COPY.format(columns="email, phone_number, linked_id, link_precedence"), "duplicate"),
    "a row that brings nothing new": (COPY.format(columns="email, linked_id, link_precedence"), "duplicate"),
    "a lost row": ("DELETE FROM contact WHERE id = {extension}", "lost"),
    "a row of a refused request": ("INSERT INTO contact (email) VALUES ('{refused}')", "refused"),
    "a row that nobody sent": ("INSERT INTO contact (email) VALUES ('nobody@4.example')", "unsent"),
    "a merge that nobody asked for": (
        "UPDATE contact SET linked_id = {other}, link_precedence = 'secondary' WHERE id = {alone}",
        "unlinked",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
async def test_tampered_rows_are_found(name: str, run: Run) -> None:
    """The checker finds the rows that a bug would leave in an otherwise correct run."""
    statement, kind = TAMPERED[name]
    rows = await contacts(run.database_url)
    values = _places(run.history, rows)
    connection = await asyncpg.connect(run.database_url)
    try:
        async with _undone(connection):
            await connection.execute(statement.format(**values))
            tampered = await connection.fetch(CONTACTS)
    finally:
        await connection.close()

    assert tampered != rows
    assert kind in kinds(check(run.history, tampered))


@asynccontextmanager
async def _undone(connection: asyncpg.Connection) -> AsyncIterator[None]:
    transaction = connection.transaction()
    await transaction.start()
    yield
    await transaction.rollback()


def _places(history: History, rows: list[Contact]) -> dict[str, Any]:
    """Return ids and identifiers to tamper with."""
    was_primary = _merged(history)
    of = {row["id"]: {row["email"], row["phone_number"]} - {None} for row in rows}
    root = {row["id"]: row["linked_id"] or row["id"] for row in rows}
    merged, ids = next(
        (merged, ids)
        for merged, ids in was_primary.items()
        if all(
            of[one].isdisjoint(of[other])
            for one in ids
            for other in of
            if root[other] == root[merged] and other not in ids
        )
    )
    extension = next(row for row in rows if row["linked_id"] and row["email"] and row["id"] not in was_primary)
    linked = {row["linked_id"] for row in rows}
    alone, other = [row["id"] for row in rows if row["linked_id"] is None and row["id"] not in linked][:2]
    refused = next(each for each in history.of(Outcome.REFUSED))
    return {
        "id": merged,
        "others": ",".join(map(str, ids[1:])),
        "extension": extension["id"],
        "root": extension["linked_id"],
        "alone": alone,
        "other": other,
        "refused": refused.request.email,
    }


# Replaced answers to an earlier and a later request that are equal, and the kinds of violations.
Altered = Callable[[Exchange, Exchange], tuple[bytes, bytes]]


def _with_email(body: bytes) -> bytes:
    answer = json.loads(body)
    answer["contact"]["emails"].append("nobody@4.example")
    return json.dumps(answer).encode()


def _with_another_primary(body: bytes) -> bytes:
    answer = json.loads(body)
    contact = answer["contact"]
    contact["primaryContactId"], contact["secondaryContactIds"][0] = (
        contact["secondaryContactIds"][0],
        contact["primaryContactId"],
    )
    return json.dumps(answer).encode()


ALTERED: dict[str, tuple[Altered, set[str]]] = {
    "a stale read": (lambda earlier, _: (earlier.body, earlier.body), {"stale"}),
    "a read of what is to come": (lambda _, later: (later.body, later.body), {"unsent"}),
    "an identifier that nobody sent": (lambda earlier, later: (earlier.body, _with_email(later.body)), {"unsent"}),
    "another primary": (lambda earlier, later: (earlier.body, _with_another_primary(later.body)), {"answer"}),
}


@pytest.mark.parametrize("name", ALTERED)
async def test_altered_answers_are_found(name: str, run: Run) -> None:
    """The checker finds one wrong answer among thousands."""
    alter, expected = ALTERED[name]
    earlier, later = _asked_twice(run.history)
    bodies = dict(zip((earlier.number, later.number), alter(earlier, later), strict=True))
    exchanges = [replace(each, body=bodies.get(each.number, each.body)) for each in run.history.exchanges]

    found = kinds(check(History(exchanges), await contacts(run.database_url)))

    assert found & expected, found


def _asked_twice(history: History) -> tuple[Exchange, Exchange]:
    """Find two equal requests, and between them a request that started after the first and ended before the second."""
    acknowledged = history.of(Outcome.ACKNOWLEDGED)
    first: dict[tuple[str, ...], Exchange] = {}  # by its identifiers
    sent: dict[str, Exchange] = {}  # by identifier
    news: dict[bytes, Exchange] = {}  # by answer
    for exchange in history.exchanges:
        for name in exchange.request.names:
            if sent.setdefault(name, exchange) is exchange:
                news[exchange.body] = exchange
    for exchange in acknowledged:
        earlier, between = first.setdefault(exchange.request.names, exchange), news.get(exchange.body, exchange)
        if earlier.ended < between.started and between.ended < exchange.started:
            return earlier, exchange
    raise AssertionError("a run in which nobody came again")


@asynccontextmanager
async def two_recons(database_url: str, **chosen: Any) -> AsyncIterator[list[str]]:
    """Two recons in this process, in which a test can plant a bug."""
    applications = [create_app(Settings(database_url=database_url, **chosen)) for _ in range(2)]
    async with TestServer(applications[0]) as one, TestServer(applications[1]) as other:
        yield [str(server.make_url("")).rstrip("/") for server in (one, other)]


def forgotten_merges(patch: pytest.MonkeyPatch) -> str:
    """Bug: a merge is decided and answered, but not written."""
    change = sql.change_contacts

    async def only_insert(connection: Connection, plan: Plan) -> None:
        await change(connection, replace(plan, relinks=[], events=[]))

    patch.setattr(sql, "change_contacts", only_insert)
    return "lost"


def unrecorded_merges(patch: pytest.MonkeyPatch) -> str:
    """A merge is written without its event."""
    change = sql.change_contacts
    patch.setattr(sql, "change_contacts", lambda connection, plan: change(connection, replace(plan, events=[])))
    return "unexplained"


def merges_recorded_twice(patch: pytest.MonkeyPatch) -> str:
    """A merge is written with two events."""
    change = sql.change_contacts

    async def record_twice(connection: Connection, plan: Plan) -> None:
        await change(connection, plan)
        again = [replace(event, place=place) for place, event in enumerate(plan.events, start=1)]
        await change(connection, Plan(events=again))

    patch.setattr(sql, "change_contacts", record_twice)
    return "repeated"


def remembered_answers(patch: pytest.MonkeyPatch) -> str:
    """Bug: a process caches its answers, and misses the writes of the other process."""
    read = Identify.read
    known: dict[tuple[Identify, Identifiers], identify.Outcome] = {}

    async def remember(self: Identify, requests: Requests) -> list[identify.Outcome]:
        outcomes = await read(self, requests)
        return [
            known.setdefault((self, request), outcome) if isinstance(outcome, Answer) else outcome
            for request, outcome in zip(requests(), outcomes, strict=True)
        ]

    patch.setattr(Identify, "read", remember)
    return "stale"


def delayed_answers(patch: pytest.MonkeyPatch) -> str:
    """Bug: every request that writes gets the answer of the request before it."""
    write = Identify.write
    last: list[identify.Outcome] = []

    async def delay(self: Identify, requests: Requests) -> list[identify.Outcome]:
        answers = await write(self, requests)
        last.extend(answers)
        return last[-len(answers) - 1 : -1] if len(last) > len(answers) else answers

    patch.setattr(Identify, "write", delay)
    return "answer"


def lost_commits(patch: pytest.MonkeyPatch) -> str:
    """Bug: some acknowledged transactions were not committed."""
    turns = cycle(["COMMIT"] * 9 + ["ROLLBACK"])

    async def commit(connection: Connection) -> None:
        await connection.execute(next(turns))

    patch.setattr(transactions, "_commit", commit)
    return "lost"


def refusals_after_the_fact(patch: pytest.MonkeyPatch) -> str:
    """Bug: some committed requests are answered with "Nothing was changed"."""
    turns = cycle([False] * 9 + [True])

    async def commit(connection: Connection) -> None:
        await connection.execute("COMMIT")
        if next(turns):
            raise Unavailable

    patch.setattr(transactions, "_commit", commit)
    return "refused"


BUGS = [
    forgotten_merges,
    unrecorded_merges,
    merges_recorded_twice,
    remembered_answers,
    delayed_answers,
    lost_commits,
    refusals_after_the_fact,
]


@pytest.mark.parametrize("bug", BUGS)
async def test_a_bug_in_the_code_is_found(
    bug: Callable[[pytest.MonkeyPatch], str], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker finds violations in a run of a recon with a bug."""
    kind = bug(monkeypatch)
    async with two_recons(database_url) as urls:
        history = await drive(urls, seed=5, requests=300, patience=0)

    rows = await contacts(database_url)
    assert kind in kinds(check(history, rows) + check_journal(history, rows, await events(database_url)))


async def test_without_a_bug_nothing_is_found(database_url: str) -> None:
    """The checker finds no violation in the same run without the bug."""
    async with two_recons(database_url) as urls:
        history = await drive(urls, seed=5, requests=300, patience=0)

    rows = await contacts(database_url)
    assert check(history, rows) == []
    assert check_journal(history, rows, await events(database_url)) == []


AT_ONCE = 8

# Races that fail without protection in any order of writes, and the kinds of violations. (The table's constraints
# refuse conflicting merges, and the answer is a 500.)
FOUND = {
    "identical_fresh_requests": {"duplicate", "primary"},
    "the_same_new_secondary": {"duplicate"},
    "one_email_with_many_phones": {"primary"},
}


async def _race(name: str, isolation: str, url: str, patch: pytest.MonkeyPatch) -> set[str]:
    """Return the violations of a race in which all requests read before any of them writes."""
    race = RACES[name](AT_ONCE)
    patch.setattr("recon.app.Database", lambda url, settings: Database(url, replace(settings, isolation=isolation)))
    async with two_recons(url, coalesce=False, writer_lane=False) as urls:
        before = await drive(urls, replay=[Request(*request) for request in race.before], clients=1)
        patch.setattr(sql, "lock_clusters", AllHaveRead(AT_ONCE, sql.FETCH_CLUSTERS))
        at_once = await drive(urls, replay=[Request(*request) for request in race.at_once], clients=AT_ONCE, patience=0)
    history = History([*before.exchanges, *at_once.exchanges])
    return kinds(check(history, await contacts(url)))


@pytest.mark.parametrize("name", FOUND)
async def test_an_unprotected_race_is_found(name: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checker finds the effects of a race in READ COMMITTED."""
    assert await _race(name, "READ COMMITTED", database_url, monkeypatch) >= FOUND[name]


@pytest.mark.parametrize("name", RACES)
async def test_a_protected_race_is_found_right(name: str, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In SERIALIZABLE, the checker finds no violation with the same timing."""
    assert await _race(name, "SERIALIZABLE", database_url, monkeypatch) == set()
