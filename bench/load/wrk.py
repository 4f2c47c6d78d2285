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
GRACE = 30  # seconds that wrk may take beyond its time


class LoadFailed(Exception):
    """The load generator could not do its work."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one run of wrk sent and got; `cpu` is wrk's own, in seconds."""

    connections: int
    requests: int  # answered, whatever the status
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
        """Requests that were sent and not answered 200: under way when wrk stopped, or failed."""
        return self.sent - (self.requests - self.statuses)

    @property
    def errors(self) -> int:
        """Whatever did not end in a 200, but for the requests under way at the end, one a connection at most."""
        lost = max(0, self.sent - self.requests - self.connections)  # wrk says nothing of a connection closed on it
        return self.statuses + max(self.sockets, lost)


@cache
def program() -> str:
    """The program wrk; raises LoadFailed, saying how to get it, when it is not installed."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadFailed("wrk, which makes the load, is not installed (Debian, Ubuntu: apt-get install wrk)")
    return found


def version() -> str:
    """The version of wrk."""
    said = subprocess.run([program(), "-v"], capture_output=True, text=True, check=False, timeout=GRACE)  # noqa: S603 (ours)
    return said.stdout.partition(" Copyright")[0].strip()


def run(port: int, requests: str, space: str, *, first: int, known: int, connections: int, seconds: int) -> Load:
    """Ask for `seconds` over `connections`; `requests`, `space`, `first` and `known` are identify.lua's."""
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
    """CPU seconds of the processes that this one has waited for: in between two calls, wrk and nothing else."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
