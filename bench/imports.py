"""The speed of `recon import`, compared with COPY of the contacts that it makes into the same table.

.venv/bin/python -m bench.imports

Each round imports a file of a shop, a third of whose records are about people who came before, and then copies the
resulting contacts into an empty table with the same indexes and constraints. The ratio is the records a second of the
whole command, from the file to the last commit, divided by the rows a second of COPY.
"""

import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import click

from bench.load import wrk
from bench.report.tables import table
from bench.systems import postgres
from recon.sql import invariants

TARGET = 0.6
RECORDS = 1_000_000
REPEATS = 1 / 3  # of the records
RECENT = 50_000  # people who come again
# Of the records about people who came before: those with a new phone number or email.
NEW_IDENTIFIER = 0.3
PROGRAM = Path(sys.executable).with_name("recon")
COLUMNS = (
    *("id", "email", "phone_number", "phone_key"),
    *("linked_id", "link_precedence", "created_at", "updated_at", "source"),
)


class ImportFailed(wrk.LoadFailed):
    """An import failed, or left what it should not."""


@dataclass(frozen=True, slots=True)
class Measured:
    """A round: the records and rows a second, and what the import said of itself."""

    records_per_second: float
    rows_per_second: float
    summary: dict[str, Any]

    @property
    def ratio(self) -> float:
        """Import ÷ COPY."""
        return self.records_per_second / self.rows_per_second


def records(count: int) -> Iterator[str]:
    """The lines of a shop's file, always the same."""
    chosen = random.Random(1)  # noqa: S311 (the same again)
    people: list[tuple[str, str]] = []
    yield "id,email,phone,city\n"
    for number in range(count):
        if people and chosen.random() < REPEATS:
            email, phone = people[chosen.randrange(max(0, len(people) - RECENT), len(people))]
            if chosen.random() < NEW_IDENTIFIER:
                email, phone = chosen.choice(((email, f"+1 555 {number:09}"), (f"other-{number}@example.org", phone)))
        else:
            email, phone = f"customer-{number}@example.com", f"+1 202 {number:09}"
            people.append((email, phone))
        yield f"{number},{email},{phone},Hill Valley\n"


async def _unload(url: str, path: Path) -> int:
    connection = await asyncpg.connect(url)
    try:
        await connection.copy_from_table("contact", columns=COLUMNS, output=path, format="binary")
        rows: int = await connection.fetchval("SELECT count(*) FROM contact")
        return rows
    finally:
        await connection.close()


async def _load(url: str, path: Path) -> float:
    connection = await asyncpg.connect(url)
    try:
        begun = time.perf_counter()
        await connection.copy_to_table("contact", columns=COLUMNS, source=path, format="binary", timeout=3600)
        return time.perf_counter() - begun
    finally:
        await connection.close()


def imported(url: str, path: Path) -> tuple[float, dict[str, Any]]:
    """Import the file, and check the result; the seconds, and what the import said of itself. Raises ImportFailed."""
    begun = time.perf_counter()
    done = subprocess.run(  # noqa: S603 (our own command)
        [PROGRAM, "import", "--json", path],
        env=os.environ | {"RECON_DATABASE_URL": url},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise ImportFailed(f"the import failed: {done.stderr.strip()}")
    violations, _ = asyncio.run(invariants.check(url))
    if violations:
        raise ImportFailed(f"{len(violations)} violations of invariants, such as: {violations[0]}")
    return seconds, json.loads(done.stdout)


def copied(server: postgres.Postgres, path: Path) -> tuple[float, int]:
    """Copy the contacts of the server's database into a new one, by way of a file; the seconds, and how many."""
    rows = asyncio.run(_unload(server.url(), path))
    return asyncio.run(_load(server.fresh(0), path)), rows


def measure(server: postgres.Postgres, path: Path, count: int) -> Measured:
    """Import the file into an empty database, check it, and copy its contacts into another one."""
    seconds, summary = imported(server.fresh(0), path)
    copying, rows = copied(server, path.with_suffix(".copy"))
    return Measured(count / seconds, rows / copying, summary)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--rounds", type=click.IntRange(1, 20), default=3, show_default=True, help="How often it is measured.")
@click.option("--records", "count", type=click.IntRange(1000), default=RECORDS, show_default=True, help="In the file.")
def main(*, rounds: int, count: int) -> None:
    """Measure how fast an import is, compared with COPY."""
    with (
        tempfile.TemporaryDirectory(prefix="recon-bench-", ignore_cleanup_errors=True) as name,
        postgres.running(Path(name, "database")) as server,
    ):
        path = Path(name, "shop.csv")
        path.write_text("".join(records(count)))
        found = []
        for _ in range(rounds):
            try:
                found.append(measure(server, path, count))
            except ImportFailed as error:
                raise click.ClickException(str(error)) from error
            click.echo(f"import {found[-1].records_per_second:,.0f} /s, COPY {found[-1].rows_per_second:,.0f} /s")
    ratios = [each.ratio for each in found]
    rows = [
        [
            f"import of {count:,} records ÷ COPY",
            f"{statistics.median(each.records_per_second for each in found):,.0f}",
            f"{statistics.median(each.rows_per_second for each in found):,.0f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
            f"≥ {TARGET}",
        ]
    ]
    click.echo("\n" + table(["", "import, records/s", "COPY, rows/s", "ratio", "target"], rows))


if __name__ == "__main__":
    main(prog_name="python -m bench.imports")
