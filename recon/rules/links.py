"""The links of an identity: the evidence that its identifiers belong to one person.

The links that requests make form a tree: each joins two parts that nothing joined before. So there is exactly one path
between two identifiers, and cutting a link leaves exactly two parts. Rows written by other programs can make cycles.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Generic, Literal, NamedTuple, TypeAlias, TypeVar

from recon.rules.journal import Event, Kind, Record

_Dated: TypeAlias = "tuple[datetime, int, Link]"  # in this order, links are sorted by age
_CORRECTIONS = frozenset((Kind.LINKED, Kind.SPLIT, Kind.BLOCKED))  # what makes operator links, or takes members away
T = TypeVar("T", bound=Hashable)


class Identifier(NamedTuple):
    """An email or a phone number, by its match key."""

    kind: Literal["email", "phoneNumber"]
    key: str

    def stated(self) -> dict[str, str]:
        """The identifier as an event's detail has it, such as {"email": "a@example.com"}."""
        return {self.kind: self.key}


def identifier_of(stated: Mapping[str, str]) -> Identifier:
    """The identifier that an event's detail states."""
    [(kind, key)] = stated.items()
    return Identifier("email" if kind == "email" else "phoneNumber", key)


class LinkKind(StrEnum):
    """What a link is evidence of."""

    CONTACT = "contact"  # one request had both identifiers, and recon stored a contact
    MERGE = "merge"  # one request had both identifiers, and merged two identities
    OPERATOR = "operator"  # a steward put the identifiers together
    UNEXPLAINED = "unexplained"  # nothing is known but that the identity has both


_STORED = {
    LinkKind.CONTACT: "contact",
    LinkKind.MERGE: "event",
    LinkKind.OPERATOR: "event",
    LinkKind.UNEXPLAINED: "unexplained",
}


class Link(NamedTuple):
    """Evidence that identifiers belong to one person.

    Attributes
    ----------
    id : the id of the contact or event; for an unexplained link, that of its piece's oldest contact.
    joins : two identifiers or more.
    at : when the contact or event was written; None for an unexplained link.
    source : the name of the API key of the request, if known.
    """

    kind: LinkKind
    id: int
    joins: tuple[Identifier, ...]
    at: datetime | None
    source: str | None

    @property
    def name(self) -> str:
        """The name by which the API calls the link, such as "contact:12": what is stored, and its id."""
        return f"{_STORED[self.kind]}:{self.id}"


class DisjointSets(Generic[T]):
    """Union-find: sets that are united and never divided. An item that was not united is a set of its own."""

    def __init__(self) -> None:
        self._parent: dict[T, T] = {}  # without the items that stand for their sets

    def find(self, item: T) -> T:
        """The item that stands for the set of `item`. It changes when the set is united with another."""
        parent = self._parent
        while (above := parent.get(item)) is not None:
            top = parent.get(above)
            if top is None:
                return above
            parent[item] = item = top  # halves the path, so that the next search is shorter
        return item

    def unite(self, items: Sequence[T]) -> int:
        """Unite the sets of all these items, and return by how many sets there are fewer now.

        What stands for the set of the first item then stands for all.
        """
        first, *others = items
        first, fewer = self.find(first), 0
        for item in others:
            other = self.find(item)
            if other != first:
                self._parent[other] = first
                fewer += 1
        return fewer


def identifiers_of(record: Record) -> tuple[Identifier, ...]:
    """The identifiers of a contact, its email first: one or two."""
    email = () if record.email is None else (Identifier("email", record.email),)
    return email if record.phone_key is None else (*email, Identifier("phoneNumber", record.phone_key))


def display_forms(records: Iterable[Record]) -> dict[Identifier, str]:
    """The text that shows each identifier: a phone number in the form that the first of `records` has."""
    forms: dict[Identifier, str] = {}
    for record in records:
        for identifier in identifiers_of(record):
            text = record.phone_number if identifier.kind == "phoneNumber" else record.email
            forms.setdefault(identifier, text or identifier.key)
    return forms


def operator_sets(event: Event) -> list[list[Identifier]]:
    """The sets of identifiers that a steward put together with an event: one for a `linked` event, any for a `split`.

    They have all members, also those that left since.
    """
    detail = event.detail or {}
    if event.kind is Kind.LINKED:
        sets = [detail["joins"]] if "joins" in detail else []
    else:
        sets = detail.get("links", []) if event.kind is Kind.SPLIT else []
    return [list(dict.fromkeys(identifier_of(stated) for stated in members)) for members in sets]


def left_members(events: Iterable[Event]) -> set[tuple[int, Identifier]]:
    """The identifiers that left operator links: each with the id of the event that has the link."""
    return {
        (event_id, identifier_of(stated))
        for event in events
        if event.kind in (Kind.SPLIT, Kind.BLOCKED) and event.detail
        for event_id, stated in event.detail.get("left", ())
    }


def links_of(records: Sequence[Record], events: Iterable[Event]) -> list[Link]:
    """All links of an identity, oldest first: by the time and then the id of the contact or event.

    `records` are the identity's live contacts, oldest first by `(created_at, id)`. `events` are those about them, in
    any order. A merge counts if the identity still has both identifiers and the merge was not undone. An operator's set
    counts with the members that did not leave it and that the identity still has, if these are at least two. An
    unexplained link has the place of its piece's oldest contact.
    """
    contacts = [(record, identifiers_of(record)) for record in records]
    known = {identifier for _, identifiers in contacts for identifier in identifiers}
    dated = [
        (record.created_at, record.id, Link(LinkKind.CONTACT, record.id, identifiers, record.created_at, record.source))
        for record, identifiers in contacts
        if len(identifiers) > 1
    ]
    dated += _event_links(events, known)
    dated += _unexplained_links(contacts, [link for _, _, link in dated], len(known))
    dated.sort()
    return [link for _, _, link in dated]


def path(links: Sequence[Link], start: Identifier, end: Identifier) -> list[Link] | None:
    """A shortest path from one identifier to another: the links in order, or None if nothing connects the two.

    `links` are in order of age, as `links_of` returns them. Of several shortest paths, it is the one whose first link
    is the oldest; if that is the same, the one whose second link is the oldest, and so on.
    """
    if start == end:
        return []
    links_at: defaultdict[Identifier, list[int]] = defaultdict(list)
    for number, link in enumerate(links):
        for identifier in link.joins:
            links_at[identifier].append(number)
    # Breadth-first, links by age: the identifiers at each distance are found in the order of their best paths.
    reached: dict[Identifier, tuple[Identifier, Link] | None] = {start: None}
    crossed: set[int] = set()  # an operator link can have many members: look at them once
    queue = [start]
    for identifier in queue:
        for number in links_at[identifier]:
            if number not in crossed:
                crossed.add(number)
                link = links[number]
                for other in link.joins:
                    if other not in reached:
                        reached[other] = identifier, link
                        queue.append(other)
        if end in reached:
            return _traced(reached, end)
    return None


def _traced(reached: Mapping[Identifier, tuple[Identifier, Link] | None], end: Identifier) -> list[Link]:
    """The links to `end` from where the search began, by the step that reached each identifier: where from, and how."""
    links = []
    while step := reached[end]:
        end, link = step
        links.append(link)
    return links[::-1]


def _event_links(events: Iterable[Event], known: set[Identifier]) -> Iterator[_Dated]:
    """The links of merges and operators between `known` identifiers. What was undone or erased has none."""
    corrections = []
    for event in events:
        if event.kind is Kind.MERGED:
            if event.undone_by is None and event.email and event.phone_key:
                joins = (Identifier("email", event.email), Identifier("phoneNumber", event.phone_key))
                if known.issuperset(joins):
                    yield event.at, event.id, Link(LinkKind.MERGE, event.id, joins, event.at, event.source)
        elif event.kind in _CORRECTIONS:
            corrections.append(event)
    if corrections:
        yield from _operator_links(corrections, known)


def _operator_links(corrections: Sequence[Event], known: set[Identifier]) -> Iterator[_Dated]:
    left = left_members(corrections)
    for event in corrections:
        if event.undone_by is None:
            for members in operator_sets(event):
                joins = tuple(each for each in members if each in known and (event.id, each) not in left)
                if len(joins) > 1:
                    yield event.at, event.id, Link(LinkKind.OPERATOR, event.id, joins, event.at, event.source)


def _unexplained_links(
    contacts: Sequence[tuple[Record, tuple[Identifier, ...]]], explained: Iterable[Link], identifiers: int
) -> Iterator[_Dated]:
    """A link to the oldest contact from each piece that the explained links do not connect to it.

    `identifiers` is how many the contacts have.
    """
    sets = DisjointSets[Identifier]()
    pieces = identifiers - sum(sets.unite(link.joins) for link in explained)
    if pieces <= 1:  # nearly always
        return
    oldest = contacts[0][1][0]
    root = sets.find(oldest)
    for record, (identifier, *_) in contacts:
        if sets.find(identifier) != root:
            sets.unite((oldest, identifier))  # so that the other contacts of the piece make no link
            joins = (oldest, identifier)
            yield record.created_at, record.id, Link(LinkKind.UNEXPLAINED, record.id, joins, None, None)
