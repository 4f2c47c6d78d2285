"""An import beside online traffic about the same people: all of it together is as if it had come one by one."""

import asyncio
import json
import time
from itertools import islice
from math import inf
from pathlib import Path

import pytest

from recon.rules.identifiers import MAX_PHONE
from recon.sql import invariants
from tests.harness.exchanges import Exchange, Outcome, Request
from tests.harness.history import check, contacts
from tests.harness.processes import StartRecon, recon
from tests.harness.shop import _Shop, driving

SEED = 12
RECORDS = 6_000
REQUESTS = 3_000


def is_valid(request: Request) -> bool:
    """Whether it is one that recon takes."""
    phone = request.phone
    return phone is None or (isinstance(phone, str) and phone.isprintable() and len(phone) <= MAX_PHONE)


def imported(url: str, path: Path) -> dict[str, int]:
    """Import a file and return the summary."""
    done = recon("import", "--restart", "--json", "--database-url", url, str(path))
    assert done.returncode == 0, done.stderr
    summary: dict[str, int] = json.loads(done.stdout)
    return summary


@pytest.mark.timeout(240)
async def test_beside_online_traffic(start_recon: StartRecon, database_url: str, tmp_path: Path) -> None:
    """Every answer and every row is right, and nothing of the file is missing."""
    requests = [*islice(_Shop(SEED).requests(), RECORDS)]
    path = tmp_path / "shop.ndjson"
    path.write_text("".join(json.dumps(request.json) + "\n" for request in requests))
    process = start_recon("--database-url", database_url)
    begun = time.monotonic()

    async with driving([process.url], seed=SEED, requests=REQUESTS) as history:
        found = await asyncio.to_thread(imported, database_url, path)

    # When each record was imported is not known; all of them began before the first request.
    history.exchanges[:0] = [
        Exchange(-1, 0, "import", request, begun, ended=inf, outcome=Outcome.UNKNOWN)
        for request in filter(is_valid, requests)
    ]
    assert check(history, await contacts(database_url)) == []
    assert (await invariants.check(database_url))[0] == []
    assert found["records"] == RECORDS
    assert found["rejected"] == sum(not is_valid(request) for request in requests)
    again = await asyncio.to_thread(imported, database_url, path)
    assert (again["created"], again["extended"], again["merged"]) == (0, 0, 0)
