"""Where the time goes: steps by the clock, CPU time, and py-spy's samples."""

import os
import re
import shutil
import signal
import statistics
import subprocess
import sysconfig
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bench import series as one_series
from bench.load.wrk import GRACE, LoadFailed
from bench.plan import FEW, Case
from bench.profile import timed
from bench.report import machine
from bench.report.results import Profile, Series, Share, Step
from bench.series import LOG
from bench.systems.postgres import Postgres
from bench.systems.processes import Server

RATE = 200  # samples a second
SAMPLED_LONGER = 2  # times as long as the others, for enough samples
MOST_IN = 2  # functions that are named for each part

# What is compared under one load stands close together.
CASES = (
    *(Case(1, "alone", system, 1) for system in ("select", "handler", "recon", "plain", "timed")),
    *(Case(1, "known", system, FEW) for system in ("handler", "recon", "plain")),
    *(Case(1, "mix", system, FEW) for system in ("recon", "timed", "sampled")),
    Case(1, "alone", "sampled", 1),
)

# The parts of recon's process, by the first folder of a function's file. Samples of what is in none of them,
# such as the standard library, count for the function that called it.
LOOP = "event loop and the kernel for it: waking up, polling, receiving; asyncpg's parsing of rows"
SENDING = "event loop and the kernel for it: sending answers"
PARTS = {
    "aiohttp": "aiohttp: parsing requests, routing, building answers",
    "multidict": "aiohttp: parsing requests, routing, building answers",
    "yarl": "aiohttp: parsing requests, routing, building answers",
    "asyncpg": "asyncpg: binding, encoding and sending statements",
    "pydantic": "pydantic: validating bodies",
    "prometheus_client": "prometheus-client: counting",
    "recon": "recon's own modules",
}
SENDS = re.compile(r"^StreamWriter\._write")  # aiohttp's; as the innermost function: in uvloop's send
RUNS = re.compile(r"\((?:asyncio/runners|uvloop/)")  # as the innermost function: in uvloop's C code


def pyspy() -> str:
    """The program; raises LoadFailed, saying how to get it, when it is not installed."""
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""))
    program = shutil.which("py-spy", path=os.pathsep.join(places))
    if program is None:
        raise LoadFailed("py-spy, which takes the profile, is not installed (`make bench` and `pip install py-spy` do)")
    return program


def measure(times: one_series.Times, postgres: Postgres, folder: Path, tell: Callable[[Series], None]) -> Profile:
    """All of it; `tell` is called with each series as it ends."""
    begun = time.monotonic()
    profile = Profile(
        started=datetime.now(UTC), seconds=times.series, source=machine.source(), sampler=_version(pyspy())
    )
    longer = replace(times, series=times.series * SAMPLED_LONGER)
    for case in CASES:
        if case.system == "timed":
            series, steps = _timed(case, times, postgres, folder)
            profile.steps += steps
        elif case.system == "sampled":
            series, shares = _sampled(case, longer, postgres, folder)
            profile.shares += shares
        else:
            series = one_series.run(case, times, postgres, folder)
        profile.series.append(series)
        tell(series)
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


def _sampled(case: Case, times: one_series.Times, postgres: Postgres, folder: Path) -> tuple[Series, list[Share]]:
    output = folder / "samples"

    @contextmanager
    def watching(server: Server) -> Iterator[None]:
        # Stopped for each sample, a process is found where it enters the kernel far more often than it is there.
        command = [pyspy(), "record", f"--pid={server.pid}", f"--rate={RATE}", "--nonblocking"]
        command += ["--format=raw", f"--output={output}"]
        process = subprocess.Popen(  # noqa: S603 (our own command)
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)  # on which it writes what it has
            said, _ = process.communicate(timeout=GRACE)
        if process.returncode or not output.exists():
            raise LoadFailed(f"py-spy failed: {said.strip()}")

    output.unlink(missing_ok=True)
    series = one_series.run(case, times, postgres, folder, watching)
    return series, [] if series.problems else _shares(case.workload, output.read_text())


def _version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def _step(workload: str, name: str, in_process: list[float], in_database: list[float]) -> Step:
    p50, p99 = _p50_p99(in_process)
    step = Step(workload=workload, name=name, count=len(in_process), p50_ms=p50, p99_ms=p99)
    if len(in_database) > 1:
        step.database_p50_ms, step.database_p99_ms = _p50_p99(in_database)
    return step


def _p50_p99(values: list[float]) -> tuple[float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[98]


def _shares(workload: str, samples: str) -> list[Share]:
    """The parts, largest first; py-spy's lines are stacks, outermost function first, and how often each was seen."""
    parts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdecimal():  # it changed while it was looked at
            continue
        part, function = _part(stack.split(";"))
        parts[part][function] += int(count)
    total = sum(functions.total() for functions in parts.values())
    return [
        Share(
            workload=workload,
            part=part,
            share=functions.total() / total,
            most_in={name: count / total for name, count in functions.most_common(MOST_IN)},
        )
        for part, functions in sorted(parts.items(), key=lambda item: -item[1].total())
    ]


def _part(stack: list[str]) -> tuple[str, str]:
    """Which part a stack is in, and by which function of it."""
    innermost = stack[-1]
    if SENDS.search(innermost):
        return SENDING, _function(innermost)
    if RUNS.search(innermost):
        return LOOP, _function(innermost)
    for frame in reversed(stack):
        _, _, file = frame.rpartition("(")
        if part := PARTS.get(file.partition("/")[0]):
            return part, _function(frame)
    return LOOP, _function(innermost)


def _function(frame: str) -> str:
    """`Class.method (file.py:12)` without the line."""
    return re.sub(r":\d+\)$", ")", frame)
