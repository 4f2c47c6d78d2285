"""The signals that end recon: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed)."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODES = {0, *(128 + number for number in ENDING)}  # of a process that a signal ended


def not_ignored() -> list[signal.Signals]:
    """The ending signals that this process does not ignore; `nohup` starts it with SIGHUP ignored."""
    return [each for each in ENDING if signal.getsignal(each) != signal.SIG_IGN]


def exit_when_received() -> None:
    """Raise SystemExit on an ending signal, with the exit code that shells expect.

    By default SIGTERM and SIGHUP end a process without clean-up, so the embedded PostgreSQL would keep running. They do
    not end process 1 of a container at all.
    """
    for each in not_ignored():
        signal.signal(each, lambda number, _frame: sys.exit(128 + number))


def block() -> None:
    """Block the ending signals in this thread from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


@contextmanager
def blocked() -> Iterator[None]:
    """Block the ending signals in this thread; they take effect afterwards.

    A thread that is started meanwhile never gets them. A program gets them if it unblocks them, as PostgreSQL does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
