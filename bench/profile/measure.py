"""The profile: times of the steps, CPU time, and py-spy's samples, each from its own series."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import series as one_series
from bench.plan import FEW, Case
from bench.profile import samples, timed
from bench.report import machine
from bench.report.results import Profile, Series, Step
from bench.series import LOG
from bench.systems.postgres import Postgres
from bench.systems.processes import Server

SAMPLED_LONGER = 2  # times as long as the others, for enough samples

# Series that are compared are close together.
CASES = (
    *(Case(1, "alone", system, 1) for system in ("select", "handler", "recon", "plain", "timed")),
    *(Case(1, "known", system, FEW) for system in ("handler", "recon", "plain")),
    *(Case(1, "mix", system, FEW) for system in ("recon", "timed", "sampled")),
    Case(1, "alone", "sampled", 1),
)


def measure(times: one_series.Times, postgres: Postgres, folder: Path, report: Callable[[Series], None]) -> Profile:
    """Measure the profile; `report` is called with each series when it has ended."""
    begun = time.monotonic()
    profile = Profile(
        started=datetime.now(UTC), seconds=times.series, source=machine.source(), sampler=samples.version()
    )
    longer = replace(times, series=times.series * SAMPLED_LONGER)
    for case in CASES:
        if case.system == "timed":
            series, steps = _timed(case, times, postgres, folder)
            profile.steps += steps
        elif case.system == "sampled":
            series, shares = samples.sampled(case, longer, postgres, folder)
            profile.shares += shares
        else:
            series = one_series.run(case, times, postgres, folder)
        profile.series.append(series)
        report(series)
    profile.minutes = (time.monotonic() - begun) / 60
    return profile


def _timed(case: Case, times: one_series.Times, postgres: Postgres, folder: Path) -> tuple[Series, list[Step]]:
    window: list[float] = []
    statements: list[tuple[str, float]] = []

    @contextmanager
    def watching(_server: Server) -> Iterator[None]:
        with postgres.logging_durations() as logged:
            window.append(timed.now())
            yield
            window.append(timed.now())
        statements.extend(logged)

    series = one_series.run(case, times, postgres, folder, watching)
    if series.problems:
        return series, []
    in_database: defaultdict[str | None, list[float]] = defaultdict(list)
    for statement, milliseconds in statements:
        in_database[timed.step_of(statement)].append(milliseconds)
    first, last = window
    in_process = {
        name: [1000 * took for ended, took in clock if first <= ended - took and ended <= last]
        for name, clock in timed.shown(folder / LOG).items()
    }
    return series, [
        _step(case.workload, name, found, in_database[name])
        for name in timed.STEPS
        if len(found := in_process.get(name, [])) > 1
    ]


def _step(workload: str, name: str, in_process: list[float], in_database: list[float]) -> Step:
    p50, p99 = _p50_p99(in_process)
    step = Step(workload=workload, name=name, count=len(in_process), p50_ms=p50, p99_ms=p99)
    if len(in_database) > 1:
        step.database_p50_ms, step.database_p99_ms = _p50_p99(in_database)
    return step


def _p50_p99(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]
