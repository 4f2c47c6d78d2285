"""What all corrections share: each is planned on a snapshot, and made in one transaction if nothing has changed since.

A correction is planned outside the writer lane, because planning one of 10,000 contacts takes as long as hundreds of
requests. In the lane it locks the identities, compares their states with the planned ones, and writes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from recon import metrics
from recon.database.schema import fetch_region
from recon.database.transactions import Connection, Database
from recon.errors import Changed, DeadlineExceeded, KeyReused, OutcomeUnknown, Overloaded, RowsHeld
from recon.rules.clusters import Identity
from recon.sql import contacts as rows
from recon.sql import corrections as sql
from recon.sql.corrections import State, Stored, Written

_PLANS = 4  # of a correction whose identities change while it is planned: the first one, and three more

Answer: TypeAlias = dict[str, Any]  # as JSON


class New(Protocol):
    """A contact that a correction creates."""

    id: int | None


@dataclass(frozen=True, slots=True)
class Terms:
    """What comes with a correction, whatever it is.

    Attributes
    ----------
    source : the name of the API key; None without API keys.
    note : the steward's reason.
    dry_run : whether to answer without changing anything.
    if_state : the state in which the identities must be, as text; None for any.
    key : the Idempotency-Key; None if there is none.
    request : the SHA-256 of the request, for the key.
    """

    source: str | None = None
    note: str | None = None
    dry_run: bool = False
    if_state: str | None = None
    key: str | None = None
    request: bytes = b""


class Result(NamedTuple):
    """What a correction comes to.

    Attributes
    ----------
    event_id : its event; the one that is in effect already, if that is known; or None.
    contacts : the identities as they are afterwards.
    state : the state that it was planned on.
    more : what only this kind of correction answers.
    """

    event_id: int | None
    contacts: list[Identity]
    state: str | None
    more: Mapping[str, Any]


async def _unchanged(_: Connection) -> bool:
    return True


def _always(_: str) -> bool:
    return True


async def _nothing(_: Connection, __: int) -> None:
    pass


@dataclass(slots=True)
class Plan:
    """A correction as planned on a snapshot.

    Attributes
    ----------
    states : the identities that it concerns, by root.
    event : what it writes into the journal; None if the correction is in effect already.
    in_effect : the event by which it is.
    created : the contacts that it creates, which get their ids before `write`, in this order.
    write : writes all but the event, given the event's id; may run more than once.
    contacts : returns the identities as they are afterwards; called when all contacts have ids.
    more : what only this kind of correction answers.
    is_current : whether what the states do not tell is as planned, looked up while the identities are locked.
    touched : the contacts that it changes, besides the roots.
    has_state : whether the answer has the state.
    keeps_note : whether the event has the steward's note.
    keeps_key : whether the answer is stored under this Idempotency-Key. One that is not has to be repeatable without.
    """

    states: Mapping[int, State]
    event: Written | None
    in_effect: int | None = None
    created: Collection[New] = ()
    write: Callable[[Connection, int], Awaitable[None]] = _nothing
    contacts: Callable[[], list[Identity]] = list
    more: Mapping[str, Any] = field(default_factory=dict)
    is_current: Callable[[Connection], Awaitable[bool]] = _unchanged
    touched: Collection[int] = ()
    has_state: bool = False
    keeps_note: bool = True
    keeps_key: Callable[[str], bool] = _always

    @property
    def state(self) -> str | None:
        """The state of all its identities together, as text: a change of any of them changes it."""
        if not self.has_state:
            return None
        states = self.states.values()
        return str(State(max((state.position for state in states), default=0), sum(state.contacts for state in states)))


class Correction(Protocol):
    """A kind of correction, with what it is to be done to."""

    async def plan(self, connection: Connection) -> Plan:
        """Return what to do, after the state of one snapshot. Raises the ReconError that forbids it."""


Encode: TypeAlias = Callable[[Result], Answer]


class Corrections:
    """Makes corrections in a database.

    Parameters
    ----------
    database : where the contacts and their journal are.
    seconds : time limit of a correction.
    at_once : how many are in progress at a time; each takes a session.
    limit : how many may wait; more get Overloaded.
    """

    def __init__(self, database: Database, seconds: float, at_once: int = 4, limit: int = 1000) -> None:
        self._database = database
        self._seconds = seconds
        self._turns = asyncio.Semaphore(at_once)
        self._limit = limit
        self._waiting = 0

    @property
    def has_lane(self) -> bool:
        """Whether positions are in the order of commits."""
        return self._database.has_lane

    async def make(self, correction: Correction, terms: Terms, encode: Encode) -> Answer:
        """Make the correction, or with `terms.dry_run` find out what it would come to; the answer.

        Raises Changed if the identities are not in the state of `terms.if_state`, or change again and again; KeyReused
        if the Idempotency-Key came with another request; RowsHeld, DeadlineExceeded, Unavailable if nothing was
        changed; OutcomeUnknown if that is not known. And what the correction's plan raises.
        """
        attempt = _Attempt(self._database, correction, terms, encode, time.monotonic() + self._seconds)
        if self._waiting >= self._limit:
            raise Overloaded
        self._waiting += 1
        try:
            async with asyncio.timeout(self._seconds), self._turns:
                return await attempt.preview() if terms.dry_run else await attempt.make()
        except TimeoutError as error:
            if attempt.is_committing:
                raise _unknown(terms) from error
            raise (RowsHeld if attempt.was_held else DeadlineExceeded) from error
        except OutcomeUnknown as error:
            raise _unknown(terms) from error
        finally:
            self._waiting -= 1


def _unknown(terms: Terms) -> OutcomeUnknown:
    advice = (
        "Repeat it with the same Idempotency-Key: it is made once."
        if terms.key is not None
        else "Look at the history before you repeat it; with an Idempotency-Key, repeating is always safe."
    )
    return OutcomeUnknown(f"The database failed or took too long while the correction was written. {advice}")


class _Attempt:
    """One correction from its plan to its answer.

    Attributes
    ----------
    is_committing : whether the database may have committed it.
    was_held : whether another session held a row that it needs.
    """

    def __init__(
        self, database: Database, correction: Correction, terms: Terms, encode: Encode, deadline: float
    ) -> None:
        self._database = database
        self._correction = correction
        self._terms = terms
        self._encode = encode
        self._deadline = deadline
        self.is_committing = False
        self.was_held = False

    def _left(self) -> float:
        """Seconds until the time limit."""
        return max(0.001, self._deadline - time.monotonic())

    async def preview(self) -> Answer:
        """Return the answer that the correction would have, with the ids that its contacts and event would get."""

        async def work(connection: Connection) -> tuple[Plan, int]:
            await self._require_region(connection)
            return await self._correction.plan(connection), await sql.last_id(connection)

        plan, last = await self._database.planning(work, self._left())
        self._require_state(plan)
        for number, contact in enumerate(plan.created, start=last + 1):
            contact.id = number
        return self._answer(plan, last + len(plan.created) + 1)

    async def make(self) -> Answer:
        """Plan the correction and make it, again as long as its identities change in between."""
        for _ in range(_PLANS):
            found = await self._database.planning(self._planned, self._left())
            if not isinstance(found, Plan):
                return found
            self._require_state(found)
            if found.event is None and self._terms.key is None:
                return self._answer(found, 0)
            answer = await self._written(found)
            if answer is not None:
                return answer
        raise Changed("The identity changes too often to be corrected now. Nothing was changed; try again.")

    async def _planned(self, connection: Connection) -> Plan | Answer:
        """Return the plan, or the first answer to the request if it was made before."""
        await self._require_region(connection)
        return await self._repeated(connection) or await self._correction.plan(connection)

    async def _require_region(self, connection: Connection) -> None:
        """Raise Unavailable unless the database has the region of the match keys that the correction names."""
        self._database.require_region(await fetch_region(connection))

    async def _repeated(self, connection: Connection) -> Answer | None:
        terms = self._terms
        if terms.key is None:
            return None
        stored = await sql.find_correction(connection, terms.key, terms.source or "")
        if stored is None:
            return None
        if stored.request != terms.request:
            raise KeyReused
        return {**stored.answer, "repeated": True}

    def _require_state(self, plan: Plan) -> None:
        # One that is in effect for good, such as an erasure, has no state any more.
        if plan.has_state and self._terms.if_state is not None and self._terms.if_state != plan.state:
            raise Changed

    async def _written(self, plan: Plan) -> Answer | None:
        """Return the answer once the plan is committed; None if the identities have changed since it was made."""
        while True:
            try:
                answer = await self._database.correcting(
                    lambda connection: self._write(connection, plan), self._left(), self._rolled_back
                )
            except RowsHeld:
                # Out of the lane, in which all writers would wait for the session that holds the row.
                self.was_held, self.is_committing = True, False
                await self._wait({*plan.states, *plan.touched})
            else:
                if answer is not None and plan.event is not None and "repeated" not in answer:
                    metrics.CORRECTIONS.labels(plan.event.kind.value).inc()
                return answer

    def _rolled_back(self) -> None:
        self.is_committing = False

    async def _write(self, connection: Connection, plan: Plan) -> Answer | None:
        """Write the plan in a transaction; None if it is not current. May run more than once."""
        self.is_committing = False
        terms = self._terms
        await sql.lock_roots(connection, plan.states)
        await self._require_region(connection)
        repeated = await self._repeated(connection)
        if repeated is not None:
            return repeated
        if await sql.fetch_states(connection, plan.states) != plan.states or not await plan.is_current(connection):
            return None
        *ids, position = await sql.draw_ids(connection, len(plan.created) + 1)
        for contact, number in zip(plan.created, ids, strict=True):
            contact.id = number
        if plan.event is not None:
            await plan.write(connection, position)
            note = terms.note if plan.keeps_note else None
            await sql.write_event(connection, position, plan.event, terms.source, note)
        answer = self._answer(plan, position)
        if terms.key is not None and plan.keeps_key(terms.key):
            # Of a correction that was in effect, `position` is its place in the order of events, without an event.
            done = Stored(terms.request, answer)
            await sql.store_correction(connection, terms.key, terms.source or "", position, done)
        self.is_committing = True
        return answer

    def _answer(self, plan: Plan, position: int) -> Answer:
        event_id = plan.in_effect if plan.event is None else position
        return self._encode(Result(event_id, plan.contacts(), plan.state, plan.more))

    async def _wait(self, needed: set[int]) -> None:
        """Return when other sessions hold none of these contacts, nor the table, or after about a second."""
        held: set[int] = set()

        async def look(connection: Connection) -> None:
            held.clear()
            held.update(await rows.lock_free_rows(connection, needed))

        try:
            await self._database.wait(look)
            if held:
                await self._database.wait(lambda connection: rows.wait_for_row(connection, min(held)))
            else:
                await self._database.wait(rows.wait_for_table)
        except RowsHeld:
            return  # until its own time limit, the correction tries again
