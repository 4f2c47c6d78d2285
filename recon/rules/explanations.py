"""Why two identifiers are one person, or that they are not, in a sentence."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from recon.rules.journal import Event
from recon.rules.links import Identifier, Link, LinkKind


def explanation(
    ends: tuple[str, str],
    path: Sequence[Link],
    stations: Sequence[Identifier],
    forms: Mapping[Identifier, str],
    notes: Mapping[int, str],
) -> str:
    """Say why the two `ends`, as the reader knows them, are one person.

    `path` has the links from the one to the other, and `stations` the identifiers that it passes. `forms` has the text
    of each identifier of these links, and `notes` the reasons that stewards gave, by the ids of events.
    """
    start, end = ends
    if not path:
        return f"{start} and {end} are one person: they stand for the same identifier."
    steps = "; ".join(
        _put_together(link, forms[one], forms[other], notes.get(link.id))
        if link.kind is LinkKind.OPERATOR
        else _step(link, forms)
        for link, (one, other) in zip(path, pairwise(stations), strict=True)
    )
    return f"{start} and {end} are one person: {steps}."


def stations(path: Sequence[Link], start: Identifier, end: Identifier) -> list[Identifier]:
    """The identifiers that a path passes, one more than it has links: from its start to its end."""
    shared = [next(each for each in link.joins if each in after.joins) for link, after in pairwise(path)]
    return [start, *shared, end] if path else [start]


def difference(
    ends: tuple[str, str], roots: tuple[int, int], kept_apart: Sequence[Event], withheld: Sequence[Event]
) -> str:
    """Say why the two `ends` are two people: the identities with these roots.

    `kept_apart` and `withheld` are the events that keep the two apart, and that withheld a link between them.
    """
    start, end = ends
    people = f"{start} and {end} are two people, contact {roots[0]} and contact {roots[1]}"
    steps = [
        f"a steward{_called(event.source)} keeps them apart since {_minute(event.at)} (event {event.id})"
        f"{_because(event.note)}"
        for event in kept_apart
    ]
    steps += [
        f"recon withheld a link between {event.email} and {event.phone_number} on {_minute(event.at)} "
        f"(event {event.id}: {(event.detail or {}).get('reason')})"
        for event in withheld
    ]
    if not steps:
        return f"No link connects {start} and {end}: they are two people, contact {roots[0]} and contact {roots[1]}."
    return f"{people}: {'; '.join(steps)}."


def _put_together(link: Link, one: str, other: str, note: str | None) -> str:
    when = "" if link.at is None else f" on {_minute(link.at)}"
    return f"a steward{_called(link.source)} put {one} and {other} together{when} (event {link.id}){_because(note)}"


def _step(link: Link, forms: Mapping[Identifier, str]) -> str:
    first, *rest = (forms[identifier] for identifier in link.joins)
    others = " and ".join(rest)
    if link.at is None:
        return f"nothing recorded explains why {first} and {others} are one person ({link.name})"
    what = f"contact {link.id}" if link.kind is LinkKind.CONTACT else f"event {link.id}, which made two identities one"
    return f"the request of {_minute(link.at)}{_by(link.source)} gave {first} with {others} ({what})"


def _by(source: str | None) -> str:
    return f" by {source}" if source else ""


def _called(source: str | None) -> str:
    return f" ({source})" if source else ""


def _because(note: str | None) -> str:
    return f": {note}" if note else ""


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
