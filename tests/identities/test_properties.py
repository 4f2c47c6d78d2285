"""The rules as properties: for any requests, in any batches, recon and the model agree."""

import asyncio
import json
from functools import partial
from itertools import count
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recon.api.messages import identify_response
from recon.database.transactions import Database
from recon.identities.batching import coalesced, plain
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Identify
from recon.rules.clusters import Clusters, Contact, consolidate
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import decide
from tests.harness.model import Model, Request

# Few values, so that requests often share one.
EMAILS = st.sampled_from([None, "a", "b", "c", "d", "e"])
PHONES = st.sampled_from([None, "1", "2", "3", "4", "5"])
SAID = st.tuples(EMAILS, PHONES).filter(any)
BATCHES = st.lists(st.lists(SAID, min_size=1, max_size=8), min_size=1, max_size=8)


def identifiers(request: Request) -> Identifiers:
    """A request in canonical form."""
    return Identifiers(request[0], request[1], request[1])


class Table:
    """Applies a plan to a list, as the database applies it to the table."""

    def __init__(self) -> None:
        self.rows: list[Contact] = []
        self.last = 0  # position

    def run(self, batch: list[Request]) -> list[Any]:
        """Return the answers to a batch."""
        rows = [Contact(c.rank, c.id, c.linked_id, c.email, c.phone_number, c.phone_key) for c in self.rows]
        plan = decide([identifiers(request) for request in batch], Clusters(rows))
        taken = {event.place for event in plan.events}
        places = (place for place in count(1) if place not in taken)
        for contact, _ in plan.inserts:
            contact.id = self.last + next(places)
        self.last += len(plan.inserts) + len(plan.events)
        self.rows += [
            Contact(
                new.rank, new.id, None if primary is new else primary.id, new.email, new.phone_number, new.phone_key
            )
            for new, primary in plan.inserts
        ]
        for root, primary_id in plan.relinks:
            for row in self.rows:
                if root in (row.id, row.linked_id):
                    row.linked_id = None if row.id == primary_id else primary_id
        return [_parsed(identify_response(identity)) for identity in plan.identities()]


@settings(max_examples=500)
@given(BATCHES)
def test_the_rules_agree_with_the_model(batches: list[list[Request]]) -> None:
    """Answers and rows are those of the model, which executes the requests one by one."""
    model, table = Model(), Table()

    for batch in batches:
        assert table.run(batch) == [model.identify(request) for request in batch]

    assert [(row.id, row.email, row.phone_number, row.linked_id) for row in table.rows] == model.table()


@settings(max_examples=200)
@given(st.lists(SAID, min_size=1, max_size=30))
def test_repeating_adds_nothing(requests: list[Request]) -> None:
    """I5, idempotence: after any history, each of its requests is known, alone and in one batch."""
    table = Table()
    table.run(requests)
    before = [(row.id, row.linked_id) for row in table.rows]

    table.run(requests)

    assert [(row.id, row.linked_id) for row in table.rows] == before
    clusters = Clusters(table.rows)
    for request in requests:
        known = clusters.knowing(identifiers(request))
        assert known is not None
        assert consolidate(known.primary, known.contacts).primary_id == known.primary.id


@pytest.mark.parametrize("form", ["batches", "coalesced", "plain"])
def test_the_database_agrees_with_the_model(form: str, database_url: str) -> None:
    """The same on PostgreSQL: in batches that the test makes, and one by one in both configurations."""

    async def scenario(batches: list[list[Request]]) -> None:
        model = Model()
        async with Database(database_url).opened() as database:
            identify = Identify(database, identify_response)
            one = (
                coalesced(identify, 100, Deadlines(5)) if form == "coalesced" else plain(identify, 100, Deadlines(5), 4)
            )
            for batch in batches:
                requests = [identifiers(request) for request in batch]
                if form == "batches":
                    answers = await identify.write(partial(list, requests))
                else:
                    answers = [await one(request) for request in requests]
                expected = [model.identify(request) for request in batch]
                assert [_parsed(answer) for answer in answers] == expected
                # Now the read pass knows all identifiers, and every request gets the latest state.
                known = await identify.read(partial(list, requests))
                assert all(known)
        rows, merges = await _take_rows(database_url)
        assert [tuple(row) for row in rows] == model.table()
        assert [tuple(row) for row in merges] == model.merges

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(BATCHES)
    def holds(batches: list[list[Request]]) -> None:
        asyncio.run(scenario(batches))

    holds()


def _parsed(answer: bytes) -> Any:
    return json.loads(answer)["contact"]


async def _take_rows(url: str) -> tuple[list[asyncpg.Record], list[asyncpg.Record]]:
    """The contacts and the merges, which are removed."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT id, email, phone_number, linked_id FROM contact ORDER BY id")
        merges = await connection.fetch("SELECT id, email, phone_number FROM event ORDER BY id")
        await connection.execute("TRUNCATE contact RESTART IDENTITY")
        return rows, merges
    finally:
        await connection.close()
