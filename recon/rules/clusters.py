"""Contacts, the clusters that they make up, and the identity that a cluster adds up to.

Values without I/O: no driver, no clock, no wire format.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import NamedTuple, TypeAlias

from recon.rules.guards import Cause, Guards, Kind, Mark, marks_of, opposed
from recon.rules.identifiers import Identifiers

# What contacts add up to: emails, phone numbers by their keys, and the ids of the contacts; the primary's own first.
Parts: TypeAlias = tuple[dict[str, None], dict[str, str | None], list[int | None]]

_BY_RANK = attrgetter("rank")
_NO_MARKS: frozenset[Mark] = frozenset()
# The contacts of a cluster, how many of them were looked at, and their values of a kind.
_Values: TypeAlias = tuple[list["Contact"], int, set[str | None]]
_NO_VALUES: _Values = ([], 0, set())
_NONE_KEPT: Mapping[Kind, _Values] = {}


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
    apart: Sequence[Sequence[int]] | None = None  # its marks, as for `guards.marks_of`
    source: str | None = None  # of a new contact; matching needs no other's

    def has(self, kind: Kind, key: str) -> bool:
        """Tell whether the contact has this identifier."""
        return key == (self.email if kind == "email" else self.phone_key)


class Mend(NamedTuple):
    """Two clusters of the table shared an identifier, and were united: `other` was the primary that was absorbed."""

    primary: Contact
    other: Contact
    email: str | None
    phone_number: str | None
    phone_key: str | None
    absorbed: list[int]  # the ids of the contacts of the absorbed cluster


@dataclass(slots=True)
class Loss:
    """A value that contacts of the table lose, since the guards forbid that identities share it.

    Attributes
    ----------
    losers : the contacts that had the value, oldest first.
    kept : the ids of those of them that have nothing else. They are to be soft-deleted, and keep the value.
    holder : the primary of the identity that keeps the value; None if it is blocked.
    """

    cause: Cause
    kind: Kind
    key: str
    phone_numbers: list[str | None]  # the phone number of each loser, if that is the value
    cluster: "Cluster"
    losers: list[Contact]
    kept: list[int]
    holder: "Cluster | None"


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
    marks : the marks of its contacts.
    """

    __slots__ = ("_values", "absorbed_by", "contacts", "marks", "primary", "root", "settled")

    def __init__(self, root: int | None, contacts: list[Contact]) -> None:
        self.root = root
        self.contacts = contacts
        self.primary = contacts[0]
        if self.primary.linked_id is not None:
            self.primary = next((contact for contact in contacts if contact.linked_id is None), contacts[0])
        self.absorbed_by: Cluster | None = None
        self.settled = self.primary.id == root
        self.marks: frozenset[Mark] | set[Mark] = _NO_MARKS
        self._values: Mapping[Kind, _Values] = _NONE_KEPT

    def values(self, kind: Kind) -> AbstractSet[str]:
        """Its emails, or the match keys of its phone numbers; only valid until the cluster grows."""
        # Kept, because each request about an identity that is at a limit asks for them.
        contacts, size, found = self._values.get(kind, _NO_VALUES)
        if contacts is not self.contacts:
            size, found = 0, set()
        if size < len(self.contacts):
            new = self.contacts[size:] if size else self.contacts
            found.update([contact.email if kind == "email" else contact.phone_key for contact in new])
            found.discard(None)
            self._values = {**self._values, kind: (self.contacts, len(self.contacts), found)}
        return found  # type: ignore[return-value] # None has just left it

    def current(self) -> "Cluster":
        """The cluster that this one is part of by now: itself, unless it was absorbed."""
        cluster = self
        while (above := cluster.absorbed_by) is not None:
            if above.absorbed_by is not None:  # path splitting, as a value can bring together 100,000 clusters in turn
                cluster.absorbed_by = above.absorbed_by
            cluster = above
        return cluster


class Clusters:
    """Clusters by what they are known by.

    Takes contacts oldest first, whole clusters only. Clusters that share an identifier are one
    person (I3) and are united at once: rows written by other programs can share one, and the next write that meets
    them repairs that. Where the guards forbid it, contacts lose the identifier instead.

    Attributes
    ----------
    guards : the guards that decide what may be united.
    newest : the newest contact, or None if there is none.
    all : every cluster, united ones too.
    mends : which clusters of the table were united, in order.
    losses : which values contacts of the table lose, in order.
    """

    def __init__(self, contacts: Sequence[Contact] = (), guards: Guards | None = None) -> None:
        self.guards = guards or Guards()
        self.newest: Contact | None = None
        self._size = 0
        self.all: list[Cluster] = []
        self.mends: list[Mend] = []
        self.losses: list[Loss] = []
        self._by_email: dict[str, Cluster] = {}
        self._by_phone: dict[str, Cluster] = {}
        if contacts:
            self.take(contacts)

    def take(self, contacts: Sequence[Contact]) -> None:
        """Take more contacts, oldest first: whole clusters, of which none is here yet."""
        by_root: dict[int | None, list[Contact]] = {}
        marked = []
        for contact in contacts:
            root = contact.id if contact.linked_id is None else contact.linked_id
            if contact.apart is not None:
                marked.append((root, contact.apart))
            members = by_root.get(root)
            if members is None:
                by_root[root] = [contact]
            else:
                members.append(contact)
        if contacts and (self.newest is None or contacts[-1].rank > self.newest.rank):
            self.newest = contacts[-1]
        self._size += len(contacts)
        taken = [Cluster(root, members) for root, members in by_root.items()]
        self.all += taken
        if marked:
            self._mark(marked)
        for cluster in taken:
            for contact in cluster.contacts:
                self.learn(contact, cluster)

    def _mark(self, marked: Iterable[tuple[int | None, Sequence[Sequence[int]]]]) -> None:
        by_root = {cluster.root: cluster for cluster in self.all}
        for root, apart in marked:
            by_root[root].marks = by_root[root].marks | marks_of(apart)

    def learn(self, contact: Contact, cluster: Cluster) -> None:
        """Find `cluster` by the contact's identifiers from now on."""
        if contact.email is not None:
            known = self._by_email.setdefault(contact.email, cluster)
            if known is not cluster:
                self._meet(known, cluster, "email", contact.email, contact)
        if contact.phone_key is not None:
            known = self._by_phone.setdefault(contact.phone_key, cluster)
            if known is not cluster:
                self._meet(known, cluster, "phoneNumber", contact.phone_key, contact)

    def _meet(self, known: Cluster, cluster: Cluster, kind: Kind, key: str, contact: Contact) -> None:
        """Two clusters of the table share an identifier: unite them or, if the guards forbid that, end the sharing."""
        known, cluster = known.current(), cluster.current()
        if known is cluster:
            return
        if self.guards.blocks_value(kind, key):
            self._places(kind).pop(key)
            for each in self.all:
                if each.absorbed_by is None:
                    self._lose(Cause.BLOCKED, kind, key, each, None)
        elif opposed(known.marks, cluster.marks):
            first, second = sorted((known, cluster), key=lambda each: _holder(each, kind, key).rank)
            self._places(kind)[key] = first
            first.settled = False  # so that a request by this identifier is a write, which makes the repair
            self._lose(Cause.KEPT_APART, kind, key, second, first)
        elif kind == "email":
            self._mend(known, cluster, key, None, None)
        else:
            self._mend(known, cluster, None, contact.phone_number, key)

    def _places(self, kind: Kind) -> dict[str, Cluster]:
        return self._by_email if kind == "email" else self._by_phone

    def _lose(self, cause: Cause, kind: Kind, key: str, cluster: Cluster, holder: Cluster | None) -> None:
        """Take an identifier from all contacts of a cluster. One that has nothing else leaves the cluster."""
        losers = [contact for contact in cluster.contacts if contact.has(kind, key)]
        if not losers:
            return
        phone_numbers = [contact.phone_number if kind == "phoneNumber" else None for contact in losers]
        kept = [contact for contact in losers if contact.email is None or contact.phone_key is None]
        for contact in losers:
            if kind == "email":
                contact.email = None
            else:
                contact.phone_number = contact.phone_key = None
        ids = _assigned([contact.id for contact in kept])
        self.losses.append(Loss(cause, kind, key, phone_numbers, cluster, losers, ids, holder))
        # A new list, as the caller iterates over the old one.
        cluster.contacts = [contact for contact in cluster.contacts if contact not in kept]
        if cluster.contacts and cluster.primary in kept:
            cluster.primary = cluster.contacts[0]
        cluster.settled = False

    def _mend(
        self, known: Cluster, cluster: Cluster, email: str | None, phone_number: str | None, phone_key: str | None
    ) -> None:
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
        """The one cluster that already holds all that the request says and needs no mending, if any.

        None for a request with a blocked value.
        """
        if self.guards.blocked and self.guards.blocks(request):
            return None
        by_email, by_phone = self.of(request)
        if request.email is None:
            cluster = by_phone
        elif request.phone_key is None or by_email is by_phone:
            cluster = by_email
        else:
            return None
        return cluster if cluster is not None and cluster.settled else None

    def living(self) -> set[Cluster]:
        """Every cluster that is not part of another one, new ones included, unless it has no identifier."""
        known = chain(self.all, self._by_email.values(), self._by_phone.values())
        return {cluster.current() for cluster in known}

    def larger_than(self, size: int) -> set[int]:
        """The roots of the clusters that have more contacts than this."""
        if self._size <= size:  # nearly always: then there is nothing to look through
            return set()
        large = [cluster.root for cluster in self.all if len(cluster.current().contacts) > size]
        return {root for root in large if root is not None}


def _holder(cluster: Cluster, kind: Kind, key: str) -> Contact:
    """The oldest contact of the cluster that has the identifier."""
    return next(contact for contact in cluster.contacts if contact.has(kind, key))


def unite(first: Cluster, second: Cluster, ordered: bool = True) -> Cluster:
    """Make two clusters, of which neither was absorbed, one: that of the older primary, which is returned (rule 4).

    Unless `ordered`, its contacts are in no order, and answers that were decided before change.
    """
    winner, loser = (first, second) if first.primary.rank < second.primary.rank else (second, first)
    if ordered:
        # A new list, so that answers that were decided before the merge stay as they were.
        is_in_order = winner.contacts[-1].rank < loser.contacts[0].rank
        winner.contacts = winner.contacts + loser.contacts
        if not is_in_order:  # to sort each time would take seconds for a value that 10,000 clusters share
            winner.contacts.sort(key=_BY_RANK)
    else:
        fewer, more = sorted((winner.contacts, loser.contacts), key=len)
        more += fewer
        winner.contacts, loser.contacts = more, []
    winner.settled = False
    if loser.marks:
        winner.marks = winner.marks | loser.marks
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
