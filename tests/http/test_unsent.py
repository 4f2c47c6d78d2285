"""Data that waits for clients that do not read it: its total is bounded, and only those clients are disconnected."""

import asyncio
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import uvloop
from aiohttp import web

from recon.http.responses import HEADERS, JsonResponse
from recon.http.unsent import Sender, Unsent
from recon.server.protocol import Connection, Limits
from tests.harness.processes import StartRecon
from tests.server.test_protocol import GET, trusting_everybody, until_serving

KB = 1024
MB = 1024 * KB
BUNDLE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
READERS = 10  # clients that read
# A burst of clients that ask for a page and do not read it.
NEVER_READING = """
import socket, ssl, sys
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
print("connected", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
async def test_clients_that_never_read(
    secure: bool,
    start_recon: StartRecon,
    database_url: str,
    tls: list[str],
) -> None:
    """The data for clients that never read is bounded; meanwhile clients that read get every answer."""
    options = ["--database-url", database_url, "--max-unsent", str(32 * MB)]
    process = start_recon(*options, *(tls if secure else []), ready=False)
    await until_serving(process)
    context = trusting_everybody() if secure else None
    clients = [await asyncio.open_connection("127.0.0.1", process.port, ssl=context) for _ in range(READERS)]

    async def download(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
        writer.write(BUNDLE)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n", 1)[0])
        return len(await reader.readexactly(length))

    async def download_all() -> set[int]:
        return set(await asyncio.gather(*(download(*client) for client in clients)))

    [size] = await download_all()
    assert size > MB
    before = psutil.Process(process.popen.pid).memory_info().rss
    arguments = [str(process.port), "400", "https" if secure else "http", BUNDLE.decode()]
    others = await asyncio.create_subprocess_exec(
        sys.executable, "-c", NEVER_READING, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert others.stdin
    assert others.stdout
    connected = asyncio.create_task(others.stdout.readline())
    async with asyncio.timeout(120):
        while not connected.done():
            assert await download_all() == {size}
        assert await connected == b"connected\n"
        for _ in range(5):
            assert await download_all() == {size}
    after = psutil.Process(process.popen.pid).memory_info().rss
    others.stdin.close()
    await others.wait()
    for _, writer in clients:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    # The pages are 560 MB. A connection has two parts of one, and under TLS the buffers of OpenSSL.
    assert after - before < 32 * MB + 400 * 256 * KB


def test_large_answers_are_not_copied() -> None:
    """Connections that send the same object hold it in memory once, and all of it arrives."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_large_answers())


async def _large_answers() -> None:
    body = b"x" * 8 * MB
    unsent = Unsent(10 * MB)

    async def handler(request: web.BaseRequest) -> web.StreamResponse:
        request[HEADERS] = {}
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
    """A connection whose client reads as much as the test says."""

    def __init__(self, unsent: Unsent, waits: int, shared: bytes | None = None) -> None:  # no socket behind it
        self.unsent, self.waits, self.shared = unsent, waits, shared
        self.transport = self.socket_transport = None
        self.left = self.held = 0
        self.was_closed = False

    def unsent_bytes(self) -> int:
        return self.waits

    def bytes_to_take(self) -> int:
        return self.waits

    def abort(self) -> None:
        self.was_closed = True


def _clients(unsent: Unsent, *waits: int) -> list[_Client]:
    clients = [_Client(unsent, each) for each in waits]
    for each in clients:
        unsent.add(each)
    return clients


async def test_the_slowest_readers_are_closed() -> None:
    """The clients that read too little for longest are disconnected, no more than needed; one that reads is not."""
    unsent = Unsent(100 * KB, patience=0)
    reads, first, second, newest = clients = _clients(unsent, 80 * KB, 5 * KB, 5 * KB, 5 * KB)
    reads.waits -= 64 * KB
    clients += _clients(unsent, 10 * KB)

    async with asyncio.timeout(5):
        await unsent.room()

    assert [each.was_closed for each in clients] == [False, True, True, False, False]
    assert [each in unsent for each in clients] == [True, False, False, True, True]
    assert (reads, first, second, newest) == tuple(clients[:4])


async def test_new_readers_have_time() -> None:
    """In a burst, each client gets time to read before it is disconnected; further responses wait meanwhile."""
    unsent = Unsent(100, patience=3600)
    clients = _clients(unsent, *[40] * 10)

    turn = asyncio.create_task(unsent.room())
    done, _ = await asyncio.wait([turn], timeout=0.1)
    assert not done
    for each in clients[:8]:
        each.waits = 0
        unsent.discard(each)
    async with asyncio.timeout(5):
        await turn

    assert not any(each.was_closed for each in clients)


async def test_room_is_given_in_turn() -> None:
    """Responses that wait for room get it in order; a cancelled one is skipped."""
    unsent = Unsent(100, patience=3600)
    [first, second] = _clients(unsent, 80, 80)
    order: list[int] = []

    async def send(number: int) -> None:
        await unsent.room()
        order.append(number)
        _clients(unsent, 40)

    sending = [asyncio.create_task(send(number)) for number in range(5)]
    await asyncio.sleep(0)
    sending[1].cancel()
    for each in (first, second):
        unsent.discard(each)
    async with asyncio.timeout(5):
        await asyncio.wait([sending[0], sending[2], sending[3]])
    done, _ = await asyncio.wait([sending[4]], timeout=0.1)

    assert order == [0, 2, 3]
    assert not done
    sending[4].cancel()


async def test_readers_make_room() -> None:
    """Data that was read meanwhile no longer counts, so no client is disconnected for it."""
    unsent = Unsent(100, patience=3600)
    clients = _clients(unsent, 40, 40, 40)
    clients[0].waits = 0

    async with asyncio.timeout(5):
        unsent.refresh()
        await unsent.room()

    assert not any(each.was_closed for each in clients)
    assert clients[0] not in unsent


async def test_an_answer_larger_than_the_limit() -> None:
    """A single answer is always sent, however large, unless another one waits."""
    unsent = Unsent(10, patience=0)
    [client] = _clients(unsent, 1000)
    await asyncio.sleep(0.01)
    assert not client.was_closed

    async with asyncio.timeout(5):
        await unsent.room()
    assert client.was_closed


async def test_a_shared_body_counts_once() -> None:
    """A body that several connections send counts once, until the last of them has sent it."""
    unsent = Unsent(150, patience=3600)
    body = b"x" * 100
    clients = [_Client(unsent, 100, body) for _ in range(50)]
    for each in clients:
        unsent.add(each)
    async with asyncio.timeout(5):
        await unsent.room()

    for each in clients[:-1]:
        unsent.discard(each)
    _clients(unsent, 60)
    turn = asyncio.create_task(unsent.room())
    done, _ = await asyncio.wait([turn], timeout=0.1)
    assert not done
    unsent.discard(clients[-1])
    async with asyncio.timeout(5):
        await turn


async def test_what_a_stream_holds_counts() -> None:
    """The part of a streamed answer that its handler holds counts with the bytes that wait in the transport."""
    unsent = Unsent(150, patience=3600)
    client = _Client(unsent, 100)
    client.held = 60
    unsent.add(client)

    waiting = asyncio.ensure_future(unsent.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    client.held = 0
    unsent.add(client)
    await asyncio.wait_for(waiting, 5)
