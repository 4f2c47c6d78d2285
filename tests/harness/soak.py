"""recon for minutes under load, in faults, in a storm and in rubbish, and what became of it: `make soak`.

    python -m tests.harness.soak --minutes 10

Everything is real, on this machine alone: recon processes, and a PostgreSQL of their own. What it does is done by the
functions of the tests; here they run for longer, and their figures are shown. With `--publish` they are written to
docs/soak.json, and its tables to docs/reliability.md. Ends with 1 when anything was lost or wrong.
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
from tests.harness.postgres import Postgres, postgres
from tests.harness.processes import Process, recon, recon_processes
from tests.harness.reliability_page import FIGURES, PAGE, ROOT, publish, tables
from tests.harness.shop import driving
from tests.harness.storm import idle_connections, many_files, probe, storm

NORMAL = 2  # seconds after a storm in which everything must be as before
SHOWN_EVERY = 10  # seconds between two lines about the load
MIB = 1024 * 1024

Figures = dict[str, Any]


@dataclass
class Soak:
    """One run: what is to be done, and what has been found so far.

    Attributes
    ----------
    minutes : what all parts together take, about.
    faults : names of those that come.
    server : the database's server.
    recovery : seconds after the end of a fault in which recon must serve again.
    figures : what is published.
    wrong : what was lost, or is wrong in another way; a line each.
    """

    minutes: float
    faults: Sequence[str]
    server: Postgres
    recovery: float
    figures: Figures = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    async def database(self) -> str:
        """The URL of an empty database."""
        name = f"soak_{time.monotonic_ns()}"
        await execute(self.server.url(), f"CREATE DATABASE {name} ENCODING UTF8 TEMPLATE template0")
        return self.server.url(name)

    def found(self, where: str, what: Sequence[str]) -> int:
        """Note what is wrong; how much it is."""
        self.wrong += [f"{where}: {each}" for each in what]
        return len(what)


async def load(soak: Soak) -> Figures:
    """A shop's load on two recon processes, in which nothing is broken."""
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
        said = [event for process in processes for event in process.events() if event["level"] != "info"]
    wrong = [str(each) for each in check(history, await contacts(url))]
    wrong += [f"not answered: {each}" for each in history.of(Outcome.UNKNOWN)]
    wrong += [f"refused: {each}: {each.status}" for each in history.of(Outcome.REFUSED) if each.status != 400]
    wrong += [f"log: {event}" for event in said]
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
    """MiB that recon has, per process."""
    return round(sum(psutil.Process(each.popen.pid).memory_info().rss for each in processes) / len(processes) / MIB)


def _answer_times(history: History) -> Figures:
    taken = sorted(each.ended - each.started for each in history.of(Outcome.ACKNOWLEDGED))
    return {f"p{share} ms": round(taken[len(taken) * share // 100] * 1000, 1) for share in (50, 99)}


def _checked(soak: Soak, where: str, url: str) -> str:
    """What `recon check` says of a database."""
    done = recon("check", "--database-url", url)
    if done.returncode:
        soak.found(where, [f"recon check: {line}" for line in (done.stdout + done.stderr).splitlines()])
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else "recon check has failed"


async def faults(soak: Soak) -> Figures:
    """Each fault, so many rounds of it, while two recon processes are under load."""
    rounds = max(1, round(soak.minutes / 2.5))
    figures = {}
    for name in soak.faults:
        print(f"  {name}: ", end="", flush=True)
        try:
            shown = figures[name] = await _fault(soak, name, rounds)
        except AssertionError as error:  # it has not happened, nobody has noticed, or all is not well again
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
            if figures.until_well > soak.recovery:
                wrong.append(f"recovered after {figures.until_well:.1f} seconds only")
            return {
                "times": rounds,
                **figures.load,
                "until well": round(figures.until_well, 2),
                "seen": {key: round(value, 2) for key, value in figures.seen.items()},
                "violations": soak.found(name, wrong),
                "check": _checked(soak, name, recons.database_url),
            }


async def overload(soak: Soak, connections: int = 2000, idle: int = 10_000) -> Figures:
    """Far more than one recon can carry, from 2,000 connections; and 10,000 that do nothing."""
    url = await soak.database()
    with (
        tempfile.TemporaryDirectory() as folder,
        recon_processes(Path(folder)) as start,
        many_files() as files,
    ):
        process = start("--database-url", url, "--queue-limit", str(connections // 4))
        before = _memory([process])
        came = await storm(
            process.port, process.popen.pid, connections=connections, seconds=max(2, 2.5 * soak.minutes), ramp=1
        )
        filed = {row["email"] for row in await fetch(url, "SELECT email FROM contact")}
        lost = [f"lost: {email} was acknowledged" for email in came.emails if email not in filed]
        wrong = [*lost, *(f"{count} times {what}" for what, count in came.others.items())]
        if came.until_normal > NORMAL:
            wrong.append(f"as before after {came.until_normal:.1f} seconds only")
        print(f"  storm: {came.offered:,} requests, {came.accepted:,} accepted, {came.refused:,} refused", flush=True)

        quiet = _memory([process])
        idle = min(idle, files - 500)
        with idle_connections(process.port, idle):
            looks = [await probe(process.port) for _ in range(100)]
            crowded = _memory([process])
        wrong += [f"idle connections: answered {status}" for status, _ in looks if status != 200]
        slowest = max(seconds for _, seconds in looks)
        print(f"  {idle:,} idle connections: others are answered in {slowest * 1000:.0f} ms at most", flush=True)
    return {
        "connections": came.connections,
        "queue": connections // 4,
        "seconds": round(came.seconds, 1),
        "offered": came.offered,
        "accepted": came.accepted,
        "refused": came.refused,
        "accepted p50 ms": round(came.median * 1000),
        "accepted p99 ms": round(came.p99 * 1000),
        "refused p99 ms": round(came.refused_p99 * 1000),
        "newcomer ms": round(came.newcomer * 1000),
        "memory at the start": before,
        "most memory": round(came.highest_memory / MIB),
        "until normal": round(came.until_normal, 2),
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
    """Rubbish, by the API's document and on the socket, other inputs each time."""
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
    """How many inputs the fuzz says that it has tried, by what it tried them on; the last says all."""
    return {what: int(count) for what, count in re.findall(r"^fuzz: (.+?): inputs tried: (\d+)", output, re.MULTILINE)}


PARTS: dict[str, Callable[[Soak], Any]] = {"load": load, "faults": faults, "storm": overload, "fuzz": fuzz}


async def run(soak: Soak, parts: Sequence[str]) -> None:
    """Do these parts, one after another, and take down what they come to."""
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
@click.option("--minutes", default=10.0, show_default=True, help="What it all takes, about; a minute at the least.")
@click.option("--only", type=click.Choice([*PARTS]), multiple=True, help="A part, again for several; all by default.")
@click.option("--fault", type=click.Choice([*FAULTS]), multiple=True, help="The same for the faults.")
@click.option(
    "--recovery", default=5.0, show_default=True, help="Seconds after a fault's end in which recon must serve again."
)
@click.option(
    "--publish",
    "to_page",
    is_flag=True,
    help="When nothing is wrong, write docs/soak.json, and its tables to docs/reliability.md.",
)
def main(minutes: float, only: Sequence[str], fault: Sequence[str], recovery: float, *, to_page: bool) -> None:
    """Run, show the figures, and say what was lost."""
    if to_page and (only or fault):
        raise click.UsageError("only what a whole run has found is published")
    # Not below a folder that is closed to other users, of whom the server is one.
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
