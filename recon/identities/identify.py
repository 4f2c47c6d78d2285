"""The work of a batch: the read pass answers requests that change nothing, the write pass applies the others."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, TypeAlias

from recon import metrics
from recon.database.transactions import Connection, Database
from recon.errors import RowsHeld
from recon.identities import contention
from recon.identities.contention import Held
from recon.rules.clusters import Cluster, Clusters, Identity, consolidate
from recon.rules.guards import Cause, Digest, Kind
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Pair, Plan, Reason, Withheld, partly_known
from recon.sql import contacts as sql
from recon.sql import guards

Requests: TypeAlias = Callable[[], Sequence[Identifiers]]  # dequeues a batch; called again, gives the same

# Contacts that the answers of a write batch have together, about: 15 MB with emails of 100 characters. What is left
# of the batch makes up the next one.
MOST_ANSWERED = 131_072

# Of a batch that meets locks of other sessions, before a 503; up to a second each, and a request has five.
_TRIES = 4


class Unlinked(NamedTuple):
    """An identifier that the guards kept a request from linking.

    Attributes
    ----------
    kind : which of the request's two.
    cause : why.
    primary_id : the primary of the identity that holds the identifier; None if none does, or the value is blocked.
    """

    kind: Kind
    cause: Cause
    primary_id: int | None


class Partial(NamedTuple):
    """The answer to a request of which something was withheld."""

    identity: bytes
    withheld: tuple[Unlinked, ...]


# An encoded identity, shared by all requests of a batch that it answers.
Answer: TypeAlias = bytes | Partial


class Refused(NamedTuple):
    """Instead of an answer: all that the request has are values that identify nobody."""


_REFUSED = Refused()


class Large(NamedTuple):
    """Instead of an answer: the request touches large identities, and is to be answered apart from small ones."""

    roots: frozenset[int]


class Applied(NamedTuple):
    """The outcome of a request that has its place in an order, and why it ended so."""

    outcome: Answer | Refused
    reason: Reason


_Fetch: TypeAlias = Callable[[Connection, Sequence[Identifiers], Digest | None], Awaitable[Clusters]]
Outcome: TypeAlias = Answer | Refused | Large | Held | None  # None: the request changes something


class Identify:
    """Answers batches of requests from a database, as if they had come one after another.

    Parameters
    ----------
    database : where the contacts are.
    encode : what makes an answer of an identity; called once for each state of an identity in a batch.
    digest : what makes the digests of suppressed identifiers; None: none is looked up.

    Attributes
    ----------
    passes : how many passes of single requests there were. While it grows, there are such requests.
    in_progress : how many of them are in progress.
    """

    def __init__(self, database: Database, encode: Callable[[Identity], bytes], digest: Digest | None = None) -> None:
        self._database = database
        self._encode = encode
        self._digest = digest
        self.passes = self.in_progress = 0

    async def read(self, requests: Requests) -> list[Outcome]:
        """Answer the requests that would change nothing, unless they touch a large identity."""
        with self._counted():
            return await self._read(requests)

    async def _read(self, requests: Requests) -> list[Outcome]:
        batch = requests()
        metrics.count_batch("read", len(batch))

        clusters = await self._fetched("read", sql.fetch_small_clusters, batch)
        large = clusters.larger_than(sql.LARGE)
        if not large:
            return await self._known(batch, clusters)
        return await self._without(large, batch, clusters)

    async def _fetched(self, step: str, fetch: _Fetch, batch: Sequence[Identifiers]) -> Clusters:
        """The clusters of one snapshot, in which the match keys are those of this process's region."""
        clusters = await self._database.snapshot(step, lambda connection: fetch(connection, batch, self._digest))
        self._database.require_region(clusters.guards.region)
        return clusters

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count a pass of single requests."""
        self.passes += 1
        self.in_progress += 1
        try:
            yield
        finally:
            self.in_progress -= 1

    async def _without(self, large: set[int], batch: Sequence[Identifiers], clusters: Clusters) -> list[Outcome]:
        """Answer the requests that touch no large identity: of those not all contacts were fetched."""
        roots = await self._database.snapshot("read", lambda connection: sql.find_roots(connection, batch))
        touched = [each & large for each in roots]
        small = [request for request, its in zip(batch, touched, strict=True) if not its]
        outcomes = iter(await self._known(small, clusters))
        return [Large(its) if its else next(outcomes) for its in touched]

    async def read_large(self, requests: Requests) -> list[Outcome]:
        """Answer the requests that would change nothing, however large their identities are."""
        batch = requests()
        metrics.count_batch("read large", len(batch))

        clusters = await self._fetched("read large", sql.fetch_clusters, batch)
        return await self._known(batch, clusters)

    async def read_in_order(self, requests: Requests) -> tuple[list[Applied], int]:
        """Answer the first requests, up to one that would change something.

        Also returns how many requests one write pass can apply: those before the first one that touches a large
        identity or, if the first request does, those that touch the same one.
        """
        batch = requests()
        metrics.count_batch("read chunk", len(batch))

        clusters = await self._fetched("read chunk", sql.fetch_small_clusters, batch)
        large = clusters.larger_than(sql.LARGE)
        if large:
            batch, clusters = await self._alike(large, batch, clusters)
        known = [_unchanged(outcome) for outcome in await self._known(batch, clusters, in_order=True)]
        return known, len(batch)

    async def _alike(
        self, large: set[int], batch: Sequence[Identifiers], clusters: Clusters
    ) -> tuple[Sequence[Identifiers], Clusters]:
        """The first requests that touch no large identity, or the same as the first request, with their clusters."""
        roots = await self._database.snapshot("read chunk", lambda connection: sql.find_roots(connection, batch))
        touched = [each & large for each in roots]
        size = next((place for place, its in enumerate(touched) if its != touched[0]), len(batch))
        first = batch[:size]
        if touched[0]:
            clusters = await self._fetched("read chunk", sql.fetch_clusters, first)
        return first, clusters

    async def write(self, requests: Requests) -> Sequence[Outcome]:
        """Apply the requests, in order, in one transaction, and answer them.

        `requests` gives them, when the transaction has its place in the writer lane; called again (a
        transaction may run more than once), it must give the same. Those for which another session holds a row have
        `Held` as outcome. The outcomes may be fewer than the requests: the rest was left undone.
        """
        with self._counted():
            plan, held = await self._applied_to_free(requests, contention.what_is_free)
        metrics.count_batch("write", len(plan.decisions))
        return contention.merged(self._outcomes(plan), held)

    async def write_in_order(self, requests: Requests) -> list[Applied] | Held:
        """Apply the first requests, in order, in one transaction, up to one that needs a row another session holds.

        `Held`: that is the first one. Else `write` says what holds here.
        """
        plan, held = await self._applied_to_free(requests, contention.what_comes_first)
        metrics.count_batch("write chunk", len(plan.decisions))
        if held and held[0] is not None:
            return held[0]
        reasons = [decision.reason for decision in plan.decisions]
        return list(map(Applied, self._outcomes(plan), reasons))  # type: ignore[arg-type] # each was decided

    async def _applied_to_free(
        self, requests: Requests, what_is_free: contention.Choose
    ) -> tuple[Plan, list[Held | None]]:
        """Apply the requests or, if another session holds rows that they need, those that `what_is_free` chooses."""
        for _ in range(_TRIES):
            for choose in (contention.everything, what_is_free):
                with suppress(RowsHeld):
                    return await self._applied(requests, choose)
            # Not rows: the whole table is locked (CREATE INDEX, ALTER TABLE), or what a trigger needs.
            with suppress(RowsHeld):
                await self._database.wait(sql.wait_for_table)
        raise RowsHeld

    async def _applied(self, requests: Requests, choose: contention.Choose) -> tuple[Plan, list[Held | None]]:
        async def work(connection: Connection) -> tuple[Plan, list[Held | None]]:
            plan, held = await choose(connection, requests(), MOST_ANSWERED, self._digest)
            self._database.require_region(plan.region)
            if plan.changes_anything():
                await sql.change_contacts(connection, plan)
            return plan, held

        plan, held = await self._database.serializable("write", work)
        _count(plan)
        return plan, held

    async def _known(
        self, batch: Sequence[Identifiers], clusters: Clusters, *, in_order: bool = False
    ) -> list[Outcome]:
        """The answer of each request that would change nothing, encoded once for each identity.

        `in_order`: only of those before the first one that would change something.
        """
        encoded: dict[Cluster, bytes] = {}
        outcomes: list[Outcome] = []
        partly: dict[int, tuple[Withheld, ...]] = {}  # by the place of the request
        for request in batch:
            cluster = clusters.knowing(request)
            if cluster is None:
                cluster, withheld = partly_known(request, clusters)
                if withheld:
                    partly[len(outcomes)] = withheld
                elif in_order:
                    break
                if cluster is None:
                    outcomes.append(_REFUSED if withheld else None)
                    continue
            identity = encoded.get(cluster)
            if identity is None:
                identity = encoded[cluster] = self._encode(consolidate(cluster.primary, cluster.contacts))
            outcomes.append(identity)
        if not partly:  # nearly always
            return outcomes
        return await self._withheld(batch, outcomes, partly, in_order=in_order)

    async def _withheld(
        self,
        batch: Sequence[Identifiers],
        outcomes: list[Outcome],
        partly: dict[int, tuple[Withheld, ...]],
        *,
        in_order: bool,
    ) -> list[Outcome]:
        """The outcomes with what is withheld, and without those that the review list does not have yet."""
        unrecorded: dict[int, Pair] = {}
        for place, withheld in partly.items():
            outcome = outcomes[place]
            if isinstance(outcome, bytes):
                outcomes[place] = _answer(outcome, withheld)
            if any(each.cause is not Cause.BLOCKED for each in withheld):
                unrecorded[place] = batch[place].email, batch[place].phone_key
        if unrecorded:
            await self._leave_unrecorded(outcomes, unrecorded)
            if in_order:
                outcomes = outcomes[: outcomes.index(None) if None in outcomes else None]
        _count_withheld(outcomes)
        return outcomes

    async def _leave_unrecorded(self, outcomes: list[Outcome], unrecorded: dict[int, Pair]) -> None:
        """Leave requests whose withheld link is not on the review list yet to the write pass."""
        pairs = [*unrecorded.values()]
        recorded = await self._database.snapshot("read", lambda connection: guards.recorded(connection, pairs))
        for place, pair in unrecorded.items():
            if pair not in recorded:
                outcomes[place] = None

    def _outcomes(self, plan: Plan) -> list[Outcome]:
        """The outcome of each request that was decided, encoded once for each state of an identity."""
        identities = plan.identities()
        distinct = {id(identity): identity for identity in identities if identity is not None}
        encoded = {key: self._encode(identity) for key, identity in distinct.items()}
        outcomes: list[Outcome] = [encoded.get(id(identity), _REFUSED) for identity in identities]
        partly = [place for place, decision in enumerate(plan.decisions) if decision.withheld]
        for place in partly:
            outcome = outcomes[place]
            if isinstance(outcome, bytes):
                outcomes[place] = _answer(outcome, plan.decisions[place].withheld)
        if partly:
            _count_withheld(outcomes)
        return outcomes

    async def wait_for(self, row: int) -> None:
        """Return when no other session holds this row any more; raises RowsHeld after a second."""
        await self._database.wait(lambda connection: sql.wait_for_row(connection, row))


def _unchanged(outcome: Outcome) -> Applied:
    """The outcome of a request that changes nothing."""
    return Applied(outcome, Reason.REFUSED if isinstance(outcome, Refused) else Reason.KNOWN)  # type: ignore[arg-type] # it is no other


def _answer(identity: bytes, withheld: Sequence[Withheld]) -> Partial:
    return Partial(
        identity,
        tuple(Unlinked(kind, cause, None if holder is None else holder.id) for kind, cause, holder in withheld),
    )


def _count_withheld(outcomes: Sequence[Outcome]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, Partial):
            for each in outcome.withheld:
                metrics.count_withheld(each.cause)
        elif isinstance(outcome, Refused):
            metrics.count_withheld(Cause.BLOCKED)


def _count(plan: Plan) -> None:
    reasons = Counter(decision.reason for decision in plan.decisions)
    metrics.count_contacts("primary", reasons[Reason.CREATED])
    metrics.count_contacts("secondary", reasons[Reason.EXTENDED])
    metrics.MERGES.inc(reasons[Reason.MERGED])
