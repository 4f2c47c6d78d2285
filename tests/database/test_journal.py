"""The journal in the database: what recon records with its changes, and what triggers record of other programs."""

import json
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from recon.keys import new_key
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

FIRST = {"email": "george@hillvalley.edu", "phoneNumber": "919191"}
SECOND = {"email": "biffsucks@hillvalley.edu", "phoneNumber": "717171"}
MERGING = {"email": FIRST["email"], "phoneNumber": SECOND["phoneNumber"]}


async def journal(url: str) -> list[dict[str, Any]]:
    """The events, without their times and what is empty."""
    rows = [dict(row) for row in await fetch(url, "SELECT * FROM event ORDER BY id")]
    return [{name: value for name, value in row.items() if value is not None and name != "at"} for row in rows]


async def test_a_merge_is_recorded_with_its_source(make_client: MakeClient, database_url: str) -> None:
    """Contacts and events have the name of the API key, and draw their ids from one sequence, in decision order."""
    secret, entry = new_key("checkout", ["identify"])
    client = await make_client(api_keys=entry)
    for body in (FIRST, SECOND, MERGING, {"email": "new@hillvalley.edu"}):
        async with client.post("/identify", json=body, headers={"Authorization": f"Bearer {secret}"}) as response:
            assert response.status == 200

    assert await journal(database_url) == [
        {
            "id": 3,
            "kind": "merged",
            "primary_id": 1,
            "other_id": 2,
            "source": "checkout",
            "email": FIRST["email"],
            "phone_number": "717171",
            "phone_key": "717171",
        }
    ]
    contacts = await fetch(database_url, "SELECT id, source FROM contact ORDER BY id")
    assert [tuple(row) for row in contacts] == [(1, "checkout"), (2, "checkout"), (4, "checkout")]


async def test_without_keys_there_is_no_source(make_client: MakeClient, database_url: str) -> None:
    """Without API keys nobody knows who sent a request."""
    client = await make_client()
    for body in (FIRST, SECOND, MERGING):
        assert (await client.post("/identify", json=body)).status == 200

    assert "source" not in (await journal(database_url))[0]
    assert [row[0] for row in await fetch(database_url, "SELECT source FROM contact")] == [None, None]


async def test_an_event_is_not_older_than_its_contacts(make_client: MakeClient, database_url: str) -> None:
    """After the database's clock was set back, contacts and events are dated as the newest contact at least."""
    client = await make_client()
    for body in (FIRST, SECOND):
        assert (await client.post("/identify", json=body)).status == 200
    await execute(database_url, "UPDATE contact SET created_at = created_at + interval '1 day'")

    assert (await client.post("/identify", json=MERGING)).status == 200

    [row] = await fetch(database_url, "SELECT at, (SELECT max(created_at) FROM contact) AS newest FROM event")
    assert row["at"] == row["newest"]


async def test_a_repair_is_recorded(make_client: MakeClient, database_url: str) -> None:
    """The request that meets rows of other programs repairs them, and the journal says what was repaired."""
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('a', '1'), ('b', '1')",
        "INSERT INTO contact (email, phone_number) VALUES ('c', '3'), ('d', '3')",
        "UPDATE contact SET linked_id = 3, link_precedence = 'secondary' WHERE id = 4",
        "ALTER TABLE contact DISABLE TRIGGER contact_record_edit",
        "UPDATE contact SET deleted_at = now() WHERE id = 3",
        "ALTER TABLE contact ENABLE TRIGGER contact_record_edit",
    )
    client = await make_client()

    for body in ({"phoneNumber": "1"}, {"email": "d"}):
        assert (await client.post("/identify", json=body)).status == 200

    shared, gone = await journal(database_url)
    assert json.loads(shared.pop("detail")) == {"contacts": [2]}
    assert shared == {
        "id": 5,
        "kind": "mended",
        "primary_id": 1,
        "other_id": 2,
        "phone_number": "1",
        "phone_key": "1",
    }
    assert gone == {"id": 6, "kind": "mended", "primary_id": 4, "other_id": 3}


EDITS: dict[str, tuple[str, str, dict[str, Any] | None]] = {
    "a soft delete": ("deleted_at = '2026-01-01Z'", "deleted", None),
    "an email": ("email = 'new@hillvalley.edu'", "edited", {"email": FIRST["email"]}),
    "a phone number": (
        "phone_number = '5-5', phone_key = '55'",
        "edited",
        {"phoneNumber": "919191", "phoneKey": "919191"},
    ),
    "an email that goes": ("email = NULL", "edited", {"email": FIRST["email"]}),
    "both": ("email = 'x', deleted_at = now()", "deleted", {"email": FIRST["email"]}),
}


@pytest.mark.parametrize(("change", "kind", "detail"), EDITS.values(), ids=EDITS)
async def test_what_other_programs_change_is_recorded(
    change: str, kind: str, detail: dict[str, Any] | None, make_client: MakeClient, database_url: str
) -> None:
    """The event names the contact and its identity, and has the values before."""
    client = await make_client()
    for body in (FIRST, {"email": "second@hillvalley.edu", "phoneNumber": "919191"}):
        assert (await client.post("/identify", json=body)).status == 200

    await execute(database_url, f"UPDATE contact SET {change}, updated_at = now() WHERE id = 1")

    [event] = await journal(database_url)
    assert json.loads(event.pop("detail", "null")) == detail
    assert event == {"id": 3, "kind": kind, "primary_id": 1, "other_id": 1}


async def test_a_soft_delete_that_is_taken_back_is_recorded(database_url: str) -> None:
    """It is an edit, which has the time of the soft delete."""
    await execute(
        database_url,
        "INSERT INTO contact (email) VALUES ('a')",
        "UPDATE contact SET deleted_at = '2026-01-01 12:00Z'",
        "UPDATE contact SET deleted_at = NULL",
    )

    _, event = await journal(database_url)
    assert event["kind"] == "edited"
    assert json.loads(event["detail"])["deletedAt"].startswith("2026-01-01T")


async def test_what_changes_nothing_is_not_recorded(database_url: str) -> None:
    """An UPDATE that sets what is there already, or other columns, is no event."""
    await execute(
        database_url,
        "INSERT INTO contact (email) VALUES ('a')",
        "UPDATE contact SET email = 'a', deleted_at = NULL",
        "UPDATE contact SET updated_at = now()",
    )

    assert await journal(database_url) == []


async def test_the_other_program_needs_no_privilege_on_the_journal(database_url: str, server_url: str) -> None:
    """A role that may update contacts need not know that there is a journal, and can change nothing in it."""
    role = f"recon_test_editor_{urlsplit(database_url).path[1:]}"
    await execute(server_url, f"CREATE ROLE {role}")
    try:
        await execute(
            database_url,
            "INSERT INTO contact (email) VALUES ('a')",
            f"GRANT SELECT, UPDATE ON contact TO {role}",
            f"SET ROLE {role}; UPDATE contact SET email = 'b'",
        )
        assert [event["kind"] for event in await journal(database_url)] == ["edited"]
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(database_url, f"SET ROLE {role}; DELETE FROM event")
    finally:
        await execute(database_url, f"DROP OWNED BY {role}")
        await execute(server_url, f"DROP ROLE {role}")


DEFINERS = ["contact_record_edit", "contact_truncate_journal"]


@pytest.mark.parametrize("function", DEFINERS)
async def test_no_other_role_borrows_the_owners_rights(function: str, database_url: str, server_url: str) -> None:
    """The functions that run with the owner's rights cannot be made triggers of another role's tables."""
    role = f"recon_test_intruder_{urlsplit(database_url).path[1:]}"
    await execute(server_url, f"CREATE ROLE {role}")
    try:
        await execute(
            database_url, f"CREATE SCHEMA other AUTHORIZATION {role}", f"GRANT USAGE ON SCHEMA public TO {role}"
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match=f"permission denied for function .*{function}"):
            await execute(
                database_url,
                f"SET ROLE {role}; CREATE TABLE other.contact (email text);"
                f"CREATE TRIGGER borrowed AFTER TRUNCATE ON other.contact EXECUTE FUNCTION public.{function}()",
            )
    finally:
        await execute(database_url, f"DROP OWNED BY {role}")
        await execute(server_url, f"DROP ROLE {role}")


# A row in each of the tables that name contacts or events by their ids, and a value that stays blocked.
CORRECTIONS = [
    "INSERT INTO event_contact VALUES (1, 3)",
    "INSERT INTO erased VALUES (2, 4)",
    """INSERT INTO correction (key, source, request, event_id, answer) VALUES ('k', '', '\\x00', 4, '{}')""",
    "INSERT INTO import VALUES ('/shop.csv', '{}', 0, 0, '', 0, '{}', false)",
    "INSERT INTO blocked (kind, key, event_id) VALUES ('email', 'junk@hillvalley.edu', 5)",
]


async def test_the_journal_goes_with_its_contacts(make_client: MakeClient, database_url: str) -> None:
    """After TRUNCATE, new contacts get the ids of old ones; nothing of the old ones is left to tell of them.

    What is blocked stays blocked: that is about values, not about contacts.
    """
    client = await make_client()
    for body in (FIRST, SECOND, MERGING):
        assert (await client.post("/identify", json=body)).status == 200
    await execute(database_url, *CORRECTIONS)

    await execute(database_url, "TRUNCATE contact RESTART IDENTITY")

    assert await journal(database_url) == []
    for table in ("event_contact", "erased", "correction", "import"):
        assert await fetch(database_url, f"TABLE {table}") == []
    assert [row["key"] for row in await fetch(database_url, "TABLE blocked")] == ["junk@hillvalley.edu"]
    assert (await client.post("/identify", json=FIRST)).status == 200
