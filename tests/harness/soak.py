"""recon under load, fault injection, overload and malformed input for minutes: `make soak`.

    python -m tests.harness.soak --minutes 10

Everything is real, and on this machine: recon processes, and their own PostgreSQL. The soak runs the functions of the
tests for longer and prints the figures. `--publish` writes them to docs/soak.json, and their tables to
docs/reliability.md. The exit code is 1 if anything was lost or wrong.
"""
# ruff: noqa: T201 (it prints)

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import click
import psutil

from recon import __version__
from recon.quantities import quantity
from tests.harness.databases import execute, fetch
from tests.harness.exchanges import History, Outcome
from tests.harness.faults import FAULTS, fleet, survived
from tests.harness.history import check, contacts
from tests.harness.journal import check_journal, events
from tests.harness.postgres import Postgres, postgres
from tests.harness.processes import Process, recon, recon_processes
from tests.harness.reliability_page import FIGURES, PAGE, ROOT, publish, tables
from tests.harness.shop import driving
from tests.harness.storm import idle_connections, many_files, probe, storm

MAX_RECOVERY = 2  # seconds after the overload within which latency must be normal again
SHOWN_EVERY = 10  # seconds between two lines about the load
MIB = 1024 * 1024

Figures = dict[str, Any]


@dataclass
class Soak:
    """One run: its parameters, and what it has found so far.

    Attributes
    ----------
    minutes : the approximate duration of all parts together.
    faults : the names of the faults to inject.
    server : the database's server.
    recovery : seconds after the end of a fault in which recon must serve again.
    figures : the figures to publish.
    wrong : a line for everything that was lost or is wrong.
    """

    minutes: float
    faults: Sequence[str]
    server: Postgres
    recovery: float
    figures: Figures = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    async def database(self) -> str:
        """Create an empty database and return its URL."""
        name = f"soak_{time.monotonic_ns()}"
        await execute(self.server.url(), f"CREATE DATABASE {name} ENCODING UTF8 TEMPLATE template0")
        return self.server.url(name)

    def found(self, where: str, violations: Sequence[str]) -> int:
        """Note violations, and return their number."""
        self.wrong += [f"{where}: {each}" for each in violations]
        return len(violations)


async def load(soak: Soak) -> Figures:
    """A shop's load on two recon processes, without faults."""
    url = await soak.database()
    with tempfile.TemporaryDirectory() as folder, recon_processes(Path(folder)) as start:
        processes = [start("--database-url", url) for _ in range(2)]
        memory = [_memory(processes)]
        async with driving([process.url for process in processes], seed=time.monotonic_ns() % 1_000_000) as history:
            until = time.monotonic() + 60 * soak.minutes * 0.3
            while (left := until - time.monotonic()) > 0:
                await asyncio.sleep(min(SHOWN_EVERY, left))
                memory.append(_memory(processes))
                seconds = time.monotonic() - history.started
                print(
                    f"  {seconds:4.0f} s: {history.acknowledged:,} requests acknowledged, recon has {memory[-1]} MiB",
                    flush=True,
                )
        logged = [event for process in processes for event in process.events() if event["level"] != "info"]
    rows = await contacts(url)
    wrong = [str(each) for each in check(history, rows)] + check_journal(history, rows, await events(url))
    wrong += [f"not answered: {each}" for each in history.of(Outcome.UNKNOWN)]
    wrong += [f"refused: {each}: {each.status}" for each in history.of(Outcome.REFUSED) if each.status != 400]
    wrong += [f"log: {event}" for event in logged]
    figures = history.figures()
    return {
        **figures,
        "a second": round(figures["requests"] / figures["seconds"]),
        **_answer_times(history),
        "memory at the start": memory[0],
        "memory at the end": memory[-1],
        "most memory": max(memory),
        "violations": soak.found("load", wrong),
        "check": _checked(soak, "load", url),
    }


def _memory(processes: Sequence[Process]) -> int:
    """Return the memory of recon in MiB, the mean of the processes."""
    return round(sum(psutil.Process(each.popen.pid).memory_info().rss for each in processes) / len(processes) / MIB)


def _answer_times(history: History) -> Figures:
    taken = sorted(each.ended - each.started for each in history.of(Outcome.ACKNOWLEDGED))
    return {f"p{share} ms": round(taken[len(taken) * share // 100] * 1000, 1) for share in (50, 99)}


def _checked(soak: Soak, where: str, url: str) -> str:
    """Run `recon check` on a database, and return its summary."""
    done = recon("check", "--database-url", url)
    if done.returncode:
        soak.found(where, [f"recon check: {line}" for line in (done.stdout + done.stderr).splitlines()])
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "recon check has failed"


async def faults(soak: Soak) -> Figures:
    """Each fault, several times, while two recon processes are under load."""
    rounds = max(1, round(soak.minutes / 2.5))
    figures = {}
    for name in soak.faults:
        print(f"  {name}: ", end="", flush=True)
        try:
            shown = figures[name] = await _fault(soak, name, rounds)
        except AssertionError as error:  # the fault had no effect, or recon has not recovered
            soak.found(name, [str(error)])
            print(error, flush=True)
            continue
        print(
            f"{shown['times']} times in {shown['requests']:,} requests, recovered in {shown['until well']:.2f} s, "
            f"{quantity(shown['violations'], 'violation')}",
            flush=True,
        )
    return figures


async def _fault(soak: Soak, name: str, rounds: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        async with fleet(soak.server, Path(folder)) as recons:
            figures = await survived(FAULTS[name], recons, seed=list(FAULTS).index(name), rounds=rounds)
            wrong = list(figures.violations)
            if figures.recovery > soak.recovery:
                wrong.append(f"recovered after {figures.recovery:.1f} seconds only")
            return {
                "times": rounds,
                **figures.load,
                "until well": round(figures.recovery, 2),
                "seen": {key: round(value, 2) for key, value in figures.seen.items()},
                "violations": soak.found(name, wrong),
                "check": _checked(soak, name, recons.database_url),
            }


async def overload(soak: Soak, connections: int = 2000, idle: int = 10_000) -> Figures:
    """Far more requests than one recon can serve, from 2,000 connections; then 10,000 idle connections."""
    url = await soak.database()
    with (
        tempfile.TemporaryDirectory() as folder,
        recon_processes(Path(folder)) as start,
        many_files() as files,
    ):
        process = start("--database-url", url, "--queue-limit", str(connections // 4))
        before = _memory([process])
        peak = await storm(
            process.port, process.popen.pid, connections=connections, seconds=max(2, 2.5 * soak.minutes), ramp=1
        )
        filed = {row["email"] for row in await fetch(url, "SELECT email FROM contact")}
        lost = [f"lost: {email} was acknowledged" for email in peak.emails if email not in filed]
        wrong = [*lost, *(f"{count} times {what}" for what, count in peak.others.items())]
        if peak.until_normal > MAX_RECOVERY:
            wrong.append(f"latency was normal again only after {peak.until_normal:.1f} seconds")
        print(f"  storm: {peak.offered:,} requests, {peak.accepted:,} accepted, {peak.refused:,} refused", flush=True)

        quiet = _memory([process])
        idle = min(idle, files - 500)
        with idle_connections(process.port, idle):
            probes = [await probe(process.port) for _ in range(100)]
            crowded = _memory([process])
        wrong += [f"idle connections: answered {status}" for status, _ in probes if status != 200]
        slowest = max(seconds for _, seconds in probes)
        print(f"  {idle:,} idle connections: others are answered in {slowest * 1000:.0f} ms at most", flush=True)
    return {
        "connections": peak.connections,
        "queue": connections // 4,
        "seconds": round(peak.seconds, 1),
        "offered": peak.offered,
        "accepted": peak.accepted,
        "refused": peak.refused,
        "accepted p50 ms": round(peak.median * 1000),
        "accepted p99 ms": round(peak.p99 * 1000),
        "refused p99 ms": round(peak.refused_p99 * 1000),
        "newcomer ms": round(peak.newcomer * 1000),
        "memory at the start": before,
        "most memory": round(peak.highest_memory / MIB),
        "until normal": round(peak.until_normal, 2),
        "lost": len(lost),
        "idle": {
            "connections": idle,
            "memory before": quiet,
            "memory": crowded,
            "slowest ms": round(slowest * 1000),
        },
        "violations": soak.found("storm", wrong),
        "check": _checked(soak, "storm", url),
    }


async def fuzz(soak: Soak) -> Figures:
    """Malformed input, by the OpenAPI document and on the socket; other inputs each time."""
    seconds = max(1, round(60 * soak.minutes * 0.1))  # for each half
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "--quiet", "--capture=no", "--no-header", "tests/reliability/test_fuzz.py"),
        cwd=ROOT,
        env=os.environ | {"RECON_TEST_FUZZ_SECONDS": str(seconds), "RECON_TEST_POSTGRES": "embedded"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert running.stdout is not None
    lines = []
    async for line in running.stdout:
        lines.append(line.decode())
        if lines[-1].startswith("fuzz: "):
            print(f"  {lines[-1].removeprefix('fuzz: ').strip()}", flush=True)
    code = await running.wait()
    if code:
        print("".join(lines[-60:]))
    return {
        "seconds": 2 * seconds,
        **tried("".join(lines)),
        "violations": soak.found("fuzz", ["tests/reliability/test_fuzz.py has failed"] if code else []),
    }


def tried(output: str) -> dict[str, int]:
    """Parse how many inputs the fuzzing reports to have tried, by target; the last line about a target counts."""
    return {what: int(count) for what, count in re.findall(r"^fuzz: (.+?): inputs tried: (\d+)", output, re.MULTILINE)}


PARTS: dict[str, Callable[[Soak], Any]] = {"load": load, "faults": faults, "storm": overload, "fuzz": fuzz}


async def run(soak: Soak, parts: Sequence[str]) -> None:
    """Run these parts one after another, and note their figures."""
    started = time.monotonic()
    soak.figures |= await _about(soak)
    for name in parts:
        part = PARTS[name]
        print(f"{name}: {(part.__doc__ or '').splitlines()[0]}", flush=True)
        soak.figures[name] = await part(soak)
    soak.figures["minutes"] = round((time.monotonic() - started) / 60, 1)
    soak.figures["wrong"] = len(soak.wrong)


async def _about(soak: Soak) -> Figures:
    [version] = await fetch(soak.server.url(), "SHOW server_version")
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": git.stdout.strip() or "unknown",
        "cores": os.cpu_count(),
        "memory GiB": round(psutil.virtual_memory().total / MIB / 1024),
        "versions": {
            "recon": __version__,
            "Python": sys.version.split()[0],
            "PostgreSQL": version["server_version"].split()[0],
            "asyncpg": asyncpg.__version__,
        },
    }


@click.command(help=(__doc__ or "").split("\n\n")[0])
@click.option("--minutes", default=10.0, show_default=True, help="Approximate duration; at least a minute.")
@click.option("--only", type=click.Choice([*PARTS]), multiple=True, help="Run this part only; may be repeated.")
@click.option("--fault", type=click.Choice([*FAULTS]), multiple=True, help="Inject this fault only; may be repeated.")
@click.option(
    "--recovery", default=5.0, show_default=True, help="Maximum seconds from a fault's end until recon serves again."
)
@click.option(
    "--publish",
    "to_page",
    is_flag=True,
    help="If nothing is wrong, write docs/soak.json, and its tables to docs/reliability.md.",
)
def main(minutes: float, only: Sequence[str], fault: Sequence[str], recovery: float, *, to_page: bool) -> None:
    """Run recon under load and faults; print the figures, and everything that was lost or wrong."""
    if to_page and (only or fault):
        raise click.UsageError("--publish needs a whole run: leave out --only and --fault")
    # Not below a folder that is closed to other users: the server may run as another user.
    with tempfile.TemporaryDirectory(prefix="recon-soak-") as folder, postgres(Path(folder)) as server:
        soak = Soak(minutes, fault or [*FAULTS], server, recovery)
        asyncio.run(run(soak, only or [*PARTS]))
    for line in _summary(soak):
        print(line)
    if soak.wrong:
        sys.exit(1)
    if to_page:
        publish(soak.figures)
        print(f"written: {FIGURES.relative_to(ROOT)} and the tables of {PAGE.relative_to(ROOT)}")


def _summary(soak: Soak) -> Iterator[str]:
    for table in tables(soak.figures).values():
        yield f"\n{table}"
    yield ""
    if not soak.wrong:
        yield "lost: nothing"
    for line in soak.wrong[:100]:
        yield f"wrong: {line}"


if __name__ == "__main__":
    main()
