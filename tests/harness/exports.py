"""Exports in this process, and databases whose identities have a past."""

import io
import json
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

from recon.rules.digests import check_of
from recon.sql import exports, restoring
from recon.transfer.exporting import Export, Exported
from recon.transfer.restoring import Restore
from recon.transfer.text import Text
from tests.harness.meddling import STATEMENTS
from tests.harness.processes import MakeClient

KEY = "k" * 32  # of suppressed identifiers
EMAILS = ["a", "b", 'c"\\', "d\N{LATIN SMALL LETTER E WITH ACUTE}", "e@x", "null", "f", "g"]
PHONES = ["1", "+2", "(3)", "4 ext. 5", "2", "6", "-7", "8"]
CORRECTIONS = ("split", "split", "link", "keep-apart", "block", "erase")


async def exported(url: str, what: str = "identities", *, has_lane: bool = True) -> tuple[bytes, Exported]:
    """What an export of a database writes, and what it says of itself."""
    out = io.BytesIO()
    async with exports.session(url) as connection:
        done = await getattr(Export(connection, out, lambda _: None, has_lane=has_lane), what)()
    return out.getvalue(), done


def parsed(data: bytes) -> list[dict[str, Any]]:
    """The lines of NDJSON."""
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.decode().splitlines()]


async def restored(url: str, data: bytes, folder: Path, region: str | None = None) -> None:
    """Restore a full export. Raises ReconError."""
    path = folder / "full.ndjson"
    path.write_bytes(data)
    text = Text(str(path))
    try:
        work = Restore(text, region, lambda _: None)
        async with restoring.restoring(url) as connection:
            await work.run(connection, check_of(KEY.encode()))
    finally:
        text.close()


async def live_through(make_client: MakeClient, url: str, seed: int, steps: int = 120) -> None:
    """Requests, corrections and rows of other programs at random, in a database that is empty at first."""
    chosen = random.Random(seed)  # noqa: S311 (the same again for the same seed)
    client = await make_client(suppress_key=KEY)
    connection = await asyncpg.connect(url)
    try:
        for step in range(steps):
            ids = [row["id"] for row in await connection.fetch("SELECT id FROM contact ORDER BY id")]
            if step < 15 or chosen.random() < 0.5:
                body = {"email": chosen.choice([None, *EMAILS]), "phoneNumber": chosen.choice(PHONES)}
                assert (await client.post("/identify", json=body)).status in {200, 422}
            elif chosen.random() < 0.4:
                with suppress(asyncpg.PostgresError):
                    await connection.execute(STATEMENTS[chosen.choice([*STATEMENTS])], chosen.choice(ids))
            elif ids:
                await _correct(client, chosen, ids)
    finally:
        await connection.close()


async def _correct(client: Any, chosen: random.Random, ids: list[int]) -> None:
    """Make a correction, unless the present state forbids it."""
    kind, one, other = chosen.choice(CORRECTIONS), chosen.choice(ids), chosen.choice(ids)
    if kind == "block":
        await client.post("/blocked", json={"email": chosen.choice(EMAILS)})
    elif kind == "split":
        links = await (await client.get(f"/identities/{one}/links")).json()
        if found := links.get("links"):
            await client.post(f"/identities/{one}/split", json={"links": [chosen.choice(found)["name"]]})
    elif kind == "erase":
        await client.post(f"/identities/{one}/erase", json={"suppress": one % 2 == 0})
    else:
        await client.post(f"/identities/{one}/{kind}", json={"contactId": other})
