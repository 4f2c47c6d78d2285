"""The metrics. This module imports no other of recon, so that each module can count what it does."""

import asyncio
from functools import lru_cache

from prometheus_client import PLATFORM_COLLECTOR, REGISTRY, Counter, Gauge, Histogram

REGISTRY.unregister(PLATFORM_COLLECTOR)  # clients need not know Python's version

REQUESTS = Counter("recon_http_requests", "Requests answered.", ["route", "status"])
LATENCY = Histogram(
    "recon_http_request_seconds",
    "Time from a request's headers to its answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
STREAMS = Gauge("recon_http_streams", "Streamed responses in progress.", ["route"], multiprocess_mode="livesum")
STREAM_SECONDS = Histogram(
    "recon_http_stream_seconds",
    "Duration of streamed responses, from the start of the handler to the end or the abort.",
    ["route"],
    buckets=(0.01, 0.1, 1, 10, 60, 600, 3600, 86_400),
)
ABORTED = Counter(
    "recon_http_responses_aborted",
    "Responses that were aborted after their status line was sent, by reason: client, error or shutdown.",
    ["route", "reason"],
)
REFUSALS = Counter(
    "recon_refused_requests", "Requests refused: no API key that allows them, or a foreign host.", ["reason"]
)
BATCH_SIZE = Histogram(
    "recon_batch_requests",
    "Requests that shared a transaction.",
    ["step"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
LINES = Counter("recon_batch_lines", "Lines of POST /identify/batch that were answered.", ["status"])
TRANSACTIONS = Counter("recon_transactions", "Transactions that ended.", ["step", "outcome"])
RETRIES = Counter("recon_transaction_retries", "Transactions retried, by step and reason.", ["step", "reason"])
POOL_SIZE = Gauge("recon_pool_connections", "Database connections that are open.", multiprocess_mode="livesum")
POOL_USED = Gauge("recon_pool_connections_used", "Database connections in use.", multiprocess_mode="livesum")
WAITING = Gauge("recon_waiting_requests", "Requests that wait for a batch.", ["step"], multiprocess_mode="livesum")
CONNECTIONS = Gauge("recon_connections", "Client connections that are open.", multiprocess_mode="livesum")
CONNECTIONS_CLOSED = Counter("recon_connections_closed", "Client connections closed because of a limit.", ["why"])
CONTACTS = Counter("recon_contacts_created", "Contacts inserted.", ["precedence"])
MERGES = Counter("recon_merges", "Clusters that were merged into another.")
CORRECTIONS = Counter("recon_corrections", "Corrections that stewards made.", ["kind"])
WITHHELD = Counter("recon_withheld_links", "Links that the guards withheld from requests, recorded or not.", ["reason"])


# A look-up of labels costs more than the counting, and labels are few: each is looked up once.
_child = lru_cache(maxsize=None)(lambda metric, *labels: metric.labels(*labels))


_answered: list[tuple[str, int, float]] = []


def count_request(route: str, status: int, seconds: float) -> None:
    """Count an answered request and its duration, together with all others of this turn of the event loop.

    Counting them together takes a third of the time: prometheus-client's code is then in the processor's caches.
    """
    if not _answered:
        asyncio.get_running_loop().call_soon(_count_answered)
    _answered.append((route, status, seconds))


def _count_answered() -> None:
    for route, status, seconds in _answered:
        _child(REQUESTS, route, status).inc()
        _child(LATENCY, route).observe(seconds)
    _answered.clear()


def count_streamed(route: str, status: int, _: float) -> None:
    """Count a request whose response was streamed; its duration is no latency."""
    _child(REQUESTS, route, status).inc()


def count_abort(route: str, reason: str) -> None:
    """Count a response that was aborted after its status line was sent."""
    _child(ABORTED, route, reason).inc()


def count_refusal(reason: str) -> None:
    """Count a refused request: no API key, an unknown key, a key without the scope, or a foreign host."""
    _child(REFUSALS, reason).inc()


def count_lines(status: int, number: int) -> None:
    """Count answered lines of POST /identify/batch."""
    _child(LINES, status).inc(number)


def count_batch(step: str, size: int) -> None:
    """Count a batch of requests."""
    _child(BATCH_SIZE, step).observe(size)


def count_transaction(step: str, outcome: str) -> None:
    """Count a transaction that ended: committed or failed."""
    _child(TRANSACTIONS, step, outcome).inc()


def count_contacts(precedence: str, number: int) -> None:
    """Count contacts that were inserted."""
    _child(CONTACTS, precedence).inc(number)


def count_withheld(reason: str) -> None:
    """Count a link that the guards withheld."""
    _child(WITHHELD, reason).inc()
