"""What a steward asks about identities: who holds an identifier, how an identity came about, and why it is one."""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeAlias, TypeVar

from recon.database.schema import fetch_region
from recon.database.transactions import Connection, Database
from recon.errors import Deleted, Erased, NotFound
from recon.identities import review
from recon.identities.turns import Turns
from recon.rules.clusters import Cluster, Clusters, Contact, Identity, consolidate
from recon.rules.divides import once_together
from recon.rules.explanations import difference, explanation, stations
from recon.rules.guards import marks_of
from recon.rules.identifiers import Identifiers
from recon.rules.journal import BY_AGE, Event, Record
from recon.rules.links import Identifier, Link, identifiers_of, links_of, path
from recon.rules.past import Absence, as_of, position_at
from recon.rules.review import KeptApart
from recon.sql import contacts, journal
from recon.sql.journal import Root
from recon.sql.review import fetch_withheld

LIMIT, MOST = 100, 1000  # items on a page: the default, and the maximum
MAX_ID = 2**63 - 1  # of PostgreSQL's bigint

End: TypeAlias = int | Identifiers  # a contact's id, or an email or a phone number
S = TypeVar("S")
T = TypeVar("T")
Fetch: TypeAlias = Callable[[Connection], Awaitable[S]]  # may run more than once


@dataclass(frozen=True, slots=True)
class Links:
    """A page of an identity's live contacts and links, and of what guards keep apart from it, all by position.

    Attributes
    ----------
    forms : the text of each identifier of the links; a phone number in the form first seen.
    kept_apart : the constraints in force, by the positions of their events.
    withheld : the events of the open withheld links.
    next : the position that the next page comes after; None at the end.
    """

    contacts: list[Record]
    links: list[Link]
    forms: dict[Identifier, str]
    kept_apart: list[KeptApart]
    withheld: list[Event]
    next: int | None


@dataclass(frozen=True, slots=True)
class History:
    """A page of what happened to an identity: contacts and events, by position. `next` is as for Links."""

    entries: list[Record | Event]
    next: int | None


@dataclass(frozen=True, slots=True)
class Why:
    """Why two contacts or identifiers are one person, or that they are not.

    Attributes
    ----------
    path : the links between the two, from the first to the second; None if they are not one person.
    forms : the text of each identifier of the path.
    stations : the identifiers that the path passes, from its start to its end.
    kept_apart : the constraints that keep the two apart.
    withheld : the events of the open withheld links between the two.
    sentence : the same in a sentence.
    """

    path: list[Link] | None
    forms: dict[Identifier, str]
    stations: list[Identifier]
    kept_apart: list[KeptApart]
    withheld: list[Event]
    sentence: str


@dataclass(frozen=True, slots=True)
class Review:
    """A page of the open withheld links, oldest first. `next` is as for Links."""

    entries: list[Event]
    next: int | None


@dataclass(frozen=True, slots=True)
class _Journal:
    """All contacts of an identity, soft-deleted ones included, and all events about them; both by position.

    `kept_apart` and `withheld` are as for Links, and only there if they are asked for.
    """

    records: list[Record]
    events: list[Event]
    kept_apart: list[KeptApart] = field(default_factory=list)
    withheld: list[Event] = field(default_factory=list)

    def live(self) -> list[Record]:
        """The live contacts, oldest first. Raises Deleted if there is none."""
        live = [record for record in self.records if record.deleted_at is None]
        if not live:
            raise Deleted
        return sorted(live, key=BY_AGE)


@dataclass(frozen=True, slots=True)
class _Pair:
    """The roots of two identities, with the journal if they are one, and with what keeps them apart if they are two."""

    first: Root | None
    second: Root | None
    known: _Journal | None = None
    kept_apart: list[KeptApart] = field(default_factory=list)
    withheld: list[Event] = field(default_factory=list)


class Lookup:
    """Answers questions about the identities of a database. Each answer is that of one snapshot, and changes nothing.

    Parameters
    ----------
    database : where the contacts and their journal are.
    at_once : how many answers about small identities are prepared at a time.
    limit : how many questions may wait; more get Overloaded.
    """

    def __init__(self, database: Database, at_once: int = 4, limit: int = 1000) -> None:
        self._database = database
        self._turns = Turns(at_once, limit)

    async def lookup(self, identifiers: Identifiers) -> list[Identity]:
        """The identities that hold the email or the phone number: none to two, that of the email first.

        Identities that share an identifier, because of rows of other programs, are one here, as they are to a request.
        """

        def make(found: Clusters) -> list[Identity]:
            self._database.require_region(found.guards.region)
            holders = dict.fromkeys(filter(None, found.of(identifiers)))
            return [consolidate(cluster.primary, cluster.contacts) for cluster in holders]

        email, phone, phone_key, _ = identifiers
        ends = [Identifiers(email, None, None), Identifiers(None, phone, phone_key)]
        return await self._answer(ends, lambda connection: contacts.fetch_clusters(connection, [identifiers]), make)

    async def show(self, contact_id: int, as_of: int | datetime | None = None) -> Identity:
        """The identity that a contact is part of: now, or as it was at a position or a time.

        Raises NotFound if no contact has this id, or had it then. Raises Deleted if no contact of the identity is live,
        or was then. Raises Erased if the identity was erased, also for a time before that.
        """
        if as_of is None:
            return await self._of(contact_id, _present)
        at = as_of

        async def widen(connection: Connection, known: _Journal) -> _Journal:
            return await _with_divided(connection, known, at)

        return await self._of(contact_id, lambda known: _past(known, contact_id, at), widen=widen, is_past=True)

    async def links(self, contact_id: int, after: int = 0, limit: int = LIMIT) -> Links:
        """A page of the live contacts and the links of an identity: the first `limit` positions after `after`.

        Raises NotFound if no contact has this id, Deleted if no contact of the identity is live, and Erased if
        the identity was erased.
        """
        return await self._of(contact_id, lambda known: _page_of_links(known, after, limit), widen=_with_guarded)

    async def history(self, contact_id: int, after: int = 0, limit: int = LIMIT) -> History:
        """A page of the contacts and events of an identity, live or not: the first `limit` after the position `after`.

        Raises NotFound if no contact has this id, Erased if its identity was erased.
        """

        def make(known: _Journal) -> History:
            entries: list[Record | Event] = [*known.records, *known.events]
            entries.sort(key=lambda entry: entry.id)
            return History(entries[:limit], entries[limit - 1].id if len(entries) > limit else None)

        return await self._of(contact_id, make, after=after, limit=limit + 1)

    async def why(self, start: End, end: End) -> Why:
        """Why two contacts or identifiers are one person, or that they are not.

        A contact stands for its email or, if it has none, for its phone number; a soft-deleted one stands for the
        oldest live contact of its identity. Raises NotFound if there is no such contact or identifier, Deleted if no
        contact of its identity is live.
        """

        async def fetch(connection: Connection) -> _Pair:
            self._database.require_region(await fetch_region(connection))
            first, second = await _find(connection, start), await _find(connection, end)
            if first is None or second is None:
                return _Pair(first, second)
            if first.id == second.id:
                return _Pair(first, second, await _fetch(connection, first))
            constraints = await review.kept_apart_from(connection, first.id, second.id)
            return _Pair(first, second, None, constraints, await review.withheld_about(connection, first.id, second.id))

        def make(found: _Pair) -> Why:
            first, second = _live(found.first), _live(found.second)
            if found.known is not None:
                return _why(found.known, start, end)
            ends, roots = (_name(start), _name(end)), (first.id, second.id)
            sentence = difference(ends, roots, [each.event for each in found.kept_apart], found.withheld)
            return Why(None, {}, [], found.kept_apart, found.withheld, sentence)

        return await self._answer([start, end], fetch, make)

    async def withheld(self, after: int = 0, limit: int = LIMIT) -> Review:
        """A page of the review list, the open withheld links. A page with fewer than `limit` need not be the last."""

        async def fetch(connection: Connection) -> Review:
            found = await fetch_withheld(connection, after, limit + 1)
            page, rest = found[:limit], found[limit:]
            return Review(await review.open_ones(connection, page), page[-1].event.id if rest else None)

        return await self._answer([], fetch, lambda page: page)

    async def _of(
        self,
        contact_id: int,
        make: Callable[[_Journal], T],
        *,
        after: int | None = None,
        limit: int | None = None,
        widen: Callable[[Connection, _Journal], Awaitable[_Journal]] | None = None,
        is_past: bool = False,
    ) -> T:
        """What `make` makes of the journal of a contact's identity, of a page of it, or of what `widen` makes of it."""

        async def fetch(connection: Connection) -> _Journal | None:
            root = await _find(connection, contact_id)
            if root is None:
                return None
            known = await _fetch(connection, root, after, limit)
            return known if widen is None else await widen(connection, known)

        def known(found: _Journal | None) -> T:
            if found is None:
                raise NotFound
            return make(found)

        return await self._answer([contact_id], fetch, known, is_past=is_past)

    async def _answer(
        self, ends: Sequence[End], fetch: Fetch[S], make: Callable[[S], T], *, is_past: bool = False
    ) -> T:
        """What `make` makes of what `fetch` reads in one snapshot, in a turn for the size of the identities.

        The past of a divided identity counts as large: it may take the contacts of all that it was divided into.
        """

        async def is_large(connection: Connection) -> bool:
            found = [await _find(connection, end) for end in ends]
            roots = [root for root in found if root is not None]
            return any([root.is_large or (is_past and await journal.is_divided(connection, root.id)) for root in roots])

        async with self._turns.small():
            large = await self._database.reading("find identity", is_large)
        async with self._turns.large() if large else self._turns.small():
            return make(await self._database.reading("read identity", fetch))


async def _find(connection: Connection, end: End) -> Root | None:
    """The root of the identity of a contact or an identifier; None if there is no such. Raises Erased if there was."""
    if isinstance(end, Identifiers):
        return await journal.find_root(connection, email=end.email, phone_key=end.phone_key)
    if end > MAX_ID:
        return None
    root = await journal.find_root(connection, contact_id=end)
    if root is None and await journal.is_erased(connection, end):
        raise Erased
    return root


async def _fetch(connection: Connection, root: Root, after: int | None = None, limit: int | None = None) -> _Journal:
    records = await journal.fetch_records(connection, root.id, after=after, limit=limit)
    return _Journal(records, await journal.fetch_events(connection, root.id, after=after, limit=limit))


async def _with_guarded(connection: Connection, known: _Journal) -> _Journal:
    """The journal with what guards keep apart from the identity."""
    first = known.records[0]
    root = first.id if first.linked_id is None else first.linked_id
    marks = {mark for record in known.records if record.deleted_at is None for mark in marks_of(record.apart)}
    constraints = await review.kept_apart(connection, root, marks)
    return replace(known, kept_apart=constraints, withheld=await review.withheld_about(connection, root))


async def _with_divided(connection: Connection, known: _Journal, at: int | datetime) -> _Journal:
    """The journal with those of the identities that were one with the known one until a divide, as far as needed."""
    records = {record.id: record for record in known.records}
    events = {event.id: event for event in known.events}
    while True:
        position = at if isinstance(at, int) else position_at(records.values(), events.values(), at)
        missing = once_together(list(events.values()), records.keys(), position) - records.keys()
        roots = list(await journal.find_roots_of(connection, missing)) if missing else []
        if not roots:  # all are known, or gone
            return _Journal(list(records.values()), list(events.values()))
        records |= {record.id: record for record in await journal.fetch_records(connection, *roots)}
        events |= {event.id: event for event in await journal.fetch_events(connection, *roots)}


def _live(root: Root | None) -> Root:
    if root is None:
        raise NotFound("No contact has the id, email or phone number that the request names.")
    if not root.is_live:
        raise Deleted
    return root


def _present(known: _Journal) -> Identity:
    rows = [
        Contact(rank, row.id, row.linked_id, row.email, row.phone_number, row.phone_key)
        for rank, row in enumerate(known.live())
    ]
    cluster = Cluster(None, rows)
    return consolidate(cluster.primary, cluster.contacts)


def _past(known: _Journal, contact_id: int, at: int | datetime) -> Identity:
    position = at if isinstance(at, int) else position_at(known.records, known.events, at)
    found = as_of(known.records, known.events, contact_id, position)
    if found is Absence.UNKNOWN:
        raise NotFound("No contact had this id then.")
    if found is Absence.DELETED:
        raise Deleted("No contact of this identity was live then.")
    return found


def _page_of_links(known: _Journal, after: int, limit: int) -> Links:
    live = known.live()
    links = links_of(live, known.events)
    found = {record.id for record in live}.union(link.id for link in links)
    found.update(each.event.id for each in known.kept_apart)
    found.update(event.id for event in known.withheld)
    positions = sorted(found)
    rest = positions[bisect_right(positions, after) :]
    page = set(rest[:limit])
    shown = sorted((link for link in links if link.id in page), key=lambda link: link.id)
    return Links(
        sorted((record for record in live if record.id in page), key=lambda record: record.id),
        shown,
        _forms(live, shown),
        [each for each in known.kept_apart if each.event.id in page],
        [event for event in known.withheld if event.id in page],
        rest[limit - 1] if len(rest) > limit else None,
    )


def _why(known: _Journal, start: End, end: End) -> Why:
    """Why two ends that are in one identity are so. Links connect every identity."""
    live = known.live()
    first, last = _identifier(live, start), _identifier(live, end)
    found = path(links_of(live, known.events), first, last) or []
    forms, passed = _forms(live, found), stations(found, first, last)
    notes = {event.id: event.note for event in known.events if event.note}
    return Why(found, forms, passed, [], [], explanation((_name(start), _name(end)), found, passed, forms, notes))


def _identifier(live: Sequence[Record], end: End) -> Identifier:
    """The identifier that an end of a path stands for."""
    if isinstance(end, Identifiers) and end.email is not None:
        return Identifier("email", end.email)
    if isinstance(end, Identifiers):
        return Identifier("phoneNumber", str(end.phone_key))
    return identifiers_of(next((record for record in live if record.id == end), live[0]))[0]


def _name(end: End) -> str:
    return str(end.email or end.phone) if isinstance(end, Identifiers) else f"contact {end}"


def _forms(live: Sequence[Record], links: Sequence[Link]) -> dict[Identifier, str]:
    """The text of each identifier of the links; of a phone number, the form of the oldest contact that has it."""
    phones = {record.phone_key: record.phone_number for record in reversed(live)}
    joined = {identifier for link in links for identifier in link.joins}
    return {each: each.key if each.kind == "email" else str(phones[each.key]) for each in joined}
