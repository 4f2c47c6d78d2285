"""The CPU time and memory of processes."""

import threading
from contextlib import suppress
from typing import NamedTuple, Self

import psutil

INTERVAL = 1.0  # seconds between samples of the memory
MIB = 1024 * 1024


class Cpu(NamedTuple):
    """CPU seconds: in the programs' own code, and in the kernel on their behalf."""

    user: float
    kernel: float

    def since(self, before: "Cpu") -> "Cpu":
        """Return the CPU time since an earlier sample."""
        return Cpu(self.user - before.user, self.kernel - before.kernel)


def cpu_seconds(pid: int) -> float:
    """CPU seconds, user and kernel together, as `cpu_of` has them."""
    return sum(cpu_of(pid))


def cpu_of(pid: int) -> Cpu:
    """CPU seconds of a process and its descendants, including those that have ended.

    A process that has ended counts in the figures of its parent, which has waited for it; a running one counts in its
    own only. So nothing is lost or counted twice when a process ends between two calls.
    """
    user = kernel = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            user += times.user + times.children_user
            kernel += times.system + times.children_system
    return Cpu(user, kernel)


def rss_mib(pid: int) -> float:
    """Resident memory of a process and its descendants, in MiB."""
    total = 0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / MIB


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Meanwhile(threading.Thread):
    """A thread that runs while its context is open; `_over` is set at the end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


class MemoryWatch(Meanwhile):
    """Samples a process's memory each second while its context is open: `samples` (MiB)."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self.samples: list[float] = []

    def run(self) -> None:
        """Sample the memory until the end."""
        while not self._over.wait(INTERVAL):
            self.samples.append(round(rss_mib(self._pid), 2))
