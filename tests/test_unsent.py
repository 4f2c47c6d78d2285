"""Answers that wait for clients which do not read them: bounded in total, at the cost of those clients alone."""

import asyncio
import subprocess
import sys
import urllib.request

import psutil
import pytest
import uvloop
from aiohttp import web
from conftest import Process, StartRecon
from test_protocol import GET, tls, trusting_everybody, until_serving  # noqa: F401 (tls is a fixture)

from recon.protocol import Connection, Limits
from recon.response import JsonResponse
from recon.unsent import Sender, Unsent

MB = 1024 * 1024
BUNDLE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Clients that ask for a page and do not read it, one every twentieth of a second so that one that reads can read.
NEVER_READING = """
import socket, ssl, sys, time
connections = []
for _ in range(int(sys.argv[2])):
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", int(sys.argv[1])))
    if sys.argv[3] == "https":
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        client = context.wrap_socket(client)
    client.sendall(sys.argv[4].encode() * 3)
    connections.append(client)
    time.sleep(0.05)
print("connected", flush=True)
sys.stdin.read()
"""


async def _closed(process: Process, *, secure: bool) -> int:
    """How many connections recon has closed because of too much unsent data."""
    scheme, context = ("https", trusting_everybody()) if secure else ("http", None)
    url = f"{scheme}://127.0.0.1:{process.port}/metrics"

    def get() -> str:
        with urllib.request.urlopen(url, context=context) as answer:
            return answer.read().decode()

    for line in (await asyncio.to_thread(get)).splitlines():
        if line.startswith('recon_connections_closed_total{why="unsent"}'):
            return int(float(line.split()[1]))
    return 0


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_clients_that_never_read(
    secure: bool,
    start_recon: StartRecon,
    database_url: str,
    tls: list[str],  # noqa: F811
) -> None:
    """What waits for clients that never read is bounded; one that reads gets every answer meanwhile."""
    options = ["--database-url", database_url, "--max-unsent", str(32 * MB)]
    process = start_recon(*options, *(tls if secure else []), ready=False)
    await until_serving(process)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", process.port, ssl=trusting_everybody() if secure else None
    )

    async def download() -> int:
        writer.write(BUNDLE)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n", 1)[0])
        return len(await reader.readexactly(length))

    size = await download()
    assert size > MB
    before = psutil.Process(process.popen.pid).memory_info().rss
    arguments = [str(process.port), "100", "https" if secure else "http", BUNDLE.decode()]
    others = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NEVER_READING, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert others.stdin
    assert others.stdout
    connected = asyncio.create_task(others.stdout.readline())
    async with asyncio.timeout(60):
        while not connected.done():
            assert await download() == size
        assert await connected == b"connected\n"
        for _ in range(5):
            assert await download() == size
    after = psutil.Process(process.popen.pid).memory_info().rss
    closed = await _closed(process, secure=secure)
    others.stdin.close()
    await others.wait()
    writer.close()

    assert closed > 10
    assert after - before < (32 + 48) * MB  # the pages are 140 MB; TLS has buffers of its own


def test_large_answers_are_not_copied() -> None:
    """Many connections that wait for the same object take its memory once; all of it arrives."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_large_answers())


async def _large_answers() -> None:
    body = b"x" * 8 * MB
    unsent = Unsent(10 * MB)

    async def handler(_: web.BaseRequest) -> web.StreamResponse:
        return JsonResponse(body)

    server = web.Server(handler)
    limits = Limits(None, 10, 2048, lambda _: True, lambda _: None)
    loop = asyncio.get_running_loop()
    made: list[Connection] = []

    def make() -> Connection:
        made.append(Connection(server, unsent, limits, loop=loop))
        return made[-1]

    async with await loop.create_server(make, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        clients = [await asyncio.open_connection("127.0.0.1", port, limit=1024) for _ in range(20)]
        before = psutil.Process().memory_info().rss
        for _, writer in clients:
            writer.write(GET)
        while not (len(made) == 20 and all(each in unsent for each in made)):
            await asyncio.sleep(0.01)
        assert psutil.Process().memory_info().rss - before < 24 * MB
        for reader, writer in clients:
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: %d\r\n" % len(body) in head
            assert await reader.readexactly(len(body)) == body
            writer.close()
            await writer.wait_closed()
        await server.shutdown()
    assert not any(each in unsent for each in made)


class _Client(Sender):
    """A connection whose client takes what the test says."""

    def __init__(self, unsent: Unsent, waits: int, shared: bytes | None = None) -> None:  # no socket behind it
        self.unsent, self.waits, self.shared = unsent, waits, shared
        self.transport = self.socket_transport = None
        self.was_closed = False

    def unsent_bytes(self) -> int:
        return self.waits

    def bytes_to_take(self) -> int:
        return self.waits

    def abort(self) -> None:
        self.was_closed = True


def _clients(limit: int, *waits: int) -> list[_Client]:
    unsent = Unsent(limit)
    clients = [_Client(unsent, each) for each in waits]
    for each in clients[:-1]:
        unsent.add(each)
    return clients


def test_the_slowest_readers_are_closed() -> None:
    """Those are closed that have taken nothing for longest, and no more than needed; one that reads is left alone."""
    reads, first, second, newest = clients = _clients(100, 40, 30, 30, 30)
    reads.waits -= 1

    newest.unsent.add(newest)

    assert [each.was_closed for each in clients] == [False, True, False, False]
    assert [each in newest.unsent for each in clients] == [True, False, True, True]
    assert not second.was_closed
    assert first.was_closed


def test_readers_make_room() -> None:
    """Data that was taken meanwhile counts no longer, so that nobody is closed for it."""
    clients = _clients(100, 40, 40, 40)
    clients[0].waits = 0
    clients[1].waits = 20

    clients[2].unsent.add(clients[2])

    assert not any(each.was_closed for each in clients)
    assert clients[0] not in clients[2].unsent


def test_all_read_and_it_is_too_much() -> None:
    """If all clients take something, those have to go that did so longest ago."""
    clients = _clients(100, 50, 50, 50)
    for each in clients[:-1]:
        each.waits -= 1

    clients[2].unsent.add(clients[2])

    assert [each.was_closed for each in clients] == [True, False, False]


def test_an_answer_larger_than_the_limit() -> None:
    """One answer is always sent, however large."""
    unsent = Unsent(10)
    client = _Client(unsent, 1000)

    unsent.add(client)

    assert not client.was_closed


def test_a_shared_body_counts_once() -> None:
    """Connections that send the same object take its memory once, until the last of them has sent it."""
    unsent = Unsent(150)
    body = b"x" * 100
    clients = [_Client(unsent, 100, body) for _ in range(50)]
    for each in clients:
        each.socket_transport = each.transport  # no TLS
        unsent.add(each)
    assert not any(each.was_closed for each in clients)

    for each in clients[:-1]:
        unsent.discard(each)
    unsent.add(another := _Client(unsent, 60))

    assert [each.was_closed for each in clients] == [False] * 49 + [True]
    assert another in unsent
