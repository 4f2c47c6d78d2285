"""The speed and the memory of `recon export`, compared with COPY of the same contacts to a file.

.venv/bin/python -m bench.exports

The contacts are those that an import of a shop's records makes (see bench.imports). The ratio is the contacts a second
of the whole command, from its start to the complete file, divided by those of COPY (SELECT … FROM contact) TO STDOUT,
written to a file by the same driver.
"""

import asyncio
import os
import re
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import asyncpg
import click

from bench import imports
from bench.load import wrk
from bench.report.tables import table
from bench.systems import postgres

TARGET = 0.5
_LOOK = 0.01  # seconds between looks at a process
FEW = 100_000  # records, to compare the memory with
EXPORTS = {"ndjson": (), "csv": ("--format", "csv"), "full": ("--full",)}
ROWS = (
    "SELECT id, email, phone_number, phone_key, linked_id, link_precedence, created_at, updated_at, deleted_at, "
    "source, apart FROM contact"
)


class ExportFailed(wrk.LoadFailed):
    """A command of recon failed."""


class Measured(NamedTuple):
    """An export: its seconds, and the most memory that the process had, in MiB."""

    seconds: float
    memory: float


def _run(url: str, errors: Path, *arguments: str | Path) -> Measured:
    """Run the program `recon`, which succeeds; `errors` is a file for what it says."""
    begun = time.perf_counter()
    with errors.open("wb") as said:
        process = subprocess.Popen(  # noqa: S603 (our own command)
            [imports.PROGRAM, *arguments],
            env=os.environ | {"RECON_DATABASE_URL": url},
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
    memory = 0.0
    while process.poll() is None:
        memory = max(memory, _most_memory(process.pid))
        time.sleep(_LOOK)
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise ExportFailed(f"recon {arguments[0]} failed: {errors.read_text().strip()}")
    return Measured(seconds, memory)


def _most_memory(pid: int) -> float:
    """The most memory that a process has had, in MiB, without that of its parent."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except ProcessLookupError:  # it has just ended
        return 0
    found = re.search(r"VmHWM:\s*(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0


def exported(url: str, path: Path, kind: str) -> Measured:
    """Export the database to a file. Raises ExportFailed."""
    return _run(url, path.with_name("errors"), "export", *EXPORTS[kind], "--output", path, "--force")


async def copied(url: str, path: Path) -> float:
    """Copy the contacts to a file; the seconds."""
    connection = await asyncpg.connect(url)
    try:
        begun = time.perf_counter()
        await connection.copy_from_query(ROWS, output=path)
        return time.perf_counter() - begun
    finally:
        await connection.close()


async def _contacts(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("VACUUM ANALYZE", timeout=3600)  # as autovacuum does within a minute
        rows: int = await connection.fetchval("SELECT count(*) FROM contact")
        return rows
    finally:
        await connection.close()


def filled(server: postgres.Postgres, folder: Path, records: int) -> tuple[str, int]:
    """A database with the contacts of so many records, and how many these are."""
    url = server.fresh(0)
    path = folder / "shop.csv"
    path.write_text("".join(imports.records(records)))
    _run(url, folder / "errors", "import", path)
    return url, asyncio.run(_contacts(url))


class _Found(NamedTuple):
    """How many contacts there were, the seconds of COPY, the exports, and their memory with FEW records."""

    contacts: int
    copying: list[float]
    exports: dict[str, list[Measured]]
    few: dict[str, float]


def _measured(rounds: int, count: int) -> _Found:
    """Measure so many rounds, after the exports of few records. Raises ExportFailed."""
    with (
        tempfile.TemporaryDirectory(prefix="recon-bench-", ignore_cleanup_errors=True) as name,
        postgres.running(Path(name, "database")) as server,
    ):
        folder = Path(name)
        url, _ = filled(server, folder, FEW)
        few = {kind: exported(url, folder / "out", kind).memory for kind in EXPORTS}
        url, contacts = filled(server, folder, count)
        found = _Found(contacts, [], {kind: [] for kind in EXPORTS}, few)
        for _ in range(rounds):
            found.copying.append(asyncio.run(copied(url, folder / "copied")))
            for kind in EXPORTS:
                found.exports[kind].append(exported(url, folder / "out", kind))
            click.echo(
                f"COPY {found.copying[-1]:.2f} s, "
                + ", ".join(f"{kind} {runs[-1].seconds:.2f} s" for kind, runs in found.exports.items())
            )
    return found


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--rounds", type=click.IntRange(1, 20), default=5, show_default=True, help="How often it is measured.")
@click.option(
    "--records", "count", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Of the shop."
)
def main(*, rounds: int, count: int) -> None:
    """Measure how fast an export is, compared with COPY, and its memory."""
    try:
        measured = _measured(rounds, count)
    except ExportFailed as error:
        raise click.ClickException(str(error)) from error
    rows = []
    contacts, copying, few = measured.contacts, measured.copying, measured.few
    for kind, found in measured.exports.items():
        ratios = [copy / each.seconds for copy, each in zip(copying, found, strict=True)]
        rows.append(
            [
                f"export of {contacts:,} contacts ({kind}) ÷ COPY",
                f"{statistics.median(contacts / each.seconds for each in found):,.0f}",
                f"{statistics.median(contacts / seconds for seconds in copying):,.0f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"≥ {TARGET}" if kind != "full" else "",
                f"{few[kind]:.0f} → {max(each.memory for each in found):.0f}",
            ]
        )
    heads = ["", "export, contacts/s", "COPY, contacts/s", "ratio", "target", f"MiB: {FEW:,} records → {count:,}"]
    click.echo("\n" + table(heads, rows))


if __name__ == "__main__":
    main(prog_name="python -m bench.exports")
