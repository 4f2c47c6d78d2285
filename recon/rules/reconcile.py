"""The rules: which requests belong to one person, and what has to be written because of it.

Pure: values in, values out. `clusters` and `requests` come in, a `Plan` goes out; no driver, no
clock, no HTTP. A plan for many requests equals the serial run of them, one after another.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, NamedTuple, TypeAlias

from recon.rules import guards
from recon.rules.clusters import Cluster, Clusters, Contact, Identity, Loss, Parts, consolidate, unite
from recon.rules.guards import Cause, opposed
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Kind

Pair: TypeAlias = tuple[str | None, str | None]  # an email and a phone number's match key, whose link is withheld


class Reason(StrEnum):
    """Why a request ended as it did, by the README's rules 1 to 4."""

    CREATED = "created"  # nothing was known: a new primary
    EXTENDED = "extended"  # one cluster was known and lacked something: a new secondary
    KNOWN = "known"  # one cluster was known and had it all: no row
    MERGED = "merged"  # two clusters turned out to be one person: no row
    REFUSED = "refused"  # all that the request has are values that identify nobody: no row, and no identity


class Withheld(NamedTuple):
    """An identifier of a request that was not linked.

    Attributes
    ----------
    kind : which of the two.
    cause : why.
    holder : the primary of the identity that holds the identifier; None if none does, or the value is blocked.
    """

    kind: guards.Kind
    cause: Cause
    holder: Contact | None


# What the guards leave of a request, which may be nothing; the clusters that hold its email and its phone number; and
# what is withheld. A plain tuple, as every request that changes something has one, twice.
Verdict: TypeAlias = tuple[Identifiers, Cluster | None, Cluster | None, tuple[Withheld, ...]]


@dataclass(slots=True)
class Decision:
    """What became of one request: why, and its cluster as it was right after.

    The cluster's list of contacts only ever grows at its end, so its first `size` entries are the
    state that answers the request. A refused request has no cluster.
    """

    reason: Reason
    primary: Contact | None
    contacts: list[Contact]
    size: int
    withheld: tuple[Withheld, ...] = ()


@dataclass(slots=True)
class Entry:
    """An event that a plan adds to the journal.

    Attributes
    ----------
    place : its place among the plan's contacts and events together, from 1. Ids are drawn in this order.
    kind, primary, email, phone_number, phone_key, source, detail : as in `journal.Event`.
    other : the primary that was absorbed, or that holds what was withheld, or the id of the one that was gone.
    """

    place: int
    kind: Kind
    primary: Contact
    other: Contact | int | None
    email: str | None = None
    phone_number: str | None = None
    phone_key: str | None = None
    source: str | None = None
    detail: dict[str, Any] | None = None


@dataclass(slots=True)
class Plan:
    """What a batch of requests comes to.

    Attributes
    ----------
    decisions : one for each request, in order; fewer when the answers would be too much for one batch.
    inserts : the new contacts, oldest first, each with the contact that is to be its primary: itself
        for a new primary.
    newest : the newest contact that was there before; the new ones must not be dated earlier, even
        when the database's clock has been set back (or its standby's, in a failover, is behind).
    relinks : (root, primary): all rows of the cluster at `root` are to point at `primary`.
    events : what the journal is to say of the merges, repairs and withheld links, in order.
    losses : which values contacts of the table lose.
    region : the default region of the snapshot that it was decided on.
    """

    decisions: list[Decision] = field(default_factory=list)
    inserts: list[tuple[Contact, Contact]] = field(default_factory=list)
    newest: Contact | None = None
    relinks: list[tuple[int, int]] = field(default_factory=list)
    events: list[Entry] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    region: str | None = None

    def changes_anything(self) -> bool:
        """Tell whether anything is to be written."""
        return bool(self.inserts or self.relinks or self.events)

    def pairs(self) -> list[Pair]:
        """The links that the requests' withheld events are about."""
        return [(event.email, event.phone_key) for event in self.events if _is_about_request(event)]

    def drop_recorded(self, recorded: Collection[Pair]) -> None:
        """Drop the events of these withheld links: they are on the review list already."""
        kept: list[Entry] = []
        for dropped, event in enumerate(self.events):
            if not (_is_about_request(event) and (event.email, event.phone_key) in recorded):
                event.place -= dropped - len(kept)
                kept.append(event)
        self.events = kept

    def identities(self) -> list[Identity | None]:
        """The identity that answers each request, in order; requests that are answered by one state share it.

        None for a refused request.

        Only once the plan has been applied do all contacts have ids.
        """
        states: dict[int, tuple[int, Parts, Identity]] = {}  # the latest of each list of contacts, by the list's id
        identities: list[Identity | None] = []
        for decision in self.decisions:
            if decision.primary is None:
                identities.append(None)
                continue
            contacts, size = decision.contacts, decision.size
            known_size, parts, identity = states.get(id(contacts)) or (0, ({}, {}, []), None)
            if identity is None or known_size != size:
                identity = consolidate(decision.primary, contacts[known_size:size], parts)
                states[id(contacts)] = size, parts, identity
            identities.append(identity)
        return identities


def judge(request: Identifiers, clusters: Clusters) -> Verdict:
    """What the guards leave of a request: blocked values are not linked, nor a phone number that may not be."""
    withheld: tuple[Withheld, ...] = ()
    if clusters.guards.blocked and clusters.guards.blocks(request):
        request, withheld = _without_blocked(request, clusters.guards)
    by_email, by_phone = clusters.of(request)
    if by_email is not by_phone and request.email is not None and request.phone_key is not None:
        cause = _forbids(clusters.guards, by_email, by_phone)
        if cause is not None:
            withheld += (Withheld("phoneNumber", cause, by_phone.primary if by_phone else None),)
            request, by_phone = Identifiers(request.email, None, None, request.source), None
    return request, by_email, by_phone, withheld


def partly_known(request: Identifiers, clusters: Clusters) -> tuple[Cluster | None, tuple[Withheld, ...]]:
    """The cluster that has all that the guards leave of a request, and what they withhold.

    No cluster: the request changes something or, if anything is withheld, nothing is left of it.
    """
    left, by_email, by_phone, withheld = judge(request, clusters)
    if not withheld:
        return None, ()
    if left.email is None and left.phone_key is None:
        return None, withheld
    cluster = by_phone if left.email is None else by_email
    if cluster is None or not cluster.settled or (left.phone_key is not None and by_phone is not cluster):
        return None, ()
    return cluster, withheld


class Deciding:
    """Decides requests one after another, each seeing what those before it did.

    Parameters
    ----------
    clusters : updated on the way. They must hold every cluster that a request touches when its turn comes.
    first_rank : the rank of the first new contact; right behind that of the newest contact unless given.
    ordered : whether the contacts of a cluster are to stay in order when clusters are united, as answers need it.

    Attributes
    ----------
    plan : what the requests come to; complete after `finish`.
    """

    def __init__(self, clusters: Clusters, first_rank: int | None = None, *, ordered: bool = True) -> None:
        self.clusters = clusters
        self._ordered = ordered
        self.plan = Plan(events=_repairs(clusters), losses=clusters.losses)
        if first_rank is None:
            first_rank = 1 + clusters.newest.rank if clusters.newest else 0
        self._ranks = count(first_rank)
        self._created: list[tuple[Contact, Cluster]] = []
        self._reviewed: set[Pair] = set()

    def add(self, requests: Sequence[Identifiers], most: float = math.inf) -> None:
        """Decide more requests. Once the answers have `most` contacts or more, the rest is left undecided."""
        clusters, plan, ranks, created = self.clusters, self.plan, self._ranks, self._created
        answered = 0
        for given in requests:
            if answered >= most:
                break
            request, by_email, by_phone, withheld = judge(given, clusters)
            if request.email is None and request.phone_key is None:
                plan.decisions.append(Decision(Reason.REFUSED, None, [], 0, withheld))
                continue
            cluster = by_email or by_phone
            if cluster is None:
                reason = Reason.CREATED
                contact = _contact(next(ranks), request)
                cluster = Cluster(None, [contact])
                created.append((contact, cluster))
                clusters.learn(contact, cluster)
            elif by_email is not None and by_phone is not None and by_email is not by_phone:
                reason = Reason.MERGED
                cluster = unite(by_email, by_phone, self._ordered)
                absorbed = by_phone if cluster is by_email else by_email
                place = 1 + len(created) + len(plan.events)
                plan.events.append(Entry(place, Kind.MERGED, cluster.primary, absorbed.primary, *request))
            elif by_email is by_phone or request.email is None or request.phone_key is None:
                reason = Reason.KNOWN
            else:
                reason = Reason.EXTENDED
                contact = _contact(next(ranks), request)
                if cluster.marks:
                    contact.apart = _apart(cluster, request)
                created.append((contact, cluster))
                cluster.contacts.append(contact)
                clusters.learn(contact, cluster)
            size = len(cluster.contacts)
            answered += size
            plan.decisions.append(Decision(reason, cluster.primary, cluster.contacts, size, withheld))
            if withheld and (given.email, given.phone_key) not in self._reviewed:
                self._reviewed.add((given.email, given.phone_key))
                plan.events += _reviews(1 + len(created) + len(plan.events), cluster, given, withheld)

    def forget(self) -> Plan:
        """Return the decisions and events so far, and forget them: only `clusters` has what they come to.

        For a dry run of any length. `finish` gives no plan that can be written then.
        """
        plan, self.plan = self.plan, Plan()
        self._created.clear()
        self._reviewed.clear()
        return plan

    def finish(self) -> Plan:
        """Return what all the requests come to."""
        self.plan.newest = self.clusters.newest
        self.plan.region = self.clusters.guards.region
        self.plan.inserts = [(contact, cluster.current().primary) for contact, cluster in self._created]
        self.plan.relinks = _relinks(self.clusters)
        return self.plan


def decide(requests: Sequence[Identifiers], clusters: Clusters, most: float = math.inf) -> Plan:
    """Decide the requests one after another, each seeing what those before it did.

    `clusters` must hold every cluster that a request touches; it is updated on the way. Once the answers have `most`
    contacts or more, the rest of the requests is left undecided.
    """
    deciding = Deciding(clusters)
    deciding.add(requests, most)
    return deciding.finish()


def _relinks(clusters: Clusters) -> list[tuple[int, int]]:
    relinks = []
    for cluster in clusters.all:
        primary = cluster.current().primary.id
        # A cluster of the table never ends under a contact that is not in the table yet: that is younger.
        if cluster.root is not None and primary is not None and cluster.root != primary:
            relinks.append((cluster.root, primary))
    return relinks


def _without_blocked(request: Identifiers, its: guards.Guards) -> tuple[Identifiers, tuple[Withheld, ...]]:
    """The request without its blocked values, and these."""
    email, phone, phone_key, source = request
    withheld: list[Withheld] = []
    if email is not None and its.blocks_value("email", email):
        withheld.append(Withheld("email", Cause.BLOCKED, None))
        email = None
    if phone_key is not None and its.blocks_value("phoneNumber", phone_key):
        withheld.append(Withheld("phoneNumber", Cause.BLOCKED, None))
        phone = phone_key = None
    return Identifiers(email, phone, phone_key, source), tuple(withheld)


def _forbids(its: guards.Guards, by_email: Cluster | None, by_phone: Cluster | None) -> Cause | None:
    """Why the clusters that hold an email and a phone number, or the one that holds either, may not get the other."""
    if by_email is not None and by_phone is not None:
        if by_email.marks and opposed(by_email.marks, by_phone.marks):
            return Cause.KEPT_APART
        exceeds = _merge_exceeds(its.max_emails, "email", by_email, by_phone) or _merge_exceeds(
            its.max_phones, "phoneNumber", by_email, by_phone
        )
    elif by_email is not None:
        exceeds = _exceeds(its.max_phones, "phoneNumber", by_email)
    else:
        exceeds = by_phone is not None and _exceeds(its.max_emails, "email", by_phone)
    return Cause.LIMIT if exceeds else None


def _exceeds(most: int, kind: guards.Kind, cluster: Cluster) -> bool:
    """Tell whether one more identifier would be more than the limit."""
    # A cluster has at most one of each kind for each contact, so that nearly none is counted.
    return 0 < most <= len(cluster.contacts) and most <= len(cluster.values(kind))


def _merge_exceeds(most: int, kind: guards.Kind, one: Cluster, other: Cluster) -> bool:
    """Tell whether the larger of two clusters would grow beyond the limit by what only the other one has."""
    if not 0 < most < len(one.contacts) + len(other.contacts):  # nearly always
        return False
    some, others = one.values(kind), other.values(kind)
    return len(some) + len(others) - len(some & others) > max(most, len(some), len(others))


def _apart(cluster: Cluster, request: Identifiers) -> Sequence[Sequence[int]] | None:
    """The marks of the oldest contact that holds the identifier by which the request matched."""
    email, _, phone_key, _ = request
    return next(
        contact.apart
        for contact in cluster.contacts
        if (email is not None and contact.email == email) or (phone_key is not None and contact.phone_key == phone_key)
    )


def _reviews(place: int, cluster: Cluster, given: Identifiers, withheld: Sequence[Withheld]) -> Iterator[Entry]:
    """The event of a link that the guards withheld from a request. Blocked values are not reviewed."""
    for each in withheld:
        if each.cause is not Cause.BLOCKED:
            yield Entry(place, Kind.WITHHELD, cluster.primary, each.holder, *given, detail={"reason": each.cause})


def _is_about_request(event: Entry) -> bool:
    return event.kind is Kind.WITHHELD and event.email is not None and event.phone_key is not None


def _repairs(clusters: Clusters) -> list[Entry]:
    """What is repaired of rows written by other programs, before the first request is decided."""
    for cluster in clusters.all:
        if not cluster.settled:
            break
    else:  # nearly always
        return []
    repairs = [
        Entry(place, Kind.MENDED, *mend[:-1], detail={"contacts": mend.absorbed})
        for place, mend in enumerate(clusters.mends, start=1)
    ]
    for cluster in clusters.all:
        if cluster.absorbed_by is None and cluster.root is not None and cluster.root != cluster.primary.id:
            repairs.append(Entry(1 + len(repairs), Kind.MENDED, cluster.primary, cluster.root))
    repairs += [_lost(place, loss) for place, loss in enumerate(clusters.losses, start=1 + len(repairs))]
    return repairs


def _lost(place: int, loss: Loss) -> Entry:
    """The event of contacts that lost a value."""
    moved = [
        [contact.id, loss.kind, None, phone_number]
        for contact, phone_number in zip(loss.losers, loss.phone_numbers, strict=True)
        if contact.id not in loss.kept
    ]
    phone_number = loss.phone_numbers[0]
    return Entry(
        place,
        Kind.WITHHELD,
        loss.cluster.current().primary,
        loss.holder.current().primary if loss.holder else None,
        email=loss.key if loss.kind == "email" else None,
        phone_number=phone_number,
        phone_key=loss.key if loss.kind == "phoneNumber" else None,
        detail={"reason": loss.cause, "moved": moved, "deleted": loss.kept},
    )


def _contact(rank: int, request: Identifiers) -> Contact:
    return Contact(rank, None, None, request.email, request.phone, request.phone_key, source=request.source)
