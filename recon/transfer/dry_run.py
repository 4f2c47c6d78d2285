"""A dry run: what the rules make of the records of files, in memory."""

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

from recon.rules.clusters import Cluster, Clusters, Contact
from recon.rules.guards import Guards, Kind, Value, Values, common_among
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Kind as EventKind
from recon.rules.reconcile import Deciding, Decision
from recon.transfer import chunks
from recon.transfer.existing import Person, contacts_of
from recon.transfer.pieces import Piece

DEFAULTS = Guards(max_emails=1000, max_phones=1000, block_common=True)  # those of a new database
TOP = 10  # values that join the most
_SHOWN = 5  # values of the largest identity, of each kind

Rejected: TypeAlias = list[tuple[int, Any, str]]  # line, record and reason


class Joining(NamedTuple):
    """A value that joins people.

    Attributes
    ----------
    kind, text : the value, as it was first seen.
    joins : how many parts its identity would fall into without it, as far as the records tell.
    withheld : with how many other values it came in a request whose link was withheld.
    """

    kind: Kind
    text: str
    joins: int
    withheld: int


@dataclass(frozen=True, slots=True)
class Largest:
    """The identity with the most contacts, and how many emails and phone numbers it has, with some of them."""

    contacts: int
    emails: int
    phone_numbers: int
    some_emails: list[str]
    some_phone_numbers: list[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the records come to.

    Attributes
    ----------
    counts : as `chunks.counted`, and how many records were rejected.
    reasons : how many records were rejected, by reason.
    sizes : how many identities there are, by their number of contacts; those of the export included.
    largest : None if there is no identity.
    joining : the values that join the most, or would without the guards.
    """

    counts: Counter[str]
    reasons: Counter[str]
    sizes: Counter[int]
    largest: Largest | None
    joining: list[Joining]


def common_values(requests: Sequence[Identifiers]) -> Values:
    """The values of these requests that are on recon's own list."""
    emails = {request.email for request in requests if request.email is not None}
    phone_keys = {request.phone_key for request in requests if request.phone_key is not None}
    return frozenset(
        [("email", email) for email in common_among("email", emails)]
        + [("phoneNumber", key) for key in common_among("phoneNumber", phone_keys)]
    )


class DryRun:
    """Decides requests in memory, under some guards.

    Parameters
    ----------
    guards : `blocked` has the values that stewards blocked.
    """

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self._clusters = Clusters(guards=replace(guards))
        self._begun: Deciding | None = None
        self._first_rank = 0
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._merging: Counter[Value] = Counter()  # the links of merges that a value has
        self._withheld: dict[Value, set[str | None]] = {}  # what a value came with when its link was withheld
        self._texts: dict[str, str] = {}  # of phone numbers in these, by match key

    def take(self, people: list[Person]) -> None:
        """Take identities that are there beforehand."""
        self._clusters.take(contacts_of(people, self.guards))

    def add(self, piece: Piece, common: Values) -> Rejected:
        """Decide the requests of a piece, and return its rejects. `common` are its `common_values`."""
        if self._begun is None:
            newest = self._clusters.newest
            self._first_rank = 1 + newest.rank if newest else 0
            self._begun = Deciding(self._clusters, self._first_rank, ordered=False)
        if self.guards.block_common and common:
            self._clusters.guards.blocked |= common
        self._begun.add(piece.requests)
        plan = self._begun.forget()
        self._counts += chunks.counted(plan, [piece])
        for event in plan.events:
            if event.kind is EventKind.MERGED:
                self._merging[("email", event.email or "")] += 1
                self._merging[("phoneNumber", event.phone_key or "")] += 1
        self._note_withheld(piece.requests, plan.decisions)
        rejected = chunks.rejected(plan, [piece])
        self._reasons.update(reason for _, _, reason in rejected)
        return rejected

    def _note_withheld(self, requests: Sequence[Identifiers], decisions: Sequence[Decision]) -> None:
        for request, decision in zip(requests, decisions, strict=True):
            if decision.withheld:
                email, phone, key, _ = request
                if email is not None:
                    self._withheld.setdefault(("email", email), set()).add(key)
                if key is not None:
                    self._withheld.setdefault(("phoneNumber", key), set()).add(email)
                    self._texts.setdefault(key, phone or key)

    def outcome(self) -> Outcome:
        """What all of it comes to."""
        living = self._clusters.living()
        largest = max(living, key=lambda each: (len(each.contacts), -each.primary.rank), default=None)
        found = heapq.nlargest(TOP, self._joining(living), key=lambda each: (each[1] + each[2], each[0]))
        return Outcome(
            self._counts + Counter(rejected=self._reasons.total()),
            self._reasons,
            Counter(len(cluster.contacts) for cluster in living),
            None if largest is None else _described(largest),
            [
                Joining(kind, self._text(kind, key), joins, withheld)
                for (kind, key), joins, withheld in found
                if joins + withheld > 1
            ],
        )

    def _joining(self, living: Collection[Cluster]) -> Iterator[tuple[Value, int, int]]:
        """Each value that joins two or more, with how many, and how many more it would join without the guards."""
        merging, rest = self._merging, dict(self._withheld)
        for cluster in living:
            if len(cluster.contacts) > 1:
                for kind, links in self._links(cluster):
                    for key, joins in links.items():
                        if joins > 1 or merging or rest:
                            withheld = len(rest.pop((kind, key), ()))
                            yield (kind, key), joins + merging[kind, key], withheld
        for value, others in rest.items():
            yield value, 0, len(others)

    def _links(self, cluster: Cluster) -> tuple[tuple[Kind, dict[str, int]], tuple[Kind, dict[str, int]]]:
        """How many contacts link each value of a cluster. The links are a tree: with merges, so many parts it joins."""
        emails: dict[str, int] = {}
        phones: dict[str, int] = {}
        for contact in cluster.contacts:
            email, key = contact.email, contact.phone_key
            is_link = contact.rank >= self._first_rank and email is not None and key is not None
            if email is not None:
                emails[email] = emails.get(email, 0) + is_link
            if key is not None:
                phones[key] = phones.get(key, 0) + is_link
        return ("email", emails), ("phoneNumber", phones)

    def _text(self, kind: Kind, key: str) -> str:
        if kind == "email":
            return key
        _, cluster = self._clusters.of(Identifiers(None, None, key))
        known = (contact.phone_number for contact in _ordered(cluster) if contact.phone_key == key) if cluster else ()
        return next(iter(known), None) or self._texts[key]


def _ordered(cluster: Cluster) -> list[Contact]:
    return sorted(cluster.contacts, key=lambda contact: contact.rank)


def _described(cluster: Cluster) -> Largest:
    emails: dict[str, None] = {}
    phones: dict[str, str] = {}
    for contact in _ordered(cluster):
        if contact.email is not None:
            emails.setdefault(contact.email)
        if contact.phone_key is not None:
            phones.setdefault(contact.phone_key, contact.phone_number or contact.phone_key)
    some_emails, some_numbers = [*emails][:_SHOWN], [*phones.values()][:_SHOWN]
    return Largest(len(cluster.contacts), len(emails), len(phones), some_emails, some_numbers)
