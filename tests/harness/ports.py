"""TCP ports that no other test of this machine uses."""

import asyncio
import fcntl
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
_reserved: list[IO[str]] = []  # a lock file for each port, held until this process ends


def free_port() -> int:
    """A port that nothing listens on, reserved for this process until it ends.

    A program binds its port long after the port was chosen. Without the reservation, two concurrent tests could choose
    the same port, and one would use the server of the other. The range excludes the ports of outgoing connections:
    one of these could be taken before it is bound.
    """
    folder = Path(tempfile.gettempdir()) / f"recon-test-ports-{os.geteuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        lock = (folder / str(port)).open("w")
        with socket.socket() as probe, suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind((HOST, port))
            _reserved.append(lock)
            return port
        lock.close()


async def refuses(port: int) -> bool:
    """Whether nothing accepts connections on the port."""
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return True
    writer.close()
    return False
