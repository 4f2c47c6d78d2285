"""Pages of the change feed: where they end, what they cost, and who waits for whom."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from recon.database.transactions import Connection, Database, T, Work
from recon.errors import Overloaded, Unavailable
from recon.identities import changes
from recon.identities.changes import Changes
from recon.rules.feed import Page
from recon.sql import changes as sql
from tests.harness.databases import execute, fetch
from tests.harness.feed import Copy, identities_of

INSERT = "INSERT INTO contact (email) VALUES ('{}')"
HELD = INSERT.format("held") + " RETURNING id"
# The locks on `contact` of recon's sessions, and the sessions that wait for any lock.
LOCKS = """
SELECT pid FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE relation = 'contact'::regclass AND application_name LIKE 'recon schema%'
UNION ALL
SELECT pid FROM pg_locks WHERE NOT granted
"""


class _Counting(Database):
    """Counts the pages that are read."""

    pages = 0

    async def following(self, step: str, work: Work[T]) -> T:
        self.pages += 1
        return await super().following(step, work)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[_Counting]:
    """An empty database."""
    async with _Counting(database_url).opened() as database:
        yield database


@pytest.fixture
def feed(database: Database) -> Changes[Page]:
    """Its feed."""
    return Changes(database, lambda page: page)


@pytest.fixture
async def held(database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A session whose transaction has drawn position 1, and is open."""
    connection = await asyncpg.connect(database_url)
    await connection.execute("BEGIN")
    assert await connection.fetchval(HELD) == 1
    yield connection
    await connection.close()


async def test_readers_share_a_page(database: _Counting, feed: Changes[Page], database_url: str) -> None:
    """A hundred requests for the page after a position that wait are one page, encoded once."""
    waiting = [asyncio.create_task(feed.page(wait=30)) for _ in range(100)]
    await feed.page()
    before = database.pages
    await execute(database_url, INSERT.format("a"))

    pages = await asyncio.gather(*waiting)

    assert all(page is pages[0] for page in pages)
    assert database.pages == before + 1


async def test_too_many_readers(database: Database) -> None:
    """Beyond the limit a request is refused at once; one that ends makes room."""
    feed: Changes[Page] = Changes(database, lambda page: page, limit=1)
    waiting = asyncio.create_task(feed.page(wait=30))
    await asyncio.sleep(0)

    with pytest.raises(Overloaded):
        await feed.page()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (await feed.page()).entries == []


async def test_errors_reach_the_readers(database: Database, database_url: str) -> None:
    """When the database is away, or a page cannot be encoded, its readers get the error, and later ones a page."""
    with pytest.raises(Unavailable):
        await Changes(Database(database_url), lambda page: page).page()

    broken = True

    def encode(page: Page) -> Page:
        if broken:
            raise ValueError("encode")
        return page

    feed = Changes(database, encode)
    found = await asyncio.gather(feed.page(), feed.page(), return_exceptions=True)
    assert [str(each) for each in found] == ["encode", "encode"]
    broken = False
    assert (await feed.page()).entries == []


async def test_a_held_transaction_and_a_plain_reader(database_url: str, held: asyncpg.Connection) -> None:
    """A reader of every id greater than the last one skips what commits late."""
    await execute(database_url, INSERT.format("after"))
    seen = [row["id"] for row in await fetch(database_url, "SELECT id FROM contact WHERE id > 0")]
    await held.execute("COMMIT")
    seen += [row["id"] for row in await fetch(database_url, "SELECT id FROM contact WHERE id > $1", max(seen))]

    assert seen == [2]


async def test_a_held_transaction(
    feed: Changes[Page], database_url: str, held: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed ends before it: the wait is bounded, and identities beyond the end come already, and again later."""
    monkeypatch.setattr(changes, "PATIENCE", 0.05)
    await execute(database_url, INSERT.format("after"))
    copy = Copy()
    copy.take_values(await feed.page())
    assert (copy.positions, copy.after, copy.is_exact) == ([], 0, True)
    assert copy.identities == await identities_of(database_url)

    await held.execute("COMMIT")
    copy.take_values(await feed.page(copy.after))

    assert (copy.positions, copy.after) == ([1, 2], 2)
    assert copy.identities == await identities_of(database_url)


async def test_a_page_ends_where_the_previous_one_ended(
    feed: Changes[Page], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a transaction is open, another reader gets all that was settled before; none waits for more than that."""
    monkeypatch.setattr(changes, "PATIENCE", 0.05)
    await execute(database_url, INSERT.format("a"), INSERT.format("b"))
    assert (await feed.page()).next == 2
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("BEGIN")
        await connection.execute(INSERT.format("held"))
        await execute(database_url, INSERT.format("d"))

        page = await feed.page()
        waited = await feed.page(2, wait=1)
    finally:
        await connection.close()

    assert ([entry.id for entry in page.entries], page.next, page.more) == ([1, 2], 2, False)
    assert [identity.primary_id for identity in page.identities] == [1, 2, 4]
    assert (waited.entries, waited.next, [each.primary_id for each in waited.identities]) == ([], 2, [4])


async def test_much_beyond_a_held_transaction(
    feed: Changes[Page], database_url: str, held: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a page would show too much beyond its end, more pages follow: the copy is not exact yet."""
    monkeypatch.setattr(changes, "PATIENCE", 0.05)
    monkeypatch.setattr(changes, "_MOST_UNSETTLED", 1)
    await execute(database_url, INSERT.format("b"), INSERT.format("c"))

    page = await feed.page()
    await held.execute("COMMIT")
    later = await feed.page(page.next)

    assert (page.entries, page.identities, page.next, page.more) == ([], [], 0, True)
    assert ([entry.id for entry in later.entries], later.more) == ([1, 2, 3], False)


async def test_many_contacts(feed: Changes[Page], database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page whose identities have too many contacts is cut short; a single entry never is."""
    monkeypatch.setattr(changes, "_MOST_CONTACTS", 4)
    secondary = (
        "INSERT INTO contact (email, linked_id, link_precedence) SELECT n, {}, 'secondary' FROM generate_series(1, 5) n"
    )
    await execute(database_url, INSERT.format("a"), INSERT.format("b"), secondary.format(1), secondary.format(2))
    copy, sizes = Copy(), []
    while not copy.is_exact:
        before = len(copy.positions)
        copy.take_values(await feed.page(copy.after))
        sizes.append(len(copy.positions) - before)

    assert copy.identities == await identities_of(database_url)
    assert copy.positions == list(range(1, 13))
    assert set(sizes) == {1}


@pytest.mark.usefixtures("held")
async def test_too_many_contacts_beyond_the_end(
    feed: Changes[Page], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies beyond the end of a page is left to later pages first."""
    monkeypatch.setattr(changes, "PATIENCE", 0.05)
    monkeypatch.setattr(changes, "_MOST_CONTACTS", 1)
    await execute(database_url, INSERT.format("b"), INSERT.format("c"))

    page = await feed.page()

    assert (page.entries, page.identities, page.next, page.more) == ([], [], 0, True)


async def test_a_waiting_reader_delays_no_writer(
    feed: Changes[Page], database_url: str, held: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that waits for a transaction holds no lock, and a writer that comes later does not wait for it."""
    monkeypatch.setattr(changes, "PATIENCE", 60)
    looked = asyncio.Semaphore(0)
    look = sql.fetch_writers

    async def fetch_writers(connection: Connection) -> set[str]:
        writers = await look(connection)
        looked.release()
        return writers

    monkeypatch.setattr(sql, "fetch_writers", fetch_writers)
    reader = asyncio.create_task(feed.page())
    await looked.acquire()
    await looked.acquire()  # it waits

    assert await fetch(database_url, LOCKS) == []
    await execute(database_url, "SET lock_timeout = '1s'", INSERT.format("later"))
    assert not reader.done()
    await held.execute("COMMIT")
    page = await reader
    assert [entry.id for entry in page.entries][:1] == [1]


async def test_a_reader_with_a_lock_delays_writers(database_url: str, held: asyncpg.Connection) -> None:
    """A reader that waits for writers by a lock on the table makes all later writers wait."""
    other = await asyncpg.connect(database_url)
    await other.execute("BEGIN")
    reader = asyncio.create_task(other.execute("LOCK TABLE contact IN SHARE MODE"))
    while not await fetch(database_url, "SELECT FROM pg_locks WHERE NOT granted"):
        await asyncio.sleep(0.01)

    with pytest.raises(asyncpg.LockNotAvailableError):
        await execute(database_url, "SET lock_timeout = '100ms'", INSERT.format("later"))
    await held.execute("ROLLBACK")
    await reader
    await other.close()


async def test_requests_that_wait_take_turns(
    feed: Changes[Page], database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a round the process leaves requests that wait alone for a while; one that does not wait ends that."""
    monkeypatch.setattr(changes, "_REST", 1e9)
    monkeypatch.setattr(changes, "_LONGEST_REST", 60)
    await execute(database_url, INSERT.format("a"))
    first = asyncio.create_task(feed.page(wait=30))
    second = asyncio.create_task(feed.page(1, wait=30))
    assert (await first).next == 1
    await execute(database_url, INSERT.format("b"))
    await asyncio.sleep(10 * changes._EVERY)

    assert not second.done()
    page = await feed.page(1)
    assert [entry.id for entry in page.entries] == [2]
    assert await second == page


def test_prepared_transactions() -> None:
    """A transaction that is prepared for a commit in two phases gets another name, and may be any of the writers."""
    assert sql.still_open({"3/12", "4/7"}, {"4/7", "5/1"}) == {"4/7"}
    assert sql.still_open({"3/12"}, {"-1/749"}) == {"-1/749"}


async def test_a_restored_database(feed: Changes[Page], database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was settled in a database that was replaced since does not count."""
    monkeypatch.setattr(changes, "PATIENCE", 0.05)
    await execute(database_url, *[INSERT.format(n) for n in range(3)])
    assert (await feed.page()).next == 3
    await execute(database_url, "TRUNCATE contact RESTART IDENTITY")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("BEGIN")
        await connection.execute(INSERT.format("held"))
        await execute(database_url, INSERT.format("b"))
        await feed.page()  # two of the three positions are drawn: the feed has to begin again
        await execute(database_url, INSERT.format("c"), INSERT.format("d"))
        page = await feed.page()
    finally:
        await connection.close()

    assert ([entry.id for entry in page.entries], page.next) == ([], 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_reader_that_leaves_while_its_page_is_made(fails: bool, database: Database, database_url: str) -> None:
    """The others that share the page get it, or what went wrong."""
    await execute(database_url, INSERT.format("a"))

    def encode(page: Page) -> Page:
        leaving.cancel()
        if fails:
            raise ValueError("made up")
        return page

    feed = Changes(database, encode)
    leaving, staying = (asyncio.create_task(feed.page()) for _ in range(2))
    await asyncio.wait([leaving, staying])

    assert leaving.cancelled()
    if fails:
        assert str(staying.exception()) == "made up"
    else:
        assert len((await staying).entries) == 1


async def test_readers_that_leave_while_another_page_is_made(database: _Counting, database_url: str) -> None:
    """Their own page is not made any more, so that it delays no other reader."""
    await execute(database_url, INSERT.format("a"))
    await execute(database_url, INSERT.format("b"))

    def encode(page: Page) -> Page:
        for reader in readers:
            reader.cancel()
        return page

    feed = Changes(database, encode)
    readers = [asyncio.create_task(feed.page(after, wait=30)) for after in (0, 1)]
    await asyncio.wait(readers)
    await feed.page(2)

    assert database.pages == 2
