"""Contacts, the clusters that they make up, and the identity that a cluster adds up to.

Values without I/O: no driver, no clock, no wire format.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from recon.rules.identifiers import Identifiers

# What contacts add up to: emails, phone numbers by their keys, and the ids of the contacts; the primary's own first.
Parts: TypeAlias = tuple[dict[str, None], dict[str, str | None], list[int | None]]

_BY_RANK = attrgetter("rank")


@dataclass(slots=True)
class Contact:
    """A row of the table, as far as matching needs it.

    `rank` is its place, oldest first, in `(created_at, id)` order among the rows that were fetched
    together, so that nothing above the database ever compares clocks.
    """

    rank: int
    id: int | None  # None until the row has been inserted
    linked_id: int | None
    email: str | None
    phone_number: str | None
    phone_key: str | None
    source: str | None = None  # of a new contact; matching needs no other's


class Mend(NamedTuple):
    """Two clusters of the table shared an identifier, and were united: `other` was the primary that was absorbed."""

    primary: Contact
    other: Contact
    email: str | None
    phone_number: str | None
    phone_key: str | None
    absorbed: list[int]  # the ids of the contacts of the absorbed cluster


@dataclass(slots=True)  # not frozen: that would cost a known customer's answer half a microsecond
class Identity:
    """Everything known about one person: the primary's own values first, the others in order of creation."""

    primary_id: int
    emails: list[str]
    phone_numbers: list[str]  # each in the form first seen
    secondary_ids: list[int]


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
    person (I3) and are united at once: rows written by other programs can share one, and the next write that meets
    them repairs that.

    Attributes
    ----------
    newest : the newest contact, or None if there is none.
    all : every cluster, united ones too.
    mends : which clusters of the table were united, in order.
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
        self.mends: list[Mend] = []
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
                self._mend(known, cluster, contact.email, None, None)
        if contact.phone_key is not None:
            known = self._by_phone.setdefault(contact.phone_key, cluster)
            if known is not cluster:
                self._mend(known, cluster, None, contact.phone_number, contact.phone_key)

    def _mend(
        self, known: Cluster, cluster: Cluster, email: str | None, phone_number: str | None, phone_key: str | None
    ) -> None:
        known, cluster = known.current(), cluster.current()
        if known is cluster:
            return
        older = unite(known, cluster)
        younger = cluster if older is known else known
        absorbed = _assigned([contact.id for contact in younger.contacts])
        self.mends.append(Mend(older.primary, younger.primary, email, phone_number, phone_key, absorbed))

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


def unite(first: Cluster, second: Cluster) -> Cluster:
    """Make two clusters, of which neither was absorbed, one: that of the older primary, which is returned (rule 4)."""
    winner, loser = (first, second) if first.primary.rank < second.primary.rank else (second, first)
    # A new list, so that answers that were decided before the merge stay as they were.
    is_in_order = winner.contacts[-1].rank < loser.contacts[0].rank
    winner.contacts = winner.contacts + loser.contacts
    if not is_in_order:  # to sort each time would take seconds for a value that 10,000 clusters share
        winner.contacts.sort(key=_BY_RANK)
    winner.settled = False
    loser.absorbed_by = winner
    return winner


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
    phone_numbers: list[str] = list(phones.values())  # type: ignore[arg-type] # a key has its number
    return Identity(primary_id, list(emails), phone_numbers, secondary_ids)


def _assigned(ids: list[int | None]) -> list[int]:
    if None in ids:
        raise ValueError("a contact has no id before it has been inserted")
    return ids  # type: ignore[return-value]
