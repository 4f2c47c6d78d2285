"""The rules: which requests belong to one person, and what has to be written because of it.

Pure: values in, values out. `clusters` and `requests` come in, a `Plan` goes out; no driver, no
clock, no HTTP. A plan for many requests equals the serial run of them, one after another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from recon.rules.clusters import Cluster, Clusters, Contact, Identity, Parts, consolidate, unite
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Kind


class Reason(StrEnum):
    """Why a request ended as it did, by the README's rules 1 to 4."""

    CREATED = "created"  # nothing was known: a new primary
    EXTENDED = "extended"  # one cluster was known and lacked something: a new secondary
    KNOWN = "known"  # one cluster was known and had it all: no row
    MERGED = "merged"  # two clusters turned out to be one person: no row


@dataclass(slots=True)
class Decision:
    """What became of one request: why, and its cluster as it was right after.

    The cluster's list of contacts only ever grows at its end, so its first `size` entries are the
    state that answers the request.
    """

    reason: Reason
    primary: Contact
    contacts: list[Contact]
    size: int


@dataclass(slots=True)
class Entry:
    """An event that a plan adds to the journal.

    Attributes
    ----------
    place : its place among the plan's contacts and events together, from 1. Ids are drawn in this order.
    kind, primary, email, phone_number, phone_key, source, detail : as in `journal.Event`.
    other : the primary that was absorbed, or the id of the one that was gone.
    """

    place: int
    kind: Kind
    primary: Contact
    other: Contact | int
    email: str | None = None
    phone_number: str | None = None
    phone_key: str | None = None
    source: str | None = None
    detail: dict[str, list[int]] | None = None


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
    events : what the journal is to say of the merges and repairs, in order.
    """

    decisions: list[Decision] = field(default_factory=list)
    inserts: list[tuple[Contact, Contact]] = field(default_factory=list)
    newest: Contact | None = None
    relinks: list[tuple[int, int]] = field(default_factory=list)
    events: list[Entry] = field(default_factory=list)

    def identities(self) -> list[Identity]:
        """The identity that answers each request, in order; requests that are answered by one state share it.

        Only once the plan has been applied do all contacts have ids.
        """
        states: dict[int, tuple[int, Parts, Identity]] = {}  # the latest of each list of contacts, by the list's id
        identities = []
        for decision in self.decisions:
            contacts, size = decision.contacts, decision.size
            known_size, parts, identity = states.get(id(contacts)) or (0, ({}, {}, []), None)
            if identity is None or known_size != size:
                identity = consolidate(decision.primary, contacts[known_size:size], parts)
                states[id(contacts)] = size, parts, identity
            identities.append(identity)
        return identities


def decide(requests: Sequence[Identifiers], clusters: Clusters, most: float = math.inf) -> Plan:
    """Decide the requests one after another, each seeing what those before it did.

    `clusters` must hold every cluster that a request touches; it is updated on the way. Once the answers have `most`
    contacts or more, the rest of the requests is left undecided.
    """
    plan = Plan(newest=clusters.newest, events=_repairs(clusters))
    ranks = count(1 + clusters.newest.rank if clusters.newest else 0)
    created: list[tuple[Contact, Cluster]] = []
    answered = 0
    for request in requests:
        if answered >= most:
            break
        by_email, by_phone = clusters.of(request)
        cluster = by_email or by_phone
        if cluster is None:
            reason = Reason.CREATED
            contact = _contact(next(ranks), request)
            cluster = Cluster(None, [contact])
            created.append((contact, cluster))
            clusters.learn(contact, cluster)
        elif by_email is not None and by_phone is not None and by_email is not by_phone:
            reason = Reason.MERGED
            cluster = unite(by_email, by_phone)
            absorbed = by_phone if cluster is by_email else by_email
            place = 1 + len(created) + len(plan.events)
            plan.events.append(Entry(place, Kind.MERGED, cluster.primary, absorbed.primary, *request))
        elif (request.email is None or by_email) and (request.phone_key is None or by_phone):
            reason = Reason.KNOWN
        else:
            reason = Reason.EXTENDED
            contact = _contact(next(ranks), request)
            created.append((contact, cluster))
            cluster.contacts.append(contact)
            clusters.learn(contact, cluster)
        size = len(cluster.contacts)
        answered += size
        plan.decisions.append(Decision(reason, cluster.primary, cluster.contacts, size))
    plan.inserts = [(contact, cluster.current().primary) for contact, cluster in created]
    for cluster in clusters.all:
        primary = cluster.current().primary.id
        # A cluster of the table never ends under a contact that is not in the table yet: that is younger.
        if cluster.root is not None and primary is not None and cluster.root != primary:
            plan.relinks.append((cluster.root, primary))
    return plan


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
    return repairs


def _contact(rank: int, request: Identifiers) -> Contact:
    return Contact(rank, None, None, request.email, request.phone, request.phone_key, request.source)
