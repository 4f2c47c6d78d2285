"""All that changes identities besides requests, at random: a steward's corrections, and rows of other programs."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import aiohttp
import asyncpg

Body: TypeAlias = dict[str, Any]

# Statements of another program about the contact of id $1. Some fail, if the contact is not as they need it.
STATEMENTS = {
    "insert": "INSERT INTO contact (email) SELECT 'other-' || max(id) FROM contact WHERE id >= $1",
    "insert shared": "INSERT INTO contact (email, phone_number) SELECT email, '77' || id FROM contact WHERE id = $1",
    "insert secondary": "INSERT INTO contact (email, linked_id, link_precedence, created_at) SELECT 'added-' || id, "
    "coalesce(linked_id, id), 'secondary', created_at - interval '1 s' FROM contact WHERE id = $1",
    "delete": "UPDATE contact SET deleted_at = now() WHERE id = $1",
    "delete primary": "UPDATE contact SET deleted_at = now() WHERE id = (SELECT linked_id FROM contact WHERE id = $1)",
    "restore": "UPDATE contact SET deleted_at = NULL WHERE coalesce(linked_id, id) = "
    "(SELECT coalesce(linked_id, id) FROM contact WHERE id = $1) AND deleted_at IS NOT NULL",
    "edit": "UPDATE contact SET email = 'edited-' || id WHERE id = $1",
    "share": "UPDATE contact SET email = (SELECT email FROM contact WHERE id = $1 - 1) WHERE id = $1",
}
HOLD = 0.05  # seconds that another program's transaction stays open at most
ANY = "SELECT id FROM contact ORDER BY id DESC LIMIT 200"


class _Steward:
    """Sends corrections of contacts that it knows of; what the present state forbids is refused, and skipped."""

    def __init__(self, session: aiohttp.ClientSession, urls: Sequence[str], seed: int, done: Counter[str]) -> None:
        self._session = session
        self._urls = urls
        self._random = random.Random(seed)  # noqa: S311 (the same again for the same seed)
        self._done = done
        self._blocked: list[Body] = []

    async def _send(self, method: str, path: str, body: Body | None = None) -> Any:
        async with self._session.request(method, self._random.choice(self._urls) + path, json=body) as response:
            if response.status != 200:
                return None
            return await response.json()

    async def correct(self, contacts: Sequence[int]) -> None:
        one, other = self._random.choice(contacts), self._random.choice(contacts)
        kind = self._random.choice(["split", "split", "link", "link", "keep-apart", "block", "erase"])
        if await getattr(self, f"_{kind.replace('-', '_')}")(one, other):
            self._done[kind] += 1

    async def _split(self, one: int, _: int) -> Any:
        links = await self._send("GET", f"/identities/{one}/links")
        if not links or len(links["links"]) < 2:
            return None
        link = self._random.choice(links["links"])["name"]
        return await self._send("POST", f"/identities/{one}/split", {"links": [link], "keepApart": one % 2 == 0})

    async def _link(self, one: int, other: int) -> Any:
        return await self._send("POST", f"/identities/{one}/link", {"contactId": other, "release": True})

    async def _keep_apart(self, one: int, other: int) -> Any:
        return await self._send("POST", f"/identities/{one}/keep-apart", {"contactId": other})

    async def _block(self, one: int, _: int) -> Any:
        if len(self._blocked) > 3:
            await self._send("POST", "/blocked/release", self._blocked.pop(0))
        links = await self._send("GET", f"/identities/{one}/links")
        if not links:
            return None
        contact = self._random.choice(links["contacts"])
        value = {name: contact[name] for name in ("email", "phoneNumber") if contact[name] is not None}
        name = self._random.choice([*value])
        self._blocked.append({name: value[name]})
        return await self._send("POST", "/blocked", self._blocked[-1])

    async def _erase(self, one: int, _: int) -> Any:
        return await self._send("POST", f"/identities/{one}/erase", {})


async def _other_program(url: str, seed: int, done: Counter[str], over: asyncio.Event) -> None:
    """Write rows; every other transaction has several statements, and stays open for a while."""
    chance = random.Random(seed)  # noqa: S311
    connection = await asyncpg.connect(url)
    try:
        while not over.is_set():
            with suppress(asyncpg.PostgresError):
                async with connection.transaction():
                    for _ in range(chance.choice([1, 3])):
                        kind = chance.choice([*STATEMENTS])
                        ids = [row["id"] for row in await connection.fetch(ANY)] or [1]
                        await connection.execute(STATEMENTS[kind], chance.choice(ids))
                        done[kind] += 1
                    await asyncio.sleep(chance.choice([0, HOLD]))
            await asyncio.sleep(HOLD)
    finally:
        await connection.close()


async def _again(work: Callable[[], Any], over: asyncio.Event) -> None:
    """Run `work` until it is over; while what it needs is away, it tries again."""
    while not over.is_set():
        with suppress(aiohttp.ClientError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            await work()
        await asyncio.sleep(HOLD)


@asynccontextmanager
async def meddling(urls: Sequence[str], database_url: str, seed: int = 0) -> AsyncIterator[Counter[str]]:
    """Two stewards and two other programs at work until the block is left; how often each did what."""
    done: Counter[str] = Counter()
    over = asyncio.Event()
    async with aiohttp.ClientSession() as session:

        async def steward(number: int) -> None:
            desk = _Steward(session, urls, seed + number, done)
            connection = await asyncpg.connect(database_url)
            try:
                while not over.is_set():
                    if contacts := [row["id"] for row in await connection.fetch(ANY)]:
                        await desk.correct(contacts)
                    await asyncio.sleep(HOLD)
            finally:
                await connection.close()

        works: list[Callable[[], Any]] = [lambda: steward(1), lambda: steward(2)]
        works += [
            lambda: _other_program(database_url, seed + 3, done, over),
            lambda: _other_program(database_url, seed + 4, done, over),
        ]
        tasks = [asyncio.create_task(_again(work, over)) for work in works]
        try:
            yield done
        finally:
            over.set()  # what they have begun they finish: a correction goes on without its client
            await asyncio.gather(*tasks)
