"""The command `python -m bench`."""

import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click

from bench import plan
from bench import series as one_series
from bench.load import wrk
from bench.plan import Case
from bench.profile import measure, samples
from bench.report import machine, page
from bench.report.results import Profile, Results, Series
from bench.systems import postgres

RESULTS = Path(__file__).with_name("results")
OVERHEAD = 5  # seconds that a series takes in addition to its load: database, start, checks
IMPORT = 60  # seconds of a series that imports: the import, the check, COPY
OVERHEAD_MILLION = 15  # the same with a million contacts to check


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--quick", is_flag=True, help="One round of short series, to try the benchmark only.")
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="How often each is measured.")
@click.option("--seconds", type=click.IntRange(2, 300), default=15, show_default=True, help="Load of each series.")
@click.option(
    "--warm-up", type=click.IntRange(1, 60), default=5, show_default=True, help="Seconds of warm-up before each."
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
@click.option("--list", "only_list", is_flag=True, help="List the series of a run and exit.")
@click.option(
    "--profile",
    "only_profile",
    is_flag=True,
    help="Measure only the profile (where the time goes), and add it to the folder's results.",
)
@click.option("--redraw", is_flag=True, help="Write page and plot again from the folder's results.json and exit.")
def main(
    *,
    quick: bool,
    rounds: int,
    seconds: int,
    warm_up: int,
    only: tuple[str, ...],
    output: Path,
    only_list: bool,
    only_profile: bool,
    redraw: bool,
) -> None:
    """Compare recon with one transaction per request, the raw database and a handler with no database.

    Everything runs on this machine, one series after another, each with a PostgreSQL database of its
    own. Nothing else should run on the machine meanwhile. The exit code is 1 if a series failed: wrong rows, wrong
    answers, violated invariants. A target that is not met does not fail. A run of all series ends with the
    profile: where the time goes.
    """
    if redraw:
        page.write(page.read(output), output)
        return
    if quick:
        rounds, seconds = 1, min(seconds, 3)
    cases = plan.cases(rounds, only)
    if not cases:
        raise click.UsageError("no series matches; --list shows all")
    if only_list:
        click.echo("\n".join(f"{case.round} {case.name}" for case in cases))
        return
    times = one_series.Times(warm_up=1 if quick else warm_up, series=seconds, memory=20 if quick else 300)
    with _failing_clearly():
        wrk.program()
        if only_profile or not only:
            samples.program()
        with _database() as (server, folder):
            results = page.read(output) if only_profile else _measure(cases, times, rounds, server, folder)
            if only_profile or not only:
                results.profile = _profile(server, folder, quick=quick)
    page.write(results, output)
    if not only_profile:
        for connections in (plan.FEW, plan.MANY, 1):
            click.echo(f"\nConnections: {connections}\n\n{page.figures_table(results, connections)}")
    click.echo(f"\n{page.targets_table(results)}\n")
    click.echo(f"{output}: results.json, README.md, results.png")
    measured = [] if only_profile else list(results.series)
    measured += results.profile.series if results.profile else []
    if failed := sum(bool(series.problems) for series in measured):
        raise click.ClickException(f"{failed} of {len(measured)} series failed")


@contextmanager
def _failing_clearly() -> Iterator[None]:
    """End with one line instead of a traceback for failures outside the benchmark, and when interrupted."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _end)
    try:
        yield
    except (wrk.LoadFailed, postgres.NotDurable, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        click.echo()
        raise click.ClickException("interrupted; nothing was written") from None


@contextmanager
def _database() -> Iterator[tuple[postgres.Postgres, Path]]:
    """The database server of the run, and a folder for logs and other files."""
    with tempfile.TemporaryDirectory(prefix="recon-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with postgres.running(folder / "database") as server:
            yield server, folder


def _measure(
    cases: list[Case], times: one_series.Times, rounds: int, server: postgres.Postgres, folder: Path
) -> Results:
    """Run all series, and print each when it has ended."""
    started = time.monotonic()
    expected = sum(_expected(case, times) for case in cases)
    click.echo(f"{len(cases)} series, about {_minutes(expected)}; run nothing else on the machine meanwhile")
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
        # The estimate of the rest is scaled by the error of the estimates so far.
        so_far = sum(_expected(done, times) for done in cases[:number])
        left = (expected - so_far) * (time.monotonic() - started) / so_far
        click.echo(f"{page.line(series)}  [{time.monotonic() - begun:.0f} s; {_minutes(left)} left]")
    results.minutes = (time.monotonic() - started) / 60
    return results


def _profile(server: postgres.Postgres, folder: Path, *, quick: bool) -> Profile:
    """Measure where the time goes, and print each series when it has ended."""
    click.echo("the profile: about two minutes; run nothing else on the machine meanwhile")
    seconds, warm_up = (2, 1) if quick else (5, 2)
    return measure.measure(
        one_series.Times(warm_up, seconds, memory=0),
        server,
        folder,
        lambda series: click.echo(f"{series.name:<21}{page.line(series)}"),
    )


def _expected(case: Case, times: one_series.Times) -> int:
    if case.workload == "import":
        return IMPORT
    return sum(times.of(case)) + (OVERHEAD_MILLION if case.workload.endswith("-1m") else OVERHEAD)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"  # noqa: PLR2004 (below, seconds are more exact)


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main(prog_name="python -m bench")
