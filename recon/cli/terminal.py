"""Identities on a terminal: tables, and a path of links as a chain."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from recon.rules.clusters import Identity
from recon.rules.feed import Page
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, Link, LinkKind
from recon.rules.review import KeptApart

_SHOWN = 10  # contacts that a line names; a block can divide an identity into thousands
_UNSEEN_WIDTH = 240  # columns where there is no terminal, so that nothing is cut off
# Rows written by other programs may have any character, and a terminal obeys some.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def console(*, stderr: bool = False) -> Console:
    """What writes to standard output, or to standard error."""
    is_terminal = Console(stderr=stderr).is_terminal
    return Console(width=None if is_terminal else _UNSEEN_WIDTH, highlight=False, stderr=stderr)


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


def pairs(rows: Mapping[str, str]) -> Table:
    """A table of names and values, a line each."""
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), _text(_printable(value)))
    return table


def history(entries: Iterable[Record | Event]) -> Table:
    """What happened to an identity, a line each, oldest first."""
    table = Table("Position", "Time (UTC)", "What happened", "Email", "Phone number", "Source", "Note")
    table.columns[0].justify = "right"
    for entry in entries:
        at, note = (entry.created_at, None) if isinstance(entry, Record) else (entry.at, entry.note)
        cells = [str(entry.id), _time(at), _what(entry), entry.email, entry.phone_number, entry.source, note]
        table.add_row(*(_text(_printable(cell or "")) for cell in cells))
    return table


def changes(page: Page) -> list[Text]:
    """A page of the change feed: a line for each contact and event, id that is gone, and identity."""
    lines = []
    for entry in page.entries:
        at, note = (entry.created_at, None) if isinstance(entry, Record) else (entry.at, entry.note)
        said = [entry.email, entry.phone_number, entry.source, note]
        lines.append("  ".join([str(entry.id), _time(at), _what(entry), *(each for each in said if each)]))
    for contact_id, primary in page.gone:
        where = "gone" if primary is None else f"part of contact {primary}"
        lines.append(f"  contact {contact_id} is {where}")
    for each in page.identities:
        contacts = "" if not each.secondary_ids else f", with {_contacts(each.secondary_ids)}"
        lines.append(f"  contact {each.primary_id}: {', '.join([*each.emails, *each.phone_numbers])}{contacts}")
    return [sentence(line) for line in lines]


def guarded(kept_apart: Sequence[KeptApart], links: Sequence[Event]) -> list[RenderableType]:
    """What guards keep apart from an identity: a line for each constraint, and a table of the open withheld links."""
    lines: list[RenderableType] = [
        sentence(f"kept apart from {_contacts(each.contact_ids)} {_decided(each.event)}") for each in kept_apart
    ]
    return [*lines, withheld(links)] if links else lines


def withheld(events: Iterable[Event]) -> Table:
    """The review list: the withheld links, a line each, oldest first."""
    table = Table("Event", "Time (UTC)", "Reason", "Email", "Phone number", "Contact", "Other contact", "Source")
    for event in events:
        contacts = ["" if each is None else str(each) for each in (event.primary_id, event.other_id)]
        reason = (event.detail or {}).get("reason")
        cells = [str(event.id), _time(event.at), reason, event.email, event.phone_number, *contacts, event.source]
        table.add_row(*(_text(_printable(cell or "")) for cell in cells))
    return table


def correction(answer: Mapping[str, Any], *, preview: bool) -> list[RenderableType]:
    """What a correction comes to: the identities as they are afterwards, and the rest of its answer, a line each."""
    identities = (
        answer["contacts"] if "contacts" in answer else [answer[name] for name in ("contact",) if name in answer]
    )
    lines: list[RenderableType] = []
    for number, each in enumerate(identities):
        ids = each["primaryContactId"], each["secondaryContactIds"]
        lines += [*([""] if number else []), show(Identity(ids[0], each["emails"], each["phoneNumbers"], ids[1]))]
    table = Table("", "", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in answer.items():
        if name in _LABELS and (value or value in (False, 0)):
            table.add_row(Text(_LABELS[name], style="bold"), _text("\n".join(map(_printable, _listed(value)))))
    if table.row_count:
        lines += [*([""] if identities else []), table]
    if answer.get("eventId") is None and "eventId" in answer:
        lines.append("Nothing to do: it is in effect already.")
    elif preview:
        lines.append("Nothing was changed yet.")
    return lines


# The members of an answer besides identities, as a steward reads them.
_LABELS = {
    "cut": "links cut",
    "released": "no longer kept apart",
    "contactIds": "contacts erased",
    "keptApart": "was kept apart from",
    "reminder": "reminder",
    "maxEmails": "most emails",
    "maxPhones": "most phone numbers",
    "blockCommon": "recon's own list",
    "values": "identify nobody",
    "eventId": "event",
}


def rekey(answer: Mapping[str, Any], *, preview: bool) -> list[RenderableType]:
    """What a rekey comes to, or has changed."""
    return list(_rekey(answer, preview=preview))


def _rekey(answer: Mapping[str, Any], *, preview: bool) -> Iterator[RenderableType]:
    rows = {"default region": f"{answer['from'] or 'none'} → {answer['to'] or 'none'}"}
    rows |= {label: f"{answer[name]:,}" for name, label in _REKEYED.items() if answer.get(name)}
    yield pairs(rows)
    for shared in answer.get("shared", ()):
        ids = " and ".join(map(str, shared["primaryContactIds"]))
        yield sentence(
            f"  the identities of contacts {ids} come to share {shared.get('email') or shared.get('phoneNumber')}"
        )
    for divided in answer.get("divided", ()):
        yield sentence(f"  {divided['phoneNumber']} becomes {' and '.join(divided['becomes'])}")
    if not preview:
        if answer["eventId"] is None:
            yield "Nothing to do: it is in effect already."
        else:
            yield f"Start all processes with the default region {answer['to'] or 'none'}; until then they answer 503."
        return
    if answer["sharedKeys"]:
        yield sentence(
            "The next request that has a shared match key makes its identities one, unless they are kept apart or the "
            "value is blocked."
        )
    if answer["dividedKeys"]:
        yield "Identities that had one match key stay as they are."
    yield "Nothing was changed yet."


# The members of the answer of a rekey, as an operator reads them.
_REKEYED = {
    "contacts": "contacts with another match key",
    "emails": "emails of these that are composed (NFC)",
    "events": "events with another match key",
    "blocked": "blocked phone numbers with another match key",
    "suppressed": "suppressed phone numbers that are dropped",
    "identitiesThatShare": "identities that come to share a match key",
    "sharedKeys": "match keys that they share",
    "dividedKeys": "match keys that become several",
    "eventId": "event",
}


def _listed(value: Any) -> list[str]:
    if isinstance(value, bool):
        return ["on" if value else "off"]
    return [_item(each) for each in value] if isinstance(value, list) else [str(value)]


def _item(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(each) for each in value.values())
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def chain(links: Sequence[Link], stations: Sequence[Identifier], forms: Mapping[Identifier, str]) -> Text:
    """A path as a chain: each identifier that it passes on a line, and between two of them the link that joins them."""
    text = Text()
    for identifier, link in zip(stations, links, strict=False):
        text.append(f"{_printable(forms[identifier])}\n", style="bold")
        text.append(f"  │  {_printable(_evidence(link))}\n", style="yellow" if link.at is None else "")
    text.append(_printable(forms[stations[-1]]), style="bold")
    return text


def sentence(text: str) -> Text:
    """A line of prose, of which a terminal obeys nothing."""
    return _text(_printable(text))


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
    what = _WHAT.get(entry.kind, _other)(entry, entry.detail or {})
    undone = "" if entry.undone_by is None else f" (undone by event {entry.undone_by})"
    return f"{entry.kind.replace('_', ' ')}: {what}{undone}" if what else f"{entry.kind.replace('_', ' ')}{undone}"


def _absorbed(event: Event, _detail: Mapping[str, Any]) -> str:
    return f"the identity of contact {event.other_id} into that of contact {event.primary_id}"


def _mended(event: Event, detail: Mapping[str, Any]) -> str:
    if event.email is not None or event.phone_key is not None:
        return f"{_absorbed(event, detail)}, which shared an identifier"
    return f"contact {event.primary_id} is the primary in the place of contact {event.other_id}"


def _divided(_event: Event, detail: Mapping[str, Any]) -> str:
    parts = f"into {_contacts(detail['parts'])}" if detail.get("parts") else "what it was is not recorded any more"
    return f"{parts}, which are kept apart" if detail.get("apart") else parts


def _blocked(_event: Event, detail: Mapping[str, Any]) -> str:
    moved, parts = len(detail.get("moved", ())) + len(detail.get("deleted", ())), detail.get("parts") or ()
    return f"{moved} contacts lost the value; what had it is now {_contacts(parts)}" if parts else ""


def _two(event: Event, _detail: Mapping[str, Any]) -> str:
    return f"contact {event.primary_id} and contact {event.other_id}"


def _withheld(event: Event, detail: Mapping[str, Any]) -> str:
    reason = detail.get("reason", "no reason is recorded any more")
    if detail.get("moved") or detail.get("deleted"):
        contacts = [*(moved[0] for moved in detail.get("moved", ())), *detail.get("deleted", ())]
        return f"{_contacts(contacts)} lost an identifier that another program had given it ({reason})"
    other = "" if event.other_id is None else f" to contact {event.other_id}"
    return f"a link from contact {event.primary_id}{other} ({reason})"


def _dismissed(event: Event, _detail: Mapping[str, Any]) -> str:
    return f"the withheld link of event {event.other_id}"


def _other(event: Event, _detail: Mapping[str, Any]) -> str:
    return "" if event.other_id is None else f"contact {event.other_id}"


# What each kind of event says besides its name.
_WHAT: dict[Kind, Callable[[Event, Mapping[str, Any]], str]] = {
    Kind.MERGED: _absorbed,
    Kind.MENDED: _mended,
    Kind.LINKED: _absorbed,
    Kind.SPLIT: _divided,
    Kind.KEPT_APART: _two,
    Kind.RELEASED: _two,
    Kind.WITHHELD: _withheld,
    Kind.DISMISSED: _dismissed,
    Kind.BLOCKED: _blocked,
}


def _decided(event: Event) -> str:
    """When a steward decided something, who, and why."""
    by = f", {event.source}" if event.source else ""
    return f"(event {event.id}, {_time(event.at)} UTC{by}{f': {event.note}' if event.note else ''})"


def _contacts(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN]))
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"contact{'s' * (len(ids) != 1)} {shown}{more}"


def _time(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _text(printable: str) -> Text:
    """Text as it is: rich would take brackets for its markup."""
    return Text(printable)


def _printable(text: str) -> str:
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
