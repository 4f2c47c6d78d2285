"""Stewards who make corrections beside a shop's load, each under an Idempotency-Key until its outcome is known.

async with stewards_at_work(recons.urls, recons.database_url, seed=1) as stewards:
    figures = await survived(fault, recons, seed=1, is_other=is_other)
await stewards.check()
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import aiohttp
import asyncpg

from tests.harness.databases import fetch
from tests.harness.desk import CORRECTIONS, KINDS, Answer, Request, expect_events, introduce, send
from tests.harness.faults import is_probe
from tests.harness.shop import PROMISE

STEWARDS = 4
GROUPS = 12  # fives of people
ERASED_GROUPS = 3  # of these; nothing else is corrected in them, since an erasure takes stored answers and notes away
PATIENCE = 60  # seconds after which a correction that has no final answer fails the test
PAUSE = 0.05  # seconds before a repetition
KEY = "desk-"  # the beginning of every Idempotency-Key
# In the answer that a correction stores in its transaction, and nowhere else in what recon sends to PostgreSQL.
STORED = b'"eventId"'
_EMAIL = re.compile(r"(george|biff|marty|doc|einstein|new|junk)\d+")
_PHONE = re.compile(r"\d0\d{1,2}")


@dataclass
class Attempt:
    """One time that a correction was sent; without a status, the connection was lost."""

    status: int | None = None
    body: dict[str, Any] = field(default_factory=dict)
    was_sent: bool = True

    @property
    def is_final(self) -> bool:
        """Whether it tells the outcome."""
        return self.status is not None and self.status < 500

    @property
    def changed_nothing(self) -> bool:
        """Whether it is certain that this attempt changed nothing, and never will."""
        promised = self.status is not None and PROMISE.decode() in self.body.get("detail", "")
        return not self.was_sent or promised or (self.is_final and self.status != 200)


@dataclass
class Case:
    """A correction, with all attempts at it."""

    key: str
    kind: str
    request: Request
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def final(self) -> Attempt:
        """The attempt that told the outcome."""
        return self.attempts[-1]

    @property
    def unknown(self) -> list[Attempt]:
        """The attempts that may have made it."""
        return [each for each in self.attempts if not each.is_final and not each.changed_nothing]


def is_other(row: asyncpg.Record) -> bool:
    """Tell whether a contact or an event is one of these people, or a steward's, or a probe: none of the load."""
    email, phone = row["email"] or "", row["phone_number"] or ""
    # What an erasure leaves of a merge has neither.
    is_ours = bool(_EMAIL.fullmatch(email) or _PHONE.fullmatch(phone) or not (email or phone))
    return is_ours or is_probe(row) or row.get("kind") in CORRECTIONS


class Stewards:
    """Stewards at work.

    Attributes
    ----------
    cases : the corrections so far.
    over : whether they are to begin no others.
    """

    def __init__(self, urls: Sequence[str], database_url: str, session: aiohttp.ClientSession) -> None:
        self._urls = urls
        self._database_url = database_url
        self._session = session
        self._requests: Iterator[tuple[str, Request]] = iter(())
        self._position = 0
        self.cases: list[Case] = []
        self.over = False

    async def prepare(self, seed: int) -> None:
        """Make the people known, and choose an endless sequence of corrections of them."""
        people = await asyncio.gather(
            *(introduce(self._session, self._urls[0], self._database_url, number) for number in range(GROUPS))
        )
        [(self._position,)] = await fetch(self._database_url, "SELECT max(id) FROM event")
        corrections = [
            (kind, choose(five, number))
            for five in people
            for kind, choose in KINDS.items()
            for number in range(3)
            if kind == "identify" or (kind == "erase") == (five.number < ERASED_GROUPS)
        ]
        # The same again for the same seed.
        random.Random(seed).shuffle(corrections)  # noqa: S311
        self._requests = (each for _ in count() for each in corrections)

    async def work(self) -> None:
        """Make one correction after another."""
        for kind, (method, path, body) in self._requests:
            if self.over:
                return
            key = f"{KEY}{len(self.cases)}"
            noted = body if kind == "identify" else body | {"note": key}
            case = Case(key, kind, (method, path, noted))
            self.cases.append(case)
            deadline = time.monotonic() + PATIENCE
            while not case.attempts or not case.final.is_final:
                assert time.monotonic() < deadline, f"{case} has no outcome"
                if case.attempts:
                    await asyncio.sleep(PAUSE)
                # A repetition goes to another process.
                url = self._urls[(len(self.cases) + len(case.attempts)) % len(self._urls)]
                case.attempts.append(await self._attempt(url, case))

    async def _attempt(self, url: str, case: Case) -> Attempt:
        try:
            answer = await send(self._session, url, case.kind, case.request, case.key)
        except aiohttp.ClientConnectorError:
            return Attempt(was_sent=False)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Attempt()
        return Attempt(answer.status, answer.body)

    @property
    def corrections(self) -> list[Case]:
        """The cases that are no requests of a shop."""
        return [case for case in self.cases if case.kind != "identify"]

    async def check(self) -> None:
        """Each correction was made once, as a whole, or not at all; and each answer was true."""
        for case in self.corrections:
            assert case.final.status in {200, 404, 409, 410, 422}, case
            if "repeated" in case.final.body:
                assert case.unknown, f"made by an attempt that was answered with the contrary: {case}"
        answers = [Answer(case.kind, case.request, case.final.status or 0, case.final.body) for case in self.cases]
        await expect_events(self._database_url, answers, self._position)
        await self._expect_stored()
        for statement in HALVES:
            assert await fetch(self._database_url, statement) == [], statement

    async def _expect_stored(self) -> None:
        """Each key of a correction that was made has its answer, and no other key has one."""
        rows = await fetch(self._database_url, "SELECT key, event_id, answer FROM correction")
        stored = {row["key"]: json.loads(row["answer"]) for row in rows}
        bodies = {case.key: case.final.body for case in self.corrections if case.final.status == 200}
        # An erasure that was in effect already stores nothing.
        erased = {case.key for case in self.corrections if case.kind == "erase"}
        assert bodies.keys() - erased <= stored.keys() <= bodies.keys()
        for key, answer in stored.items():
            assert {name: each for name, each in bodies[key].items() if name != "repeated"} == answer
        made = {row["event_id"] for row in rows}
        events = {body["eventId"] for key, body in bodies.items() if key in stored and body["eventId"] is not None}
        assert {event for event in events if event > self._position} <= made


@asynccontextmanager
async def stewards_at_work(urls: Sequence[str], database_url: str, seed: int) -> AsyncIterator[Stewards]:
    """Let stewards work meanwhile; leaving waits until they know the outcome of all that they began."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        stewards = Stewards(urls, database_url, session)
        await stewards.prepare(seed)
        working = asyncio.gather(*(stewards.work() for _ in range(STEWARDS)))
        try:
            yield stewards
            stewards.over = True
            await working
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


_DIVIDES = "divide AS (SELECT id, detail FROM event WHERE kind IN ('split', 'blocked') AND detail IS NOT NULL)"
_IS_THERE = "EXISTS (SELECT FROM contact WHERE id = contact_id)"
# Each finds corrections of which one table has a part that another one lacks.
HALVES = (
    # An event without the contacts that it created or soft-deleted, or that lost identifiers.
    f"""
    WITH {_DIVIDES}
    SELECT divide.id, contact_id FROM divide, LATERAL (
        SELECT jsonb_array_elements(detail -> 'created')::bigint UNION ALL
        SELECT jsonb_array_elements(detail -> 'deleted')::bigint UNION ALL
        SELECT (jsonb_array_elements(detail -> 'moved') ->> 0)::bigint UNION ALL
        SELECT jsonb_array_elements(detail -> 'parts')::bigint
    ) AS named (contact_id) WHERE NOT {_IS_THERE}
    """,
    f"""
    WITH {_DIVIDES}
    SELECT divide.id, contact.id FROM divide, jsonb_array_elements(detail -> 'deleted') AS deleted
        JOIN contact ON contact.id = deleted::bigint WHERE deleted_at IS NULL
    """,
    # Marks without their event, and events in force without their marks.
    """
    SELECT contact.id FROM contact, generate_subscripts(apart, 1) AS n
    WHERE NOT EXISTS (
        SELECT FROM event WHERE event.id = apart[n][1] AND kind IN ('kept_apart', 'split') AND undone_by IS NULL
    )
    """,
    """
    SELECT event.id FROM event JOIN contact ON contact.id = primary_id JOIN contact AS other ON other.id = other_id
    WHERE kind = 'kept_apart' AND undone_by IS NULL
        AND 2 > (SELECT count(DISTINCT apart[n][3]) FROM contact, generate_subscripts(apart, 1) AS n
            WHERE apart[n][1] = event.id)
    """,
    # Blocked values without their event, and the reverse.
    "SELECT event_id FROM blocked WHERE event_id NOT IN (SELECT id FROM event WHERE kind = 'blocked')",
    """
    SELECT id FROM event WHERE kind = 'blocked' AND undone_by IS NULL AND id NOT IN (SELECT event_id FROM blocked)
    """,
    "SELECT id FROM event JOIN blocked ON blocked.event_id = event.id WHERE undone_by IS NOT NULL",
    # Erasures without the ids that they erased, and contacts that were erased.
    """
    SELECT id FROM event WHERE kind = 'erased'
        AND (detail ->> 'contacts')::bigint <> (SELECT count(*) FROM erased WHERE event_id = event.id)
    """,
    "SELECT id FROM contact WHERE id IN (SELECT contact_id FROM erased)",
    # Absorbed identities that are still there.
    """
    SELECT event.id FROM event JOIN contact ON contact.id = other_id
    WHERE kind = 'linked' AND linked_id IS NULL AND NOT EXISTS (
        SELECT FROM event AS later WHERE later.kind IN ('split', 'blocked') AND later.id > event.id
    )
    """,
    # Settings that are not those of the last change.
    """
    SELECT max_emails FROM setting WHERE max_emails <> (
        SELECT (detail -> 'after' ->> 'maxEmails')::int FROM event WHERE kind = 'guards' ORDER BY id DESC LIMIT 1
    )
    """,
)
