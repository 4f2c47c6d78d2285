"""Full exports, restored in an empty database: the same identities with their past, or nothing at all."""

import asyncio
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recon.database.definitions import SCHEMA
from recon.errors import NotPrepared, ReconError, SchemaMismatch
from recon.sql import invariants, restoring
from recon.transfer.restoring import Restore, is_full_export
from recon.transfer.text import Text
from tests.harness.databases import execute, fetch
from tests.harness.exports import KEY, exported, live_through, parsed, restored
from tests.harness.feed import identities_of
from tests.harness.processes import MakeClient

Change = Callable[[list[dict[str, Any]]], Any]
TABLES = ("contact", "event", "event_contact", "blocked", "erased", "setting")
LAST = "SELECT pg_sequence_last_value(pg_get_serial_sequence('contact', 'id')::regclass)"


async def rows(url: str) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tables that a full export has."""
    return {table: sorted((tuple(row) for row in await fetch(url, f"TABLE {table}")), key=repr) for table in TABLES}


@pytest.fixture
async def empty_url(bare_database_url: str) -> str:
    """Another database, with the schema and no rows."""
    await execute(bare_database_url, SCHEMA)
    return bare_database_url


@pytest.mark.parametrize("seed", range(3))
async def test_a_restored_database_is_the_same(
    seed: int, make_client: MakeClient, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    """Identities, journal, constraints, blocked values and guards come back; an export of them is the same again."""
    await live_through(make_client, database_url, seed)
    await execute(database_url, "UPDATE setting SET max_emails = 7, block_common = false")
    data, done = await exported(database_url, "full")

    await restored(empty_url, data, tmp_path)

    assert (await exported(empty_url, "full"))[0] == data
    assert await rows(empty_url) == await rows(database_url)
    assert await identities_of(empty_url) == await identities_of(database_url)
    assert len(await invariants.check(empty_url)) == len(await invariants.check(database_url))
    kinds = {line.get("kind") for line in parsed(data) if line["type"] == "event"}
    assert {"split", "blocked", "erased"} <= kinds
    [(last,)] = await fetch(empty_url, LAST)
    assert last == max(line["id"] for line in parsed(data) if line["type"] in {"contact", "event"})
    assert done.position == last


async def test_a_restored_database_goes_on(
    make_client: MakeClient, database_url: str, empty_url: str, tmp_path: Path
) -> None:
    """The restored database answers as the other one does: history, links, and requests to come."""
    await live_through(make_client, database_url, 5)
    data, _ = await exported(database_url, "full")
    await restored(empty_url, data, tmp_path)
    clients = [await make_client(database_url=url, suppress_key=KEY) for url in (database_url, empty_url)]
    primaries = [*await identities_of(database_url)]

    for path in [f"/identities/{each}/{what}" for each in primaries for what in ("links", "history")] + ["/withheld"]:
        one, other = [await (await client.get(path)).json() for client in clients]
        assert one == other
    for body in ({"email": "a", "phoneNumber": "99"}, {"email": "null"}, {"email": "b", "phoneNumber": "(3)"}):
        one, other = [await client.post("/identify", json=body) for client in clients]
        assert one.status == other.status
    [before, after] = [await identities_of(url) for url in (database_url, empty_url)]
    assert [each[:2] for each in before.values()] == [each[:2] for each in after.values()]


async def story(url: str) -> bytes:
    """A full export of George and Biff, who were merged by event 3, and of Doc."""
    await execute(
        url,
        "SET application_name = 'recon schema 4'",
        "INSERT INTO contact (email, phone_number) VALUES ('george', '91'), ('biff', '71')",
        "UPDATE contact SET linked_id = 1, link_precedence = 'secondary' WHERE id = 2",
        "INSERT INTO event (id, kind, primary_id, other_id, email, phone_number, phone_key) "
        "VALUES (nextval(pg_get_serial_sequence('contact', 'id')), 'merged', 1, 2, 'george', '71', '71')",
        "INSERT INTO contact (email, deleted_at) VALUES ('gone', now())",
        "INSERT INTO contact (email) VALUES ('doc')",
    )
    return (await exported(url, "full"))[0]


def changed(change: Change) -> Callable[[bytes], bytes]:
    """The export with its lines changed: header, contacts 1, 2, 4, 5, event 3, end."""

    def apply(data: bytes) -> bytes:
        lines = parsed(data)
        change(lines)
        return b"".join(json.dumps(line, separators=(",", ":")).encode() + b"\n" for line in lines)

    return apply


def set_to(line: int, **members: Any) -> Callable[[bytes], bytes]:
    """The export with other members of a line."""
    return changed(lambda lines: lines[line].update(members))


WRONG: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "no end": (lambda data: data[: data.rindex(b'{"type":"end"')], "is cut off"),
    "no rows": (lambda data: data[: data.index(b"\n") + 1], "is cut off"),
    "amid a line": (lambda data: data[: len(data) // 2], "is not JSON; is the file cut off?"),
    "not all of gzip": (lambda data: gzip.compress(data)[:-20], "is not a complete gzip file"),
    "no header": (lambda data: data[data.index(b"\n") + 1 :], "line 1 is not the header of a full export"),
    "nothing": (lambda _: b"", "line 1 is not the header of a full export"),
    "a list": (lambda data: b"[]\n" + data, "line 1 is not a JSON object"),
    "a newer format": (set_to(0, version=2), "was written by a newer version of recon"),
    "a newer schema": (set_to(0, schema=5), r"was written by a newer version of recon \(schema 5\)"),
    "an older schema": (set_to(0, schema=3), "has schema 3, and this recon restores schema 4"),
    "no version": (set_to(0, version="1"), "is not the header"),
    "another region": (set_to(0, defaultRegion="US"), "default region US, and recon is configured with none"),
    "no guards": (set_to(0, guards=None), "line 1 has no guards"),
    "wrong guards": (set_to(0, guards={"maxEmails": -1, "maxPhones": 0, "blockCommon": True}), "the header cannot be"),
    "guards of no type": (set_to(0, guards={"maxEmails": "x"}), "the header cannot be restored"),
    "a line less": (changed(lambda lines: lines.pop(4)), "was changed: it has .*'contact': 3.* says .*'contact': 4"),
    "a line twice": (changed(lambda lines: lines.insert(2, lines[1])), "type contact cannot .*contact_pkey, row 2"),
    "a wrong order": (changed(lambda lines: lines.insert(2, lines.pop(5))), "line 4 is of a type"),
    "behind the end": (changed(lambda lines: lines.append(lines[1])), "line 8 comes behind the end"),
    "an unknown type": (set_to(1, type="person"), "line 2 is of a type that is not known"),
    "another member": (set_to(1, mail="x"), "line 2 does not have the members of the type contact"),
    "no link": (set_to(2, linked_id=9), r"type contact cannot be restored \(ForeignKey"),
    "not a number": (set_to(1, id="one"), r"type contact cannot be restored \(InvalidText.*, row 1\)"),
    "an object": (set_to(1, email={"a": "\N{EM DASH}"}, phone_number=1.5), "was changed: it would have 1 violation "),
    "no text": (set_to(1, email="\ud800"), "has what is no text"),
    "no character": (set_to(1, email="a\0"), "type contact cannot be restored"),
    "no identifiers": (set_to(1, email=None, phone_number=None, phone_key=None), "contact_says_something"),
    "a stolen email": (set_to(4, email="george"), r"would have 1 violation .* 0; the first is: I3: one email"),
    "an older secondary": (set_to(2, created_at="2001-01-01T00:00:00+00:00"), "I1: secondary 2 is older"),
    "no violations": (set_to(-1, violations=1), "would have 0 violations .* it has 1; the first is: none"),
    "violations in words": (set_to(-1, violations="no"), "does not say how many"),
    "an end without counts": (changed(lambda lines: lines[-1].pop("counts")), "was changed: it has"),
    "marks of no shape": (set_to(1, apart=[[1, 2]]), "contact_apart_has_rows"),
}  # fmt: skip


@pytest.fixture(scope="module")
def full(shared_database_url: str) -> bytes:
    """The full export of a story in a database that is empty again."""
    data = asyncio.run(story(shared_database_url))
    asyncio.run(execute(shared_database_url, "TRUNCATE contact RESTART IDENTITY"))
    return data


@pytest.mark.parametrize("name", WRONG)
async def test_a_file_that_was_changed(name: str, full: bytes, shared_database_url: str, tmp_path: Path) -> None:
    """It is refused with what is wrong, and nothing is restored. No identifier is quoted."""
    change, expected = WRONG[name]

    with pytest.raises(ReconError, match=expected) as raised:
        await restored(shared_database_url, change(full), tmp_path)

    assert "george" not in str(raised.value)
    assert await fetch(shared_database_url, "SELECT id FROM contact UNION ALL SELECT id FROM event") == []


async def test_violations_of_other_programs(database_url: str, empty_url: str, tmp_path: Path) -> None:
    """Rows that another program wrote, and that no request has met yet, are restored as they are."""
    await execute(database_url, "INSERT INTO contact (email) VALUES ('a'), ('a'), ('B'), ('null')")

    data, done = await exported(database_url, "full")
    await restored(empty_url, data, tmp_path)

    assert done.violations == 3
    assert (await exported(empty_url, "full"))[0] == data


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO contact (email) VALUES ('a')",
        "INSERT INTO event (id, kind) VALUES (1, 'guards')",
        "INSERT INTO blocked (kind, key, event_id) VALUES ('email', 'a', 1)",
        "INSERT INTO erased VALUES (1, 2)",
    ],
)
async def test_a_database_that_is_not_empty(statement: str, database_url: str, empty_url: str, tmp_path: Path) -> None:
    """It stays as it is."""
    data, _ = await exported(empty_url, "full")
    await execute(database_url, statement)
    before = await rows(database_url)

    with pytest.raises(ReconError, match="the database must be empty"):
        await restored(database_url, data, tmp_path)

    assert await rows(database_url) == before


async def test_another_suppress_key(database_url: str, empty_url: str, tmp_path: Path) -> None:
    """Suppressed identifiers are restored only with the key that made their digests."""
    await execute(database_url, "INSERT INTO blocked (kind, key, event_id) VALUES ('digestCheck', 'another', 1)")
    data, _ = await exported(database_url, "full")

    with pytest.raises(NotPrepared, match="set RECON_SUPPRESS_KEY"):
        await restored(empty_url, data, tmp_path)

    assert await fetch(empty_url, "TABLE blocked") == []


async def test_a_writer_meanwhile(database_url: str, empty_url: str, tmp_path: Path) -> None:
    """A writer that has read the empty database before and comes late fails, and so the restored one stays whole."""
    data = await story(database_url)
    writer = await asyncpg.connect(empty_url)
    try:
        await writer.execute("BEGIN ISOLATION LEVEL SERIALIZABLE")
        assert await writer.fetchval("SELECT count(*) FROM contact") == 0

        await restored(empty_url, data, tmp_path)

        with pytest.raises(asyncpg.SerializationError):
            await writer.execute("INSERT INTO contact (email) VALUES ('george'); COMMIT")
    finally:
        await writer.close()
    assert (await exported(empty_url, "full"))[0] == data


async def test_a_conflict_at_the_end(database_url: str) -> None:
    """If PostgreSQL refuses the COMMIT, nothing is restored."""
    with pytest.raises(ReconError, match="nothing was restored"):
        async with restoring.restoring(database_url):
            raise asyncpg.SerializationError("made up")


async def test_a_role_without_privileges(database_url: str) -> None:
    """The error says what it lacks."""
    with pytest.raises(SchemaMismatch, match="permission denied for table contact.*: use the tables' owner"):
        async with restoring.restoring(database_url) as connection:
            await connection.execute("SET LOCAL ROLE pg_monitor; INSERT INTO contact (email) VALUES ('a')")


def test_what_a_full_export_is(tmp_path: Path) -> None:
    """It is told by its first bytes, gzipped or not, and reading goes on at the beginning."""
    header = b'{"type":"recon","version":1}\n'
    for name, data, expected in (
        ("full.gz", gzip.compress(header), True),
        ("full", header, True),
        ("plain", b'{"primaryContactId":1}\n', False),
        ("empty", b"", False),
        ("broken.gz", gzip.compress(header)[:5], False),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        text = Text(str(path))
        assert is_full_export(text) is expected
        if expected:
            assert [*text] == [header.decode()]
            text.close()
            text = Text(str(path))
            with pytest.raises(ReconError, match="has schema|not the header"):
                Restore(text, None, lambda _: None)
        text.close()
