"""The page's part about the targets that are not met: what limits them, in words beside the figures of one run."""

from operator import itemgetter
from textwrap import fill

from bench.plan import FEW
from bench.profile import timed
from bench.report.results import Profile, Results, Series, Share, Step
from bench.report.tables import table
from bench.report.targets import targets
from recon.quantities import quantity

NOT_MEASURED = "Where the time goes was not measured (`python -m bench --profile` adds it)."
WIDTH = 120  # of the page's lines
WORTH_NAMING = 0.01  # of all samples that a function is in
STATEMENTS = (timed.BEGIN, timed.LOCK, timed.CHANGE, timed.COMMIT)

SECTION = """\
{unmet}

The figures of this part are of a run of their own (`python -m bench --profile`: {day}, {source}, {seconds} s of load a
series), and none of them is in the tables of the other parts: clocks, PostgreSQL's log of each statement and a sampling
profiler take time themselves. {failed}

### `mix`: the slowest hundredth are writes, which take several round trips

{mix}

### One client alone: processes that sleep and are woken up

{alone}

### Where the CPU time of recon's process goes

{shares}"""

MIX = """\
{few} connections: {bare}. With clocks in recon and PostgreSQL logging the time that it works on each statement
(`log_min_duration_statement`; waiting for the lane is in it): {clocked}. Of the latter, in ms:

{steps}

A write waits for the read pass before it, is looked for in a read pass, waits for the lane, and takes four round trips
more. A request that only reads, and seven of ten do, is answered after the read pass. So the p50 is a read's and the
p99 a write's: of each kind by itself, from its coming to its answer in recon, p99 ÷ p50 is {reads:.1f} for requests
that only read and {writes:.1f} for those that write.

Lock and fetch, change and COMMIT take {in_process:.2f} ms as recon sees them; {in_database:.2f} ms of that PostgreSQL
works on them (sums of the p50). The rest is the event loop of a process that uses {busy:.0%} of a CPU: a reply waits
until the turn under way has ended, and the one who awaits it for its place in the next. A turn takes {turn:.2f} ms
(p50; p99 {long_turn:.2f} ms), most of it for other requests."""

ALONE = """\
One connection, one request at a time, known customers, p50 in ms:

{latencies}

The handler validates the body and does nothing else. With clocks in recon, in ms:

{steps}

The handler's HTTP and the round trip of the fetch, with nothing else of recon's, come to {floor:.3f} ms, {ratio:.1f}
times the SELECT; {rest:.3f} ms are left for all else that recon does. PostgreSQL works on the
fetch for {database:.3f} ms.

What it costs to sleep between two messages is seen in the CPU time of one request, in µs. Under load a process finds
the next message there and does not sleep, and its code and data are still in the caches. `plain` sends a statement for
each request, as recon does for one client alone; recon under load shares it among a batch.

{cpu}

{sleeping}"""

SHARES = """\
By {sampler}: samples of the process while it runs, not while it sleeps, taken without stopping it, each counted for the
innermost function that belongs to a part. C code and the kernel count for the Python function that called them. How
much of it is the kernel, the table above says.

{table}"""


def section(results: Results) -> str:
    """The targets that are not met, and the profile."""
    unmet = [target for target in targets(results) if target.met is False]
    listed = (
        "\n".join(f"- {target.title}: {target.shown} (target: {target.bound})" for target in unmet)
        or "All targets are met."
    )
    profile = results.profile
    if profile is None:
        return f"{listed}\n\n{NOT_MEASURED}"
    failed = [f"**{one.name} failed: {'; '.join(one.problems)}.**" for one in profile.series if one.problems]
    return _wrapped(
        SECTION.format(
            unmet=listed,
            day=f"{profile.started:%Y-%m-%d %H:%M} UTC",
            source=profile.source,
            seconds=profile.seconds,
            failed=" ".join(failed),
            mix=_mix(profile),
            alone=_alone(profile),
            shares=_shares(profile),
        )
    )


def _mix(profile: Profile) -> str:
    steps = {step.name: step for step in profile.steps if step.workload == "mix"}
    bare, clocked = profile.get("mix", "recon"), profile.get("mix", "timed")
    if (
        bare is None
        or clocked is None
        or not steps.keys() >= {*STATEMENTS, timed.READ_REQUEST, timed.WRITE_REQUEST, timed.TURN}
    ):
        return NOT_MEASURED
    turn, statements = steps[timed.TURN], [steps[name] for name in STATEMENTS[1:]]
    return MIX.format(
        few=FEW,
        bare=_client(bare),
        clocked=_client(clocked),
        steps=_steps(list(steps.values())),
        in_process=sum(step.p50_ms for step in statements),
        in_database=sum(step.database_p50_ms or 0 for step in statements),
        busy=bare.per_second * (bare.system_cpu or 0) / 1000,
        turn=turn.p50_ms,
        long_turn=turn.p99_ms,
        reads=_tail(steps[timed.READ_REQUEST]),
        writes=_tail(steps[timed.WRITE_REQUEST]),
    )


def _client(one: Series) -> str:
    ratio = f"{one.p99_ms / one.p50_ms:.1f} ×"  # noqa: RUF001 (as it is written)
    return f"{one.per_second:,.0f} requests a second, p50 {one.p50_ms:.2f} ms, p99 {one.p99_ms:.2f} ms ({ratio})"


def _tail(step: Step) -> float:
    return step.p99_ms / step.p50_ms


def _steps(steps: list[Step]) -> str:
    return table(
        ("", "times", "in recon: p50", "p99", "in PostgreSQL: p50", "p99"),
        [
            [
                step.name,
                f"{step.count:,}",
                _milliseconds(step.p50_ms),
                _milliseconds(step.p99_ms),
                _milliseconds(step.database_p50_ms),
                _milliseconds(step.database_p99_ms),
            ]
            for step in steps
        ],
    )


def _milliseconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _alone(profile: Profile) -> str:
    systems = ("select", "handler", "recon", "plain", "timed")
    found = {system: one for system in systems if (one := profile.get("alone", system))}
    if len(found) < len(systems):
        return NOT_MEASURED
    steps = {step.name: step for step in profile.steps if step.workload == "alone" and step.name != timed.TURN}
    if timed.FETCH not in steps:
        return NOT_MEASURED
    p50 = {name: one.p50_ms for name, one in found.items() if name != "timed"}
    select, handler, fetch = p50["select"], p50["handler"], steps[timed.FETCH]
    p50["handler and select"] = handler + select
    latencies = [
        [name, f"{value:.3f}", f"{value / select:.1f}"] for name, value in sorted(p50.items(), key=itemgetter(1))
    ]
    return ALONE.format(
        latencies=table(("", "p50", "÷ select"), latencies),
        steps=_steps(list(steps.values())),
        floor=handler + fetch.p50_ms,
        ratio=(handler + fetch.p50_ms) / select,
        rest=found["timed"].p50_ms - handler - fetch.p50_ms,
        database=fetch.database_p50_ms or 0,
        cpu=_cpu(profile),
        sleeping=_sleeping(profile),
    )


def _cpu(profile: Profile) -> str:
    """A line for each system and load, in µs a request: a second a thousand requests is a thousand of them each."""
    rows = []
    for one in profile.series:
        if one.system in {"handler", "recon", "plain"} and one.counts and one.system_cpu is not None:
            kernel = one.system_kernel or 0
            rows.append(
                [
                    one.system,
                    f"{one.workload}, {quantity(one.connections, 'connection')}",
                    f"{1000 * (one.system_cpu - kernel):.0f}",
                    f"{1000 * kernel:.0f}",
                    f"{1000 * one.system_cpu:.0f}",
                    f"{one.per_second * one.system_cpu / 1000:.0%}",
                ]
            )
    return table(("system", "load", "own code", "kernel", "together", "of a CPU"), sorted(rows))


def _sleeping(profile: Profile) -> str:
    said = []
    for system in ("handler", "plain"):
        alone, load = profile.get("alone", system), profile.get("known", system)
        if alone and load and alone.system_cpu and load.system_cpu:
            own = [1000 * ((one.system_cpu or 0) - (one.system_kernel or 0)) for one in (alone, load)]
            ratio = alone.system_cpu / load.system_cpu
            said.append(
                f"`{system}` takes {ratio:.1f} times as much CPU for the same request when it "
                f"comes alone as under load (in its own code {own[0]:.0f} µs instead of {own[1]:.0f})"
            )
    return f"{'; '.join(said)}." if said else ""


def _shares(profile: Profile) -> str:
    if not profile.shares:
        return NOT_MEASURED
    workloads = list(dict.fromkeys(share.workload for share in profile.shares))
    found = {(share.part, share.workload): share for share in profile.shares}
    rows = []
    for part in dict.fromkeys(share.part for share in profile.shares):
        shares = [found.get((part, workload)) for workload in workloads]
        rows.append([part, *(f"{share.share:.0%}" if share else "" for share in shares), *map(_most_in, shares)])
    heads = ("", *workloads, *(f"most samples in: {workload}" for workload in workloads))
    return SHARES.format(sampler=profile.sampler, table=table(heads, rows))


def _most_in(share: Share | None) -> str:
    most_in = share.most_in.items() if share else ()
    return ", ".join(f"`{name}` {part:.0%}" for name, part in most_in if part >= WORTH_NAMING)


def _wrapped(text: str) -> str:
    """The text with its paragraphs broken into lines as the rest of the page is."""
    return "\n\n".join(
        part if part.startswith(("|", "-", "#")) else fill(part, WIDTH, break_on_hyphens=False, break_long_words=False)
        for part in text.split("\n\n")
    )
