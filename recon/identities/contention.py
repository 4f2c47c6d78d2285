"""Rows that another session holds: a write batch continues without the requests that need them.

Every writer waits for the writer that has the lane, so that writer never waits long. A row of `contact` may be held for
minutes: by an operator's open transaction, or by another program.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeAlias, TypeVar

from recon.database.transactions import Connection
from recon.rules.clusters import Cluster, Clusters
from recon.rules.guards import Digest, Values
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Plan, Reason, decide
from recon.sql import contacts as sql
from recon.sql import guards

T = TypeVar("T")


class Held(NamedTuple):
    """Instead of an answer: another session holds this row of `contact`, which the request needs."""

    row: int


# From a batch and the most contacts in its answers to what is to be done, and for each request whether it has to wait;
# nothing for none of them.
Choose: TypeAlias = Callable[
    [Connection, Sequence[Identifiers], float, Digest | None], Awaitable[tuple[Plan, list[Held | None]]]
]
Fetch: TypeAlias = Callable[[Connection, Sequence[Identifiers], Digest | None, Values], Awaitable[Clusters]]


async def everything(
    connection: Connection, batch: Sequence[Identifiers], most: float, digest: Digest | None = None
) -> tuple[Plan, list[Held | None]]:
    """Decide all requests, with the roots of their clusters locked; raises RowsHeld when one is held too long."""
    clusters = await _guarded(connection, sql.lock_clusters, batch, digest)
    return await _decided(connection, batch, clusters, most), []


async def what_is_free(
    connection: Connection,
    batch: Sequence[Identifiers],
    most: float,
    digest: Digest | None = None,
    *,
    in_order: bool = False,
) -> tuple[Plan, list[Held | None]]:
    """Decide the requests whose rows no other session holds, with these rows locked.

    Without the others the rest may need other rows, so this is tried until all that it needs is free. `in_order`: those
    behind a request that has to wait have to wait, too.
    """
    held: list[Held | None] = [None] * len(batch)
    while True:
        places = [place for place, row in enumerate(held) if row is None]
        free = [batch[place] for place in places]
        clusters = await _guarded(connection, sql.fetch_clusters, free, digest)
        contacts = [contact for cluster in clusters.all for contact in cluster.contacts]
        touched = _roots(free, clusters)
        plan = await _decided(connection, free, clusters, most)
        # A merge changes all rows of a cluster, not its root alone.
        relinked = {root for root, _ in plan.relinks}
        root_of = {contact.id: contact.linked_id for contact in contacts if contact.linked_id in relinked}
        losers = {loser.id for loss in plan.losses for loser in loss.losers}
        needed = {row for row in losers.union(root_of) if row is not None}.union(*touched)
        rows = await sql.lock_free_rows(connection, needed) if needed else set()
        if not rows:
            return plan, held
        merging = {nth for nth, decision in enumerate(plan.decisions) if decision.reason is Reason.MERGED}
        for row in rows:
            about = {nth for nth, roots in enumerate(touched) if root_of.get(row, row) in roots}
            # A secondary is only in the way of a merge. (Rows of other programs merge without being asked to.)
            for nth in (about & merging or about) if row in root_of else about:
                held[places[nth]] = Held(row)
        if in_order:
            first = next(place for place, row in enumerate(held) if row is not None)
            held[first:] = [held[first]] * (len(held) - first)


async def what_comes_first(
    connection: Connection, batch: Sequence[Identifiers], most: float, digest: Digest | None = None
) -> tuple[Plan, list[Held | None]]:
    """Decide the requests up to the first one that needs a row that another session holds."""
    return await what_is_free(connection, batch, most, digest, in_order=True)


async def _guarded(
    connection: Connection, fetch: Fetch, batch: Sequence[Identifiers], digest: Digest | None
) -> Clusters:
    """The clusters of a batch. Where some share a value that is blocked, and that no request has, they stay apart."""
    clusters = await fetch(connection, batch, digest, frozenset())
    if clusters.mends:  # rare: rows of other programs
        blocked = await guards.blocked_among(connection, clusters.mends)
        if blocked:
            clusters = await fetch(connection, batch, digest, blocked)
    return clusters


async def _decided(connection: Connection, batch: Sequence[Identifiers], clusters: Clusters, most: float) -> Plan:
    """What is to be done, without the withheld links that are on the review list already."""
    plan = decide(batch, clusters, most)
    if pairs := plan.pairs():  # rare
        plan.drop_recorded(await guards.recorded(connection, pairs))
    return plan


def _roots(requests: Sequence[Identifiers], clusters: Clusters) -> list[set[int]]:
    """The rows that stand for the clusters that each request touches."""
    roots: defaultdict[Cluster, set[int]] = defaultdict(set)
    for cluster in clusters.all:
        roots[cluster.current()].add(cluster.root)  # type: ignore[arg-type] # those of the table have a root
    return [{root for cluster in clusters.of(request) if cluster for root in roots[cluster]} for request in requests]


def merged(answers: Sequence[T], held: Sequence[Held | None]) -> list[T | Held]:
    """The outcome of each request, in order, up to the first that was left undecided."""
    if not held:
        return [*answers]
    following = iter(answers)
    outcomes: list[T | Held] = []
    for row in held:
        outcome = row or next(following, None)
        if outcome is None:
            break
        outcomes.append(outcome)
    return outcomes
