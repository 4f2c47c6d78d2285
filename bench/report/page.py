"""The published files: results.json, the page with its tables, and the plot."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

from bench.load.workloads import WORKLOADS
from bench.plan import FEW, MANY
from bench.report import plot, profile
from bench.report.results import Results, Series
from bench.report.tables import table
from bench.report.targets import Target, memory_of, targets
from bench.systems.processes import SYSTEMS
from recon.quantities import quantity

ENOUGH_ROUNDS = 3


def write(results: Results, folder: Path) -> None:
    """Write the three files to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(results.model_dump_json(indent=1) + "\n")
    (folder / "README.md").write_text(page(results))
    plot.write(results, folder / "results.png")


def read(folder: Path) -> Results:
    """Read the results of an earlier run."""
    return Results.model_validate_json((folder / "results.json").read_text())


PAGE = """\
# The benchmark's results

Written by `python -m bench`; do not edit. Measured on {day} in {minutes:.0f} minutes: {rounds},
{warm_up} s of warm-up and {seconds} s of load for each series, everything on one machine, the load generator too.

![Requests a second by workload and system](results.png)

## Targets

A ratio is taken within a round, and the median of the rounds counts; for what must never happen, the worst round.

{targets}

## Where the time goes

{profile}

## {few} connections

{figures_few}

## {many} connections

{figures_many}

## One client alone, and memory

{figures_alone}

{memory}

## Failed series

{failed}

## What is what

The workloads:

{workloads}

The systems:

{systems}

Figures are medians of the rounds, with the least and the most in brackets. p50 and p99 are what the client sees, as
wrk measures them (corrected for coordinated omission). Retries and batch sizes are from recon's own `/metrics`. CPU is
in seconds per thousand requests: of the system's processes, of all PostgreSQL's, of the load generator. *plain* has a
pool of 16 connections, like *recon*.

Every series starts with a database of its own: empty and never analysed for *new*; with its customers, vacuumed and
analysed, for the others. pgbench's has 200,000 contacts with random keys, analysed, on the same schema.

During each series with recon, one more client sends ten requests a second and compares each answer with a model of the
rules. It requests stored customers or, where the workload writes, goes through all the rules with people of its own.
After the series, `recon check` must find no violation, and the numbers of contacts and primaries must match the
answered requests (with a tolerance of one request per connection, for those in progress when the load stops).
Otherwise the series does not count.

## The machine

{machine}

## Again

`make bench`, or `{command}`. It takes about {minutes:.0f} minutes, and the machine must do nothing else.
`--help` lists all options.
"""


def page(results: Results) -> str:
    """The Markdown page."""
    rounds = quantity(results.rounds, "round")
    if results.rounds < ENOUGH_ROUNDS:
        rounds += " (**fewer than three: for trying only**)"
    failed = [series for series in results.series if series.problems]
    return PAGE.format(
        day=f"{results.started:%Y-%m-%d %H:%M} UTC",
        minutes=results.minutes,
        rounds=rounds,
        warm_up=results.warm_up,
        seconds=results.seconds,
        targets=targets_table(results),
        profile=profile.section(results.profile),
        few=FEW,
        figures_few=figures_table(results, FEW),
        many=MANY,
        figures_many=figures_table(results, MANY),
        figures_alone=figures_table(results, 1),
        memory=_memory(results),
        failed="\n".join(f"- `{one.name}`, round {one.round}: {'; '.join(one.problems)}" for one in failed) or "None.",
        workloads="\n".join(f"- **{workload.name}**: {workload.title}." for workload in WORKLOADS.values()),
        systems="\n".join(f"- **{system.name}**: {system.title}." for system in SYSTEMS.values()),
        machine=table(("", ""), [[name, text] for name, text in results.machine.items()]),
        command=results.command,
    )


def targets_table(results: Results) -> str:
    """The targets, met and not met."""

    def row(target: Target) -> list[str]:
        return [
            target.title,
            target.bound,
            target.shown + (f" ({target.remark})" if target.remark else ""),
            target.spread,
            target.verdict,
        ]

    return table(("", "target", "measured", "over the rounds", ""), map(row, targets(results)))


def figures_table(results: Results, connections: int) -> str:
    """Make the table of figures with this number of connections, a row for each workload and system."""
    found: dict[tuple[str, str], list[Series]] = {}
    for each in results.series:
        if each.connections == connections and each.workload != "memory":
            found.setdefault((each.workload, each.system), []).append(each)
    order = {name: index for index, name in enumerate((*WORKLOADS, *SYSTEMS))}
    rows = []
    for workload, system in sorted(found, key=lambda key: (order[key[0]], order[key[1]])):
        series = found[workload, system]
        rows.append(
            [
                workload,
                system,
                _spread(series, lambda each: each.per_second, "{:,.0f}"),
                _median(series, lambda each: each.p50_ms, "{:.2f}"),
                _median(series, lambda each: each.p99_ms, "{:.2f}"),
                _median(series, lambda each: each.retries, "{:.4g}"),
                f"{sum(each.errors for each in series):,}",
                _median(series, lambda each: each.system_cpu, "{:.3f}"),
                _median(series, lambda each: each.database_cpu, "{:.3f}"),
                _median(series, lambda each: each.load_cpu, "{:.3f}"),
                _median(series, lambda each: each.read_batch, "{:.1f}"),
                _median(series, lambda each: each.write_batch, "{:.1f}"),
                "**failed**" if any(each.problems for each in series) else "right",
            ]
        )
    if not rows:
        return "Not measured."
    heads = ("workload", "system", "requests/s", "p50 ms", "p99 ms", "retries a request", "errors")
    return table((*heads, "CPU system", "CPU database", "CPU load", "read batch", "write batch", "data"), rows)


def line(series: Series) -> str:
    """Describe a series in one line, for the terminal."""
    text = f"{series.per_second:>8,.0f} /s  p50 {series.p50_ms:7.2f}  p99 {series.p99_ms:7.2f} ms"
    if series.retries is not None:
        text += f"  retries {series.retries:.4g}"
    if series.errors:
        text += f"  errors {series.errors}"
    return text + ("".join(f"\n    FAILED: {problem}" for problem in series.problems))


Figure = Callable[[Series], float | None]


def _values(series: list[Series], figure: Figure) -> list[float]:
    return [value for each in series if (value := figure(each)) is not None]


def _median(series: list[Series], figure: Figure, form: str) -> str:
    values = _values(series, figure)
    return form.format(median(values)) if values else ""


def _spread(series: list[Series], figure: Figure, form: str) -> str:
    values = _values(series, figure)
    text = _median(series, figure, form)
    return text if len(values) == 1 else f"{text} ({form.format(min(values))} to {form.format(max(values))})"


def _memory(results: Results) -> str:
    watched = next((series for series in results.series if series.workload == "memory"), None)
    found = memory_of(watched) if watched else None
    if watched is None or found is None:
        return "Memory was not measured."
    early, late, most = found
    return (
        f"Memory of one recon process under {watched.connections} connections of the mix for {watched.seconds:.0f} s, "
        f"at {watched.per_second:,.0f} requests a second: {early:.1f} MiB after the first minute (of less than five: "
        f"the first fifth), {late:.1f} MiB at the end, {most:.1f} MiB at most in between."
    )
