"""Why two identifiers are one person, or that they are not, in a sentence."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from recon.rules.links import Identifier, Link, LinkKind


def explanation(start: str, end: str, path: Sequence[Link], forms: Mapping[Identifier, str]) -> str:
    """Say why `start` and `end`, as the reader knows them, are one person.

    `path` has the links from the one to the other, and `forms` the text of each identifier of these links.
    """
    if not path:
        return f"{start} and {end} are one person: they stand for the same identifier."
    steps = "; ".join(_step(link, forms) for link in path)
    return f"{start} and {end} are one person: {steps}."


def no_link(start: str, end: str, roots: tuple[int, int]) -> str:
    """Say that `start` and `end` are two people: the identities with these roots."""
    return f"No link connects {start} and {end}: they are two people, contact {roots[0]} and contact {roots[1]}."


def _step(link: Link, forms: Mapping[Identifier, str]) -> str:
    first, *rest = (forms[identifier] for identifier in link.joins)
    others = " and ".join(rest)
    if link.at is None:
        return f"nothing recorded explains why {first} and {others} are one person ({link.name})"
    by = f" by {link.source}" if link.source else ""
    what = f"contact {link.id}" if link.kind is LinkKind.CONTACT else f"event {link.id}, which made two identities one"
    return f"the request of {_minute(link.at)}{by} gave {first} with {others} ({what})"


def _minute(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
