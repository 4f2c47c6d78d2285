"""The corrections that join identities or forbid that: link, keep apart and release."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from recon.database.transactions import Connection
from recon.errors import KeptApart, NotFound, OneIdentity
from recon.identities import subjects
from recon.identities.corrections import Plan
from recon.identities.subjects import Subject
from recon.rules.guards import Mark, freed_pairs, marks_of, opposed
from recon.rules.journal import Kind
from recon.rules.links import Identifier, identifiers_of
from recon.sql import corrections as sql
from recon.sql import withheld
from recon.sql.corrections import Written


def _shown(identifier: Identifier) -> dict[str, str]:
    return {identifier.kind: identifier.key}


@dataclass(frozen=True, slots=True)
class Link:
    """Make the identities of two contacts one, regardless of the limits.

    Attributes
    ----------
    release : whether to lift the constraints that keep them apart; otherwise these forbid the link.
    """

    contact_id: int
    other_id: int
    release: bool = False

    async def plan(self, connection: Connection) -> Plan:
        """Plan it. Raises KeptApart, which says who keeps them apart, when and why."""
        one, other = await subjects.find(connection, self.contact_id), await subjects.find(connection, self.other_id)
        if one.root == other.root:
            return Plan({one.root: one.state}, None, contacts=lambda: [subjects.identity(one.live)], has_state=True)
        apart = sorted(opposed(one.marks, other.marks))
        if apart and not self.release:
            raise KeptApart(decisions(await sql.fetch_decisions(connection, apart)))
        return await self._plan(connection, one, other, apart)

    async def _plan(self, connection: Connection, one: Subject, other: Subject, apart: list[int]) -> Plan:
        older, younger, identity = subjects.united(one, other)
        ends = (one.named(self.contact_id), other.named(self.other_id))
        detail: dict[str, Any] = {"joins": [_shown(identifiers_of(end)[0]) for end in ends]}
        detail["contacts"] = [record.id for record in younger.records]
        release = await _Release.of(connection, apart)
        if apart:
            detail["released"] = apart
        pairs = {each.root: older.primary.id for each in (older, younger) if each.root != older.primary.id}

        async def write(connection: Connection, event_id: int) -> None:
            await release.write(connection, event_id)
            await sql.relink(connection, pairs)

        return Plan(
            release.states | {one.root: one.state, other.root: other.state},
            Written(Kind.LINKED, older.primary.id, younger.root, detail=detail, undoes=release.undoes),
            write=write,
            contacts=lambda: [identity],
            more={"released": release.freed} if apart else {},
            is_current=release.is_current,
            touched=[record.id for record in younger.records],
            has_state=True,
        )


@dataclass(frozen=True, slots=True)
class KeepApart:
    """Forbid that the identities of two contacts become one."""

    contact_id: int
    other_id: int

    async def plan(self, connection: Connection) -> Plan:
        """Plan it. Raises OneIdentity if they are one already."""
        one, other = await subjects.find(connection, self.contact_id), await subjects.find(connection, self.other_id)
        if one.root == other.root:
            raise OneIdentity
        states = {one.root: one.state, other.root: other.state}
        identities = [subjects.identity(one.live), subjects.identity(other.live)]
        apart = opposed(one.marks, other.marks)
        if apart:
            return Plan(states, None, max(apart), contacts=lambda: identities)
        marks = [(record.id, 0, side) for side, each in enumerate((one, other)) for record in each.records]

        async def write(connection: Connection, event_id: int) -> None:
            await sql.add_marks(connection, event_id, marks)

        return Plan(
            states,
            Written(Kind.KEPT_APART, one.root, other.root),
            write=write,
            contacts=lambda: identities,
            touched=[contact_id for contact_id, _, _ in marks],
        )


@dataclass(frozen=True, slots=True)
class Release:
    """Lift constraints as a whole: that of an event, or all that keep the identities of two contacts apart.

    Either `other_id` or `event_id` is given.
    """

    contact_id: int
    other_id: int | None = None
    event_id: int | None = None

    async def plan(self, connection: Connection) -> Plan:
        """Plan it. Raises NotFound if there is no such contact, or the event made no constraint."""
        one = await subjects.find(connection, self.contact_id)
        if self.event_id is not None:
            other = None
            events = await self._of_event(connection, one.marks, self.event_id)
        else:
            other = await subjects.find(connection, self.other_id or 0)
            events = sorted(opposed(one.marks, other.marks))
        named = {each.root: each for each in (one, other) if each is not None}
        if not events:
            states = {root: each.state for root, each in named.items()}
            identities = [subjects.identity(each.live) for each in named.values()]
            return Plan(states, None, contacts=lambda: identities, more={"released": []})
        release = await _Release.of(connection, events)
        concerned = [await subjects.fetch(connection, root) for root in sorted(release.states)]
        others = [root for root in release.opposite(one.root) if root != one.root]
        return Plan(
            release.states,
            Written(
                Kind.RELEASED,
                one.root,
                other.root if other is not None else next(iter(others), None),
                detail={"events": events},
                contacts=[each.root for each in concerned],
                undoes=release.undoes,
            ),
            write=release.write,
            contacts=lambda: [subjects.identity(each.live) for each in concerned if each.live],
            more={"released": release.freed},
            is_current=release.is_current,
        )

    @staticmethod
    async def _of_event(connection: Connection, marks: Collection[Mark], event_id: int) -> list[int]:
        """The event, if the identity with these marks is on a side of it; nothing if that was released already."""
        if any(mark.event == event_id for mark in marks):
            return [event_id]
        found = await sql.fetch_decisions(connection, [event_id])
        if not found or found[0]["kind"] not in {Kind.KEPT_APART, Kind.SPLIT}:
            raise NotFound("No event with this id keeps identities apart.")
        return []


@dataclass(slots=True)
class _Release:
    """What it takes to lift the constraints of events.

    Attributes
    ----------
    events : whose constraints are lifted.
    states : of all identities on a side of them.
    marks : of these identities, by root.
    pairs : the identities that nothing keeps apart any more, by their roots.
    undoes : the events that are taken back thereby.
    closes : the withheld links that are no longer forbidden.
    """

    events: list[int]
    states: dict[int, sql.State]
    marks: dict[int, set[Mark]]
    pairs: list[tuple[int, int]]
    undoes: list[int]
    closes: list[int]

    @classmethod
    async def of(cls, connection: Connection, events: list[int]) -> "_Release":
        """The release of these events; of none, it does nothing."""
        if not events:
            return cls([], {}, {}, [], [], [])
        roots = await sql.find_sides(connection, events)
        states = await sql.fetch_states(connection, roots)
        found = await sql.fetch_marks(connection, roots)
        marks = {root: {mark for apart in arrays for mark in marks_of(apart)} for root, arrays in found.items()}
        kept = [each["id"] for each in await sql.fetch_decisions(connection, events) if each["kind"] == Kind.KEPT_APART]
        # A split can leave thousands of identities, and so millions of pairs: meanwhile, the process answers others.
        release = cls(events, states, marks, await asyncio.to_thread(freed_pairs, marks, events), kept, [])
        release.closes = await withheld.find_kept_apart(connection, release.pairs)
        release.undoes += release.closes
        return release

    @property
    def freed(self) -> list[list[int]]:
        """The pairs as an answer shows them."""
        return [list(pair) for pair in self.pairs]

    def opposite(self, root: int) -> list[int]:
        """The identities that the events keep apart from this one."""
        mine = self.marks[root]
        return [each for each in sorted(self.marks) if opposed(mine, self.marks[each]) & set(self.events)]

    async def write(self, connection: Connection, _: int) -> None:
        """Remove the marks."""
        if self.events:
            await sql.remove_marks(connection, self.events)

    @property
    def is_current(self) -> Callable[[Connection], Awaitable[bool]]:
        """Whether no other identity has come to a side of the events since."""

        async def is_current(connection: Connection) -> bool:
            return not self.events or await sql.find_sides(connection, self.events) == sorted(self.states)

        return is_current


def decisions(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who decided, when and why, as a message of the API."""
    return [
        {"eventId": each["id"], "at": each["at"], "source": each["source"], "note": each["note"]} for each in events
    ]
