"""The CPU time of recon's process by part: the samples of py-spy."""

import os
import re
import shutil
import signal
import subprocess
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import series as one_series
from bench.load.wrk import GRACE, LoadFailed
from bench.plan import Case
from bench.report.results import Series, Share
from bench.systems.postgres import Postgres
from bench.systems.processes import Server

RATE = 200  # samples a second
NAMED = 2  # functions that are named for each part

# The parts of recon's process, by the first folder of a function's file. Samples in no part, such as the standard
# library, count for the function that called it.
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
SENDS = "StreamWriter._write"  # of aiohttp.http_writer; as the innermost function: in uvloop's send
RUNS = re.compile(r"\((?:asyncio/runners|uvloop/)")  # as the innermost function: in uvloop's C code


def program() -> str:
    """Return the program py-spy. Raises LoadFailed, which says how to install it, if it is missing."""
    places = (sysconfig.get_path("scripts"), os.environ.get("PATH", ""))
    found = shutil.which("py-spy", path=os.pathsep.join(places))
    if found is None:
        raise LoadFailed("py-spy, which takes the profile, is not installed (`make bench` and `pip install py-spy` do)")
    return found


def version() -> str:
    """The version of py-spy."""
    done = subprocess.run([program(), "--version"], capture_output=True, text=True, check=True)  # noqa: S603 (ours)
    return done.stdout.strip()


def sampled(case: Case, times: one_series.Times, postgres: Postgres, folder: Path) -> tuple[Series, list[Share]]:
    """Run a series under py-spy; return it with the shares of the parts, which are empty if the series failed."""
    output = folder / "samples"

    @contextmanager
    def watching(server: Server) -> Iterator[None]:
        # Without --nonblocking py-spy stops the process for each sample, which biases samples to entries to the kernel.
        command = [program(), "record", f"--pid={server.pid}", f"--rate={RATE}", "--nonblocking"]
        command += ["--format=raw", f"--output={output}"]
        process = subprocess.Popen(  # noqa: S603 (our own command)
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield
        finally:
            process.send_signal(signal.SIGINT)  # then py-spy writes its samples
            output_text, _ = process.communicate(timeout=GRACE)
        if process.returncode or not output.exists():
            raise LoadFailed(f"py-spy failed: {output_text.strip()}")

    output.unlink(missing_ok=True)
    series = one_series.run(case, times, postgres, folder, watching)
    return series, [] if series.problems else _shares(case.workload, output.read_text())


def _shares(workload: str, samples: str) -> list[Share]:
    """Return the parts, largest first. py-spy's lines are stacks, outermost function first, each with its count."""
    parts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        if not stack or not count.isdecimal():  # a stack that changed while py-spy read it
            continue
        part, function = _part(stack.split(";"))
        parts[part][function] += int(count)
    total = sum(functions.total() for functions in parts.values())
    return [
        Share(
            workload=workload,
            part=part,
            share=functions.total() / total,
            most_in={name: count / total for name, count in functions.most_common(NAMED)},
        )
        for part, functions in sorted(parts.items(), key=lambda item: -item[1].total())
    ]


def _part(stack: list[str]) -> tuple[str, str]:
    """Return the part that a stack belongs to, and the function that decides it."""
    innermost = stack[-1]
    if innermost.startswith(SENDS):
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
