"""How far a command is that does not know its end: on a terminal a line that moves, elsewhere one every few seconds."""

import sys
import time
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:  # imported only for a terminal: other commands start faster without it
    from rich.progress import Progress

_EVERY = 5.0  # seconds between lines where there is no terminal


class Meter:
    """Counts items, and shows how many there are and the rate on standard error.

    Parameters
    ----------
    noun : what the items are called.
    is_quiet : whether to show nothing, since standard output is a terminal too.

    Attributes
    ----------
    count : how many there are.
    """

    def __init__(self, noun: str, *, is_quiet: bool = False) -> None:
        self._noun = noun
        self._is_quiet = is_quiet
        self._begun = self._shown = time.monotonic()
        self.count = 0
        self._live: Progress | None = None
        if sys.stderr.isatty() and not is_quiet:
            from rich import progress

            from recon.cli import terminal

            columns = progress.SpinnerColumn(), progress.TextColumn("{task.description}")
            self._live = progress.Progress(*columns, console=terminal.console(stderr=True), transient=True)
            self._task = self._live.add_task(noun)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return time.monotonic() - self._begun

    def add(self, items: int) -> None:
        """Count more items."""
        self.count += items
        if self._is_quiet:
            return
        if self._live is not None:
            self._live.update(self._task, description=self.said())
        elif time.monotonic() - self._shown >= _EVERY:
            self._shown = time.monotonic()
            click.echo(self.said(), err=True)

    def said(self) -> str:
        """What has been counted, and how fast."""
        return f"{self.count:,} {self._noun}, {self.count / (self.seconds or 1):,.0f} a second"
