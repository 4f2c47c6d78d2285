"""What processes use of the machine: CPU time and memory."""

import threading
from contextlib import suppress
from typing import NamedTuple, Self

import psutil

INTERVAL = 1.0  # seconds between looks at the memory
MIB = 1024 * 1024


class Cpu(NamedTuple):
    """CPU seconds: in the programs' own code, and in the kernel on their behalf."""

    user: float
    kernel: float

    def since(self, before: "Cpu") -> "Cpu":
        """What was used from then to now."""
        return Cpu(self.user - before.user, self.kernel - before.kernel)


def cpu_seconds(pid: int) -> float:
    """CPU seconds, user and kernel together, as `cpu_of` has them."""
    return sum(cpu_of(pid))


def cpu_of(pid: int) -> Cpu:
    """CPU seconds of a process and all that it has started, those that have ended too.

    A process that ended is in the figures of its parent, which has waited for it; one that has not is
    in none but its own. So nothing is lost or counted twice when one ends between two calls.
    """
    user = kernel = 0.0
    for process in _tree(pid):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            user += times.user + times.children_user
            kernel += times.system + times.children_system
    return Cpu(user, kernel)


def rss_mib(pid: int) -> float:
    """Resident memory of a process and all that it has started, in MiB."""
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
    """A thread that runs from entering to leaving, when `_over` is set."""

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
    """Notes a process's memory each second, from entering to leaving, in `samples` (MiB)."""

    def __init__(self, pid: int) -> None:
        super().__init__()
        self._pid = pid
        self.samples: list[float] = []

    def run(self) -> None:
        """Look until it is over."""
        while not self._over.wait(INTERVAL):
            self.samples.append(round(rss_mib(self._pid), 2))
