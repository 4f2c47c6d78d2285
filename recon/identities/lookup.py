"""What a steward asks about identities: who holds an identifier, how an identity came about, and why it is one."""

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias, TypeVar

from recon.database.transactions import Connection, Database
from recon.errors import Deleted, NotFound
from recon.identities.turns import Turns
from recon.rules.clusters import Cluster, Clusters, Contact, Identity, consolidate
from recon.rules.explanations import explanation, no_link
from recon.rules.identifiers import Identifiers
from recon.rules.journal import BY_AGE, Event, Record
from recon.rules.links import Identifier, Link, identifiers_of, links_of, path
from recon.rules.past import Absence, as_of, position_at
from recon.sql import contacts, journal
from recon.sql.journal import Root

LIMIT, MOST = 100, 1000  # items on a page: the default, and the maximum
MAX_ID = 2**63 - 1  # of PostgreSQL's bigint

End: TypeAlias = int | Identifiers  # a contact's id, or an email or a phone number
S = TypeVar("S")
T = TypeVar("T")
Fetch: TypeAlias = Callable[[Connection], Awaitable[S]]  # may run more than once


@dataclass(frozen=True, slots=True)
class Links:
    """A page of an identity's live contacts and links, both by position.

    Attributes
    ----------
    forms : the text of each identifier of the links; a phone number in the form first seen.
    next : the position that the next page comes after; None at the end.
    """

    contacts: list[Record]
    links: list[Link]
    forms: dict[Identifier, str]
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
    sentence : the same in a sentence.
    """

    path: list[Link] | None
    forms: dict[Identifier, str]
    sentence: str


@dataclass(frozen=True, slots=True)
class _Journal:
    """All contacts of an identity, soft-deleted ones included, and all events about them; both by position."""

    records: list[Record]
    events: list[Event]

    def live(self) -> list[Record]:
        """The live contacts, oldest first. Raises Deleted if there is none."""
        live = [record for record in self.records if record.deleted_at is None]
        if not live:
            raise Deleted
        return sorted(live, key=BY_AGE)


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
            holders = dict.fromkeys(filter(None, found.of(identifiers)))
            return [consolidate(cluster.primary, cluster.contacts) for cluster in holders]

        email, phone, phone_key, _ = identifiers
        ends = [Identifiers(email, None, None), Identifiers(None, phone, phone_key)]
        return await self._answer(ends, lambda connection: contacts.fetch_clusters(connection, [identifiers]), make)

    async def show(self, contact_id: int, as_of: int | datetime | None = None) -> Identity:
        """The identity that a contact is part of: now, or as it was at a position or a time.

        Raises NotFound if no contact has this id, or had it then. Raises Deleted if no contact of the identity is live,
        or was then.
        """
        return await self._of(contact_id, lambda known: _identity(known, contact_id, as_of))

    async def links(self, contact_id: int, after: int = 0, limit: int = LIMIT) -> Links:
        """A page of the live contacts and the links of an identity: the first `limit` positions after `after`.

        Raises NotFound if no contact has this id, Deleted if no contact of the identity is live.
        """
        return await self._of(contact_id, lambda known: _page_of_links(known, after, limit))

    async def history(self, contact_id: int, after: int = 0, limit: int = LIMIT) -> History:
        """A page of the contacts and events of an identity, live or not: the first `limit` after the position `after`.

        Raises NotFound if no contact has this id.
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

        async def fetch(connection: Connection) -> tuple[Root | None, Root | None, _Journal | None]:
            first, second = await _find(connection, start), await _find(connection, end)
            if first is None or second is None or first.id != second.id:
                return first, second, None
            return first, second, await _fetch(connection, first)

        def make(found: tuple[Root | None, Root | None, _Journal | None]) -> Why:
            first, second = _live(found[0]), _live(found[1])
            if found[2] is None:
                return Why(None, {}, no_link(_name(start), _name(end), (first.id, second.id)))
            return _why(found[2], start, end)

        return await self._answer([start, end], fetch, make)

    async def _of(
        self, contact_id: int, make: Callable[[_Journal], T], *, after: int | None = None, limit: int | None = None
    ) -> T:
        """What `make` makes of the journal of a contact's identity, or of a page of it."""

        async def fetch(connection: Connection) -> _Journal | None:
            root = await _find(connection, contact_id)
            return None if root is None else await _fetch(connection, root, after, limit)

        def known(found: _Journal | None) -> T:
            if found is None:
                raise NotFound
            return make(found)

        return await self._answer([contact_id], fetch, known)

    async def _answer(self, ends: Sequence[End], fetch: Fetch[S], make: Callable[[S], T]) -> T:
        """What `make` makes of what `fetch` reads in one snapshot, in a turn for the size of the identities."""

        async def is_large(connection: Connection) -> bool:
            roots = [await _find(connection, end) for end in ends]
            return any(root.is_large for root in roots if root is not None)

        async with self._turns.small():
            large = await self._database.reading("find identity", is_large)
        async with self._turns.large() if large else self._turns.small():
            return make(await self._database.reading("read identity", fetch))


async def _find(connection: Connection, end: End) -> Root | None:
    """The root of the identity of a contact or an identifier; None if there is no such."""
    if isinstance(end, Identifiers):
        return await journal.find_root(connection, email=end.email, phone_key=end.phone_key)
    return await journal.find_root(connection, contact_id=end) if end <= MAX_ID else None


async def _fetch(connection: Connection, root: Root, after: int | None = None, limit: int | None = None) -> _Journal:
    records = await journal.fetch_records(connection, root.id, after=after, limit=limit)
    return _Journal(records, await journal.fetch_events(connection, root.id, after=after, limit=limit))


def _live(root: Root | None) -> Root:
    if root is None:
        raise NotFound("No contact has the id, email or phone number that the request names.")
    if not root.is_live:
        raise Deleted
    return root


def _identity(known: _Journal, contact_id: int, at: int | datetime | None) -> Identity:
    if at is None:
        live = known.live()
        rows = [
            Contact(rank, row.id, row.linked_id, row.email, row.phone_number, row.phone_key)
            for rank, row in enumerate(live)
        ]
        cluster = Cluster(None, rows)
        return consolidate(cluster.primary, cluster.contacts)
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
    positions = sorted({record.id for record in live}.union(link.id for link in links))
    rest = positions[bisect_right(positions, after) :]
    page = set(rest[:limit])
    shown = sorted((link for link in links if link.id in page), key=lambda link: link.id)
    records = sorted((record for record in live if record.id in page), key=lambda record: record.id)
    return Links(records, shown, _forms(live, shown), rest[limit - 1] if len(rest) > limit else None)


def _why(known: _Journal, start: End, end: End) -> Why:
    """Why two ends that are in one identity are so. Links connect every identity."""
    live = known.live()
    found = path(links_of(live, known.events), _identifier(live, start), _identifier(live, end)) or []
    forms = _forms(live, found)
    return Why(found, forms, explanation(_name(start), _name(end), found, forms))


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
