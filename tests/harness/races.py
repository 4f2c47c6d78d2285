"""The six races: concurrent requests, and the rows that serial execution leaves. And the worst timing for them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recon.database.transactions import Connection
from recon.rules.clusters import Clusters
from recon.rules.guards import Digest, Values
from recon.rules.identifiers import Identifiers
from recon.sql import contacts as sql

Request = tuple[str | None, str | None]  # an email and a phone
CHAIN = 20  # clusters that the chain merges


@dataclass(frozen=True)
class Race:
    """Requests sent one by one, then concurrent requests, and the rows that there must be afterwards.

    All of them must end up in one cluster; `rows` are the (email, phone) of its contacts.
    """

    before: list[Request]
    at_once: list[Request]
    rows: list[Request]


def identical_fresh_requests(n: int) -> Race:
    """All requests are the same, about an unknown person."""
    return Race([], [("e", "1")] * n, [("e", "1")])


def linking_two_primaries(n: int) -> Race:
    """Half of the requests link two primaries, while the others add to the cluster of the younger one."""
    before: list[Request] = [("e1", "1"), ("e2", "2")]
    return Race(before, [("e1", "2"), ("e2", "3")] * (n // 2), [*before, ("e2", "3")])


def the_same_new_secondary(n: int) -> Race:
    """All requests bring the same new email of a known person."""
    return Race([("e1", "1")], [("e2", "1")] * n, [("e1", "1"), ("e2", "1")])


def a_cross_bridge(n: int) -> Race:
    """Requests link two pairs of clusters crosswise, so that they compete for the same clusters."""
    before: list[Request] = [("e1", "1"), ("e2", "2"), ("e3", "3"), ("e4", "4")]
    bridges: list[Request] = [("e1", "3"), ("e2", "4"), ("e1", "4"), ("e2", "3")]
    return Race(before, (bridges * n)[: max(n, len(bridges))], before)


def one_email_with_many_phones(n: int) -> Race:
    """Each request brings another phone number with the same unknown email."""
    requests: list[Request] = [("e", str(phone)) for phone in range(n)]
    return Race([], requests, requests)


def a_chain_of_clusters(n: int) -> Race:
    """Each request links a cluster with the next one, so that all become one cluster."""
    before: list[Request] = [(f"e{i}", str(i)) for i in range(CHAIN)]
    links: list[Request] = [(f"e{i}", str(i + 1)) for i in range(CHAIN - 1)]
    return Race(before, (links * n)[: max(n, len(links))], before)


RACES: dict[str, Callable[[int], Race]] = {
    race.__name__: race
    for race in (
        identical_fresh_requests,
        linking_two_primaries,
        the_same_new_secondary,
        a_cross_bridge,
        one_email_with_many_phones,
        a_chain_of_clusters,
    )
}


class AllHaveRead:
    """Holds each of the first `n` transactions after its read until all of them have read.

    This is the worst case for any protection: every decision is made before any is written.
    """

    def __init__(self, n: int, statement: str) -> None:
        self._barrier = asyncio.Barrier(n)
        self._left = n
        self._statement = statement

    async def __call__(
        self,
        connection: Connection,
        batch: Sequence[Identifiers],
        digest: Digest | None = None,
        blocked: Values = frozenset(),
    ) -> Clusters:
        clusters = await sql._clusters(connection, self._statement, batch, digest, blocked)
        if self._left:
            self._left -= 1
            await self._barrier.wait()
        return clusters
