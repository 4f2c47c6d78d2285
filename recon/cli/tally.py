"""How far an import is: on a terminal a line that moves, elsewhere a line every few seconds; and its summary."""

import time
from collections.abc import Mapping
from typing import Any, Self

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from recon.cli import terminal
from recon.rules.guards import Cause
from recon.transfer import importing

_EVERY = 5.0  # seconds between lines where there is no terminal


class Display:
    """Shows the progress of the import of one file, on standard error.

    Attributes
    ----------
    seconds, rate : the time that it took, and the records a second.
    """

    def __init__(self, name: str, size: int | None, records: int) -> None:
        self._name = name
        self._size = size
        self._before = records
        self._position: int | None = None  # at the first report
        self._begun = self._shown = time.monotonic()
        self.seconds = 0.0
        self.rate = 0.0
        console = terminal.console(stderr=True)
        self._live: Progress | None = None
        if console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[said]}"),
                TimeRemainingColumn(),
            )
            self._live = Progress(*columns, console=console, transient=True)
            self._task = self._live.add_task(name.replace("[", "\\["), total=size, said="")

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: importing.Progress) -> None:
        """Show where the import stands."""
        now = time.monotonic()
        self.seconds = now - self._begun
        records = progress.counts["records"]
        self.rate = (records - self._before) / self.seconds if self.seconds else 0.0
        said = f"{records:,} records, {self.rate:,.0f} a second, {progress.counts['rejected']:,} rejected"
        if self._live is not None:
            self._live.update(self._task, completed=progress.position, said=said)
        elif now - self._shown >= _EVERY:
            self._shown = now
            click.echo(f"{self._name}: {said}{self._left(progress.position)}", err=True)

    def _left(self, position: int | None) -> str:
        """The time left, if the bytes that are read tell it."""
        if position is None or not self._size:
            return ""
        if self._position is None:
            self._position, self._since = position, self.seconds
        done, took = position - self._position, self.seconds - self._since
        left = f", {took * (self._size - position) / done:,.0f} seconds left" if done else ""
        return f", {min(1, position / self._size):.0%}{left}"


_COUNTS = ("records", "requests", "created", "extended", "merged", "known")


def summary(counts: Mapping[str, int], seconds: float | None, rate: float | None) -> dict[str, Any]:
    """What an import came to. Seconds and records a second are those of this run, None if it did nothing."""
    return {
        **{name: counts.get(name, 0) for name in _COUNTS},
        "withheld": {cause.value: counts.get(f"withheld {cause}", 0) for cause in Cause},
        "unlinked": counts.get("unlinked", 0),
        "rejected": counts.get("rejected", 0),
        "seconds": None if seconds is None else round(seconds, 3),
        "rate": None if rate is None else round(rate),
    }


def table(name: str, summary: Mapping[str, Any]) -> Table:
    """The summary, a line for each figure."""
    lines = Table("", "", title=Text(name), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    lines.columns[1].justify = "right"
    for key, value in summary.items():
        if isinstance(value, dict):
            for cause, count in value.items():
                lines.add_row(f"{key} ({cause})", f"{count:,}")
        elif isinstance(value, str):
            lines.add_row(key, Text(value))
        elif value is not None:
            lines.add_row("records a second" if key == "rate" else key, f"{value:,}")
    return lines
