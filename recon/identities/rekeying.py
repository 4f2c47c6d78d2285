"""Rekey: give all that is stored the match keys of a default region, which becomes the database's.

It runs outside of serving, because a process with another region than the database's does not serve.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from recon.database.definitions import Connection
from recon.database.exclusive import Session
from recon.database.schema import fetch_region, require_region_right, require_schema, set_region
from recon.errors import ReconError
from recon.quantities import quantity
from recon.rules.identifiers import phone_key_for
from recon.rules.journal import Kind
from recon.sql import corrections as journal
from recon.sql import rekeying as sql
from recon.sql.corrections import Written
from recon.sql.rekeying import Forecast, Stale


class Reporter(Protocol):
    """What shows the progress."""

    def begin(self, step: str, total: int | None = None) -> None:
        """Take note that a step begins, which has so many items; None if that is not known."""

    def advance(self, items: int) -> None:
        """Take note of items that were done since the last call."""


class Preview(NamedTuple):
    """What a rekey would come to.

    Attributes
    ----------
    before, after : the default region of the database, before and afterwards.
    """

    before: str | None
    after: str | None
    stale: Stale
    forecast: Forecast


class Done(NamedTuple):
    """What a rekey has changed.

    Attributes
    ----------
    event_id : its event; None if there was nothing to change.
    counts : how many contacts, emails among them, events, blocked and suppressed phone numbers were changed, by name.
    """

    before: str | None
    after: str | None
    event_id: int | None
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Rekey:
    """Give the database a default region and its match keys.

    Attributes
    ----------
    drop_suppressed : whether to forget suppressed phone numbers, of which the database has nothing but digests.
    """

    session: Session
    region: str | None
    drop_suppressed: bool
    report: Reporter

    async def preview(self) -> Preview:
        """Find out what it would come to. Changes nothing, but keeps the new keys in the session for `make`.

        Raises SchemaMismatch if the database has another schema, and ReconError if it may not forget suppressed phone
        numbers but there are some.
        """

        async def work(connection: Connection) -> Preview:
            await require_schema(connection)
            await require_region_right(connection)
            self.report.begin("computing match keys", await sql.count_phones(connection))
            await self._compute(connection)
            stale = await self._stale(connection)
            self.report.begin("comparing identities")
            return Preview(await fetch_region(connection), self.region, stale, await sql.forecast(connection))

        return await self.session.reading(work)

    async def make(self, source: str, note: str | None) -> Done:
        """Make it, as a rule after `preview`, in one transaction. Requests that write wait meanwhile, others do not.

        Raises what `preview` does, RowsHeld when another session keeps the table contact.
        """

        async def work(connection: Connection) -> Done:
            self.report.begin("computing match keys of later contacts")
            await self._compute(connection)
            stale = await self._stale(connection)
            return await self._write(connection, stale, source, note)

        self.report.begin("waiting for writers")
        return await self.session.exclusively(work, lambda: self.report.begin("waiting for a session that writes"))

    async def _compute(self, connection: Connection) -> None:
        key = phone_key_for(self.region)
        await sql.compute_keys(connection, self.session.name, key, self.report.advance)

    async def _stale(self, connection: Connection) -> Stale:
        stale = await sql.count_stale(connection)
        if await fetch_region(connection) == self.region:
            return stale._replace(suppressed=0)  # their digests are of the keys of this region
        if stale.suppressed and not self.drop_suppressed:
            digests = quantity(stale.suppressed, "suppressed phone number")
            raise ReconError(
                f"nothing was changed: the database has only digests of {digests}, whose new match keys nobody can "
                "compute; --drop-suppressed drops them, and then requests can bring these phone numbers back"
            )
        return stale

    async def _write(self, connection: Connection, stale: Stale, source: str, note: str | None) -> Done:
        before = await fetch_region(connection)
        self.report.begin("changing events")
        events = await sql.rekey_events(connection, phone_key_for(self.region))
        counts = {**stale._asdict(), "events": events}
        if before == self.region and not any(counts.values()):
            return Done(before, self.region, None, counts)
        self.report.begin("changing contacts", stale.contacts)
        await sql.rekey_contacts(connection)
        superseded = await sql.rekey_blocked(connection)
        if stale.suppressed:
            await sql.drop_suppressed(connection)
        await set_region(connection, self.region)
        [event_id] = await journal.draw_ids(connection, 1)
        detail: dict[str, Any] = {"from": before, "to": self.region, "counts": counts}
        await journal.write_event(
            connection, event_id, Written(Kind.REKEYED, detail=detail, undoes=superseded), source, note
        )
        return Done(before, self.region, event_id, counts)
