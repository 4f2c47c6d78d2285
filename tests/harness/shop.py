"""A shop's load: its requests, and the clients that send them to recon and keep the history.

    async with driving(urls, requests=5_000, seed=1) as history:
        await history.reached(1_000)  # so many have been acknowledged; now something breaks
        process.popen.kill()
    # Leaving the block waits until all requests are done; without `requests`, it stops the clients.
    assert check(history, await contacts(database_url)) == []  # see `history`

The requests are an endless seeded sequence, and clients that take them in turn race each other. Most of them
are the usual requests of a shop: new people, known people, known people with another email or phone, two
people who turn out to be one, and a few invalid ones. Between them come bursts about the same few
identifiers, paired at random: clients that send them concurrently insert, extend and merge the same
clusters. Every identifier contains the seed, so two shops share none, and clusters stay small.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import aiohttp

from tests.harness.exchanges import Exchange, History, Outcome, Request

BURST = 12  # requests about the same few identifiers in a row
SCENE = 5  # bursts about them, before they are replaced
FEW = 6  # emails among them, and as many phones
RECENT = 400  # people who may come again


class _Shop:
    """The requests of the shop with this seed, always the same."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._random = random.Random(seed)  # noqa: S311 (the same again for the same seed)
        self._identifiers = 0
        self._people: list[tuple[str, str]] = []  # one email and one phone each
        self._single: list[tuple[str, str]] = []  # those who were not merged with another person
        self._bursts = 0
        self._emails: list[str] = []
        self._phones: list[str] = []

    def requests(self) -> Iterator[Request]:
        kinds = {self._new: 8, self._returning: 12, self._another: 5, self._joining: 3, self._wrong: 1}
        while True:
            for kind in self._random.choices(list(kinds), list(kinds.values()), k=2 * BURST):
                yield kind()
            yield from self._burst()

    def _email(self) -> str:
        self._identifiers += 1
        return f"p{self._identifiers}@{self._seed}.example"

    def _phone(self) -> str:
        self._identifiers += 1
        return f"{self._seed}555{self._identifiers:07}"

    def _new(self) -> Request:
        person = self._email(), self._phone()
        self._people = [*self._people[-RECENT:], person]
        self._single = [*self._single[-RECENT:], person]
        return Request(*person)

    def _returning(self) -> Request:
        """A known person, sometimes in another spelling, or with one identifier only."""
        if not self._people:
            return self._new()
        email, phone = self._random.choice(self._people)
        spellings = ((email, phone), (email, None), (None, phone), (f" {email.upper()}", None), (email, f"+{phone} "))
        return Request(*self._random.choice(spellings))

    def _another(self) -> Request:
        if not self._people:
            return self._new()
        email, phone = self._random.choice(self._people)
        return self._random.choice((Request(email, self._phone()), Request(self._email(), phone)))

    def _joining(self) -> Request:
        """Merge two people, each person at most once, so that clusters stay small."""
        if len(self._single) < 2:
            return self._new()
        one, other = (self._single.pop(self._random.randrange(len(self._single))) for _ in range(2))
        return Request(one[0], other[1])

    def _wrong(self) -> Request:
        """A request that is answered with 400, and must not store its valid email."""
        return Request(self._email(), self._random.choice((True, 1.5, "1\x00", "9" * 65)))

    def _burst(self) -> Iterator[Request]:
        if self._bursts % SCENE == 0:
            self._emails = [self._email() for _ in range(FEW)]
            self._phones = [self._phone() for _ in range(FEW)]
        self._bursts += 1
        for _ in range(BURST):
            email, phone = self._random.choice(self._emails), self._random.choice(self._phones)
            yield self._random.choices((Request(email, phone), Request(email), Request(phone=phone)), (10, 1, 1))[0]


PROMISE = b"Nothing was changed"  # in the detail of a 503 that is a refusal


@dataclass
class _Load:
    """Clients that take requests in turn and send each one until it has a final answer."""

    session: aiohttp.ClientSession
    urls: Sequence[str]
    requests: Iterator[tuple[int, Request]]
    history: History
    patience: float
    pause: float

    async def client(self) -> None:
        for number, request in self.requests:
            deadline = time.monotonic() + self.patience
            for attempt in count():
                # Round robin, and a retry goes to another process: as behind a load balancer.
                url = self.urls[(number + attempt) % len(self.urls)]
                exchange = Exchange(number, attempt, url, request, time.monotonic())
                self.history.exchanges.append(exchange)
                await self._send(exchange)
                self.history.count(exchange)
                is_final = exchange.status is not None and exchange.status < 500
                if is_final or self.history.stopped or time.monotonic() > deadline:
                    break
                await asyncio.sleep(self.pause)
            if self.history.stopped:
                break

    async def _send(self, exchange: Exchange) -> None:
        try:
            async with self.session.post(f"{exchange.url}/identify", json=exchange.request.json) as response:
                exchange.body = await response.read()
                exchange.status = response.status
        except aiohttp.ClientConnectorError:
            exchange.outcome = Outcome.REFUSED  # nothing was sent
        except (aiohttp.ClientError, TimeoutError, OSError):
            exchange.outcome = Outcome.UNKNOWN
        else:
            exchange.outcome = _outcome(response.status, exchange.body)
        exchange.ended = time.monotonic()


def _outcome(status: int, body: bytes) -> Outcome:
    if status == 200:
        return Outcome.ACKNOWLEDGED
    return Outcome.REFUSED if 400 <= status < 500 or PROMISE in body else Outcome.UNKNOWN


@asynccontextmanager
async def driving(
    urls: Sequence[str],
    *,
    seed: int = 0,
    requests: int | None = None,
    replay: Iterable[Request] | None = None,
    clients: int = 32,
    patience: float = 60,
    pause: float = 0.1,
    timeout: float = 30,  # noqa: ASYNC109 (of each exchange)
) -> AsyncIterator[History]:
    """Send the requests of the shop with this seed (or those of `replay`), from so many clients, to the `urls` in turn.

    Leaving the block waits until all `requests` are done; without `requests`, it stops the clients. A request without a
    final answer is sent again after `pause` seconds, for `patience` seconds (0: never).
    """
    history = History()
    numbered = enumerate(islice(_Shop(seed).requests() if replay is None else replay, requests))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=timeout), cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        load = _Load(session, urls, numbered, history, patience, pause)
        running = asyncio.gather(*(load.client() for _ in range(clients)))

        running.add_done_callback(lambda _: history.end())
        try:
            yield history
            if requests is None and replay is None:
                history.stop()
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def drive(urls: Sequence[str], **options: Any) -> History:
    """The history of a whole run with `driving`'s options, in which nothing is broken."""
    async with driving(urls, **options) as history:
        pass
    return history
