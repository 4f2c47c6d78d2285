"""recon as processes of their own, for tests."""

import asyncio
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from aiohttp.test_utils import TestClient

from tests.harness.ports import free_port

RECON = Path(sys.executable).with_name("recon")

MakeClient = Callable[..., Awaitable["TestClient[Any, Any]"]]


LOG_SHOWN = 4_000  # characters of a process's log that a failed test shows
OUTAGE = "recon cannot use the database"  # the beginning of the log line; the cause follows


class Process:
    """A running `recon serve`, on a free port unless one is given; `command` replaces the program `recon`."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        port: int | None = None,
        command: Sequence[str | Path] = (RECON,),
        **options: Any,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [*command, "serve", "--port", str(self.port), *arguments], stderr=stderr, **options
            )

    @property
    def log(self) -> str:
        """Its log so far."""
        return self._log.read_text()

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of its log so far, parsed."""
        return [json.loads(line) for line in self.log.splitlines()]

    def failures(self) -> list[dict[str, Any]]:
        """Return the logged events that an outage of the database does not explain."""
        return [
            event
            for event in self.events()
            if (event["level"] in {"error", "critical"} and not event["event"].startswith(OUTAGE)) or "where" in event
        ]

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Return once /readyz answers 200."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, self.log
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} seconds:\n{self.log}")

    def processes(self, workers: int = 1) -> list[psutil.Process]:
        """Return the process and its workers, once these have started; with one worker, they are the same."""
        master = psutil.Process(self.popen.pid)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            family = [master, *master.children()]
            if workers == 1 or len(family) > workers:
                return family
            time.sleep(0.02)
        raise AssertionError(f"fewer than {workers} workers after 30 seconds:\n{self.log}")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send it a signal, wait for its end, and return its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signum)
        return self.popen.wait(30)


async def everything(reader: asyncio.StreamReader) -> bytes:
    """Read until the connection ends. After a reset, also return the bytes that asyncio would drop."""
    received = bytearray()
    with suppress(ConnectionError):
        while some := await reader.read(65_536):
            received += some
    return bytes(received + reader._buffer)  # type: ignore[attr-defined]


StartRecon = Callable[..., Process]


@contextmanager
def recon_processes(folder: Path) -> Iterator[StartRecon]:
    """Yield a function that starts `recon serve` with arguments, and waits until it is ready (unless ready=False)."""
    with ExitStack() as stack:
        started = 0

        def start(*arguments: str, ready: bool = True, **options: Any) -> Process:
            nonlocal started
            started += 1
            process = Process([*arguments], folder / f"recon-{started}.log", **options)
            stack.callback(lambda: sys.stderr.write(process.log[-LOG_SHOWN:]))  # pytest shows it if the test has failed
            stack.callback(process.stop)
            if ready:
                process.wait_until_ready()
            return process

        yield start


def recon(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a recon command and return when it has ended."""
    return subprocess.run([RECON, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)
