"""The progress of a long command on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from recon.cli import terminal


class Steps:
    """Shows the steps of a command, a line each."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def begin(self, step: str, total: int | None = None) -> None:
        """Show a new step, which has so many items; None if that is not known."""
        self.end()
        self._task = self._progress.add_task(step, total=total)

    def advance(self, items: int) -> None:
        """Move the bar of the step on."""
        if self._task is not None:
            self._progress.advance(self._task, items)

    def end(self) -> None:
        """Show the last step as done."""
        if self._task is not None:
            done = self._progress.tasks[self._task].completed or 1
            self._progress.update(self._task, total=done, completed=done)


@contextmanager
def shown() -> Iterator[Steps]:
    """Show steps on standard error if it is a terminal, otherwise nothing."""
    console = terminal.console(stderr=True)
    columns = SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        steps = Steps(progress)
        yield steps
        steps.end()
