"""Every correction against requests and against every other correction, by HTTP: each is made once and whole, or not.

A case is two kinds, a form of the processes, and how many requests there are at a time. The cases cover each pair of
these: every two kinds meet once, and every kind is in each form with each number of requests.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from itertools import combinations_with_replacement
from typing import Any

import aiohttp
import pytest

from recon.sql import invariants
from tests.harness.databases import fetch
from tests.harness.desk import KINDS, People, empty, expect_events, introduce, send_at_once
from tests.harness.processes import StartRecon

# Each two of coalescing, lane and number of processes, in all combinations.
FORMS: list[tuple[int, list[str]]] = [
    (1, []),
    (2, ["--no-writer-lane"]),
    (2, ["--no-coalesce"]),
    (1, ["--no-coalesce", "--no-writer-lane"]),
]
SIZES = (8, 50)  # requests at a time
GROUPS = {8: 1, 50: 4}  # fives of people that they are about


def _cases(form: int) -> Iterator[tuple[str, str, int]]:
    """The pairs of kinds in this form, with how many requests at a time: diagonals, so that every kind meets all."""
    kinds = list(enumerate(KINDS))
    for (i, one), (j, other) in combinations_with_replacement(kinds, 2):
        place, size = divmod((i + j) % (len(FORMS) * len(SIZES)), len(SIZES))
        if place == form and (one, other) != ("identify", "identify"):  # those: tests/identities/test_concurrency.py
            yield one, other, SIZES[size]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a limit of connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.mark.parametrize("form", range(len(FORMS)))
async def test_races(form: int, database_url: str, start_recon: StartRecon, session: aiohttp.ClientSession) -> None:
    """Half of the requests are of one kind, half of the other: all are answered, and none breaks anything."""
    processes, options = FORMS[form]
    urls = [start_recon("--database-url", database_url, *options).url for _ in range(processes)]
    for case in _cases(form):
        try:
            await _expect_race(case, urls, database_url, session)
        except AssertionError as error:
            error.add_note(f"{case} at a time")
            raise


async def _expect_race(
    case: tuple[str, str, int], urls: list[str], database_url: str, session: aiohttp.ClientSession
) -> None:
    one, other, at_a_time = case
    await empty(database_url)
    groups = range(GROUPS[at_a_time])
    people = await asyncio.gather(*(introduce(session, urls[0], database_url, n) for n in groups))
    position, before = await _known(session, urls[0], database_url, people)

    answers = await send_at_once(session, urls, list(_requests(one, other, at_a_time, people)))

    assert [answer for answer in answers if answer.status not in _allowed(answer.kind)] == []
    assert any(answer.status == 200 for answer in answers)
    assert (await invariants.check(database_url))[0] == []
    await expect_events(database_url, answers, position)
    await _expect_apart(database_url)
    for contact_id, contact in before.items():
        async with session.get(f"{urls[-1]}/identities/{contact_id}?asOf={position}") as response:
            was = await response.json(content_type=None)
        if "erase" in (one, other):  # the past has no more of who was erased
            assert was.get("type") == "urn:recon:erased" or _values(was["contact"]) <= _values(contact), was
        else:
            assert was == {"contact": contact}


def _values(contact: dict[str, Any]) -> set[str]:
    return {*contact["emails"], *contact["phoneNumbers"]}


def _requests(one: str, other: str, number: int, people: list[People]) -> Iterator[tuple[str, Any]]:
    """Alternately of both kinds, about one five after another, in all variants."""
    for place in range(number):
        kind = (one, other)[place % 2]
        turn, group = divmod(place // 2, len(people))
        # Where the kinds are the same, each variant is sent at least twice.
        yield kind, KINDS[kind](people[group], turn)


def _allowed(kind: str) -> set[int]:
    return {200} if kind == "identify" else {200, 404, 409, 410, 422}


async def _known(
    session: aiohttp.ClientSession, url: str, database_url: str, people: list[People]
) -> tuple[int, dict[int, Any]]:
    """The last position, and the identity of each contact."""
    found = {}
    for contact_id in (contact_id for each in people for contact_id in each.ids):
        async with session.get(f"{url}/identities/{contact_id}") as response:
            found[contact_id] = (await response.json())["contact"]
    [(position,)] = await fetch(database_url, "SELECT greatest(max(contact.id), max(event.id)) FROM contact, event")
    return position, found


# Of a split of a merged identity, the sides are those of its oldest contacts.
APART = """
WITH
    live AS (SELECT id, coalesce(linked_id, id) AS root FROM contact),
    released AS (
        SELECT jsonb_array_elements(coalesce(detail -> 'events', detail -> 'released'))::bigint AS id
        FROM event WHERE kind IN ('released', 'linked')
    ),
    pair AS (
        SELECT id, primary_id AS one, other_id AS other FROM event WHERE kind = 'kept_apart'
        UNION ALL
        SELECT id, (detail -> 'parts' ->> 0)::bigint, (detail -> 'parts' ->> 1)::bigint FROM event
        WHERE kind = 'split' AND jsonb_array_length(detail -> 'parts') = 2
    )
SELECT pair.id, one.root FROM pair JOIN live AS one ON one.id = pair.one JOIN live AS other ON other.id = pair.other
WHERE one.root = other.root AND pair.id NOT IN (SELECT id FROM released)
"""


async def _expect_apart(url: str) -> None:
    """What is kept apart is apart, told by the events rather than by the marks on the contacts."""
    assert [json.dumps(dict(row)) for row in await fetch(url, APART)] == []
