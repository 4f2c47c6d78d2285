"""The signals that end recon: SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal was closed)."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODES = {0, *(128 + number for number in ENDING)}  # of a process that a signal ended


def heeded() -> list[signal.Signals]:
    """The ending signals that this process does not ignore; `nohup` starts it with SIGHUP ignored."""
    return [each for each in ENDING if signal.getsignal(each) != signal.SIG_IGN]


def exit_when_received() -> None:
    """Raise SystemExit on an ending signal, with the exit code that shells expect.

    By default SIGTERM and SIGHUP end a process without clean-up, so the embedded PostgreSQL would stay
    behind; and they do not end process 1 of a container at all.
    """
    for each in heeded():
        signal.signal(each, lambda number, _frame: sys.exit(128 + number))


def hold_back() -> None:
    """Block the ending signals in this thread from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)


@contextmanager
def held_back() -> Iterator[None]:
    """Block the ending signals in this thread; they take effect afterwards.

    A thread that is started meanwhile never gets them, nor does a program unless it unblocks them, as PostgreSQL does.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
