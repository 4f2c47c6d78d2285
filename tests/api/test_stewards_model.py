"""Random sequences of requests and corrections by HTTP, compared with an independent model after each step.

Each correction is previewed first: its dry run must answer the same.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import asyncpg
import pytest

from recon.sql import invariants
from tests.harness.desk import empty
from tests.harness.processes import StartRecon
from tests.harness.registry import Answer, Drawn, Refused, Registry
from tests.harness.splitting import Node, root_of

EMAILS = [*"abcdef", "null"]  # the last is of recon's own list
PHONES = ["1", "2", "+3", "4", "(5)", "6"]
SEQUENCES = 9
STEPS = 28
REVIEWED = "reviewed"  # withheld links on the list, for the figures at the end

Applied = Callable[[Drawn], Answer]
Sent = tuple[str, str, dict[str, Any]]  # method, path, body
Step = tuple[Sent, Applied]

NEW_CONTACTS = "SELECT id, email, phone_key FROM contact WHERE id > $1"
NEW_EVENTS = "SELECT id, kind, detail -> 'links' AS links FROM event WHERE id > $1"
MARKS = "SELECT apart[n][1] AS event, id FROM contact, generate_subscripts(apart, 1) AS n"
LAST = "SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('contact', 'id')::regclass), 0)"


class Walk:
    """Random steps on an empty database, one after another."""

    def __init__(
        self, session: aiohttp.ClientSession, url: str, database_url: str, database: asyncpg.Connection, seed: int
    ) -> None:
        self.session = session
        self.url = url
        self.database_url = database_url
        self.database = database
        self.listed: dict[tuple[str, str], int] = {}  # the events of the review list, by their links
        self.random = random.Random(seed)  # noqa: S311 (the same again for the same seed)
        self.registry = Registry(blocked={("email", "null"): None})
        self.counts: Counter[str] = Counter()
        self.story: list[Sent] = []

    async def run(self) -> None:
        """Go through all steps."""
        kinds = [getattr(self, f"_{name}") for name in KINDS]
        for number in range(STEPS):
            kind = self._identify if number < 6 else self.random.choices(kinds, list(KINDS.values()))[0]
            name = kind.__name__[1:]
            if (step := kind()) is not None:
                await (self._request if kind == self._identify else self._correct)(name, *step)
                await self._compare()

    # The kinds of steps: each is a request, and what the model makes of it.

    def _identify(self) -> Step:
        email, phone = self.random.choice([None, *EMAILS, *EMAILS]), self.random.choice([None, *PHONES, *PHONES])
        if email is None and phone is None:
            email = "a"
        sent = "POST", "/identify", {"email": email and f" {email.upper()}", "phoneNumber": phone and f"{phone} "}
        return sent, lambda drawn: self.registry.identify(email, phone, drawn)

    def _split_by_links(self) -> Step | None:
        contact, registry = self._contact(), self.registry
        try:
            names = registry.links(registry.root(contact))
        except Refused:
            names = ["contact:1"]
        if not names:
            return None
        chosen = self.random.sample(names, self.random.choice([1, 1, min(2, len(names))]))
        if self.random.random() < 0.1:
            chosen.append("contact:999")
        keep = self.random.random() < 0.7
        sent = self._of(contact, "split", links=chosen, keepApart=keep)
        return sent, lambda drawn: registry.split_links(contact, chosen, keep, drawn)

    def _split_by_parts(self) -> Step | None:
        contact, registry = self._contact(), self.registry
        try:
            held = registry.held(registry.root(contact))
        except Refused:
            held = [("email", "a")]
        moved = self.random.sample(held, self.random.randint(1, len(held)))
        cut = self.random.randint(0, len(moved))
        lists = [part for part in (moved[:cut], moved[cut:]) if part]
        if self.random.random() < 0.1:
            lists[0] = [*lists[0], self.random.choice([held[0], ("email", "stranger")])]
        rest, keep = self.random.choice(["links", "together"]), self.random.random() < 0.7
        parts = [[dict([node]) for node in part] for part in lists]
        sent = self._of(contact, "split", parts=parts, rest=rest, keepApart=keep)
        return sent, lambda drawn: registry.split_parts(contact, lists, rest, keep, drawn)

    def _link(self) -> Step:
        one, other = self._live(), self._live()
        release = self.random.random() < 0.6
        sent = self._of(one, "link", contactId=other, release=release)
        return sent, lambda drawn: self.registry.link(one, other, release, drawn)

    def _keep_apart(self) -> Step:
        one, other = self._contact(), self._contact()
        sent = self._of(one, "keep-apart", contactId=other)
        return sent, lambda drawn: self.registry.keep_apart(one, other, drawn)

    def _release(self) -> Step:
        pairs = sorted(self.registry.pairs_apart())
        one, other = self.random.choice(pairs) if pairs else (self._contact(), self._contact())
        if pairs and self.random.random() < 0.5:
            event = min(self.registry.apart(one, other))
            sent = self._of(one, "release", eventId=event)
            return sent, lambda drawn: self.registry.release_event(one, event, drawn)
        sent = self._of(one, "release", contactId=other)
        return sent, lambda drawn: self.registry.release(one, other, drawn)

    def _block(self) -> Step:
        value = self._value()
        return ("POST", "/blocked", dict([value])), lambda drawn: self.registry.block(value, drawn)

    def _unblock(self) -> Step:
        values = sorted(value for value, event in self.registry.blocked.items() if event is not None)
        value = self.random.choice(values) if values else self._value()
        return ("POST", "/blocked/release", dict([value])), lambda drawn: self.registry.unblock(value, drawn)

    def _guards(self) -> Step:
        emails, phones = self.random.choice([0, 2, 3, 1000]), self.random.choice([0, 2, 3, 1000])
        sent = "PATCH", "/guards", {"maxEmails": emails, "maxPhones": phones}
        return sent, lambda drawn: self.registry.set_guards(emails, phones, drawn)

    def _dismiss(self) -> Step | None:
        if not self.listed:
            return None
        pair, event = self.random.choice(sorted(self.listed.items()))
        return ("POST", f"/withheld/{event}/dismiss", {}), lambda drawn: self.registry.dismiss(pair, drawn)

    def _erase(self) -> Step:
        contact = self._contact()
        return self._of(contact, "erase"), lambda drawn: self.registry.erase(contact, drawn)

    def _of(self, contact: int, action: str, **body: Any) -> Sent:
        return "POST", f"/identities/{contact}/{action}", body

    def _contact(self) -> int:
        """Any contact, most often a live one; sometimes one that there never was."""
        registry = self.registry
        return self.random.choice([self._live()] * 8 + [*registry.rows, *registry.erased, 999][-3:])

    def _live(self) -> int:
        return self.random.choice([row.id for row in self.registry.rows.values() if row.deleted_at is None] or [999])

    def _value(self) -> Node:
        if self.random.random() < 0.5:
            return "email", self.random.choice(EMAILS[:-1])
        return "phoneNumber", "".join(filter(str.isdigit, self.random.choice(PHONES)))

    # What is sent, and how it is compared.

    async def _request(self, _: str, sent: Sent, applied: Applied) -> None:
        last = await self._last()
        status, answer = await self._send(sent)
        drawn = await self._drawn(last)
        expected = self._expected(applied, drawn)
        assert (status, _unordered(answer)) == (expected[0], _unordered(expected[1]))
        for each in answer.get("withheld", ()):
            self.counts[f"withheld: {each['reason']}"] += 1

    async def _correct(self, name: str, sent: Sent, applied: Applied) -> None:
        method, path, body = sent
        last = await self._last()
        preview = await self._send((method, path, body | {"dryRun": True}))
        assert await self._last() == last, "a dry run drew an id"
        key = {"Idempotency-Key": f"{len(self.story)}"} if self.random.random() < 0.5 else {}
        # Of an identity that has not changed, the state is that of the dry run.
        state = {"ifState": preview[1]["state"]} if "state" in preview[1] and self.random.random() < 0.5 else {}
        status, answer = await self._send((method, path, body | state), key)
        drawn = await self._drawn(last)
        assert (preview[0], _undrawn(preview[1], last)) == (status, _undrawn(answer, last))
        expected_status, expected = self._expected(applied, drawn)
        assert status == expected_status, answer
        given = {member: answer.get(member) for member in expected}
        assert _unordered(given) == _unordered(expected)
        if status == 200 and answer["eventId"] is not None and answer["eventId"] > last:
            assert answer["eventId"] == drawn.event
            self.counts[name] += 1
        else:
            assert drawn.event is None
            self.counts[f"{name}: {answer.get('type', 'in effect')}"] += 1
        if key and status == 200:
            again = await self._send((method, path, body | state), key)
            repeated = {} if name == "erase" and drawn.event is None else {"repeated": True}
            assert again == (200, answer | repeated)
        if drawn.event is not None:
            assert (await invariants.check(self.database_url))[0] == []

    async def _send(self, sent: Sent, headers: dict[str, str] | None = None) -> tuple[int, Answer]:
        method, path, body = sent
        self.story.append(sent)
        async with self.session.request(method, self.url + path, json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    def _expected(self, applied: Applied, drawn: Drawn) -> tuple[int, Answer]:
        try:
            answer = applied(drawn)
        except Refused as refused:
            return problem(refused)
        return 200, answer

    async def _last(self) -> int:
        last: int = await self.database.fetchval(LAST)
        return last

    async def _drawn(self, last: int) -> Drawn:
        """What came into the database after a position."""
        created = {}
        for contact_id, email, key in await self.database.fetch(NEW_CONTACTS, last):
            created |= {node: contact_id for node in (("email", email), ("phoneNumber", key)) if node[1] is not None}
        events = [row for row in await self.database.fetch(NEW_EVENTS, last) if row["kind"] != "withheld"]
        assert len(events) <= 1
        links = [links for row in events for links in json.loads(row["links"] or "[]")]
        made = [[next(iter(member.items())) for member in members] for members in links]
        return Drawn(events[0]["id"] if events else None, created, made)

    async def _compare(self) -> None:
        """All identities, what is on which constraint's sides, and the review list are those of the model."""
        registry = self.registry
        registry.review()
        one_of_each = {
            root_of(row): row.id for row in self.random.sample([*registry.rows.values()], len(registry.rows))
        }
        ids = [*one_of_each.values(), *registry.erased, 999]
        answers = await asyncio.gather(*(self._get(f"/identities/{each}") for each in ids))
        for contact_id, (status, answer) in zip(ids, answers, strict=True):
            try:
                expected: tuple[int, Answer] = 200, {"contact": registry.shown(registry.root(contact_id))}
            except Refused as refused:
                expected = problem(refused)
            found = answer if status == 200 else {"type": answer["type"]}
            assert (status, found) == expected, contact_id
        marked = {(event, contact) for event, contact in await self.database.fetch(MARKS)}
        sides = {(event, each) for event, *both in registry.model.constraints for side in both for each in side}
        assert marked == {each for each in sides if each[1] in registry.rows}
        _, review = await self._get("/withheld")
        links = [(each["email"], each["phoneNumber"]) for each in review["withheld"]]
        self.listed = {
            (email, "".join(filter(str.isdigit, phone))): each["eventId"]
            for (email, phone), each in zip(links, review["withheld"], strict=True)
        }
        assert len(self.listed) == len(links)
        assert registry.accepts(self.listed), (self.listed, registry.open, registry.past)
        self.counts[REVIEWED] += len(links)

    async def _get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json(content_type=None)


# How often each kind of step comes.
KINDS = {
    "identify": 10,
    "split_by_links": 4,
    "split_by_parts": 4,
    "link": 4,
    "keep_apart": 2,
    "release": 2,
    "block": 2,
    "unblock": 1,
    "guards": 2,
    "dismiss": 1,
    "erase": 1,
}


def problem(refused: Refused) -> tuple[int, Answer]:
    """The status of an answer, and what counts of it."""
    return refused.status, {"type": f"urn:recon:{refused.code}"}


_IN_ORDER = {"emails", "phoneNumbers", "secondaryContactIds"}


def _unordered(value: Any) -> Any:
    """An answer without the order of identities, links and pairs; of a problem, its type alone."""
    if isinstance(value, dict) and "status" in value:
        return {"type": value["type"]}
    if isinstance(value, dict):
        return {name: each if name in _IN_ORDER else _unordered(each) for name, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return sorted((_unordered(each) for each in value), key=lambda each: json.dumps(each, sort_keys=True))
    return value


def _undrawn(answer: Any, last: int) -> Any:
    """An answer in which ids that were drawn after a position are counted from there."""
    text = json.dumps(answer)
    drawn = sorted({each for each in _numbers(answer) if each > last})
    places = {each: -place for place, each in enumerate(drawn, 1)}

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: replaced(each) for name, each in value.items()}
        if isinstance(value, list):
            return [replaced(each) for each in value]
        return places.get(value, value) if isinstance(value, int) else value

    return replaced(json.loads(text))


def _numbers(value: Any) -> list[int]:
    if isinstance(value, dict):
        return [number for each in value.values() for number in _numbers(each)]
    if isinstance(value, list):
        return [number for each in value for number in _numbers(each)]
    return [value] if isinstance(value, int) else []


@pytest.mark.timeout(240)
async def test_corrections_are_those_of_the_model(database_url: str, start_recon: StartRecon) -> None:
    """Answers, previews, identities and the review list are the model's, and all invariants hold, after each step."""
    url = start_recon("--database-url", database_url).url
    counts: Counter[str] = Counter()
    database = await asyncpg.connect(database_url)
    try:
        async with aiohttp.ClientSession() as session:
            for seed in range(SEQUENCES):
                await empty(database_url)
                walk = Walk(session, url, database_url, database, seed)
                try:
                    await walk.run()
                except AssertionError as error:
                    error.add_note(f"seed {seed}: " + "\n".join(map(json.dumps, walk.story)))
                    raise
                counts += walk.counts
    finally:
        await database.close()

    for name in KINDS:
        assert counts[name] > 0 or name == "identify", counts
    for name in (REVIEWED, "withheld: blocked", "withheld: kept-apart", "withheld: limit"):
        assert counts[name] > 0, counts
