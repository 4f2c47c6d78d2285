"""The rules: which requests belong to one person, and what has to be written because of it.

Pure: values in, values out. `clusters` and `requests` come in, a `Plan` goes out; no driver, no
clock, no HTTP. A plan for many requests equals the serial run of them, one after another.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import TypeAlias, TypeVar

from recon.identifiers import Identifiers
from recon.models import Contact, Identity

T = TypeVar("T")
# What contacts add up to: emails, phone numbers by their keys, and the ids of the contacts; the primary's own first.
Parts: TypeAlias = tuple[dict[str, None], dict[str, str | None], list[int | None]]


class Reason(StrEnum):
    """Why a request ended as it did, by the README's rules 1 to 4."""

    CREATED = "created"  # nothing was known: a new primary
    EXTENDED = "extended"  # one cluster was known and lacked something: a new secondary
    KNOWN = "known"  # one cluster was known and had it all: no row
    MERGED = "merged"  # two clusters turned out to be one person: no row


class Cluster:
    """The contacts of one person, oldest first.

    Attributes
    ----------
    root : the id that its rows are linked to in the table, which is the primary's unless the primary
        is gone (soft-deleted); None for a cluster that the table does not hold yet.
    primary : its primary; without a live one, its oldest contact, which is to become it.
    absorbed_by : the cluster that it became part of.
    settled : whether the table already says what this cluster says.
    """

    __slots__ = ("absorbed_by", "contacts", "primary", "root", "settled")

    def __init__(self, root: int | None, contacts: list[Contact]) -> None:
        self.root = root
        self.contacts = contacts
        self.primary = contacts[0]
        if self.primary.linked_id is not None:
            self.primary = next((contact for contact in contacts if contact.linked_id is None), contacts[0])
        self.absorbed_by: Cluster | None = None
        self.settled = self.primary.id == root

    def current(self) -> "Cluster":
        """The cluster that this one is part of by now: itself, unless it was absorbed."""
        cluster = self
        while cluster.absorbed_by is not None:
            cluster = cluster.absorbed_by
        return cluster


class Clusters:
    """Clusters by what they are known by.

    Takes contacts oldest first, whole clusters only. Clusters that share an identifier are one
    person (I3) and are united at once: tables filled by other hands do hold such, and the next write
    that meets them mends them.
    """

    def __init__(self, contacts: Sequence[Contact] = ()) -> None:
        by_root: dict[int | None, list[Contact]] = {}
        for contact in contacts:
            root = contact.id if contact.linked_id is None else contact.linked_id
            members = by_root.get(root)
            if members is None:
                by_root[root] = [contact]
            else:
                members.append(contact)
        self.newest = contacts[-1] if contacts else None
        self._size = len(contacts)
        self.all = [Cluster(root, members) for root, members in by_root.items()]
        self._by_email: dict[str, Cluster] = {}
        self._by_phone: dict[str, Cluster] = {}
        for cluster in self.all:
            for contact in cluster.contacts:
                self.learn(contact, cluster)

    def learn(self, contact: Contact, cluster: Cluster) -> None:
        """Find `cluster` by the contact's identifiers from now on."""
        if contact.email is not None:
            known = self._by_email.setdefault(contact.email, cluster)
            if known is not cluster:
                unite(known, cluster)
        if contact.phone_key is not None:
            known = self._by_phone.setdefault(contact.phone_key, cluster)
            if known is not cluster:
                unite(known, cluster)

    def of(self, request: Identifiers) -> tuple[Cluster | None, Cluster | None]:
        """The cluster that holds the request's email, and the one that holds its phone."""
        by_email = None if request.email is None else self._by_email.get(request.email)
        by_phone = None if request.phone_key is None else self._by_phone.get(request.phone_key)
        return (by_email and by_email.current(), by_phone and by_phone.current())

    def knowing(self, request: Identifiers) -> Cluster | None:
        """The one cluster that already holds all that the request says and needs no mending, if any."""
        by_email, by_phone = self.of(request)
        if request.email is None:
            cluster = by_phone
        elif request.phone_key is None or by_email is by_phone:
            cluster = by_email
        else:
            return None
        return cluster if cluster is not None and cluster.settled else None

    def larger_than(self, size: int) -> set[int]:
        """The roots of the clusters that have more contacts than this."""
        if self._size <= size:  # nearly always: then there is nothing to look through
            return set()
        large = [cluster.root for cluster in self.all if len(cluster.current().contacts) > size]
        return {root for root in large if root is not None}


def unite(one: Cluster, other: Cluster) -> Cluster:
    """Make two clusters one: that of the older primary, which is returned (rule 4)."""
    one, other = one.current(), other.current()
    if one is other:
        return one
    winner, loser = (one, other) if one.primary.rank < other.primary.rank else (other, one)
    # A new list, so that answers that were decided before the merge stay as they were.
    winner.contacts = sorted(winner.contacts + loser.contacts, key=lambda contact: contact.rank)
    winner.settled = False
    loser.absorbed_by = winner
    return winner


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
    """

    decisions: list[Decision] = field(default_factory=list)
    inserts: list[tuple[Contact, Contact]] = field(default_factory=list)
    newest: Contact | None = None
    relinks: list[tuple[int, int]] = field(default_factory=list)

    def answers(self, encode: Callable[[Identity], T]) -> list[T]:
        """What `encode` makes of the identity that answers each request, in order; called once for each state.

        Only once the plan has been applied do all contacts have ids.
        """
        states: dict[int, tuple[int, Parts, T]] = {}  # the latest of each list of contacts, by the list's id
        answers = []
        for decision in self.decisions:
            contacts, size = decision.contacts, decision.size
            state = states.get(id(contacts))
            if state is None or state[0] != size:
                before, parts, _ = state or (0, ({}, {}, []), None)
                answer = encode(consolidate(decision.primary, contacts[before:size], parts))
                state = states[id(contacts)] = size, parts, answer
            answers.append(state[2])
        return answers


def decide(requests: Sequence[Identifiers], clusters: Clusters, most: float = math.inf) -> Plan:
    """Decide the requests one after another, each seeing what those before it did.

    `clusters` must hold every cluster that a request touches; it is updated on the way. Once the answers have `most`
    contacts or more, the rest of the requests is left undecided.
    """
    plan = Plan(newest=clusters.newest)
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


def consolidate(primary: Contact, contacts: Iterable[Contact], parts: Parts | None = None) -> Identity:
    """The identity that contacts, oldest first, add up to; an identifier shows as it was first seen.

    `parts` is what earlier contacts of the same identity added up to: empty at first, and extended here, so that each
    state of a growing identity costs only its new contacts.
    """
    emails, phones, ids = ({}, {}, []) if parts is None else parts
    if not ids:
        if primary.email is not None:
            emails[primary.email] = None
        if primary.phone_key is not None:
            phones[primary.phone_key] = primary.phone_number
        ids.append(primary.id)
    for contact in contacts:
        if contact is primary:
            continue
        if contact.email is not None:
            emails.setdefault(contact.email)
        if contact.phone_key is not None:
            phones.setdefault(contact.phone_key, contact.phone_number)
        ids.append(contact.id)
    primary_id, *secondary_ids = _assigned(ids)
    return {
        "primaryContactId": primary_id,
        "primaryContatctId": primary_id,
        "emails": list(emails),
        "phoneNumbers": list(phones.values()),  # type: ignore[arg-type] # a key has its number
        "secondaryContactIds": secondary_ids,
    }


def _contact(rank: int, said: Identifiers) -> Contact:
    return Contact(rank, None, None, said.email, said.phone, said.phone_key)


def _assigned(ids: list[int | None]) -> list[int]:
    if None in ids:
        raise ValueError("a contact has no id before it has been inserted")
    return ids  # type: ignore[return-value]
