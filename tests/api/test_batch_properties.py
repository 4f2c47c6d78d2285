"""A batch against single requests: for random lines, malformed ones too, the answers are equal, line by line."""

import asyncio
import json
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from recon.api import batch
from recon.app import create_app
from recon.settings import Settings
from recon.sql import invariants
from tests.api.test_batch import answers
from tests.harness.databases import execute, fetch

Client = TestClient[Any, Any]
ROUNDS = 12

WRONG = [
    b"{",
    b"[]",
    b"null",
    b"1",
    b'{"email": 1}',
    b"{}",
    b"\xff\xfe",
    b'{"email": "a\\u0000"}',
    b'{"phoneNumber": true}',
]
IDS = {"primaryContactId", "primaryContatctId", "secondaryContactIds"}


def lines(choose: random.Random, number: int) -> list[bytes]:
    """Lines about few people, so that they extend and merge them, with blocked values and malformed lines between."""
    emails = [None, "a", "b", "c", "d", "e", " E ", "null"]
    phones = [None, 1, "2", "3", "+4", "(5)", "6", "n/a"]
    found = []
    for _ in range(number):
        said = {"email": choose.choice(emails), "phoneNumber": choose.choice(phones)}
        found.append(choose.choice(WRONG) if choose.random() < 0.1 else json.dumps(said).encode())
    return found


class Names:
    """Names contacts by the order in which answers show them first, since ids are drawn for other traffic, too."""

    def __init__(self) -> None:
        self._next = count(1)
        self._names: dict[int, int] = {}

    def named(self, value: Any, *, is_id: bool = False) -> Any:
        """An answer with names in place of ids."""
        if isinstance(value, dict):
            return {name: self.named(each, is_id=name in IDS) for name, each in value.items()}
        if isinstance(value, list):
            return [self.named(each, is_id=is_id) for each in value]
        if not is_id or value is None:
            return value
        if value not in self._names:
            self._names[value] = next(self._next)
        return self._names[value]


async def _single(client: Client, line: bytes) -> dict[str, Any]:
    response = await client.post("/identify", data=line, headers={"Content-Type": "application/json"})
    answer = await response.json(content_type=None)
    return {"status": response.status} | (answer if response.status == 200 else {"problem": answer})


async def _others(client: Client, numbers: Iterator[int]) -> None:
    """Requests about other people, without a pause."""
    while True:
        number = next(numbers)
        async with client.post("/identify", json={"email": f"o{number % 97}", "phoneNumber": f"7{number}"}) as response:
            assert response.status == 200


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lines in a chunk, so that a batch has many."""
    monkeypatch.setattr(batch, "MAX_CHUNK", 7)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("limit", [0, 3], ids=["no limits", "limits"])
async def test_a_batch_is_its_lines_one_after_another(
    limit: int, aiohttp_client: Any, database_url: str, shared_database_url: str
) -> None:
    """Answers and rows are those of single requests on another database, beside traffic about other people."""
    single = await aiohttp_client(create_app(Settings(database_url=shared_database_url)))
    for url in (database_url, shared_database_url):
        await execute(url, f"UPDATE setting SET max_emails = {limit}, max_phones = {limit}")
    client = await aiohttp_client(create_app(Settings(database_url=database_url)))
    choose = random.Random(limit)  # noqa: S311 (the same again for the same seed)
    numbers = count()
    traffic = [asyncio.ensure_future(_others(client, numbers)) for _ in range(4)]
    for number in range(ROUNDS):
        for url in (database_url, shared_database_url):
            await execute(url, "TRUNCATE contact", "TRUNCATE event")
        one, other = Names(), Names()
        sent = lines(choose, choose.randrange(1, 60))

        *found, summary = [one.named(each) for each in await answers(client, sent)]

        expected = [{"line": n} | await _single(single, line) for n, line in enumerate(sent, start=1)]
        assert found == [other.named(each) for each in expected], number
        assert summary["summary"]["ok"] == sum(each["status"] == 200 for each in expected)
        again = await answers(client, sent)
        assert [again[-1]["summary"][name] for name in ("created", "extended", "merged")] == [0, 0, 0]
    for each in traffic:
        each.cancel()
    await asyncio.gather(*traffic, return_exceptions=True)
    rows = "SELECT email, phone_number FROM contact WHERE phone_number !~ '^7' OR phone_number IS NULL ORDER BY id"
    mine, theirs = [[tuple(row) for row in await fetch(url, rows)] for url in (database_url, shared_database_url)]
    assert mine == theirs
    violations, _ = await invariants.check(database_url)
    assert violations == []
