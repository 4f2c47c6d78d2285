"""The targets that the figures are compared with, each met or not."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench import dry_runs, exports, imports
from bench.plan import FEW, MANY
from bench.report.results import Results, Series

RECON = ("recon", "recon-2", "plain", "batch", "command", "dry-run")
FIRST_MINUTE = 60  # seconds; a fifth of the time when the memory is watched for less than five minutes
FLAT = 1.05  # maximum growth of the memory after that
MOST_MEMORY = 120  # MiB


@dataclass(frozen=True, slots=True)
class Target:
    """One target and what was measured.

    Attributes
    ----------
    title : the compared figures.
    bound : the target as text.
    values : the value of each round; empty if it was not measured.
    figure : the value that is compared with the target.
    met : whether it meets the target; None if it was not measured, or has no target.
    """

    title: str
    bound: str
    values: list[float]
    figure: float | None
    met: bool | None
    remark: str = ""

    @property
    def spread(self) -> str:
        """The least and the greatest value of the rounds."""
        return f"{_short(min(self.values))} to {_short(max(self.values))}" if self.values else ""

    @property
    def shown(self) -> str:
        """The figure as text."""
        return "" if self.figure is None else _short(self.figure)

    @property
    def verdict(self) -> str:
        """Met, not met, or not measured."""
        if self.figure is None:
            return "not measured"
        return {True: "met", False: "**not met**", None: "(no target)"}[self.met]


Value = Callable[["Round"], float | None]


class Round:
    """The series of one round, by name."""

    def __init__(self, series: list[Series]) -> None:
        self._series = {each.name: each for each in series}
        self.all = series

    def get(self, workload: str, system: str, connections: int) -> Series | None:
        """Return a series, or None if it was not measured or does not count."""
        series = self._series.get(f"{workload}/{system}/{connections}")
        return None if series is None or not series.counts else series

    def rate(self, workload: str, system: str, connections: int = FEW) -> float | None:
        """Return the requests per second of a series."""
        series = self.get(workload, system, connections)
        return None if series is None else series.per_second


def targets(results: Results) -> list[Target]:
    """All targets, in the order of the page."""
    rounds = [
        Round([series for series in results.series if series.round == number and series.workload != "memory"])
        for number in range(1, results.rounds + 1)
    ]

    def at_least(title: str, bound: float, value: Value) -> Target:
        values, figure = _medians(rounds, value)
        return Target(title, f"≥ {bound:g}", values, figure, None if figure is None else figure >= bound)

    def at_most(title: str, bound: float, value: Value) -> Target:
        values, figure = _medians(rounds, value)
        return Target(title, f"≤ {bound:g}", values, figure, None if figure is None else figure <= bound)

    def worst(title: str, bound: float, value: Value) -> Target:
        """A target for events that must never happen: the greatest value counts instead of the median."""
        values = [found for each in rounds if (found := value(each)) is not None]
        figure = max(values, default=None)
        return Target(
            title, f"≤ {bound:g}" if bound else "0", values, figure, None if figure is None else figure <= bound
        )

    def untargeted(title: str, value: Value) -> Target:
        """A figure without a target."""
        values, figure = _medians(rounds, value)
        return Target(title, "", values, figure, None)

    workloads = ("new", "mix", "known", "known-1m", "hot")
    return [
        at_least(
            "all new: recon ÷ recon with one transaction per request",
            5,
            _ratio(("new", "recon", FEW), ("new", "plain", FEW)),
        ),
        at_least(
            f"all new, {MANY} connections: recon ÷ pgbench with {MANY} clients",
            1,
            _ratio(("new", "recon", MANY), ("new", "pgbench", MANY)),
        ),
        untargeted(
            f"all new, {MANY} connections: recon ÷ pgbench with {FEW} clients",
            _ratio(("new", "recon", MANY), ("new", "pgbench", FEW)),
        ),
        at_least(
            "all known: recon ÷ the handler with no database",
            0.8,
            _ratio(("known", "recon", FEW), ("known", "handler", FEW)),
        ),
        at_least(
            "mix: recon ÷ the handler with no database", 0.5, _ratio(("mix", "recon", FEW), ("mix", "handler", FEW))
        ),
        at_least(
            "all new: lines of a batch ÷ single requests", 2.5, _ratio(("new", "batch", 1), ("new", "recon", FEW))
        ),
        at_least(
            "all known: lines of a batch ÷ single requests", 2, _ratio(("known", "batch", 1), ("known", "recon", FEW))
        ),
        at_least(
            "mix beside a hundred followers of the change feed ÷ mix alone",
            0.9,
            _ratio(("followed", "recon", FEW), ("mix", "recon", FEW)),
        ),
        at_least(
            "records a second of an import ÷ rows a second of COPY",
            imports.TARGET,
            _ratio(("import", "command", 1), ("import", "copy", 1)),
        ),
        at_least(
            "contacts a second of an export ÷ rows a second of COPY to a file",
            exports.TARGET,
            _ratio(("import", "export", 1), ("import", "copy-out", 1)),
        ),
        at_most(
            "seconds of a dry run of a million records, with other guards, too", dry_runs.SECONDS, _dry_run_seconds
        ),
        at_most("MiB of that dry run", dry_runs.MIB, _dry_run_mib),
        worst("retries a request, one process, the worst series", 0, _most_retries("recon")),
        worst("retries a request, two processes, the worst series", 0.001, _most_retries("recon-2")),
        worst("errors, wrong answers, violations, wrong counts of rows", 0, _faults),
        *(at_most(f"p99 ÷ p50: {workload}", 3, _tail(workload)) for workload in workloads),
        at_least(
            "all known: a million contacts ÷ a thousand",
            0.9,
            _ratio(("known-1m", "recon", FEW), ("known", "recon", FEW)),
        ),
        at_least("hot ÷ all known", 0.95, _ratio(("hot", "recon", FEW), ("known", "recon", FEW))),
        at_most("one client alone, known customer: p50 ÷ that of one indexed SELECT by asyncpg", 3, _alone),
        *_memory(results),
    ]


def _medians(rounds: list[Round], value: Value) -> tuple[list[float], float | None]:
    values = [found for each in rounds if (found := value(each)) is not None]
    return values, median(values) if values else None


def _ratio(top: tuple[str, str, int], bottom: tuple[str, str, int]) -> Value:
    def value(current: Round) -> float | None:
        above, below = current.rate(*top), current.rate(*bottom)
        return above / below if above and below else None

    return value


def _most_retries(system: str) -> Value:
    def value(current: Round) -> float | None:
        retries = [series.retries for series in current.all if series.system == system and series.retries is not None]
        return max(retries, default=None)

    return value


def _faults(current: Round) -> float | None:
    ours = [series for series in current.all if series.system in RECON]
    return sum(series.errors + len(series.problems) for series in ours) if ours else None


def _tail(workload: str) -> Value:
    def value(current: Round) -> float | None:
        series = current.get(workload, "recon", FEW)
        return None if series is None else series.p99_ms / series.p50_ms

    return value


def _dry_run_seconds(current: Round) -> float | None:
    series = current.get("import", "dry-run", 1)
    return None if series is None else series.seconds


def _dry_run_mib(current: Round) -> float | None:
    series = current.get("import", "dry-run", 1)
    return None if series is None else max(series.rss_mib)


def _alone(current: Round) -> float | None:
    ours, raw = current.get("alone", "recon", 1), current.get("alone", "select", 1)
    return ours.p50_ms / raw.p50_ms if ours and raw else None


def memory_of(series: Series) -> tuple[float, float, float] | None:
    """Memory in MiB after the first minute, at the end, and at most after the first minute."""
    first = min(FIRST_MINUTE, len(series.rss_mib) // 5)
    later = series.rss_mib[first:]
    return (later[0], later[-1], max(later)) if later else None


def _memory(results: Results) -> list[Target]:
    watched = next((series for series in results.series if series.workload == "memory"), None)
    found = memory_of(watched) if watched else None
    minutes = f"{watched.seconds / 60:.1f} minutes" if watched else "five minutes"
    title = f"memory of one process, {MANY} connections, {minutes}"
    if watched is None or found is None:
        return [Target(f"{title}: most ÷ after the first minute", f"≤ {FLAT:g}", [], None, None)]
    early, late, most = found
    remark = f"{early:.0f} MiB, at the end {late:.0f} MiB"
    grown = most / early
    faulty = bool(watched.problems or watched.errors)
    return [
        Target(f"{title}: most ÷ after the first minute", f"≤ {FLAT:g}", [grown], grown, grown <= FLAT, remark),
        Target(f"{title}: MiB at most", f"≤ {MOST_MEMORY}", [most], most, most <= MOST_MEMORY),
        Target(
            "errors, wrong answers, violations, wrong counts of rows meanwhile",
            "0",
            [float(watched.errors + len(watched.problems))],
            float(watched.errors + len(watched.problems)),
            not faulty,
        ),
    ]


def _short(value: float) -> str:
    if value >= 100:  # noqa: PLR2004 (three figures are enough)
        return f"{value:,.0f}"
    return f"{value:.4f}".rstrip("0").rstrip(".") if value < 0.01 else f"{value:.2f}"  # noqa: PLR2004
