"""The processes that answer POST /identify, each started for one series."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

START_TIMEOUT = 30  # seconds within which a process must answer
STOP_TIMEOUT = 30  # seconds after SIGTERM within which it must have ended; recon gives requests in progress ten
LOG_SHOWN = 2000  # characters of a process's log that are shown when it fails


class SystemFailed(Exception):
    """A system did not start or did not stop correctly."""


def recon_program() -> str:
    """The command `recon` of this environment."""
    return str(Path(sysconfig.get_path("scripts"), "recon"))


def environment(**ours: str) -> dict[str, str]:
    """Return the variables for a process: those of this process that recon does not read, and `ours`."""
    foreign = ("RECON_", "DATABASE_URL", "PORT", "PROMETHEUS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | ours


@dataclass(frozen=True, slots=True)
class System:
    """A system under load.

    Attributes
    ----------
    name : the name in the tables.
    title : a short description.
    kind : `recon`, `handler`, or a kind in `rawdb`, which has no process.
    settings : recon's settings that differ from the defaults.
    timed : whether recon runs with a clock at each step, for the profile.
    """

    name: str
    title: str
    kind: str = "recon"
    settings: dict[str, str] = field(default_factory=dict)
    timed: bool = False

    def command(self, port: int) -> list[str]:
        """Return the command that starts it on a port."""
        if self.kind == "handler":
            return [sys.executable, "-m", "bench.systems.handler", str(port)]
        program = [sys.executable, "-m", "bench.profile.timed"] if self.timed else [recon_program()]
        return [*program, "serve", "--port", str(port)]


PLAIN = {"RECON_COALESCE": "off", "RECON_WRITER_LANE": "off"}
SYSTEMS = {
    system.name: system
    for system in (
        System("handler", "an aiohttp handler that validates the body and has no database", "handler"),
        System("recon", "recon with its default settings, one process"),
        System("recon-2", "recon with two processes", settings={"RECON_WORKERS": "2"}),
        System("batch", "recon with its default settings; the requests are lines of one POST /identify/batch"),
        System("plain", "recon with one transaction per request: coalescing and writer lane off", settings=PLAIN),
        System("pgbench", "no HTTP: one call of a server-side function per transaction", "pgbench"),
        System("timed", "recon with a clock at each step, for the profile", timed=True),
        System("sampled", "recon while py-spy looks at it, for the profile"),
        System("command", "`recon import`, from the file to the last commit; requests are records", "command"),
        System("copy", "COPY of the contacts that an import made into the same table; requests are rows", "copy"),
        System("export", "`recon export` of what an import made, to a file; requests are contacts", "export"),
        System("copy-out", "COPY of the same contacts to a file; requests are rows", "export"),
        System("dry-run", "`recon import --dry-run` with other guards, too; requests are records", "dry-run"),
        System("select", "asyncpg, one indexed SELECT after another, no HTTP", "select"),
    )
}


@dataclass(slots=True)
class Server:
    """A running system. After its end, `problem` says what was wrong with the end, if anything."""

    port: int
    pid: int
    problem: str | None = None

    def figures(self) -> dict[str, float]:
        """Return the figures of /metrics, each summed over its labels except for the step of a batch."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_TIMEOUT)
        try:
            connection.request("GET", "/metrics")
            text = connection.getresponse().read().decode()
        except (OSError, http.client.HTTPException) as error:
            raise SystemFailed(f"/metrics does not answer: {error}") from error
        finally:
            connection.close()
        figures: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in {"recon_batch_requests_sum", "recon_batch_requests_count"}:
                    name = f"{sample.name}_{sample.labels['step']}"
                else:
                    name = sample.name
                figures[name] = figures.get(name, 0) + sample.value
        return figures


@contextmanager
def serving(system: System, database_url: str, log: Path) -> Iterator[Server]:
    """Start a system and wait until it answers; stop it gracefully afterwards."""
    port = _free_port()
    with log.open("w") as output:
        process = subprocess.Popen(  # noqa: S603 (our own commands)
            system.command(port),
            env=environment(DATABASE_URL=database_url, **system.settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches the benchmark only, which stops the system
        )
    server = Server(port, process.pid)
    try:
        _wait_until_ready(system, process, port, log)
        yield server
    finally:
        server.problem = _stop(process, log)


def _wait_until_ready(system: System, process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        if _status(port, "/readyz") == (404 if system.kind == "handler" else 200):
            return
        time.sleep(0.05)
    raise SystemFailed(f"{system.name} did not start: {_end_of(log)}")


def _status(port: int, path: str) -> int | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_TIMEOUT)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _stop(process: "subprocess.Popen[bytes]", log: Path) -> str | None:
    """Stop a system and its descendants; return what was wrong with the end, if anything."""
    try:
        if process.poll() is not None:
            return f"it ended by itself: {_end_of(log)}"
        process.terminate()
        code = process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"it had to be killed {STOP_TIMEOUT} seconds after SIGTERM"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # all processes of its session; usually none is left
        process.wait()
    return None if code == 0 else f"it ended with exit code {code}: {_end_of(log)}"


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-LOG_SHOWN:].strip() or "its log is empty"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
