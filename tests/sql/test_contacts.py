"""Rows become contacts."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields

import asyncpg
import pytest

from recon.database.transactions import Connection
from recon.rules.clusters import Clusters, Contact
from recon.rules.identifiers import Identifiers
from recon.sql import contacts as sql
from tests.harness.databases import execute

ROWS = """
INSERT INTO contact (email, phone_number, linked_id, link_precedence, apart)
VALUES ('a', '+1 23', NULL, 'primary', NULL), ('b', '+4 56', 1, 'secondary', '{{7, 0, 1}}')
"""
Fetch = Callable[[Connection, Sequence[Identifiers]], Awaitable[Clusters]]


@pytest.mark.parametrize("fetch", [sql.fetch_clusters, sql.fetch_small_clusters, sql.lock_clusters])
async def test_a_contact_has_the_values_of_the_columns_of_its_name(fetch: Fetch, database_url: str) -> None:
    """Each field of a contact but its rank is the column with this name, in all statements that fetch contacts."""
    await execute(database_url, ROWS)
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("SELECT * FROM contact ORDER BY id")

    [cluster] = (await fetch(connection, [Identifiers("a", None, None)])).all
    await connection.close()
    contacts = cluster.contacts

    assert [contact.rank for contact in contacts] == [0, 1]
    for contact, row in zip(contacts, rows, strict=True):
        for name in {field.name for field in fields(Contact)} - {"rank"}:
            assert getattr(contact, name) == row[name], name
