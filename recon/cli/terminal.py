"""Identities on a terminal: tables, and a path of links as a chain."""

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recon.rules.clusters import Identity
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, Link, LinkKind

_UNSEEN_WIDTH = 240  # columns where there is no terminal, so that nothing is cut off
# Rows written by other programs may have any character, and a terminal obeys some.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def console() -> Console:
    """What writes to standard output."""
    return Console(width=None if Console().is_terminal else _UNSEEN_WIDTH, highlight=False)


def show(identity: Identity) -> Table:
    """An identity, a line for each kind of value."""
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    lines: list[tuple[str, Iterable[object]]] = [
        ("primary contact", [identity.primary_id]),
        ("emails", identity.emails),
        ("phone numbers", identity.phone_numbers),
        ("secondary contacts", identity.secondary_ids),
    ]
    for name, values in lines:
        table.add_row(Text(name, style="bold"), _text("\n".join(map(_printable, map(str, values))) or "none"))
    return table


def history(entries: Iterable[Record | Event]) -> Table:
    """What happened to an identity, a line each, oldest first."""
    table = Table("Position", "Time (UTC)", "What happened", "Email", "Phone number", "Source")
    table.columns[0].justify = "right"
    for entry in entries:
        at = entry.created_at if isinstance(entry, Record) else entry.at
        cells = [str(entry.id), _time(at), _what(entry), entry.email, entry.phone_number, entry.source]
        table.add_row(*(_text(_printable(cell or "")) for cell in cells))
    return table


def chain(links: Sequence[Link], forms: Mapping[Identifier, str]) -> Text:
    """A path as a chain: an identifier on each line, and between two of them the link that joins them."""
    text = Text()
    identifiers = _along(links)
    for identifier, link in zip(identifiers, links, strict=False):
        text.append(f"{_printable(forms[identifier])}\n", style="bold")
        text.append(f"  │  {_printable(_evidence(link))}\n", style="yellow" if link.at is None else "")
    if identifiers:
        text.append(_printable(forms[identifiers[-1]]), style="bold")
    return text


def sentence(text: str) -> Text:
    """A line of prose, of which a terminal obeys nothing."""
    return _text(_printable(text))


def _along(links: Sequence[Link]) -> list[Identifier]:
    """The identifiers that a path passes, from its start to its end."""
    if not links:
        return []
    shared = [next(each for each in link.joins if each in after.joins) for link, after in pairwise(links)]
    start = next(each for each in links[0].joins if each not in shared[:1])
    end = next(each for each in reversed(links[-1].joins) if each not in (shared or [start])[-1:])
    return [start, *shared, end]


def _evidence(link: Link) -> str:
    if link.at is None:
        return f"{link.name}: nothing recorded explains this link"
    what = {
        LinkKind.CONTACT: "one request had both",
        LinkKind.MERGE: "one request had both, and made two identities one",
        LinkKind.OPERATOR: "a steward put them together",
    }[link.kind]
    return f"{link.name}: {what} ({_time(link.at)} UTC{f', {link.source}' if link.source else ''})"


def _what(entry: Record | Event) -> str:
    if isinstance(entry, Record):
        return "contact" if entry.deleted_at is None else f"contact, deleted {_time(entry.deleted_at)}"
    if entry.kind is Kind.MERGED:
        return f"merged: the identity of contact {entry.other_id} into that of contact {entry.primary_id}"
    if entry.kind is Kind.MENDED:
        return f"mended: contact {entry.primary_id} is the primary in the place of contact {entry.other_id}"
    return f"{entry.kind.replace('_', ' ')}: contact {entry.other_id}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _text(printable: str) -> Text:
    """Text as it is: rich would take brackets for its markup."""
    return Text(printable)


def _printable(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
