"""One series from start to end: an empty database, a warm-up, the load, and the checks afterwards."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from bench import dry_runs, exports, imports
from bench.load import batches, people, wrk
from bench.load.followers import Followers
from bench.load.probe import Probe
from bench.load.watch import MemoryWatch, cpu_of
from bench.load.workloads import WORKLOADS, Growth, Range, Workload, growth
from bench.load.wrk import Load, LoadFailed
from bench.plan import Case
from bench.report.results import Series
from bench.systems import rawdb
from bench.systems.postgres import Postgres
from bench.systems.processes import SYSTEMS, Server, SystemFailed, serving
from recon.quantities import quantity
from recon.sql import invariants

LOG = "system.log"  # the file with the output of a series' system, in the folder
VIOLATIONS_SHOWN = 3
Watching = Callable[[Server], AbstractContextManager[object]]  # measures while the load runs


@dataclass(frozen=True, slots=True)
class Times:
    """The durations of warm-up and load, in seconds."""

    warm_up: int
    series: int
    memory: int

    def of(self, case: Case) -> tuple[int, int]:
        """Warm-up and load of a series."""
        if case.workload == "memory":
            return 0, self.memory  # its first minute is the warm-up
        return self.warm_up, self.series


def run(case: Case, times: Times, postgres: Postgres, folder: Path, watching: Watching = nullcontext) -> Series:
    """Run a series. Its failures are in its `problems`; logs and other files go to `folder`."""
    system, workload = SYSTEMS[case.system], WORKLOADS[case.workload]
    series = Series(round=case.round, workload=case.workload, system=case.system, connections=case.connections)
    try:
        if system.kind == "pgbench":
            _pgbench(series, times.of(case), postgres, folder)
        elif system.kind == "select":
            _select(series, times.of(case), postgres, workload)
        elif system.kind in {"command", "copy"}:
            _import(series, postgres, folder)
        elif system.kind == "export":
            _export(series, postgres, folder)
        elif system.kind == "dry-run":
            _dry_run(series, folder)
        else:
            _http(series, times.of(case), postgres, folder, watching)
    except (
        LoadFailed,
        SystemFailed,
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
    ) as error:
        series.problems.append(str(error) or type(error).__name__)
    return series


def _select(series: Series, seconds: tuple[int, int], postgres: Postgres, workload: Workload) -> None:
    url = postgres.fresh(workload.people)
    for each in seconds:
        done = rawdb.run_select(url, workload.people, seconds=each)
    _note(series, done)


def _import(series: Series, postgres: Postgres, folder: Path) -> None:
    """The records a second of an import, or the rows a second of COPY of what it made."""
    path = folder / "shop.csv"
    path.write_text("".join(imports.records(imports.RECORDS)))
    series.requests = imports.RECORDS
    series.seconds, _ = imports.imported(postgres.fresh(0), path)
    if series.system == "copy":
        series.seconds, series.requests = imports.copied(postgres, path)
    series.per_second = series.requests / series.seconds
    path.unlink()


def _export(series: Series, postgres: Postgres, folder: Path) -> None:
    """The contacts a second of an export, or the rows a second of COPY of the same contacts."""
    url, series.requests = exports.filled(postgres, folder, imports.RECORDS)
    path = folder / "out"
    if series.system == "export":
        found = exports.exported(url, path, "ndjson")
        series.seconds, series.rss_mib = found.seconds, [found.memory]
    else:
        series.seconds = asyncio.run(exports.copied(url, path))
    series.per_second = series.requests / series.seconds
    path.unlink()


def _dry_run(series: Series, folder: Path) -> None:
    """The time and memory of a dry run under two sets of guards."""
    path = folder / "shop.csv"
    path.write_text("".join(imports.records(imports.RECORDS)))
    found = dry_runs.measure(path, dry_runs.CASES[dry_runs.OTHER], imports.RECORDS)
    series.requests, series.seconds, series.rss_mib = imports.RECORDS, found.seconds, [found.mib]
    series.per_second = series.requests / series.seconds
    path.unlink()


def _pgbench(series: Series, seconds: tuple[int, int], postgres: Postgres, folder: Path) -> None:
    url = postgres.fresh(rawdb.ROWS, people.RAW_SEEDED)
    rawdb.create_function(url)
    clients = series.connections
    first = rawdb.run_pgbench(url, people.RAW_WARM_UP, clients=clients, seconds=seconds[0], folder=folder)
    database_cpu = postgres.cpu_seconds()
    raw = rawdb.run_pgbench(url, people.RAW_MEASURED, clients=clients, seconds=seconds[1], folder=folder)
    series.database_cpu = _per_thousand(postgres.cpu_seconds() - database_cpu, raw.requests)
    series.retries = raw.retries / max(1, raw.requests)
    _note(series, raw)
    done = first.requests + raw.requests
    added = Range(done, done + 2 * clients)  # at most one transaction per client was in progress at the end of each run
    _verify(series, postgres, rawdb.ROWS, Growth(added, added))


def _http(series: Series, seconds: tuple[int, int], postgres: Postgres, folder: Path, watching: Watching) -> None:
    system, workload = SYSTEMS[series.system], WORKLOADS[series.workload]
    warm_up, measured = seconds
    url = postgres.fresh(workload.people)
    is_recon = system.kind == "recon"
    expected = Growth(Range(0, 0), Range(0, 0))
    with serving(system, url, folder / LOG) as server:
        if warm_up:
            expected += growth(_load(server, series, workload, people.WARM_UP, warm_up))
        probe = Probe(server.port, workload)
        figures = server.figures() if is_recon else {}
        system_cpu, database_cpu = cpu_of(server.pid), postgres.cpu_seconds()
        followers = Followers(server.port, workload.followers)
        with MemoryWatch(server.pid) as memory, followers, watching(server):
            if is_recon:
                with probe:
                    done = _load(server, series, workload, people.MEASURED, measured)
            else:
                done = _load(server, series, workload, people.MEASURED, measured)
        system_cpu, database_cpu = cpu_of(server.pid).since(system_cpu), postgres.cpu_seconds() - database_cpu
        if is_recon:
            try:
                _note_figures(series, figures, server.figures(), done.requests)
            except SystemFailed as error:
                series.problems.append(str(error))
    series.rss_mib = memory.samples
    series.system_cpu = _per_thousand(sum(system_cpu), done.requests)
    series.system_kernel = _per_thousand(system_cpu.kernel, done.requests)
    _note(series, done)
    series.errors += followers.errors
    if workload.followers and not followers.positions:
        series.problems.append("the followers of the change feed read nothing")
    if server.problem:
        series.problems.append(server.problem)
    if is_recon:
        series.database_cpu = _per_thousand(database_cpu, done.requests)
        series.errors += probe.errors
        series.answers_checked = probe.answers
        if probe.wrong:
            series.problems += [f"{probe.wrong} of {probe.answers} answers were wrong", *probe.examples]
        _verify(series, postgres, workload.people, expected + growth(done) + probe.growth)


def _load(server: Server, case: Series, workload: Workload, space: str, seconds: int) -> Load:
    if case.system == "batch":
        return batches.run(server.port, workload.requests, space, known=workload.used, seconds=seconds)
    return wrk.run(
        server.port,
        workload.requests,
        space,
        first=workload.used + 1 if workload.apart and space == people.MEASURED else 1,
        known=workload.used,
        connections=case.connections,
        seconds=seconds,
    )


def _note(series: Series, done: Load | rawdb.RawLoad) -> None:
    series.seconds = round(done.seconds, 3)
    series.requests = done.requests
    series.per_second = done.requests / done.seconds
    series.p50_ms, series.p99_ms = done.p50_ms, done.p99_ms
    series.errors += done.errors
    series.load_cpu = _per_thousand(done.cpu, done.requests)
    if not done.requests:
        series.problems.append("nothing was answered")


def _note_figures(series: Series, before: dict[str, float], after: dict[str, float], requests: int) -> None:
    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    series.retries = grown("recon_transaction_retries_total") / max(1, requests)
    if reads := grown("recon_batch_requests_count_read"):
        series.read_batch = grown("recon_batch_requests_sum_read") / reads
    if writes := grown("recon_batch_requests_count_write"):
        series.write_batch = grown("recon_batch_requests_sum_write") / writes


def _verify(series: Series, postgres: Postgres, before: int, expected: Growth) -> None:
    """Compare the numbers of rows in the table with the expected ones, and check the invariants."""
    contacts, primaries = postgres.counts()
    series.contacts = contacts
    for name, found, added in (
        ("contacts", contacts, expected.contacts),
        ("primaries", primaries, expected.primaries),
    ):
        right = added + Range(before, before)
        if found not in right:
            series.problems.append(f"{found:,} {name} in the table instead of {right}")
    violations, _ = asyncio.run(invariants.check(postgres.url()))
    if violations:
        series.problems += [f"{quantity(len(violations), 'violation')} of invariants", *violations[:VIOLATIONS_SHOWN]]


def _per_thousand(seconds: float, requests: int) -> float:
    return 1000 * seconds / max(1, requests)
