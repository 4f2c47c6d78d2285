"""What recon counts. Defined below everything else, so that each module counts what it does itself."""

from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("recon_http_requests", "Requests answered.", ["route", "status"])
LATENCY = Histogram(
    "recon_http_request_seconds",
    "Time from a request's headers to its answer.",
    ["route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
BATCH_SIZE = Histogram(
    "recon_batch_requests",
    "Requests that shared a transaction.",
    ["step"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
TRANSACTIONS = Counter("recon_transactions", "Transactions that ended.", ["step", "outcome"])
RETRIES = Counter("recon_transaction_retries", "Transactions begun again because they met others.", ["step", "reason"])
POOL_SIZE = Gauge("recon_pool_connections", "Database connections that are open.", multiprocess_mode="livesum")
POOL_USED = Gauge("recon_pool_connections_used", "Database connections in use.", multiprocess_mode="livesum")
WAITING = Gauge("recon_waiting_requests", "Requests that wait for a batch.", ["step"], multiprocess_mode="livesum")
CONTACTS = Counter("recon_contacts_created", "Contacts inserted.", ["precedence"])
MERGES = Counter("recon_merges", "Clusters that became part of another.")


def count_request(route: str, status: int, seconds: float) -> None:
    """Count an answered request and the time that it took."""
    requests, latency = _of_route(route, status)
    requests.inc()
    latency.observe(seconds)


@lru_cache  # a look-up of labels costs more than the counting; routes and statuses are few
def _of_route(route: str, status: int) -> tuple[Counter, Histogram]:
    return REQUESTS.labels(route, status), LATENCY.labels(route)
