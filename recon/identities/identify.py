"""The work of a batch: the read pass answers requests that change nothing, the write pass applies the others."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from recon import metrics
from recon.database.transactions import Connection, Database
from recon.errors import RowsHeld
from recon.identities import contention
from recon.identities.contention import Held
from recon.rules.clusters import Cluster, Clusters, Identity, consolidate
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Plan, Reason
from recon.sql import contacts as sql

Answer: TypeAlias = bytes  # an encoded identity, shared by all requests of a batch that it answers
Requests: TypeAlias = Callable[[], Sequence[Identifiers]]  # dequeues a batch; called again, gives the same

# Contacts that the answers of a write batch have together, about: 15 MB with emails of 100 characters. What is left
# of the batch makes up the next one.
MOST_ANSWERED = 131_072

# Of a batch that meets locks of other sessions, before a 503; up to a second each, and a request has five.
_TRIES = 4


class Large(NamedTuple):
    """Instead of an answer: the request touches large identities, and is to be answered apart from small ones."""

    roots: frozenset[int]


Outcome: TypeAlias = Answer | Large | Held | None  # None: the request changes something


class Identify:
    """Answers batches of requests from a database, as if they had come one after another.

    Parameters
    ----------
    database : where the contacts are.
    encode : what makes an answer of an identity; called once for each state of an identity in a batch.
    """

    def __init__(self, database: Database, encode: Callable[[Identity], Answer]) -> None:
        self._database = database
        self._encode = encode

    async def read(self, requests: Requests) -> list[Outcome]:
        """Answer the requests that would change nothing, unless they touch a large identity."""
        batch = requests()
        metrics.count_batch("read", len(batch))

        async def work(connection: Connection) -> Clusters:
            return Clusters(await sql.fetch_small_clusters(connection, batch))

        clusters = await self._database.snapshot("read", work)
        large = clusters.larger_than(sql.LARGE)
        if not large:
            return self._known(batch, clusters)
        return await self._without(large, batch, clusters)

    async def _without(self, large: set[int], batch: Sequence[Identifiers], clusters: Clusters) -> list[Outcome]:
        """Answer the requests that touch no large identity: of those not all contacts were fetched."""
        roots = await self._database.snapshot("read", lambda connection: sql.find_roots(connection, batch))
        touched = [each & large for each in roots]
        small = iter(self._known([request for request, its in zip(batch, touched, strict=True) if not its], clusters))
        return [Large(its) if its else next(small) for its in touched]

    async def read_large(self, requests: Requests) -> list[Outcome]:
        """Answer the requests that would change nothing, however large their identities are."""
        batch = requests()
        metrics.count_batch("read large", len(batch))

        async def work(connection: Connection) -> Clusters:
            return Clusters(await sql.fetch_clusters(connection, batch))

        return self._known(batch, await self._database.snapshot("read large", work))

    async def write(self, requests: Requests) -> Sequence[Outcome]:
        """Apply the requests, in order, in one transaction, and answer them.

        `requests` gives them, when the transaction has its place in the writer lane; called again (a
        transaction may run more than once), it must give the same. Those for which another session holds a row have
        `Held` as outcome. The outcomes may be fewer than the requests: the rest was left undone.
        """
        for _ in range(_TRIES):
            for choose in (contention.everything, contention.what_is_free):
                with suppress(RowsHeld):
                    return await self._applied(requests, choose)
            # Not rows: the whole table is locked (CREATE INDEX, ALTER TABLE), or what a trigger needs.
            with suppress(RowsHeld):
                await self._database.wait(sql.wait_for_table)
        raise RowsHeld

    async def _applied(self, requests: Requests, choose: contention.Choose) -> Sequence[Outcome]:
        async def work(connection: Connection) -> tuple[Plan, list[Held | None]]:
            plan, held = await choose(connection, requests(), MOST_ANSWERED)
            if plan.inserts or plan.relinks:
                await sql.change_contacts(connection, plan)
            return plan, held

        plan, held = await self._database.serializable("write", work)
        metrics.count_batch("write", len(plan.decisions))
        _count(plan)
        return contention.merged(self._answers(plan), held)

    def _known(self, batch: Sequence[Identifiers], clusters: Clusters) -> list[Outcome]:
        """The answer of each request that would change nothing, encoded once for each identity."""
        answers: dict[Cluster, Answer] = {}
        outcomes: list[Outcome] = []
        for request in batch:
            cluster = clusters.knowing(request)
            if cluster is None:
                outcomes.append(None)
                continue
            answer = answers.get(cluster)
            if answer is None:
                answer = answers[cluster] = self._encode(consolidate(cluster.primary, cluster.contacts))
            outcomes.append(answer)
        return outcomes

    def _answers(self, plan: Plan) -> list[Answer]:
        """The answer of each request that was decided, encoded once for each state of an identity."""
        identities = plan.identities()
        distinct = {id(identity): identity for identity in identities}
        encoded = {key: self._encode(identity) for key, identity in distinct.items()}
        return [encoded[id(identity)] for identity in identities]

    async def wait_for(self, row: int) -> None:
        """Return when no other session holds this row any more; raises RowsHeld after a second."""
        await self._database.wait(lambda connection: sql.wait_for_row(connection, row))


def _count(plan: Plan) -> None:
    reasons = Counter(decision.reason for decision in plan.decisions)
    metrics.count_contacts("primary", reasons[Reason.CREATED])
    metrics.count_contacts("secondary", reasons[Reason.EXTENDED])
    metrics.MERGES.inc(reasons[Reason.MERGED])
