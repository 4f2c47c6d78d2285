"""The page's part about where the time goes: the figures of the profile, without conclusions."""

from operator import itemgetter

from bench.load.watch import Cpu
from bench.plan import FEW
from bench.profile import timed
from bench.report.results import Profile, Series, Share, Step
from bench.report.tables import table
from recon.quantities import quantity

NOT_MEASURED = "Not measured (`python -m bench --profile` adds it)."
WORTH_NAMING = 0.01  # share of all samples from which a function is named

SECTION = """\
The profile (`python -m bench --profile`) is a run of its own:
{day}, {source}, {seconds} s of load for each series.
Its figures are in no other table: clocks, PostgreSQL's log of each statement and a sampling profiler take time
themselves. Times in PostgreSQL are from its log (`log_min_duration_statement`) and include waiting for locks.
[docs/performance.md](../../docs/performance.md) says what follows from the figures.{failed}

### The steps of a request: `mix`, {few} connections

{mix}

### The steps of a request: one client alone, known customers

{alone}

### Latency of one client alone

{latencies}

### CPU time of a request

In µs, of the system's processes:

{cpu}

### Samples of recon's process

By {sampler}, while the process runs, not while it sleeps, and without stopping it. Each sample counts for the
innermost function that belongs to a part; C code and the kernel count for the Python function that called them.

{shares}"""


def section(profile: Profile | None) -> str:
    """The tables of a profile."""
    if profile is None:
        return NOT_MEASURED
    failed = [f"**{each.name} failed: {'; '.join(each.problems)}.**" for each in profile.series if each.problems]
    return SECTION.format(
        day=f"{profile.started:%Y-%m-%d %H:%M} UTC",
        source=profile.source,
        seconds=profile.seconds,
        failed="".join(f"\n\n{line}" for line in failed),
        few=FEW,
        mix=_steps(profile, "mix"),
        alone=_steps(profile, "alone"),
        latencies=_latencies(profile),
        cpu=_cpu(profile),
        sampler=profile.sampler,
        shares=_shares(profile),
    )


def _steps(profile: Profile, workload: str) -> str:
    """The load without and with clocks, and the steps of the load with clocks."""
    without, with_clocks = profile.get(workload, "recon"), profile.get(workload, "timed")
    steps = [step for step in profile.steps if step.workload == workload]
    if without is None or with_clocks is None or not steps:
        return NOT_MEASURED
    heads = ("times in ms", "count", "in recon: p50", "p99", "p99 ÷ p50", "in PostgreSQL: p50", "p99")
    loads = f"Without clocks: {_load(without)}.\nWith clocks: {_load(with_clocks)}; of these:"
    return f"{loads}\n\n{table(heads, map(_step, steps))}"


def _load(series: Series) -> str:
    return f"{series.per_second:,.0f} requests a second, p50 {series.p50_ms:.2f} ms, p99 {series.p99_ms:.2f} ms"


def _step(step: Step) -> list[str]:
    in_recon = [step.p50_ms, step.p99_ms, step.p99_ms / step.p50_ms]
    in_database = ["" if value is None else f"{value:.2f}" for value in (step.database_p50_ms, step.database_p99_ms)]
    return [step.name, f"{step.count:,}", *(f"{value:.2f}" for value in in_recon), *in_database]


def _latencies(profile: Profile) -> str:
    """The p50 of each system, of the handler and the SELECT together, and of the handler and recon's fetch."""
    systems = ("select", "handler", "recon", "plain")
    found = {system: each.p50_ms for system in systems if (each := profile.get("alone", system))}
    if len(found) < len(systems):
        return NOT_MEASURED
    found["handler + select"] = found["handler"] + found["select"]
    for step in profile.steps:
        if (step.workload, step.name) == ("alone", timed.FETCH):
            found["handler + fetch as recon sees it"] = found["handler"] + step.p50_ms
    rows = [
        [name, f"{p50:.3f}", f"{p50 / found['select']:.1f}"] for name, p50 in sorted(found.items(), key=itemgetter(1))
    ]
    return table(("", "p50 ms", "÷ select"), rows)


def _cpu(profile: Profile) -> str:
    rows = [
        [
            each.system,
            f"{each.workload}, {quantity(each.connections, 'connection')}",
            *(f"{value:.0f}" for value in (cpu.user, cpu.kernel, sum(cpu))),
            f"{each.per_second * sum(cpu) / 1e6:.0%}",
        ]
        for each in profile.series
        if each.system in {"handler", "recon", "plain"} and each.counts and (cpu := _cpu_of_a_request(each))
    ]
    return table(("system", "load", "own code", "kernel", "together", "of a CPU"), sorted(rows))


def _cpu_of_a_request(series: Series) -> Cpu | None:
    """Return the CPU time of a request in µs; the series has seconds per thousand requests."""
    if series.system_cpu is None or series.system_kernel is None:
        return None
    return Cpu(1000 * (series.system_cpu - series.system_kernel), 1000 * series.system_kernel)


def _shares(profile: Profile) -> str:
    if not profile.shares:
        return NOT_MEASURED
    workloads = list(dict.fromkeys(share.workload for share in profile.shares))
    found = {(share.part, share.workload): share for share in profile.shares}
    rows = []
    for part in dict.fromkeys(share.part for share in profile.shares):
        shares = [found.get((part, workload)) for workload in workloads]
        rows.append([part, *(f"{share.share:.0%}" if share else "" for share in shares), *map(_most_in, shares)])
    return table(("", *workloads, *(f"most samples in: {workload}" for workload in workloads)), rows)


def _most_in(share: Share | None) -> str:
    most_in = share.most_in.items() if share else ()
    return ", ".join(f"`{name}` {part:.0%}" for name, part in most_in if part >= WORTH_NAMING)
