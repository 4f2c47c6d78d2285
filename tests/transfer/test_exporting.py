"""Exports of identities: what they show, the position that they end with, and who waits for whom."""

import asyncio
import csv
import errno
import io
import json

import asyncpg
import pytest

from recon.database.transactions import Database
from recon.errors import ReconError, SchemaMismatch, Unreachable
from recon.settings import DatabaseSettings
from recon.sql import exports
from recon.transfer import exporting
from recon.transfer.exporting import Export
from tests.harness.databases import execute, fetch
from tests.harness.exports import exported, live_through, parsed
from tests.harness.feed import Copy, identities_of
from tests.harness.processes import MakeClient

INSERT = "INSERT INTO contact (email) VALUES ('{}')"


@pytest.mark.parametrize("seed", range(4))
async def test_every_identity_as_it_is_answered(seed: int, make_client: MakeClient, database_url: str) -> None:
    """Each identity of a random past is in the export once, as GET answers it, by primary; the last line is apart."""
    await live_through(make_client, database_url, seed)
    client = await make_client(suppress_key="k" * 32)
    truth = await identities_of(database_url)

    data, done = await exported(database_url)

    *identities, last = parsed(data)
    assert len(identities) > 3
    assert sorted(each["primaryContactId"] for each in identities) == sorted(truth)
    for each in identities:
        answer = await (await client.get(f"/identities/{each['primaryContactId']}")).json()
        assert each == answer["contact"]
    assert last == {"position": done.position}
    # PostgreSQL's text is what recon's own encoder makes.
    [line, *_] = data.splitlines()
    answer = await (await client.get(f"/identities/{identities[0]['primaryContactId']}")).read()
    assert answer == b'{"contact":' + line + b"}"


@pytest.mark.parametrize("seed", range(2))
async def test_records(seed: int, make_client: MakeClient, database_url: str) -> None:
    """The rows of an identity have its emails and phone numbers, and those of which each makes a request join them."""
    await live_through(make_client, database_url, seed)

    data, _ = await exported(database_url, "records")

    found: dict[int, tuple[list[str], list[str]]] = {}
    for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
        emails, phones = found.setdefault(int(row["primary_contact_id"]), ([], []))
        if phones and emails:  # all but the first row have one of its values
            assert row["email"] == emails[0] or row["phone_number"] == phones[0]
        for value, values in ((row["email"], emails), (row["phone_number"], phones)):
            if value and value not in values:
                values.append(value)
    truth = await identities_of(database_url)
    assert found == {primary: (list(emails), list(phones)) for primary, (emails, phones, _) in truth.items()}


async def test_characters(database_url: str) -> None:
    """Whatever PostgreSQL stores comes out as it is: quotes, backslashes, line breaks and other scripts."""
    values = ['"', "\\", "\\n", "a\nb", "tab\there", "\x7f", "\N{LINE SEPARATOR}", "\N{GRINNING FACE}", "=1+1", ",;|"]
    connection = await asyncpg.connect(database_url)
    await connection.executemany("INSERT INTO contact (email, source) VALUES ($1, 'x')", [[each] for each in values])
    await connection.close()

    data, _ = await exported(database_url)
    lines, _ = await exported(database_url, "records")

    assert [each["emails"] for each in map(json.loads, data.split(b"\n")[:-2])] == [[each] for each in values]
    rows = list(csv.reader(io.StringIO(lines.decode(), newline="")))
    assert [row[1] for row in rows[1:]] == values


async def test_a_large_identity(database_url: str) -> None:
    """Of many values, too, each comes once, the primary's first and the others in the form that came first."""
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('e7', '+7')",
        "INSERT INTO contact (email, phone_number, linked_id, link_precedence, created_at) "
        "SELECT 'e' || n % 90, CASE WHEN n > 100 THEN '-' ELSE '' END || n % 80, 1, 'secondary', "
        "now() + (1000 - n) * interval '1 s' FROM generate_series(1, 300) AS n",
    )
    [(primary, (emails, phones, secondaries))] = (await identities_of(database_url)).items()

    [identity, _] = parsed((await exported(database_url))[0])

    assert (len(emails), len(phones), phones[0]) == (90, 80, "+7")
    assert (identity["primaryContactId"], identity["emails"]) == (primary, [*emails])
    assert (identity["phoneNumbers"], identity["secondaryContactIds"]) == ([*phones], [*secondaries])


@pytest.mark.parametrize("what", ["identities", "records"])
async def test_an_empty_database(what: str, database_url: str) -> None:
    """There is nothing but the position, or the header."""
    data, done = await exported(database_url, what)

    assert data == (b'{"position":0}\n' if what == "identities" else b"primary_contact_id,email,phone_number\n")
    assert done.is_settled


@pytest.mark.parametrize("lane", [True, False])
async def test_the_feed_goes_on_from_the_position(lane: bool, make_client: MakeClient, database_url: str) -> None:
    """A consumer that takes the export and follows the feed after its position has an exact copy."""
    client = await make_client(writer_lane=lane)
    bodies = [{"email": f"e{n % 30}", "phoneNumber": str(n % 37)} for n in range(200)]
    copy = Copy()

    async def load() -> None:
        for body in bodies:
            await client.post("/identify", json=body)

    loading = [asyncio.create_task(load()) for _ in range(2)]
    while not await fetch(database_url, "SELECT FROM contact WHERE id > 5"):
        await asyncio.sleep(0.001)
    data, done = await exported(database_url, has_lane=lane)
    *identities, _ = parsed(data)
    copy.take({"gone": [], "identities": identities, "entries": [], "next": done.position, "more": True})
    await asyncio.gather(*loading)
    while not copy.is_exact:
        copy.take(await (await client.get(f"/changes?after={copy.after}")).json())

    assert 0 < done.position < copy.after
    assert copy.identities == await identities_of(database_url)


async def test_a_position_that_commits_late(database_url: str) -> None:
    """The export waits for a transaction that has drawn a position, without a lock, and then has what it wrote."""
    held = await asyncpg.connect(database_url)
    await held.execute("BEGIN")
    await held.execute(INSERT.format("held"))
    await execute(database_url, INSERT.format("after"))

    exporting_ = asyncio.create_task(exported(database_url))
    await asyncio.sleep(0.1)
    assert not exporting_.done()
    await execute(database_url, "SET lock_timeout = '1s'", INSERT.format("later"))
    await held.execute("COMMIT")
    data, done = await exporting_
    await held.close()

    assert [each.get("emails") for each in parsed(data)] == [["held"], ["after"], ["later"], None]
    assert (done.position, done.is_settled) == (2, True)


async def test_a_transaction_that_does_not_end(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait is bounded: then the position is the beginning, and the export has what is committed."""
    monkeypatch.setattr(exporting, "PATIENCE", 0.05)
    held = await asyncpg.connect(database_url)
    await held.execute("BEGIN")
    await held.execute(INSERT.format("held"))
    await execute(database_url, INSERT.format("after"))

    data, done = await exported(database_url)
    await held.close()

    assert [(each.get("emails"), each.get("position")) for each in parsed(data)] == [(["after"], None), (None, 0)]
    assert not done.is_settled


async def test_one_snapshot(database_url: str) -> None:
    """What is committed while an export is in progress is not in it."""
    await execute(database_url, INSERT.format("before"))

    async def look(*, has_lane: bool) -> list[int]:
        async with exports.session(database_url) as connection, exports.snapshot(connection, has_lane=has_lane):
            first = await connection.fetchval("SELECT count(*) FROM contact")
            await execute(database_url, INSERT.format("meanwhile"))
            return [first, await connection.fetchval("SELECT count(*) FROM contact")]

    assert await look(has_lane=True) == [1, 1]
    assert await look(has_lane=False) == [2, 2]


# Two writers of which each reads what the other one writes, and a reader in between that has seen the second one's
# commit and not the first one's: no serial order has all three.
READ_ALL = "SELECT count(*) FROM contact"


async def _anomaly(url: str, begin: str) -> None:
    """Run an export that begins so while a writer is open that another one has overtaken; commit the writer."""
    writer = await asyncpg.connect(url)
    try:
        await writer.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        assert await writer.fetchval(READ_ALL) == 1
        await execute(url, "BEGIN ISOLATION LEVEL SERIALIZABLE", INSERT.format("overtakes"), "COMMIT")
        reader = await asyncpg.connect(url)
        try:
            await reader.execute(begin)
            exporting_ = asyncio.create_task(reader.fetchval(READ_ALL))
            await asyncio.wait([exporting_], timeout=0.1)
            await writer.execute(INSERT.format("late"))
            await writer.execute("COMMIT")
            await exporting_
            await reader.execute("COMMIT")
        finally:
            await reader.close()
    finally:
        await writer.close()


async def test_a_writer_and_a_plain_serializable_reader(database_url: str) -> None:
    """A serializable reader that is not deferrable makes a writer fail, or fails itself."""
    await execute(database_url, INSERT.format("first"))

    with pytest.raises(asyncpg.SerializationError):
        await _anomaly(database_url, "BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY")


@pytest.mark.parametrize("begin", [exports.WITH_LANE, exports.WITHOUT_LANE])
async def test_no_writer_conflicts_with_an_export(begin: str, database_url: str) -> None:
    """The same writer commits beside an export, with the lane and without."""
    await execute(database_url, INSERT.format("first"))

    await _anomaly(database_url, begin)

    assert len(await fetch(database_url, "SELECT FROM contact")) == 3


async def test_no_writer_waits_for_an_export(database_url: str) -> None:
    """While an export is in progress, requests are written."""
    async with exports.session(database_url) as connection, exports.snapshot(connection, has_lane=True):
        await connection.fetchval(READ_ALL)
        async with Database(database_url, DatabaseSettings()).opened() as database, asyncio.timeout(5):
            await database.serializable("test", lambda other: other.execute(INSERT.format("a")))

    assert len(await fetch(database_url, "SELECT FROM contact")) == 1


async def test_a_lost_connection(database_url: str) -> None:
    """If the session ends meanwhile, the export fails."""

    async def lose() -> None:
        async with exports.session(database_url) as connection, exports.snapshot(connection, has_lane=True):
            connection.terminate()
            await connection.fetchval(READ_ALL)

    with pytest.raises(Unreachable):
        await lose()


async def test_a_database_without_the_schema(bare_database_url: str) -> None:
    """An export does not create it."""
    with pytest.raises(SchemaMismatch, match="does not have recon's schema"):
        await exported(bare_database_url)


class _Full(io.RawIOBase):
    """A full disk."""

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_full_disk(database_url: str) -> None:
    """What cannot be written is an error that says so, also amid the rows."""
    await execute(database_url, INSERT.format("a"))
    async with exports.session(database_url) as connection:
        with pytest.raises(ReconError, match="the export cannot be written: No space left on device"):
            await Export(connection, _Full(), lambda _: None, has_lane=True).identities()
