"""The change feed: pages that end at settled positions, for readers that poll and for readers that wait."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from recon import background
from recon.database.transactions import Connection, Database
from recon.errors import Overloaded, PositionAhead
from recon.identities.lookup import LIMIT, MAX_ID
from recon.rules import feed
from recon.rules.feed import Entry, Page
from recon.rules.journal import Record
from recon.sql import changes as sql
from recon.sql import corrections, journal

MOST_WAIT = 30  # seconds that a request may wait for a change; proxies close a connection after 60
# Seconds that a page waits for the transactions that may have drawn a position up to its end.
PATIENCE = 1.0
_FIRST_LOOK, _LONGEST_LOOK = 0.001, 0.05  # seconds between two looks at these transactions
# Positions that a last page looks at beyond its end. If there are more, more pages follow.
_MOST_UNSETTLED = 1000
# Contacts that the identities of a page have together, about: encoding them takes 10 ms.
_MOST_CONTACTS = 10_000
# Seconds between two looks for new positions, while readers wait.
_EVERY = 0.05
# What a process spends on readers that wait, a fortieth of its time: after each round it rests so many times as long
# as the round took, at most so many seconds.
_REST, _LONGEST_REST = 39, 2.0

T = TypeVar("T")


@dataclass(slots=True, eq=False)  # each reader is one of its own
class _Reader:
    """A request for the page after a position.

    Attributes
    ----------
    until : when it gets its page, whatever that has (of `time.monotonic`).
    seen : the position up to which it is known that nothing has come after `after`.
    """

    after: int
    limit: int
    until: float
    seen: int
    page: "asyncio.Future[object]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Changes(Generic[T]):
    """Answers with pages of the change feed.

    The requests of a process share its looks at the database, and pages after the same position: a round answers all
    that have come since the last one. While requests wait, rounds go on, for a small part of the time of the process. A
    request that does not wait begins a round at once.

    Parameters
    ----------
    database : where the contacts and their journal are.
    encode : what makes an answer of a page; called once for all requests that share the page.
    limit : how many requests may wait; more get Overloaded.
    """

    def __init__(self, database: Database, encode: Callable[[Page], T], limit: int = 1000) -> None:
        self._database = database
        self._encode = encode
        self._limit = limit
        self._readers: set[_Reader] = set()
        self._is_running = False
        self._urgent = asyncio.Event()  # set when a request comes that does not wait
        # The highest position at which a page ended with a contact or an event. That is committed, so a crash of
        # PostgreSQL does not make it draw the position again, as it may do with others.
        self._settled = 0

    async def page(self, after: int = 0, limit: int = LIMIT, wait: float = 0) -> T:
        """The page after a position, with `limit` contacts and events at most.

        Without anything in it, it is answered after `wait` seconds. Raises PositionAhead if the database has not got
        to the position yet.
        """
        if len(self._readers) >= self._limit:
            raise Overloaded
        reader = _Reader(after, limit, time.monotonic() + wait, after)
        self._readers.add(reader)
        if not wait:
            self._urgent.set()
        if not self._is_running:
            self._is_running = True
            background.run_once("change feed", self._run())
        try:
            return await reader.page  # type: ignore[return-value]
        finally:
            self._readers.discard(reader)

    async def _run(self) -> None:
        """Rounds, as long as there are readers."""
        try:
            while self._readers:
                self._urgent.clear()
                took = await self._round([*self._readers])
                answered = time.thread_time()
                await asyncio.sleep(0)  # meanwhile the answers are sent
                if self._readers:
                    await self._rest(took + time.thread_time() - answered)
        finally:
            self._is_running = False  # no await since the last look at the readers

    async def _round(self, readers: list[_Reader]) -> float:
        """Answer the readers that have something new, or no time left. Returns the seconds that reading pages took."""
        try:
            last = await self._database.snapshot("look for changes", corrections.last_id)
            for reader in readers:
                if reader.after > last:
                    _fail([reader], PositionAhead())
            due = [each for each in readers if not each.page.done() and (last > each.seen or _is_over(each))]
            settled = await self._settle(last) if due else last
        except Exception as error:  # noqa: BLE001 (the readers get it)
            _fail(readers, error)
            return 0
        started = time.monotonic()
        pages: dict[tuple[int, int], list[_Reader]] = {}
        for reader in due:
            pages.setdefault((reader.after, reader.limit), []).append(reader)
        for (after, limit), sharing in pages.items():
            if all(each.page.done() for each in sharing):
                continue  # they left, or their time limit passed, while other pages were read
            try:
                await self._answer(sharing, after, settled, limit)
            except Exception as error:  # noqa: BLE001 (the readers get it)
                _fail(sharing, error)
        return time.monotonic() - started

    async def _settle(self, last: int) -> int:
        """The position up to which no transaction is open that may have drawn one: `last` or, if that takes long, less.

        A writer has the lock on `contact` before it draws a position. So those that hold it now, when `last` has been
        drawn, are all that need to have ended; then the next snapshot shows all that they have written.
        """
        if last < self._settled:  # the database was restored or emptied
            self._settled = 0

        async def look() -> set[str]:
            return await self._database.snapshot("look for writers", sql.fetch_writers)

        return last if await writers_ended(look, PATIENCE) else self._settled

    async def _answer(self, readers: list[_Reader], after: int, settled: int, limit: int) -> None:
        """Give readers their page, unless there is nothing in it and they have time left."""
        work = partial(read_page, after=after, settled=settled, limit=limit)
        page = await self._database.following("read changes", work)
        is_new = bool(page.entries)
        if is_new:
            self._settled = max(self._settled, page.next)
        answered = [each for each in readers if is_new or _is_over(each)]
        if not is_new:
            for reader in readers:
                reader.seen = max(reader.seen, settled)
        if answered:
            answer = self._encode(page)
            for reader in answered:
                if not reader.page.done():
                    reader.page.set_result(answer)

    async def _rest(self, took: float) -> None:
        """Leave the process to others until the next round, or until a request comes that does not wait."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(_EVERY, min(_LONGEST_REST, took * _REST))):
                await self._urgent.wait()


async def writers_ended(look: Callable[[], Awaitable[set[str]]], patience: float) -> bool:
    """Wait for the transactions that may have drawn a position by now; False if that takes longer than so many seconds.

    `look` gives those that hold the lock of a writer, by name. No lock is taken, so no writer waits.
    """
    writers = await look()
    pause, deadline = _FIRST_LOOK, time.monotonic() + patience
    while writers:
        if time.monotonic() >= deadline:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_LOOK)
        writers = sql.still_open(writers, await look())
    return True


def _is_over(reader: _Reader) -> bool:
    return time.monotonic() >= reader.until


def _fail(readers: Iterable[_Reader], error: Exception) -> None:
    for reader in readers:
        if not reader.page.done():
            reader.page.set_exception(error)


async def read_page(connection: Connection, *, after: int, settled: int, limit: int) -> Page:
    """The page after a position, of a snapshot that shows everything up to the position `settled`.

    The last page has all changes that the snapshot shows, those beyond its end too: an identity may be newer than the
    page, and a copy has to become the state of one snapshot.
    """
    found = await sql.fetch_entries(connection, after, settled, limit + 1)
    entries, more = found[:limit], len(found) > limit
    beyond: list[Entry] = []
    if not more:
        beyond = await sql.fetch_entries(connection, max(after, settled), MAX_ID, _MOST_UNSETTLED + 1)
    if len(beyond) > _MOST_UNSETTLED:
        beyond, more = [], True
    while (records := await _members(connection, [*entries, *beyond])) is None:
        more = True
        entries, beyond = (entries, []) if beyond else (entries[: len(entries) // 2], [])
    seen = [*entries, *beyond]
    erasures = feed.erasures(seen)
    erased = await sql.fetch_erased(connection, erasures) if erasures else []
    identities, gone = feed.view(seen, records, erased)
    return Page(entries, identities, gone, entries[-1].id if entries else after, more)


async def _members(connection: Connection, entries: list[Entry]) -> list[Record] | None:
    """All contacts of the identities that the entries touched; None if that are too many, unless of one entry."""
    named = feed.touched(entries)
    roots = await journal.find_roots_of(connection, named) if named else set()
    if not roots:
        return []
    limit = _MOST_CONTACTS + 1 if len(entries) > 1 else None
    records = await journal.fetch_records(connection, *roots, limit=limit)
    return None if limit is not None and len(records) == limit else records
