"""The story of a batch, top to bottom: read what is known, write the rest, answer each."""

from collections import Counter
from collections.abc import Callable, Sequence

from pydantic_core import to_json

from recon import metrics, store
from recon.database import Connection, Database
from recon.identifiers import Identifiers
from recon.models import IdentifyResponse
from recon.reconcile import Cluster, Clusters, Plan, Reason, consolidate, decide

Answer = bytes  # an IdentifyResponse as JSON, encoded once for all requests that share it


class Identify:
    """Answers batches of requests from a database, as if they had come one after another."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def read(self, batch: Sequence[Identifiers]) -> list[Answer | None]:
        """Answer the requests that would change nothing; None stands for the others."""
        metrics.count_batch("read", len(batch))

        async def work(connection: Connection) -> Clusters:
            return Clusters(await store.fetch_clusters(connection, batch))

        clusters = await self._database.snapshot("read", work)
        answers: dict[Cluster, Answer] = {}
        return [_answer_once(clusters.knowing(request), answers) for request in batch]

    async def write(self, take: Callable[[], Sequence[Identifiers]]) -> list[Answer]:
        """File the requests, in order, in one transaction, and answer them.

        `take` gives them, when the transaction has its place in the writer lane; asked again (a
        transaction may run more than once), it must give the same.
        """

        async def work(connection: Connection) -> Plan:
            batch = take()
            plan = decide(batch, Clusters(await store.lock_clusters(connection, batch)))
            if plan.inserts or plan.relinks:
                await store.change_contacts(connection, plan.inserts, plan.newest, plan.relinks)
            return plan

        plan = await self._database.serializable("write", work)
        metrics.count_batch("write", len(plan.decisions))
        _count(plan)
        return [to_json(IdentifyResponse(contact=decision.identity())) for decision in plan.decisions]


def _answer_once(cluster: Cluster | None, answers: dict[Cluster, Answer]) -> Answer | None:
    if cluster is None:
        return None
    answer = answers.get(cluster)
    if answer is None:
        answer = answers[cluster] = to_json(IdentifyResponse(contact=consolidate(cluster.primary, cluster.contacts)))
    return answer


def _count(plan: Plan) -> None:
    reasons = Counter(decision.reason for decision in plan.decisions)
    metrics.count_contacts("primary", reasons[Reason.CREATED])
    metrics.count_contacts("secondary", reasons[Reason.EXTENDED])
    metrics.MERGES.inc(reasons[Reason.MERGED])
