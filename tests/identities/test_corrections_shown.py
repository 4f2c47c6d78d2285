"""What comparing states before writing is for: corrections that plan at the same time, without and with it."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg
import pytest

from recon.database.transactions import Connection
from recon.errors import ReconError
from recon.identities.corrections import Correction, Corrections, Terms
from recon.identities.dividing import Split
from recon.identities.erasing import Erase
from recon.identities.linking import KeepApart, Link
from recon.rules.identifiers import plain_key
from recon.rules.links import Identifier
from recon.sql import corrections as sql
from tests.identities.test_corrections import SECONDS, Interrupted, _said, opened, prepare, requests_to, violations

# George and Biff are identity 1; Marty is 4, Doc 5.
PAIRS: dict[str, tuple[Correction, Correction]] = {
    "keep apart, link": (KeepApart(1, 4), Link(4, 1)),
    "split, split": (
        Split(1, parts=[[Identifier("phoneNumber", "919191")]]),
        Split(1, parts=[[Identifier("email", "george")]]),
    ),
    "erase, link": (Erase(1, plain_key), Link(4, 1)),
}


@pytest.fixture(params=[False, True], ids=["unprotected", "protected"])
def is_protected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the states that a correction was planned on are compared with those that it finds."""
    fetch_states = sql.fetch_states

    async def as_planned(connection: Connection, roots: Iterable[int]) -> Mapping[int, Any]:
        return roots if isinstance(roots, Mapping) else await fetch_states(connection, roots)

    if not request.param:
        monkeypatch.setattr(sql, "fetch_states", as_planned)
    return bool(request.param)


@pytest.mark.parametrize("name", PAIRS)
async def test_two_corrections(name: str, is_protected: bool, database_url: str) -> None:
    """Without the comparison, the second one breaks an invariant or a constraint; with it, it is planned again."""
    async with opened(database_url) as database:
        await prepare(database)
        corrections, all_have_planned = Corrections(database, SECONDS), asyncio.Barrier(2)
        held = [Interrupted(correction, all_have_planned.wait) for correction in PAIRS[name]]
        outcomes = await asyncio.gather(*(_make(corrections, each) for each in held), return_exceptions=True)

    found = await violations(database_url)
    if is_protected:
        assert found == []
        assert sorted(each.plans for each in held) == [1, 2]
        assert [each for each in outcomes if not isinstance(each, dict | ReconError)] == []
        assert any(isinstance(each, dict) for each in outcomes)
    else:
        assert [each.plans for each in held] == [1, 1]
        assert found or any(isinstance(each, asyncpg.PostgresError) for each in outcomes)


async def test_a_request(is_protected: bool, database_url: str) -> None:
    """Without the comparison, what a request added to the identity meanwhile stays behind; with it, it goes along."""
    async with opened(database_url) as database:
        await prepare(database)
        one = requests_to(database)
        split = Interrupted(Split(1, links=["event:3"]), lambda: one(_said("new", "717171")))
        await _make(Corrections(database, SECONDS), split)

    assert split.plans == (2 if is_protected else 1)
    assert bool(await violations(database_url)) is not is_protected


async def _make(corrections: Corrections, correction: Correction) -> Any:
    return await corrections.make(correction, Terms(), lambda result: result._asdict())
