"""What corrections leave in a database, written by SQL, for tests of what is read."""

import json
from typing import Any

from tests.harness.databases import execute

AS_RECON = "SET application_name = 'recon schema 4'"  # the journal has recon's own changes by their own events
NOTE = "two people who share a phone"


def event(event_id: int, kind: str, detail: Any = None, *, about: tuple[int, ...] = (), **columns: Any) -> list[str]:
    """The statements that record an event of a steward; contacts in `about` lead to it."""
    given = {"id": event_id, "kind": kind, "detail": None if detail is None else json.dumps(detail)} | columns
    given.setdefault("source", "desk")
    given.setdefault("note", NOTE)
    values = ", ".join("NULL" if each is None else f"'{each}'" for each in given.values())
    return [
        f"INSERT INTO event ({', '.join(given)}) VALUES ({values})",
        *(f"INSERT INTO event_contact VALUES ({contact}, {event_id})" for contact in about),
    ]


async def split_george_and_biff(url: str) -> None:
    """George is contact 1, Biff contact 2, and event 3 merged them: contact 4 and event 5 split and keep them apart.

    George's contact lost its phone number to contact 4, which went with Biff.
    """
    detail = {
        "cut": ["contact:1"],
        "moved": [[1, "phoneNumber", 4, None]],
        "created": [4],
        "deleted": [],
        "roots": [[2, 1, [2, 4]]],
        "links": [],
        "left": [],
        "parts": [1, 2],
        "apart": True,
    }
    await execute(
        url,
        AS_RECON,
        "SELECT setval(pg_get_serial_sequence('contact', 'id'), 5)",
        "UPDATE contact SET linked_id = NULL, link_precedence = 'primary', apart = '{{5,0,1}}' WHERE id = 2",
        """INSERT INTO contact (id, phone_number, phone_key, linked_id, link_precedence, created_at, apart)
        SELECT 4, phone_number, phone_key, 2, 'secondary', created_at, '{{5,0,1}}' FROM contact WHERE id = 1""",
        "UPDATE contact SET phone_number = NULL, phone_key = NULL, apart = '{{5,0,0}}' WHERE id = 1",
        "UPDATE event SET undone_by = 5 WHERE id = 3",
        *event(5, "split", detail, about=(1, 2), primary_id=1),
    )


async def withhold(
    url: str, event_id: int, said: tuple[str, str], reason: str, contacts: tuple[int, int | None]
) -> None:
    """A request of the shop with this email and phone number met a guard."""
    email, phone = said
    await execute(
        url,
        *event(
            event_id,
            "withheld",
            {"reason": reason},
            primary_id=contacts[0],
            other_id=contacts[1],
            email=email,
            phone_number=phone,
            phone_key=phone,
            source="shop",
            note=None,
        ),
    )


async def erase(url: str, contact_id: int) -> None:
    """The identity of a contact, which is its only one, is erased."""
    await execute(
        url,
        f"DELETE FROM contact WHERE id = {contact_id}",
        f"INSERT INTO erased VALUES ({contact_id}, {contact_id + 1000})",
        *event(contact_id + 1000, "erased", {"contacts": 1, "events": 0}, primary_id=contact_id, note=None),
    )
