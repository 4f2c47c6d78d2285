"""The report of a dry run: as JSON, and as text with the present and the other guards side by side."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table

from recon.cli import tally, terminal

if TYPE_CHECKING:
    from recon.rules.guards import Guards
    from recon.transfer.dry_run import DryRun, Joining, Largest, Outcome

TITLES = {"present": "present guards", "other": "other guards"}


def encoded(
    files: Sequence[str],
    on: Mapping[str, Any] | None,
    runs: Mapping[str, "DryRun"],
    outcomes: Mapping[str, "Outcome"],
    seconds: float,
) -> dict[str, Any]:
    """The report as JSON has it."""
    records = outcomes["present"].counts["records"]
    sides = {name: {"guards": _guards(runs[name].guards)} | _outcome(each) for name, each in outcomes.items()}
    sides["present"]["guards"]["of"] = "a new database"
    rate = round(records / seconds) if seconds else None
    return {"files": [*files], "on": on, **sides, "seconds": round(seconds, 3), "rate": rate}


def _guards(guards: "Guards") -> dict[str, Any]:
    return {
        "maxEmails": guards.max_emails,
        "maxPhones": guards.max_phones,
        "blockCommon": guards.block_common,
        "blocked": [{kind: key} for kind, key in sorted(guards.blocked)],
    }


def _outcome(outcome: "Outcome") -> dict[str, Any]:
    found = tally.summary(outcome.counts, None, None)
    return {
        "contacts": sum(size * number for size, number in outcome.sizes.items()),
        "identities": outcome.sizes.total(),
        **{name: value for name, value in found.items() if name not in {"seconds", "rate"}},
        "rejects": dict(outcome.reasons.most_common()),
        "largest": outcome.largest and _largest(outcome.largest),
        "joining": [_joining(each) for each in outcome.joining],
        "sizes": [{"contacts": size, "identities": outcome.sizes[size]} for size in sorted(outcome.sizes)],
    }


def _largest(largest: "Largest") -> dict[str, Any]:
    return {
        "contacts": largest.contacts,
        "emails": largest.emails,
        "phoneNumbers": largest.phone_numbers,
        "someEmails": largest.some_emails,
        "somePhoneNumbers": largest.some_phone_numbers,
    }


def _joining(value: "Joining") -> dict[str, Any]:
    return {value.kind: value.text, "joins": value.joins, "withheld": value.withheld}


def readable(report: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The report as text."""
    sides = {name: report[name] for name in TITLES if name in report}
    if on := report["on"]:
        yield terminal.sentence(f"{on['file']}: {on['identities']:,} identities of {on['contacts']:,} contacts")
    yield _figures(", ".join(report["files"]), sides)
    for name, side in sides.items():
        if largest := side["largest"]:
            values = [*largest["someEmails"], *largest["somePhoneNumbers"]]
            more = largest["emails"] + largest["phoneNumbers"] - len(values)
            said = ", ".join(values) + (f" and {more:,} more" if more else "")
            yield ""
            yield terminal.sentence(f"The largest identity under the {TITLES[name]}: {said}")
    for name, side in sides.items():
        if side["joining"]:
            yield ""
            yield _values(f"What joins the most, {TITLES[name]}", side["joining"])
    yield ""
    whose = report["present"]["guards"]["of"]
    yield f"Nothing was stored. The present guards are those of {whose}. {report['seconds']:,.1f} seconds."


def _figures(title: str, sides: Mapping[str, Any]) -> Table:
    table = Table(
        "", *(TITLES[name] for name in sides), title=terminal.sentence(title), title_justify="left", box=None,
        padding=(0, 2, 0, 0),
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    lines = [_lines(side) for side in sides.values()]
    for label in dict.fromkeys(label for each in lines for label in each):
        table.add_row(terminal.sentence(label), *(each.get(label, "0") for each in lines))
    return table


def _lines(side: Mapping[str, Any]) -> dict[str, str]:
    """The figures of one side by their labels."""
    guards = side["guards"]
    lines = {
        "emails of an identity at most": f"{guards['maxEmails']:,}" if guards["maxEmails"] else "no limit",
        "phone numbers at most": f"{guards['maxPhones']:,}" if guards["maxPhones"] else "no limit",
        "recon's own list": "on" if guards["blockCommon"] else "off",
        "blocked besides": f"{len(guards['blocked']):,}",
    }
    for name, value in side.items():
        if isinstance(value, int):
            lines[name] = f"{value:,}"
        elif name == "withheld":
            lines |= {f"withheld ({cause})": f"{count:,}" for cause, count in value.items()}
        elif name == "rejects":
            lines |= {f"rejected: {reason}": f"{count:,}" for reason, count in value.items()}
        elif name == "largest" and value:
            lines["contacts of the largest identity"] = f"{value['contacts']:,}"
            lines["its emails"], lines["its phone numbers"] = f"{value['emails']:,}", f"{value['phoneNumbers']:,}"
    return lines


def _values(title: str, values: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("", "", "joins", "withheld", title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for column in table.columns[2:]:
        column.justify = "right"
    for each in values:
        kind, text = ("email", each["email"]) if "email" in each else ("phone number", each["phoneNumber"])
        table.add_row(kind, terminal.sentence(text), f"{each['joins']:,}", f"{each['withheld']:,}")
    return table
