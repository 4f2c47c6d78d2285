"""The correction that erases an identity: its contacts, and whatever the database says of them."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from recon.database.transactions import Connection
from recon.errors import InvalidCorrection
from recon.identities import subjects
from recon.identities.corrections import Plan
from recon.identities.subjects import Subject
from recon.rules.digests import CHECK, DIGEST_OF, Digested, check_of, digest
from recon.rules.erasure import Quotes, Traces, candidates, is_wiped, scrubbed
from recon.rules.guards import marks_of, opposed
from recon.rules.journal import Event, Kind
from recon.rules.links import identifiers_of
from recon.sql import corrections as sql
from recon.sql import erasure, journal, withheld
from recon.sql.corrections import Written
from recon.sql.erasure import Answer

REMINDER = (
    "Backups, logs of other programs, and the files of rejected records that recon import wrote are not part of the "
    "database: search them, too."
)


@dataclass(frozen=True, slots=True)
class Erase:
    """Erase the identity of a contact.

    Attributes
    ----------
    phone_key : derives the match keys of phone numbers, which notes may quote.
    suppress : whether to keep digests of the identifiers, so that nothing brings the person back.
    key : the key of the digests; None if the process has none.
    has_lane : whether positions are in the order of commits.
    """

    contact_id: int
    phone_key: Callable[[str], str]
    suppress: bool = False
    key: bytes | None = None
    has_lane: bool = True

    async def plan(self, connection: Connection) -> Plan:
        """Plan it. Raises InvalidCorrection if it is to suppress without the key of the database's digests."""
        if self.suppress and self.key is None:
            raise InvalidCorrection("To suppress identifiers, this process needs a key: set RECON_SUPPRESS_KEY.")
        if self.suppress and self.key is not None and await erasure.has_other_key(connection, check_of(self.key)):
            raise InvalidCorrection("The database has digests that another key made than RECON_SUPPRESS_KEY is.")
        erased_by = await sql.was_erased(connection, self.contact_id)
        if erased_by is not None:
            ids = await sql.find_erased(connection, self.contact_id)
            more = {"contactIds": ids, "keptApart": [], "reminder": REMINDER}
            return Plan({}, None, erased_by, more=more, keeps_key=lambda _: False)
        subject = await subjects.find(connection, self.contact_id, live=False)
        search = await _Search.of(connection, subject, self)
        ids = sorted(search.traces.contacts)
        event = Written(Kind.ERASED, subject.root, undoes=search.withheld)

        async def write(connection: Connection, event_id: int) -> None:
            count = await search.remove(connection)
            await erasure.delete_contacts(connection, ids, event_id)
            if self.key is not None and self.suppress:
                await erasure.suppress(connection, search.digests(subject, self.key), event_id)
            event.detail = {"contacts": len(ids), "events": count}

        return Plan(
            {subject.root: subject.state},
            event,
            write=write,
            more={
                "contactIds": ids,
                "keptApart": await _kept_apart(connection, subject),
                "reminder": REMINDER,
            },
            touched=ids,
            has_state=True,
            keeps_note=False,  # it could say who was erased
            keeps_key=lambda key: not search.quotes.found_in(key),
        )


@dataclass(slots=True)
class _Search:
    """Where an identity has left traces.

    Attributes
    ----------
    quotes : finds the identifiers in notes and keys.
    after : the highest position that was searched; what was written later is searched in the lane.
    wiped : the events of which nothing stays but what kind they were of, when, and which contacts they named.
    scrubbed : the events of which a part stays.
    answers : the records of corrections.
    withheld : the open withheld links.
    """

    traces: Traces
    quotes: Quotes
    after: int
    wiped: set[int] = field(default_factory=set)
    scrubbed: set[int] = field(default_factory=set)
    answers: set[Answer] = field(default_factory=set)
    withheld: list[int] = field(default_factory=list)

    @classmethod
    async def of(cls, connection: Connection, subject: Subject, erase: Erase) -> "_Search":
        """Search the snapshot for all that the identity has left."""
        found = candidates(subject.records, await journal.fetch_events(connection, subject.root))
        shared = await erasure.find_shared(connection, subject.root, found)
        own = {identifier: texts for identifier, texts in found.items() if identifier not in shared}
        traces = Traces(
            frozenset(record.id for record in subject.records),
            frozenset(own),
            frozenset(text for texts in own.values() for text in texts),
        )
        after = await erasure.newest(connection) if erase.has_lane else 0
        search = cls(traces, Quotes(traces, erase.phone_key), after)
        # There can be very many notes and keys: meanwhile, the process answers others.
        await asyncio.to_thread(search.sort, *await erasure.find_traces(connection, traces))
        search.answers = await search.find_answers(connection, search.wiped | search.scrubbed)
        search.withheld = await withheld.find_with_values(connection, traces.values)
        return search

    def sort(self, events: Iterable[Event], naming: set[int]) -> None:
        """Add these events to those that are wiped and those that are scrubbed, if they have traces."""
        for event in events:
            if is_wiped(event, self.traces):
                self.wiped.add(event.id)
            elif self.scrub(event, naming) is not event or self._is_about(event, naming):
                self.scrubbed.add(event.id)

    def _is_about(self, event: Event, naming: set[int]) -> bool:
        if event.kind is Kind.DISMISSED and event.other_id in self.wiped | self.scrubbed:
            return True  # it names the withheld link alone, and comes after it
        return event.id in naming or self.traces.names(event)

    def scrub(self, event: Event, naming: set[int]) -> Event:
        """What is left of an event."""
        left = scrubbed(event, self.traces, self._is_about(event, naming))
        if left.note is not None and self.quotes.found_in(left.note):
            return replace(left, note=None)
        return left

    async def find_answers(self, connection: Connection, events: set[int], after: int = 0) -> set[Answer]:
        """The records of corrections after a position that have traces, in their keys too, or are of these events."""
        keys = await erasure.find_keys(connection, after)
        quoting = await asyncio.to_thread(lambda: {each for each in keys if self.quotes.found_in(each.key)})
        return quoting | await erasure.find_answers(connection, self.traces, events, after)

    async def remove(self, connection: Connection) -> int:
        """Remove all traces, those written since the search too; return of how many events."""
        later, naming = await erasure.find_traces(connection, self.traces, self.after)
        self.sort(later, naming)
        events = self.wiped | self.scrubbed
        answers = await self.find_answers(connection, events, self.after)
        await erasure.wipe_events(connection, self.wiped)
        # As they are now: another erasure may have scrubbed them since the search.
        found = await erasure.fetch_events(connection, self.scrubbed)
        left = [(event, self.scrub(event, naming)) for event in found]
        await erasure.scrub_events(connection, [after for before, after in left if after is not before])
        await erasure.delete_answers(connection, self.answers | answers)
        return len(events)

    def digests(self, subject: Subject, key: bytes) -> list[Digested]:
        """The digests of the identifiers of its contacts, and that which tells which key made them."""
        held = {identifier for record in subject.records for identifier in identifiers_of(record)}
        found = {Digested(DIGEST_OF[each.kind], digest(key, each)) for each in held & self.traces.values}
        return sorted({Digested(CHECK, check_of(key)), *found})


async def _kept_apart(connection: Connection, subject: Subject) -> list[int]:
    """The roots of the identities that this one is kept apart from: the wrong link can come back."""
    mine = subject.marks
    if not mine:
        return []
    roots = await sql.find_sides(connection, {mark.event for mark in mine})
    marks = await sql.fetch_marks(connection, roots)
    others = {root: {mark for apart in arrays for mark in marks_of(apart)} for root, arrays in marks.items()}
    return [root for root in roots if root != subject.root and opposed(mine, others[root])]
