"""A consumer of the change feed, which keeps a copy of all identities, and what the database has instead."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import asyncpg

from recon.database.transactions import Connection, Database, T, Work
from recon.rules.feed import Page

Identity = tuple[tuple[str, ...], tuple[str, ...], tuple[int, ...]]  # emails, phone numbers, ids of the secondaries

# All live contacts, each with the root of its identity, the oldest first.
LIVE = """
SELECT coalesce(linked_id, id) AS root, id, linked_id, email, phone_number, phone_key
FROM contact WHERE deleted_at IS NULL ORDER BY created_at, id
"""


@dataclass
class Copy:
    """What a consumer knows after the pages that it was given.

    Attributes
    ----------
    identities : by primary.
    positions : those of all contacts and events that it was told of.
    is_exact : whether the last page said that there is no more.
    """

    identities: dict[int, Identity] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)
    after: int = 0
    is_exact: bool = False

    def take(self, page: Mapping[str, Any]) -> None:
        """Delete what is gone, and store the identities."""
        for gone in page["gone"]:
            self.identities.pop(gone["contactId"], None)
        for each in page["identities"]:
            self.identities[each["primaryContactId"]] = (
                tuple(each["emails"]),
                tuple(each["phoneNumbers"]),
                tuple(each["secondaryContactIds"]),
            )
        self.positions += [entry["position"] for entry in page["entries"]]
        assert page["next"] >= self.after
        self.after, self.is_exact = page["next"], not page["more"]

    def take_values(self, page: Page) -> None:
        """The same with a page that is no JSON."""
        for contact_id, _ in page.gone:
            self.identities.pop(contact_id, None)
        for each in page.identities:
            values = tuple(each.emails), tuple(each.phone_numbers), tuple(each.secondary_ids)
            self.identities[each.primary_id] = values
        self.positions += [entry.id for entry in page.entries]
        self.after, self.is_exact = page.next, not page.more


async def identities(connection: Connection) -> dict[int, Identity]:
    """All identities that the database has, by primary; told from the rows alone."""
    members: dict[int, list[Any]] = {}
    for row in await connection.fetch(LIVE):
        members.setdefault(row["root"], []).append(row)
    found = {}
    for rows in members.values():
        primary = next((row for row in rows if row["linked_id"] is None), rows[0])
        ordered = [primary, *(row for row in rows if row is not primary)]
        phones: dict[str, str] = {}
        for row in ordered:
            if row["phone_key"] is not None:
                phones.setdefault(row["phone_key"], row["phone_number"])
        emails = tuple(dict.fromkeys(row["email"] for row in ordered if row["email"] is not None))
        found[primary["id"]] = (emails, tuple(phones.values()), tuple(row["id"] for row in ordered[1:]))
    return found


async def identities_of(url: str) -> dict[int, Identity]:
    """The same of the database at a URL."""
    connection = await asyncpg.connect(url)
    try:
        return await identities(connection)
    finally:
        await connection.close()


async def read_one(session: aiohttp.ClientSession, url: str, copy: Copy, limit: int = 100, wait: int = 0) -> None:
    """Give a copy the next page."""
    parameters = {"after": copy.after, "limit": limit, "wait": wait}
    async with session.get(f"{url}/changes", params=parameters) as response:
        assert response.status == 200, await response.text()
        copy.take(await response.json())


async def read_to_the_end(session: aiohttp.ClientSession, url: str, copy: Copy, limit: int = 100) -> None:
    """Give a copy pages until one says that there is no more."""
    copy.is_exact = False
    while not copy.is_exact:
        await read_one(session, url, copy, limit)


class Comparing(Database):
    """A database that reads all identities in the snapshot of each page, into `truth`."""

    truth: dict[int, Identity]

    async def following(self, step: str, work: Work[T]) -> T:
        """Run `work`, and read everything in the same transaction."""

        async def both(connection: Connection) -> T:
            result = await work(connection)
            self.truth = await identities(connection)
            return result

        return await super().following(step, both)
