"""The load: wrk with identify.lua."""

import json
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SCRIPT = Path(__file__).with_name("identify.lua")
TIMEOUT = 10  # seconds without an answer after which wrk counts an error
GRACE = 30  # seconds after its time within which wrk must have ended


class LoadFailed(Exception):
    """The load generator failed."""


@dataclass(frozen=True, slots=True)
class Load:
    """The figures of one run of wrk; `cpu` is the CPU time of wrk itself, in seconds."""

    connections: int
    requests: int  # answered, with any status
    seconds: float
    p50_ms: float
    p99_ms: float
    statuses: int  # answers of 400 and above
    sockets: int  # connect, read and write errors and time-outs
    known: int  # sent, as the next three
    new: int
    extended: int
    joined: int
    cpu: float

    @property
    def sent(self) -> int:
        """Requests that were sent, answered or not."""
        return self.known + self.new + self.extended + self.joined

    @property
    def unsure(self) -> int:
        """Requests that were sent and not answered 200: in progress when wrk stopped, or failed."""
        return self.sent - (self.requests - self.statuses)

    @property
    def errors(self) -> int:
        """Requests without a 200, except those in progress at the end, at most one per connection."""
        lost = max(0, self.sent - self.requests - self.connections)  # wrk does not count a closed connection
        return self.statuses + max(self.sockets, lost)


@cache
def program() -> str:
    """Return the program wrk. Raises LoadFailed, which says how to install it, if it is missing."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadFailed("wrk, the load generator, is not installed (Debian, Ubuntu: apt-get install wrk)")
    return found


def version() -> str:
    """The version of wrk."""
    done = subprocess.run([program(), "-v"], capture_output=True, text=True, check=False, timeout=GRACE)  # noqa: S603 (ours)
    return done.stdout.partition(" Copyright")[0].strip()


def run(port: int, requests: str, space: str, *, first: int, known: int, connections: int, seconds: int) -> Load:
    """Send requests for `seconds`; `requests`, `space`, `first` and `known` are arguments of identify.lua."""
    command = [program(), "-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT}s", f"--script={SCRIPT}"]
    command += [f"http://127.0.0.1:{port}/identify", "--", requests, space, str(first), str(known)]
    before = cpu_of_children()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + GRACE)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"wrk did not end {GRACE} seconds after its time") from None
    result = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    if done.returncode or result is None:
        raise LoadFailed(f"wrk failed: {done.stderr.strip() or done.stdout.strip()}")
    figures = json.loads(result[1])
    return Load(connections=connections, cpu=cpu_of_children() - before, **figures.pop("sent"), **figures)


def cpu_of_children() -> float:
    """CPU seconds of the child processes that have ended; the difference of two calls is that of wrk alone."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
