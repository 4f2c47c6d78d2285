"""The corrections about guards: their settings, and withheld links that a steward has looked at."""

from dataclasses import dataclass

from recon.database.transactions import Connection, Database
from recon.errors import NotFound
from recon.identities.corrections import Plan
from recon.rules.guards import is_common
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Kind
from recon.rules.links import Identifier
from recon.sql import corrections as sql
from recon.sql import stewardship, withheld
from recon.sql.corrections import Written
from recon.sql.stewardship import Blocked, Limits

_SCAN = 3600.0  # seconds that a look at all contacts may take: about ten for each million


@dataclass(frozen=True, slots=True)
class SetGuards:
    """Change the settings of the guards; None leaves one as it is."""

    max_emails: int | None = None
    max_phones: int | None = None
    block_common: bool | None = None

    async def plan(self, connection: Connection) -> Plan:
        """Plan it."""
        before = await stewardship.fetch_limits(connection)
        after = Limits(
            before.max_emails if self.max_emails is None else self.max_emails,
            before.max_phones if self.max_phones is None else self.max_phones,
            before.block_common if self.block_common is None else self.block_common,
        )
        if after == before:
            return Plan({}, None, more=after.shown())

        async def write(connection: Connection, _: int) -> None:
            await stewardship.set_limits(connection, after)

        async def is_current(connection: Connection) -> bool:
            return await stewardship.fetch_limits(connection) == before

        return Plan(
            {},
            Written(
                Kind.GUARDS,
                detail={"before": before.shown(), "after": after.shown()},
                undoes=await withheld.find_within_limits(connection, after.max_emails, after.max_phones),
            ),
            write=write,
            more=after.shown(),
            is_current=is_current,
        )


@dataclass(frozen=True, slots=True)
class Dismiss:
    """Take a withheld link off the review list."""

    event_id: int

    async def plan(self, connection: Connection) -> Plan:
        """Plan it. Raises NotFound if there is no such withheld link."""
        found = await withheld.find(connection, self.event_id)
        if found is None:
            raise NotFound("No link was withheld under this id.")
        primary, undone_by = found
        if undone_by is not None:
            return Plan({}, None, undone_by)

        async def is_current(connection: Connection) -> bool:
            return await withheld.find(connection, self.event_id) == found

        roots = [] if primary is None else [primary]
        return Plan(
            await sql.fetch_states(connection, roots),
            Written(Kind.DISMISSED, primary, self.event_id, undoes=[self.event_id]),
            is_current=is_current,
        )


async def fetch_limits(database: Database) -> Limits:
    """The settings of the guards."""
    return await database.reading("read guards", stewardship.fetch_limits)


async def fetch_blocked(database: Database, after: int, limit: int) -> tuple[list[Blocked], int | None]:
    """The first `limit` blocked values after a position, and the position that the next page comes after, if any."""
    found = await database.reading(
        "read blocked", lambda connection: stewardship.list_blocked(connection, after, limit + 1)
    )
    return found[:limit], found[limit - 1].event_id if len(found) > limit else None


async def find_held(database: Database) -> list[Identifiers]:
    """The values that identify nobody, but that live contacts have, each once.

    Those that stewards blocked come first, then those of recon's own list, if that is in use. Reads all contacts.
    """

    async def work(connection: Connection) -> dict[Identifier, str]:
        found = dict(await stewardship.held_blocked(connection))
        if (await stewardship.fetch_limits(connection)).block_common:
            async for value, text in stewardship.live_values(connection):
                if is_common(value.kind, value.key):
                    found.setdefault(value, text)
        return found

    found = await database.planning(work, _SCAN)
    return [_value(identifier, text) for identifier, text in found.items()]


def _value(identifier: Identifier, text: str) -> Identifiers:
    if identifier.kind == "email":
        return Identifiers(identifier.key, None, None)
    return Identifiers(None, text, identifier.key)
