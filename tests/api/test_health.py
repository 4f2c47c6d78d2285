"""Endpoints for the operator: liveness, readiness, metrics, request ids."""

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from prometheus_client.parser import text_string_to_metric_families

from recon.database.transactions import STARTUP_RETRY
from recon.sql import contacts as sql
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient
from tests.harness.races import AllHaveRead


async def figures(client: "TestClient[Any, Any]") -> dict[tuple[str, ...], float]:
    """Return every sample at /metrics, by its name and the values of its labels in the order of their names."""
    response = await client.get("/metrics")
    assert response.status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(await response.text())
        for sample in family.samples
    }


async def test_alive_and_ready(client: "TestClient[Any, Any]") -> None:
    """/healthz and /readyz answer 200 when recon can serve requests."""
    assert await (await client.get("/healthz")).json() == {"status": "alive"}
    assert await (await client.get("/readyz")).json() == {"status": "ready"}


async def test_not_ready_without_the_schema(make_client: MakeClient, database_url: str) -> None:
    """A database that has lost the schema is not ready, and /readyz says why."""
    client = await make_client()
    await execute(database_url, "DROP TABLE contact")

    response = await client.get("/readyz")

    assert response.status == 503
    assert "schema" in (await response.json(content_type=None))["detail"]
    assert (await client.get("/healthz")).status == 200
    await asyncio.sleep(1.5 * STARTUP_RETRY)  # it checks again, and does not start with an empty table
    assert (await client.get("/readyz")).status == 503
    assert (await fetch(database_url, "SELECT to_regclass('contact')"))[0][0] is None


async def test_metrics(make_client: MakeClient) -> None:
    """Requests, batches, transactions, pool, contacts and merges are counted."""
    client = await make_client()
    before = await figures(client)
    for body in (
        {"email": "a", "phoneNumber": "1"},
        {"email": "b", "phoneNumber": "2"},
        {"email": "a", "phoneNumber": "3"},
        {"email": "a", "phoneNumber": "2"},
        {"email": "a", "phoneNumber": "1"},
        {},
    ):
        await client.post("/identify", json=body)
    await client.get("/nothing")

    after = await figures(client)

    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["recon_http_requests_total", "/identify", "200"] == 5
    assert grown["recon_http_requests_total", "/identify", "400"] == 1
    assert grown["recon_http_requests_total", "unknown", "404"] == 1
    assert grown["recon_http_request_seconds_count", "/identify"] == 6
    assert grown["recon_batch_requests_sum", "read"] == 5
    assert grown["recon_batch_requests_sum", "write"] == 4
    assert grown["recon_transactions_total", "committed", "read"] == 5
    assert grown["recon_transactions_total", "committed", "write"] == 4
    assert grown["recon_contacts_created_total", "primary"] == 2
    assert grown["recon_contacts_created_total", "secondary"] == 1
    assert grown["recon_merges_total",] == 1
    assert after["recon_pool_connections",] >= 1
    assert after["recon_pool_connections_used",] == 0


async def test_retries_are_counted_by_reason(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retried transactions are in the metrics, with the reason of the retry."""
    client = await make_client(coalesce=False, writer_lane=False)
    before = await figures(client)
    monkeypatch.setattr(sql, "lock_clusters", AllHaveRead(2, sql.FETCH_CLUSTERS))

    responses = await asyncio.gather(*(client.post("/identify", json={"email": "a"}) for _ in range(2)))

    assert {response.status for response in responses} == {200}
    key = ("recon_transaction_retries_total", "serialization_failure", "write")
    assert (await figures(client))[key] > before.get(key, 0)


@pytest.mark.parametrize("given", ["abc-123", "0af7651916cd43dd8448eb211c80319c", "A.b_c"])
async def test_a_request_id_is_taken_over(given: str, client: "TestClient[Any, Any]") -> None:
    """A client's X-Request-ID is in the response, also in errors."""
    for path in ("/healthz", "/nothing"):
        response = await client.get(path, headers={"X-Request-ID": given})

        assert response.headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", [None, "", "a b", "doc@hillvalley.edu", "x" * 65, "a;b", "ä"])
async def test_a_request_id_is_given(given: str | None, client: "TestClient[Any, Any]") -> None:
    """recon generates an id for a request without one, or with one that is not safe to log."""
    headers = {} if given is None else {"X-Request-ID": given}

    ids = {(await client.get("/healthz", headers=headers)).headers["X-Request-ID"] for _ in range(2)}

    assert len(ids) == 2
    assert given not in ids


async def test_no_versions_are_given_away(client: "TestClient[Any, Any]") -> None:
    """The Server header contains the name recon and nothing else."""
    for path in ("/healthz", "/nothing", "/docs"):
        assert (await client.get(path)).headers["Server"] == "recon"
