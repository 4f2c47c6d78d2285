"""The embedded PostgreSQL: it runs while recon runs, and its data is kept between runs."""

import fcntl
import logging
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import quote

from recon import signals
from recon.database.embedded.postmaster import PORT, SOCKET, SUPERUSER, Pause, Postmaster

log = logging.getLogger(__name__)

# Bytes that a socket's path may have: 103 on macOS, 107 on Linux.
_LONGEST_PATH = 103
_CHECK_EVERY = 1.0  # seconds between checks whether the server still runs
_LOCK_RETRY = 0.05  # seconds between attempts to get a lock
_REPEAT = 30.0  # seconds between log lines about a server that cannot be started


@contextmanager
def running(data_dir: Path, *, create: bool = True) -> Iterator[str]:
    """Start a PostgreSQL on `data_dir` unless one runs there, restart it if it dies, and yield its database URL.

    The server listens on a Unix socket only. The last recon that uses a data folder stops it.

    Parameters
    ----------
    data_dir : the folder.
    create : whether to create the folder and its data if they do not exist.

    Raises OSError when the folder cannot be used, RuntimeError when the server does not start.
    """
    data_dir = data_dir.resolve()
    data = data_dir / "postgresql"
    if create:
        data_dir.mkdir(parents=True, exist_ok=True)
    elif not data.exists():
        raise OSError(f"{data_dir}: there is no data of recon in this folder; check --data-dir (RECON_DATA_DIR)")
    owner = os.getpid()
    postmaster = Postmaster(data)
    with (
        _socket_folder(data) as sockets,
        (data_dir / "in-use").open("a+") as users,
        (data_dir / "starting").open("a") as starting,
    ):
        use = _Use(postmaster, data_dir, users, starting)
        try:
            use.begin()
            yield f"postgresql://{SUPERUSER}@/postgres?host={quote(str(sockets))}&port={PORT}"
        finally:
            if os.getpid() == owner:  # not in a forked worker process, which unwinds the same stack
                use.end()


def remove(data_dir: Path) -> bool:
    """Delete the data that `running` keeps in `data_dir`; False if there is none. Raises OSError if recon uses it."""
    data = data_dir.resolve() / "postgresql"
    if not data.exists():
        return False
    with (data.parent / "in-use").open("a+") as users, signals.blocked():
        if not _locked(users, fcntl.LOCK_EX):
            raise OSError(f"{data_dir}: a running recon uses this folder; stop that recon first")
        Postmaster(data).stop()  # a server that a killed recon left running
        shutil.rmtree(data)
    return True


class _Use:
    """One process's use of the server on a data folder.

    The lock on the file `in-use` is held shared while the server is used, and exclusively to stop it; a
    killed process loses it. The lock on `starting` is held to start the server, together with the shared lock.
    So no process stops a server that another process uses, and no two processes start it.
    """

    def __init__(self, postmaster: Postmaster, data_dir: Path, users: IO[str], starting: IO[str]) -> None:
        self._postmaster = postmaster
        self._data_dir = data_dir
        self._users = users
        self._starting = starting
        self._ending = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="embedded PostgreSQL", daemon=True)

    def begin(self) -> None:
        """Return once the server is ready; from then on it is restarted if it dies."""
        self._lock_in_use()
        self._ensure_running(time.sleep, create=True)
        with signals.blocked():  # so that signals go to the main thread
            self._watcher.start()

    def end(self) -> None:
        """Stop the server unless another process uses it. No lock is waited for."""
        with signals.blocked():
            self._ending.set()
            if self._watcher.ident is not None:
                self._watcher.join()
            fcntl.flock(self._users, fcntl.LOCK_UN)
            # Another process that has a lock now uses the server, or is stopping it.
            if _locked(self._users, fcntl.LOCK_EX):
                self._postmaster.stop()

    def _lock_in_use(self) -> None:
        """Take the shared lock on `in-use`; check that all processes that hold it are in this process namespace."""
        here = _namespace()
        while True:
            if _locked(self._users, fcntl.LOCK_EX):  # no other process uses the folder
                self._users.truncate(0)
                self._users.write(here)
                self._users.flush()
                # A server that a killed recon left running may have another version or other options.
                self._postmaster.stop()
            self._wait_for(self._users, fcntl.LOCK_SH, time.sleep)
            self._users.seek(0)
            if self._users.read() == here:
                return
            fcntl.flock(self._users, fcntl.LOCK_UN)
            if not _locked(self._users, fcntl.LOCK_EX):  # otherwise the other process has ended meanwhile
                raise OSError(f"{self._data_dir}: in use by a recon in another container; run this command in that one")

    def _ensure_running(self, pause: Pause, *, create: bool) -> None:
        self._wait_for(self._starting, fcntl.LOCK_EX, pause)
        try:
            if create:
                self._postmaster.create()
            if self._postmaster.process() is None:
                self._postmaster.start(pause)
            else:
                self._postmaster.wait_until_ready(pause)
        finally:
            fcntl.flock(self._starting, fcntl.LOCK_UN)

    def _wait_for(self, lock: IO[str], mode: int, pause: Pause) -> None:
        waits = False
        while not _locked(lock, mode):
            if not waits:
                waits = True
                log.warning("waiting for another process that starts or stops the PostgreSQL in %s", self._data_dir)
            pause(_LOCK_RETRY)

    def _watch(self) -> None:
        """Restart the server whenever it has died. A thread, since gunicorn's main process has no event loop."""
        failed: float | None = None
        while not self._ending.wait(_CHECK_EVERY):
            if self._postmaster.process() is not None:
                continue
            if failed is None:
                log.error("the embedded PostgreSQL has died; restarting it")
            try:
                # create=False: data that was deleted meanwhile must not be replaced by an empty database.
                self._ensure_running(self._pause_until_the_end, create=False)
            except _Ending:
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, the next check tries again)
                # The first attempts may fail, while sessions of the dead server are still ending.
                if failed is None or time.monotonic() - failed > _REPEAT:
                    failed = time.monotonic()
                    log.error("the embedded PostgreSQL could not be restarted yet: %s", error)  # noqa: TRY400
            else:
                failed = None
                log.warning("the embedded PostgreSQL runs again")

    def _pause_until_the_end(self, seconds: float) -> None:
        if self._ending.wait(seconds):
            raise _Ending


class _Ending(Exception):
    """recon is about to end."""


def _locked(file: IO[str], mode: int) -> bool:
    """Take a lock, LOCK_SH or LOCK_EX, and return whether that was possible at once."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _socket_folder(data: Path) -> Iterator[Path]:
    """Yield a path of the folder `data` by which a client can connect: itself, or a private link to it.

    The path of a socket has at most 103 bytes, and a comma in it would separate hosts.
    """
    if _is_usable(data):
        yield data
        return
    owner = os.getpid()
    private = _private_folder(data)
    descriptor = os.open(private, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)  # systemd-tmpfiles deletes old folders, but no locked ones
        (private / "data").symlink_to(data)
        yield private / "data"
    finally:
        os.close(descriptor)
        if os.getpid() == owner:
            shutil.rmtree(private, ignore_errors=True)


def _is_usable(folder: Path) -> bool:
    path = os.fsencode(folder / SOCKET)
    try:
        path.decode()
    except UnicodeDecodeError:  # the URL could not contain it
        return False
    return len(path) <= _LONGEST_PATH and b"," not in path


def _private_folder(data: Path) -> Path:
    """A new folder with mode 0700 and an unpredictable name."""
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 (mkdtemp is safe there)
        private = Path(tempfile.mkdtemp(prefix="recon-", dir=parent))
        if _is_usable(private / "data"):
            return private
        private.rmdir()
    raise OSError(
        f"{data.parent}: the path is too long for PostgreSQL's socket, or has a comma or bytes that are not UTF-8, "
        "and there is no temporary folder to link to it from: choose another --data-dir (RECON_DATA_DIR)"
    )


def _namespace() -> str:
    """Return the namespace of process ids. A server is identified by its id, which is only valid in one namespace."""
    try:
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 (the link's target)
    except FileNotFoundError:  # no Linux, hence no containers
        return socket.gethostname()
