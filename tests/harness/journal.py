"""Whether the journal has each merge of a history exactly once.

    assert check_journal(history, await contacts(database_url), await events(database_url)) == []

For a database that only requests have changed. Its links are then a tree for each identity: a contact joins its email
and its phone number, a merge joins those of its request. A merge that is missing leaves an identity in two pieces, and
one that is there twice joins what is joined already.
"""

from collections.abc import Iterator, Sequence

import asyncpg

from tests.harness.databases import fetch
from tests.harness.exchanges import History, Outcome, email_name, phone_name
from tests.harness.history import Components, Contact, names_of

Event = asyncpg.Record
EVENTS = "SELECT id, kind, primary_id, other_id, email, phone_number FROM event ORDER BY id"


async def events(url: str) -> list[Event]:
    """The journal of a database, oldest event first."""
    return await fetch(url, EVENTS)


def check_journal(history: History, rows: Sequence[Contact], journal: Sequence[Event]) -> list[str]:
    """All violations, a line each, which begins with its kind.

    unsent      an event of a request that nobody sent, or that was refused
    kind        an event of a kind that requests do not cause
    order       an event that comes before the contacts that it is about, or has the id of a contact
    repeated    an event that joins what contacts and earlier events have joined already
    unexplained an identity that contacts and events leave in pieces
    """
    components = Components()
    return [
        *_origins(history, journal),
        *_order(rows, journal),
        *_repetitions(rows, journal, components),
        *_pieces(rows, components),
    ]


def _origins(history: History, journal: Sequence[Event]) -> Iterator[str]:
    sent = {exchange.request.row for exchange in history.of(Outcome.ACKNOWLEDGED, Outcome.UNKNOWN)}
    for event in journal:
        if event["kind"] != "merged":
            yield f"kind: event {event['id']} is {event['kind']}"
        elif (event["email"], event["phone_number"]) not in sent:
            yield f"unsent: event {event['id']}"


def _order(rows: Sequence[Contact], journal: Sequence[Event]) -> Iterator[str]:
    contacts = {row["id"] for row in rows}
    for event in journal:
        if event["id"] in contacts or event["id"] < max(event["primary_id"], event["other_id"]):
            yield f"order: event {event['id']} is about {event['primary_id']} and {event['other_id']}"


def _repetitions(rows: Sequence[Contact], journal: Sequence[Event], components: Components) -> Iterator[str]:
    for row in rows:
        components.join(names_of(row))
    for event in journal:
        if event["email"] is None or event["phone_number"] is None:
            continue
        names = email_name(event["email"]), phone_name(event["phone_number"])
        if components.find(names[0]) == components.find(names[1]):
            yield f"repeated: event {event['id']} joins what was joined"
        components.join(names)


def _pieces(rows: Sequence[Contact], components: Components) -> Iterator[str]:
    pieces: dict[int, set[str]] = {}
    for row in rows:
        pieces.setdefault(row["linked_id"] or row["id"], set()).update(map(components.find, names_of(row)))
    for root, found in pieces.items():
        if len(found) > 1:
            yield f"unexplained: the identity of contact {root} is in {len(found)} pieces: {sorted(found)}"
