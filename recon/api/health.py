"""Endpoints for the operator: liveness, readiness, metrics."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from recon.database.transactions import Database
from recon.errors import ShuttingDown
from recon.http.endpoints import Endpoint, content


async def healthz(_: web.Request) -> web.Response:
    """Answer 200: the process is alive."""
    return web.json_response({"status": "alive"})


def readyz_handler(database: Database, closing: asyncio.Event) -> Callable[[web.Request], Awaitable[web.Response]]:
    """Return the handler of /readyz, which raises an Unavailable while the process cannot serve requests."""

    async def readyz(_: web.Request) -> web.Response:
        """Answer 200 if the database answers and has the schema, and the process is not shutting down."""
        if closing.is_set():
            raise ShuttingDown
        await database.check()
        return web.json_response({"status": "ready"})

    return readyz


async def metrics(_: web.Request) -> web.Response:
    """Answer with the metrics for Prometheus, summed over all processes that serve the port."""
    registry: CollectorRegistry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def endpoints(database: Database, closing: asyncio.Event) -> list[Endpoint]:
    """Return the endpoints of one process. Probes may send any Host header to the first two."""
    return [
        Endpoint(
            method="GET",
            path="/healthz",
            handler=healthz,
            any_host=True,
            summary="Liveness of the process",
            operation=_operation("healthz", _status("The process is alive.")),
        ),
        Endpoint(
            method="GET",
            path="/readyz",
            handler=readyz_handler(database, closing),
            any_host=True,
            summary="Readiness: whether requests can be served",
            operation=_operation("readyz", _status("The database answers and has the schema.")),
            problems=(503,),
        ),
        Endpoint(
            method="GET",
            path="/metrics",
            handler=metrics,
            scope="read",
            summary="Metrics for Prometheus",
            operation=_operation("metrics", content("Metrics.", "text/plain", {"type": "string"})),
        ),
    ]


def _operation(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {"tags": ["operation"], "operationId": name, "responses": {"200": answer}}


def _status(description: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    return content(description, "application/json", schema)
