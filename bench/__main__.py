"""The command `python -m bench`."""

import shlex
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from bench import load, machine, plan, postgres, report
from bench import series as one_series
from bench.plan import Case
from bench.results import Results, Series

RESULTS = Path(__file__).with_name("results")
OVERHEAD = 5  # seconds that a series takes beside its load: database, start, checks
OVERHEAD_MILLION = 15  # the same with a million contacts to check


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--quick", is_flag=True, help="One round of short series, for trying; of no other use.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="How often each is measured.")
@click.option("--seconds", type=click.IntRange(2, 300), default=15, show_default=True, help="Load of each series.")
@click.option(
    "--warm-up", type=click.IntRange(1, 60), default=5, show_default=True, help="Seconds of load before each."
)
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    help="Only these series: `new`, `recon`, `64`, `known/*/64`, …; may be given several times.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=RESULTS,
    show_default="bench/results",
    help="Folder for results.json, README.md and results.png.",
)
@click.option("--list", "only_list", is_flag=True, help="List the series of a run and end.")
@click.option("--redraw", is_flag=True, help="Write page and plot again from the folder's results.json and end.")
def main(
    *,
    quick: bool,
    rounds: int,
    seconds: int,
    warm_up: int,
    only: tuple[str, ...],
    output: Path,
    only_list: bool,
    redraw: bool,
) -> None:
    """Measure recon beside its plain form, the raw database and a handler with no database.

    Everything runs on this machine, one series after another, each with a PostgreSQL database of its
    own. Nothing else should run meanwhile. The exit code is 1 when a series failed: wrong rows, wrong
    answers, violated invariants. A bar that is not met does not fail.
    """
    if redraw:
        report.write(report.read(output), output)
        return
    if quick:
        rounds, seconds = 1, min(seconds, 3)
    cases = plan.cases(rounds, only)
    if only_list:
        click.echo("\n".join(f"{case.round} {case.name}" for case in cases))
        return
    if not cases:
        raise click.UsageError("no series matches; --list shows all")
    times = one_series.Times(warm_up=1 if quick else warm_up, series=seconds, memory=20 if quick else 300)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _end)
    try:
        load.wrk()
        results = _measure(cases, times, rounds)
    except (load.LoadFailed, postgres.NotDurable, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo()
        raise click.ClickException("ended early; nothing was written") from None
    report.write(results, output)
    failed = sum(bool(series.problems) for series in results.series)
    for connections in (plan.FEW, plan.MANY, 1):
        click.echo(f"\nConnections: {connections}\n\n{report.figures_table(results, connections)}")
    click.echo(f"\n{report.bars_table(results)}\n")
    click.echo(f"{output}: results.json, README.md, results.png")
    if failed:
        raise click.ClickException(f"{failed} of {len(cases)} series failed")


def _measure(cases: list[Case], times: one_series.Times, rounds: int) -> Results:
    """Run all series, telling of each as it ends."""
    started = time.monotonic()
    expected = sum(_expected(case, times) for case in cases)
    click.echo(f"{len(cases)} series, about {_minutes(expected)}; leave the machine alone meanwhile")
    with tempfile.TemporaryDirectory(prefix="recon-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with postgres.running(folder / "database") as server:
            results = Results(
                started=datetime.now(UTC),
                rounds=rounds,
                seconds=times.series,
                warm_up=times.warm_up,
                command=shlex.join(["python", "-m", "bench", *sys.argv[1:]]),
                machine=machine.describe(folder / "database", server),
            )
            for number, case in enumerate(cases, start=1):
                click.echo(f"[{number:{len(str(len(cases)))}}/{len(cases)}] {case.round} {case.name:<21}", nl=False)
                begun = time.monotonic()
                series: Series = one_series.run(case, times, server, folder)
                results.series.append(series)
                # What is left is scaled by how the estimates have been so far.
                so_far = sum(_expected(done, times) for done in cases[:number])
                left = (expected - so_far) * (time.monotonic() - started) / so_far
                click.echo(f"{report.line(series)}  [{time.monotonic() - begun:.0f} s; {_minutes(left)} left]")
    results.minutes = (time.monotonic() - started) / 60
    return results


def _expected(case: Case, times: one_series.Times) -> int:
    return sum(times.of(case)) + (OVERHEAD_MILLION if case.workload.endswith("-1m") else OVERHEAD)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"  # noqa: PLR2004 (below, seconds say more)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(prog_name="python -m bench")
