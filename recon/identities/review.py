"""What guards keep apart: from whom an identity is kept apart, and which withheld links are open."""

from collections.abc import Collection, Mapping, Sequence

from recon.database.transactions import Connection
from recon.rules.guards import Mark, opposed
from recon.rules.journal import Event
from recon.rules.review import Facts, KeptApart, constraints, is_open
from recon.sql import journal
from recon.sql import review as sql
from recon.sql.review import Withheld


async def kept_apart(connection: Connection, root: int, marks: Collection[Mark]) -> list[KeptApart]:
    """The constraints in force on an identity with these marks, each with the identities on its other sides.

    Those are the identities that the events named, and what later divides left of them.
    """
    if not marks:  # nearly always
        return []
    events = await sql.fetch_constraints(connection, {mark.event for mark in marks})
    named = {each for event in events for each in (event.primary_id, event.other_id, *_parts(event)) if each}
    first = min(mark.event for mark in marks)
    roots: set[int] = set()
    while new := await journal.find_roots_of(connection, named) - roots:
        roots |= new
        named = await sql.fetch_later_parts(connection, new, first)
    facts = await sql.fetch_facts(connection, roots - {root})
    return constraints(marks, facts.values(), events)


async def kept_apart_from(connection: Connection, one: int, other: int) -> list[KeptApart]:
    """The constraints that keep two identities apart, by their roots."""
    facts = await sql.fetch_facts(connection, [one, other])
    ids = opposed(facts[one].marks, facts[other].marks)
    if not ids:
        return []
    primaries = sorted(each.primary_id for each in facts.values() if each.primary_id is not None)
    return [KeptApart(event, primaries) for event in await sql.fetch_constraints(connection, ids)]


async def withheld_about(connection: Connection, root: int, other: int | None = None) -> list[Event]:
    """The open withheld links of an identity, by its root: all, or those between it and another one."""
    found = await sql.fetch_withheld_about(connection, root)
    if other is not None:
        found = [each for each in found if {each.email_root, each.phone_root} == {root, other}]
    return await open_ones(connection, found)


async def open_ones(connection: Connection, withheld: Sequence[Withheld]) -> list[Event]:
    """The events of those withheld links that a guard still withholds."""
    between_two = [each for each in withheld if _is_between_two(each)]
    if not between_two:  # nearly always
        return []
    roots = {root for each in between_two for root in (each.email_root, each.phone_root) if root is not None}
    facts = await sql.fetch_facts(connection, roots)
    limits = await sql.fetch_limits(connection)
    return [
        each.event for each in between_two if is_open(_of(facts, each.email_root), _of(facts, each.phone_root), limits)
    ]


def _of(facts: Mapping[int, Facts], root: int | None) -> Facts | None:
    return None if root is None else facts[root]


def _is_between_two(withheld: Withheld) -> bool:
    """Tell whether it has an email and a phone number (erasure takes them), neither blocked, and not of one identity.

    An event that records what a guard took away from a row of another program is no link.
    """
    event, email_root, phone_root, is_blocked = withheld
    is_link = event.email is not None and event.phone_key is not None and "moved" not in (event.detail or {})
    return is_link and not is_blocked and (email_root is None or email_root != phone_root)


def _parts(event: Event) -> Sequence[int]:
    return (event.detail or {}).get("parts") or ()
