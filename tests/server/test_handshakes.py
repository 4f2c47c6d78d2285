"""TLS handshakes that do not begin or do not end."""

import asyncio
import socket

import psutil
import pytest

from tests.harness.processes import Process, StartRecon, everything
from tests.harness.storm import idle_connections
from tests.server.test_protocol import until_serving


def descriptors(process: Process) -> int:
    """How many files the process and its workers have open."""
    family = [psutil.Process(process.popen.pid), *psutil.Process(process.popen.pid).children()]
    return sum(each.num_fds() for each in family)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_connections_without_a_handshake(
    workers: str, start_recon: StartRecon, database_url: str, tls: list[str]
) -> None:
    """Connections that never begin the TLS handshake count: past the limit they are closed at once."""
    options = ["--database-url", database_url, "--max-connections", "100", "--workers", workers]
    process = start_recon(*options, *tls, ready=False)
    await until_serving(process)
    with idle_connections(process.port, 1500) as connections:
        closed = 0
        for each in connections:
            each.setblocking(False)
        async with asyncio.timeout(10):
            while closed < 1500 - 100 * int(workers):
                closed = sum(_is_closed(each) for each in connections)
                await asyncio.sleep(0.05)
        assert descriptors(process) < 200 * int(workers)
        assert closed < 1500


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


async def test_a_handshake_that_never_begins(start_recon: StartRecon, database_url: str, tls: list[str]) -> None:
    """The TLS handshake has the time of a head; a client that begins it is served meanwhile."""
    process = start_recon("--database-url", database_url, "--head-timeout", "1", *tls, ready=False)
    await until_serving(process)

    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(_received(process.port, sent) for sent in (b"", b"\x16", b"\x16\x03\x01\x02")))

    assert answers == [b""] * 3


async def _received(port: int, sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    try:
        return await everything(reader)
    finally:
        writer.close()
