"""A steward's requests by HTTP about made-up people: each kind of correction, in several variants."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple, TypeAlias

import aiohttp

from tests.harness.databases import execute, fetch

Body: TypeAlias = dict[str, Any]
Request: TypeAlias = tuple[str, str, Body]  # method, path, body


class Answer(NamedTuple):
    """What a request was, and its answer."""

    kind: str
    request: Request
    status: int
    body: Body

    @property
    def event_id(self) -> int | None:
        """The event by which a correction is in effect; None for every other answer."""
        return self.body.get("eventId") if self.status == 200 else None


@dataclass(frozen=True)
class People:
    """Five people: George and Biff, whom a request merged; Marty and Doc, who are kept apart; Einstein. And junk.

    Each has one contact, with an email and a phone number that have the number of these five; junk is a blocked email.

    Attributes
    ----------
    merge : the name of the link between George and Biff.
    apart : the event that keeps Marty and Doc apart.
    """

    number: int
    george: int
    biff: int
    marty: int
    doc: int
    einstein: int
    merge: str
    apart: int

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids of their contacts."""
        return self.george, self.biff, self.marty, self.doc, self.einstein

    def email(self, name: str) -> Body:
        """The email of one of them."""
        return {"email": f"{name}{self.number}"}

    def phone(self, digit: int) -> Body:
        """The phone number of one of them: George's has 1, Biff's 2, Marty's 3, Doc's 4, Einstein's 5."""
        return {"phoneNumber": f"{digit}0{self.number}"}


async def empty(url: str) -> None:
    """Bring a database back to the state of a new one."""
    await execute(
        url,
        "TRUNCATE contact, blocked RESTART IDENTITY",  # and with contact, the journal
        "UPDATE setting SET max_emails = 1000, max_phones = 1000, block_common = true",
    )


async def introduce(session: aiohttp.ClientSession, url: str, database_url: str, number: int) -> People:
    """Make these people known."""

    async def made(path: str, body: Body) -> Body:
        async with session.post(f"{url}{path}", json=body) as response:
            assert response.status == 200, await response.text()
            answer: Body = await response.json()
            return answer

    names = ("george", "biff", "marty", "doc", "einstein")
    said = [{"email": f"{name}{number}", "phoneNumber": f"{digit}0{number}"} for digit, name in enumerate(names, 1)]
    ids = [(await made("/identify", each))["contact"]["primaryContactId"] for each in said]
    await made("/identify", {"email": f"george{number}", "phoneNumber": f"20{number}"})
    [(merge,)] = await fetch(
        database_url, "SELECT id FROM event WHERE kind = 'merged' AND email = $1", f"george{number}"
    )
    apart = await made(f"/identities/{ids[2]}/keep-apart", {"contactId": ids[3]})
    await made("/blocked", {"email": f"junk{number}"})
    return People(number, *ids, merge=f"event:{merge}", apart=apart["eventId"])


def _of(action: str, people: People, contact: str, **body: Any) -> Request:
    return "POST", f"/identities/{getattr(people, contact)}/{action}", body


def _choose(variants: Sequence[Callable[[People], Request]]) -> Callable[[People, int], Request]:
    return lambda people, number: variants[number % len(variants)](people)


def _identify(email: str, phone: int) -> Callable[[People], Request]:
    return lambda people: ("POST", "/identify", people.email(email) | people.phone(phone))


# The request of each kind about these people; the number chooses a variant. `parts` moves one identifier out.
KINDS: dict[str, Callable[[People, int], Request]] = {
    "split by links": _choose(
        [
            lambda people: _of("split", people, "biff", links=[people.merge]),
            lambda people: _of("split", people, "george", links=[f"contact:{people.george}"]),
        ]
    ),
    "split by parts": _choose(
        [
            lambda people: _of("split", people, "george", parts=[[people.phone(1)]]),
            lambda people: _of("split", people, "biff", parts=[[people.email("biff")]]),
            lambda people: _of("split", people, "marty", parts=[[people.phone(3)]]),
        ]
    ),
    "link": _choose(
        [
            lambda people: _of("link", people, "marty", contactId=people.george),
            lambda people: _of("link", people, "einstein", contactId=people.biff),
            lambda people: _of("link", people, "marty", contactId=people.doc, release=True),
            lambda people: _of("link", people, "doc", contactId=people.einstein),
        ]
    ),
    "keep apart": _choose(
        [
            lambda people: _of("keep-apart", people, "george", contactId=people.marty),
            lambda people: _of("keep-apart", people, "einstein", contactId=people.biff),
            lambda people: _of("keep-apart", people, "doc", contactId=people.einstein),
        ]
    ),
    "release": _choose(
        [
            lambda people: _of("release", people, "doc", contactId=people.marty),
            lambda people: _of("release", people, "marty", eventId=people.apart),
            lambda people: _of("release", people, "einstein", contactId=people.george),
        ]
    ),
    "block": _choose(
        [
            lambda people: ("POST", "/blocked", people.phone(1)),
            lambda people: ("POST", "/blocked", people.email("biff")),
            lambda people: ("POST", "/blocked", people.phone(3)),
        ]
    ),
    "unblock": _choose(
        [
            lambda people: ("POST", "/blocked/release", people.email("junk")),
            lambda people: ("POST", "/blocked/release", people.phone(1)),
            lambda people: ("POST", "/blocked/release", people.phone(3)),
        ]
    ),
    "erase": _choose(
        [
            lambda people: _of("erase", people, "biff"),
            lambda people: _of("erase", people, "marty"),
        ]
    ),
    "guards": lambda people, number: ("PATCH", "/guards", {"maxEmails": 100 + 50 * people.number + number}),
    # Known, new on each side, one that links two identities, and one that is forbidden.
    "identify": _choose(
        [
            _identify("george", 2),
            _identify("new", 1),
            _identify("new", 2),
            _identify("george", 3),
            _identify("einstein", 2),
            _identify("marty", 4),
            _identify("biff", 7),
            _identify("doc", 8),
        ]
    ),
}


async def send(session: aiohttp.ClientSession, url: str, kind: str, request: Request, key: str | None = None) -> Answer:
    """Send a request, with an Idempotency-Key if there is one, and return its answer."""
    method, path, body = request
    headers = {"Idempotency-Key": key} if key else {}
    async with session.request(method, url + path, json=body, headers=headers) as response:
        return Answer(kind, request, response.status, await response.json(content_type=None))


async def send_at_once(
    session: aiohttp.ClientSession, urls: Sequence[str], requests: Sequence[tuple[str, Request]]
) -> list[Answer]:
    """Send requests, each with its kind, to the processes in turn, all at the same time.

    A correction has its place in the list as its note, so its event tells which request made it.
    """
    noted = [
        (kind, (method, path, body if kind == "identify" else body | {"note": f"no. {number}"}))
        for number, (kind, (method, path, body)) in enumerate(requests)
    ]
    return await asyncio.gather(
        *(send(session, url, kind, request) for url, (kind, request) in zip(cycle(urls), noted, strict=False))
    )


# The kinds of events of corrections, each with how the kinds of requests begin that make it.
CORRECTIONS = {
    "linked": "link",
    "split": "split",
    "kept_apart": "keep apart",
    "released": "release",
    "blocked": "block",
    "unblocked": "unblock",
    "guards": "guards",
    "erased": "erase",
}


async def expect_events(url: str, answers: list[Answer], position: int) -> None:
    """Each correction that answered 200 is an event, or in effect by one; no other is, and none is two."""
    rows = await fetch(
        url,
        "SELECT id, kind, note FROM event WHERE id > $1 AND kind <> ALL ($2::text[])",
        position,
        ["merged", "mended", "withheld"],
    )
    corrections = [answer for answer in answers if answer.kind != "identify"]
    answered = {answer.event_id for answer in corrections if answer.event_id}
    assert {row["id"] for row in rows} == {event_id for event_id in answered if event_id > position}
    kinds = {answer.event_id: answer.kind for answer in corrections}
    assert [row for row in rows if not kinds[row["id"]].startswith(CORRECTIONS[row["kind"]])] == []
    # An erasure takes notes away.
    noted = {row["note"]: row["id"] for row in rows if row["note"] is not None}
    assert len(noted) == sum(row["note"] is not None for row in rows)
    made = {answer.request[2]["note"]: answer.event_id for answer in corrections if answer.request[2]["note"] in noted}
    assert made == noted
    splits = [answer.event_id for answer in corrections if answer.kind.startswith("split") and answer.event_id]
    assert len(splits) == len(set(splits))
