"""The time and memory of `recon import --dry-run`.

.venv/bin/python -m bench.dry_runs

Each round runs the command on the file of a shop that bench.imports imports, a third of whose records are about people
who came before: under the guards of a new database alone, and under other guards, too. No database is involved.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from bench.imports import RECORDS, records
from bench.load import wrk
from bench.report.tables import table

SECONDS = 60  # for a million records
MIB = 2048
PROGRAM = Path(sys.executable).with_name("recon")
OTHER = "present and other guards"
CASES = {
    "present guards": [],
    OTHER: ["--max-emails", "2", "--max-phones", "2", "--block", "+1 202 000000001"],
}


class DryRunFailed(wrk.LoadFailed):
    """A dry run failed, or did not decide all records."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A run: its time, its CPU seconds, and the memory that it had at most."""

    seconds: float
    cpu: float
    mib: float


def measure(path: Path, options: Sequence[str], count: int) -> Measured:
    """Run the command once. Raises DryRunFailed."""
    begun = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(  # noqa: S603 (our own command)
            [PROGRAM, "import", "--dry-run", "--json", *options, path], stdout=output
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begun
        output.seek(0)
        if process.returncode or json.load(output)["present"]["records"] != count:
            raise DryRunFailed("the dry run failed")
    unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss, in a MiB
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="How often it is measured.")
@click.option("--records", "count", type=click.IntRange(1000), default=RECORDS, show_default=True, help="In the file.")
def main(*, rounds: int, count: int) -> None:
    """Measure how long a dry run takes, and how much memory it needs."""
    found: dict[str, list[Measured]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as name:
        path = Path(name, "shop.csv")
        path.write_text("".join(records(count)))
        for _ in range(rounds):
            for case, options in CASES.items():
                try:
                    found[case].append(measure(path, options, count))
                except DryRunFailed as error:
                    raise click.ClickException(str(error)) from error
                click.echo(f"{case}: {found[case][-1].seconds:.1f} s, {found[case][-1].mib:,.0f} MiB")
    rows = [
        [
            f"dry run of {count:,} records, {case}",
            _spread([each.seconds for each in runs]),
            f"≤ {SECONDS}",
            _spread([each.cpu for each in runs]),
            _spread([each.mib for each in runs]),
            f"≤ {MIB:,}",
        ]
        for case, runs in found.items()
    ]
    click.echo("\n" + table(["", "seconds", "target", "CPU seconds", "MiB", "target"], rows))


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):,.0f} ({min(values):,.0f} to {max(values):,.0f})"


if __name__ == "__main__":
    main(prog_name="python -m bench.dry_runs")
