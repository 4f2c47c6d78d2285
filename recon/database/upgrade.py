"""Bringing a database to this version's schema and to a default region that its match keys do not contradict."""

from collections.abc import AsyncIterator

from recon.database.connecting import connected
from recon.database.definitions import Connection
from recon.database.grants import apply_grants
from recon.database.schema import (
    apply_schema,
    fetch_region,
    lock_contacts,
    migrate,
    pending_migrations,
    repair_schema,
    set_region,
)
from recon.errors import SchemaMismatch
from recon.quantities import quantity
from recon.rules.identifiers import e164_digits, plain_key, regional_key

_MOST_NAMED = 5  # contacts that an error names
_HAS_SETTING = "SELECT to_regclass('setting') IS NOT NULL"
_HIGHEST_ID = "SELECT coalesce(max(id), 0) FROM contact"
_LOWEST_ID = -(2**63)

# Page by page, since a driver's cursor prepares a statement, which poolers do not bear.
_PHONES = """
SELECT id, phone_number, phone_key FROM contact
WHERE id > $1 AND deleted_at IS NULL AND phone_number IS NOT NULL AND {} ORDER BY id LIMIT 10000
"""
PHONES = _PHONES.format("true")
# Only with a default region does recon store digits other than those of the phone number.
REGIONAL_PHONES = _PHONES.format(
    "phone_key ~ '^[0-9]+$' AND phone_key <> translate(normalize(phone_number, NFKC), '+-.()/ ', '')"
)


async def apply_schema_to(url: str, granted: str = "", region: str | None = None) -> list[str]:
    """Create, migrate or repair the schema, then make the grants. What was done, a line each.

    Parameters
    ----------
    url : where the database is.
    granted : the statements that make the grants, as `grants` gives them.
    region : the default region that the operator states for the database. None states none for a database that has
        none recorded yet, and keeps the one that is recorded.

    Raises SchemaMismatch, and changes nothing, when stored match keys contradict the region.
    """
    async with connected(url) as connection:
        if not await pending_migrations(connection) and await apply_schema(connection, region):
            done = ["the schema was applied"]
        else:
            done = await _upgrade(connection, region)
        if granted:
            await apply_grants(connection, granted)
        return done


async def migrate_to(url: str, region: str | None) -> list[str]:
    """Migrate a database that has an older schema, and leave every other one alone. What was done, a line each."""
    async with connected(url) as connection:
        return await _upgrade(connection, region) if await pending_migrations(connection) else []


async def _upgrade(connection: Connection, region: str | None) -> list[str]:
    """Migrate, repair and record the region in one transaction, which locks writers out as late as it can.

    Stored match keys are compared with the region before that. The lock is taken twice: the first one waits for the
    writers in progress, so that contacts that are committed later have higher ids, and is released at once.
    """
    highest = 0
    if states_region := await _states_region(connection, region):
        async with connection.transaction(isolation="read_committed"):
            await lock_contacts(connection)
            highest = await connection.fetchval(_HIGHEST_ID)
        await _require_keys_of(region, connection)
    # Each statement sees what was committed before it, also after the wait for the lock.
    async with connection.transaction(isolation="read_committed"):
        if states_region or await pending_migrations(connection):
            await lock_contacts(connection)
        done = await migrate(connection) + await repair_schema(connection)
        if states_region:
            await _any_keys_of(region, connection, highest)  # of contacts that were inserted meanwhile
        if region is not None and region != await fetch_region(connection):
            await set_region(connection, region)
            done.append(f"set the default region to {region}")
        return done


async def _states_region(connection: Connection, region: str | None) -> bool:
    """Whether the database has no region recorded, not even none, or the operator states another one."""
    if not await connection.fetchval(_HAS_SETTING):
        return True
    return region is not None and region != await fetch_region(connection)


async def _require_keys_of(region: str | None, connection: Connection) -> None:
    """Raise SchemaMismatch if stored match keys contradict the default region.

    Where keys of the region are stored, it is the right one. Then other programs wrote the rows whose keys no region
    gave, or a process without a region did: `recon check` names these rows.
    """
    if await _any_keys_of(region, connection, _LOWEST_ID) or region is None:
        return
    key = regional_key(region)
    async for contact, phone, stored in _pages(connection, PHONES, _LOWEST_ID):
        if stored == plain_key(phone) != key(phone):
            raise SchemaMismatch(
                f"nothing was changed: the match key of contact {contact} was stored without a default region, which "
                f"contradicts the default region {region}; leave --default-region (RECON_DEFAULT_REGION) unset"
            )


async def _any_keys_of(region: str | None, connection: Connection, after: int) -> bool:
    """Whether contacts after this id have keys that only this region gives. SchemaMismatch for another region's."""
    found = False
    others = []
    async for contact, phone, stored in _pages(connection, REGIONAL_PHONES, after):
        if stored == plain_key(phone):  # Python trims more blanks than the statement
            continue
        if region is not None and stored == e164_digits(phone, region):
            found = True
        else:
            others.append(contact)
    if others:
        named = ", ".join(map(str, others[:_MOST_NAMED])) + (", …" if len(others) > _MOST_NAMED else "")
        raise SchemaMismatch(
            f"nothing was changed: the match keys of {quantity(len(others), 'contact')} ({named}) were stored with "
            f"{'another' if region else 'a'} default region, which contradicts the default region {region or 'none'}; "
            "set --default-region (RECON_DEFAULT_REGION) to the one that recon has been running with"
        )
    return found


async def _pages(connection: Connection, statement: str, after: int) -> AsyncIterator[tuple[int, str, str]]:
    while page := await connection.fetch(statement, after):
        for row in page:
            yield row["id"], row["phone_number"], row["phone_key"]
        after = page[-1]["id"]
