"""A dry run says what the import would come to: the same rules, in memory."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from recon.database.transactions import Database
from recon.errors import ReconError
from recon.rules.guards import Guards
from recon.transfer.dry_run import DEFAULTS, Joining
from recon.transfer.pieces import Piece
from tests.harness.databases import execute, fetch
from tests.harness.dry_runs import export_of, outcome
from tests.harness.imports import import_pieces, piece_of
from tests.harness.model import Model, Request

SIZES = "SELECT count(*) AS size FROM contact WHERE deleted_at IS NULL GROUP BY coalesce(linked_id, id)"
HOT: list[Request] = [("noreply@shop", None), (None, "0800"), ("null", None), (None, "000000"), ("junk", None)]


def orders(seed: int, count: int) -> list[Request]:
    """Requests of which many share values."""
    chosen = random.Random(seed)  # noqa: S311 (the same again)
    found: list[Request] = []
    for _ in range(count):
        email, phone = (chosen.choice((f"{chosen.randrange(count // 2)}", None)) for _ in range(2))
        hot = chosen.choice(HOT) if chosen.random() < 0.3 else (None, None)
        email, phone = hot[0] or email, hot[1] or phone
        if email or phone:
            found.append((email, phone))
    return found


def pieces_of(requests: list[Request], first: int = 1) -> list[Piece]:
    """The requests in pieces of seven."""
    return [piece_of(requests[at : at + 7], first + at) for at in range(0, len(requests), 7)]


async def imported(url: str, pieces: list[Piece], folder: Path, file: str = "/shop.csv") -> dict[str, Any]:
    """Import the pieces; return the counts, and how many identities have how many contacts."""
    async with Database(url).opened() as database:
        done = await import_pieces(database, pieces, folder, file=file)
    return {
        "counts": +Counter(done.standing.counts),
        "sizes": Counter(row["size"] for row in await fetch(url, SIZES)),
    }


@pytest.mark.parametrize(
    ("seed", "guards"),
    [
        (1, Guards(3, 2, block_common=True, blocked=frozenset({("email", "junk")}))),
        (2, Guards(5, 0, block_common=False, blocked=frozenset({("phoneNumber", "0800")}))),
        (3, Guards(0, 0)),
        (4, DEFAULTS),
    ],
)
async def test_as_the_import(seed: int, guards: Guards, database_url: str, tmp_path: Path) -> None:
    """Counts, sizes and withheld links are those of the import: into an empty database, and on its export."""
    for kind, key in guards.blocked:
        await execute(database_url, f"INSERT INTO blocked (kind, key, event_id) VALUES ('{kind}', '{key}', 1)")
    await execute(
        database_url,
        f"UPDATE setting SET max_emails = {guards.max_emails}, max_phones = {guards.max_phones}, "
        f"block_common = {guards.block_common}",
    )
    first, second = pieces_of(orders(seed, 300)), pieces_of(orders(seed + 100, 300))

    expected = await imported(database_url, first, tmp_path)
    found = outcome(first, guards)

    assert {"counts": +found.counts, "sizes": found.sizes} == expected
    assert found.counts["merged"] > 2
    assert sum(found.counts[f"withheld {cause}"] for cause in ("blocked", "limit")) > 5 or seed == 3
    export = await export_of(database_url, tmp_path / "export.ndjson")
    expected = await imported(database_url, second, tmp_path, "/more.csv")
    found = outcome(second, guards, export)
    assert {"counts": +found.counts, "sizes": found.sizes} == expected


async def test_the_present_guards(database_url: str) -> None:
    """They are the defaults of a new database."""
    [row] = await fetch(database_url, "SELECT max_emails, max_phones, block_common FROM setting")

    assert Guards(*row) == DEFAULTS


@pytest.mark.parametrize("seed", range(5))
def test_what_joins(seed: int) -> None:
    """A value joins as many parts as its identity falls into without it."""
    requests, model = orders(seed, 200), Model()
    for request in requests:
        model.identify(request)
    links = {row[1:] for row in (*model.rows, *model.merges)}

    found = outcome(pieces_of(requests), Guards())

    assert len(found.joining) == 10
    assert found.joining == sorted(found.joining, key=lambda each: -each.joins)
    for kind, text, joins, withheld in found.joining:
        assert (joins, withheld) == (parts_without(kind, text, links), 0)


def parts_without(kind: str, text: str, links: set[tuple[str | None, ...]]) -> int:
    """How many parts the values are in that links connected to this one, when it is gone."""
    gone = ("email" if kind == "email" else "phone", text)
    near: dict[Any, set[Any]] = {}
    for email, phone in links:
        if email is not None and phone is not None:
            near.setdefault(("email", email), set()).add(("phone", phone))
            near.setdefault(("phone", phone), set()).add(("email", email))
    seen, parts = {gone}, 0
    for start in near[gone]:
        parts += start not in seen
        waiting = [start]
        while waiting:
            each = waiting.pop()
            if each not in seen:
                seen.add(each)
                waiting += near[each]
    return parts


def test_what_would_join() -> None:
    """A value counts with what it came with while its link was withheld, each once; it shows as it was first seen."""
    requests: list[Request] = [
        ("a", "08"),
        ("b", "08"),
        ("c", "08"),
        ("c", "08"),
        ("null", "1"),
        ("null", "2"),
        ("d", "null"),
    ]
    pieces = pieces_of([*requests, ("null", None)])

    found = outcome(pieces, Guards(2, 2, block_common=True))

    assert found.joining == [Joining("phoneNumber", "08", 2, 1), Joining("email", "null", 0, 3)]
    assert found.largest is not None
    assert (found.largest.contacts, found.largest.some_emails, found.largest.some_phone_numbers) == (
        2,
        ["a", "b"],
        ["08"],
    )
    assert found.reasons == {"blocked: it identifies nobody": 1}


def test_nothing() -> None:
    """A file without records comes to nothing."""
    found = outcome([], DEFAULTS)

    assert (found.sizes, found.largest, found.joining) == ({}, None, [])


def test_a_value_that_joins_many_merges() -> None:
    """Ten thousand people who are merged one after another, youngest first, are all one."""
    people: list[Request] = [(f"{number}", f"1{number}") for number in range(10_000)]
    requests = [*people, *((email, "0800") for email, _ in reversed(people))]

    found = outcome(pieces_of(requests), Guards())

    assert found.sizes == {10_001: 1}
    assert found.joining[0] == Joining("phoneNumber", "0800", 10_000, 0)


def test_blocked_values_of_an_export(tmp_path: Path) -> None:
    """Those that many identities have lead to none of them, and join none."""
    lines: list[dict[str, Any]] = [
        {"primaryContactId": at, "emails": [f"{at}", "null"], "phoneNumbers": ["1"], "secondaryContactIds": [at + 10]}
        for at in (1, 2)
    ]
    path = tmp_path / "export.ndjson"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"position": 3}]))
    blocked = frozenset({("phoneNumber", "1")})

    found = outcome(pieces_of([("null", "5"), ("1", "1")]), Guards(block_common=True, blocked=blocked), path)  # type: ignore[arg-type]

    assert found.sizes == {2: 2, 1: 1}
    assert (found.counts["known"], found.counts["created"]) == (1, 1)


PERSON = '{"primaryContactId": 1, "emails": ["a"], "phoneNumbers": [], "secondaryContactIds": []}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not complete"),
        (PERSON, "is not complete"),
        ("[]\n", "line 1 of"),
        (PERSON + PERSON.replace('["a"]', '["b", "c"]'), "line 2 of"),
        (PERSON.replace('["a"]', "[5]"), "line 1 of"),
        (PERSON.replace("[]", "7"), "line 1 of"),
        (PERSON.replace(": 1", ': "1"'), "line 1 of"),
        ('{"format": 1}\n', "line 1 of"),
        ('{"position": 1}\n' + PERSON, "line 2 of"),
        (PERSON + '{"position', "line 2 of"),
    ],
)
def test_no_export(text: str, message: str, tmp_path: Path) -> None:
    """What is no complete export is an error that names the line."""
    path = tmp_path / "export.ndjson"
    path.write_text(text)

    with pytest.raises(ReconError, match=message):
        outcome([], DEFAULTS, path)
