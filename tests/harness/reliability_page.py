"""The figures of a soak as the tables of docs/reliability.md, each of which is between two markers."""

import json
import re
from collections.abc import Iterable
from typing import Any

from tests.harness import ROOT

PAGE = ROOT / "docs" / "reliability.md"
FIGURES = ROOT / "docs" / "soak.json"

Figures = dict[str, Any]


def publish(figures: Figures) -> None:
    """Write the figures, and the page's tables."""
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), figures))


def page(text: str, figures: Figures) -> str:
    """Return the page's text with the tables of these figures, each between `<!-- name -->` and `<!-- end -->`."""
    for name, table in tables(figures).items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)",
            lambda found, table=table: f"{found[1]}{table}\n{found[2]}",
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"the page has no marker {name}"
    return text


def tables(figures: Figures) -> dict[str, str]:
    """Return the Markdown tables of all parts that have figures, by the name of the marker."""
    made = {"run": _run(figures)}
    for name, table in (("load", _load), ("faults", _faults), ("storm", _storm), ("fuzz", _fuzz)):
        if name in figures:
            made[name] = table(figures[name])
    return made


def _table(head: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows))


def _run(figures: Figures) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    wrong = "nothing" if not figures["wrong"] else f"{figures['wrong']} things"
    return (
        f"{figures['date']}, commit {figures['commit']}: {figures['minutes']} minutes on {figures['cores']} cores and "
        f"{figures['memory GiB']} GiB for recon, PostgreSQL and all clients together; {versions}. "
        f"Lost or wrong: **{wrong}**."
    )


def _load(load: Figures) -> str:
    return _table(
        ["load of a shop, two processes", ""],
        [
            ["requests", f"{load['requests']:,} in {load['seconds']:.0f} s: {load['a second']:,} a second"],
            ["acknowledged; refused, as they should be", f"{load['acknowledged']:,}; {load['refused']:,}"],
            ["answered in", f"{load['p50 ms']} ms (median), {load['p99 ms']} ms (99 %)"],
            ["longest time without an answer", f"{load['longest gap']} s"],
            [
                "memory of a process",
                f"{load['memory at the start']} MiB at the start, {load['memory at the end']} MiB at the end",
            ],
            ["violations", load["violations"]],
            ["`recon check`", load["check"]],
        ],
    )


def _faults(faults: dict[str, Figures]) -> str:
    counts = ("times", "requests", "acknowledged", "refused", "unknown", "retried")
    return _table(
        ["fault", *counts, "longest gap, s", "recovery, s", "violations"],
        (
            [
                name,
                *(f"{each[count]:,}" for count in counts),
                each["longest gap"],
                each["until well"],
                each["violations"],
            ]
            for name, each in faults.items()
        ),
    )


def _storm(storm: Figures) -> str:
    idle = storm["idle"]
    return _table(
        ["overload, one process", ""],
        [
            ["connections that send without pause", f"{storm['connections']:,}, for {storm['seconds']} s"],
            ["requests that may wait (`--queue-limit`)", storm["queue"]],
            ["requests", f"{storm['offered']:,}: {storm['accepted']:,} accepted, {storm['refused']:,} refused"],
            [
                "accepted ones answered in",
                f"{storm['accepted p50 ms']} ms (median), {storm['accepted p99 ms']} ms (99 %)",
            ],
            ["refused ones answered in", f"{storm['refused p99 ms']} ms (99 %)"],
            ["a new connection was answered in", f"{storm['newcomer ms']} ms at most"],
            ["memory", f"{storm['memory at the start']} MiB before, {storm['most memory']} MiB at most"],
            ["normal latency after", f"{storm['until normal']} s"],
            ["accepted and lost", storm["lost"]],
            [
                f"{idle['connections']:,} idle connections",
                f"{idle['memory'] - idle['memory before']} MiB; others answered in {idle['slowest ms']} ms at most",
            ],
        ],
    )


def _fuzz(fuzz: Figures) -> str:
    known = {"seconds", "violations"}
    rows = [[what, f"{count:,}"] for what, count in fuzz.items() if what not in known]
    return _table(["malformed input", "inputs tried"], [*rows, ["violations", fuzz["violations"]]])
