"""One connection, from its acceptance on: heads without end, requests in parts, offers to upgrade."""

import asyncio
import itertools
import json
import re
import socket
import ssl
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import Process, StartRecon, everything, recon_processes
from tests.harness.storm import probe

MB = 1024 * 1024
HEAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
GET = HEAD + b"\r\n"
POST = b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"email": "a@shop.example"}'
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"


async def until_serving(process: Process) -> None:
    """Return once the process says that it serves."""
    async with asyncio.timeout(20):
        while "serving on" not in process.log:
            assert process.popen.poll() is None, process.log
            await asyncio.sleep(0.02)


def descriptors_of(process: Process) -> list[Path]:
    """The links to what the process has open."""
    return list(Path(f"/proc/{process.popen.pid}/fd").iterdir())


@pytest.mark.parametrize("tls_on", [False, True], ids=["http", "https"])
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_heads_without_end(
    tls_on: bool, workers: str, start_recon: StartRecon, database_url: str, tls: list[str]
) -> None:
    """A head has --max-head bytes in all, counted as they come and before any key is looked at; then it is a 431."""
    options = ["--database-url", database_url, "--workers", workers]
    process = start_recon(*options, *(tls if tls_on else []), ready=False)
    await until_serving(process)
    context = trusting_everybody() if tls_on else None
    family = process.processes(int(workers))
    before = sum(each.memory_info().rss for each in family)

    async def endless(first: bytes) -> tuple[bytes, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port, ssl=context)
        writer.write(first)
        for number in range(120):
            writer.write(b"X-%d: %s\r\n" % (number, b"x" * 8000))
            with suppress(ConnectionError):
                await writer.drain()
            if reader.at_eof():
                break
        return await everything(reader), writer

    async with asyncio.timeout(60):
        answers = await asyncio.gather(*(endless(first) for first in [HEAD, GET + HEAD] * 75))
    after = sum(each.memory_info().rss for each in family)
    for _, writer in answers:
        writer.close()

    # A client that goes on sending may lose the answer with the connection.
    assert {answer.rpartition(b"HTTP/1.")[2][2:5] for answer, _ in answers} <= {b"431", b"200", b""}
    assert any(b" 431 " in answer for answer, _ in answers)
    # Each head of 32 KiB is held twice at most; a connection has some 15 KiB of objects. Under TLS it also has the
    # buffers of uvloop and of OpenSSL: up to 0.9 MiB were seen. Without a limit the heads alone took 1.9 MiB each.
    assert after - before < 150 * ((1024 if tls_on else 0) + 2 * 32 + 16) * 1024 + 40 * MB * int(workers)


def trusting_everybody() -> ssl.SSLContext:
    """A client that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture(scope="module")
def port(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The port of a recon process whose heads have 2,048 bytes."""
    with recon_processes(tmp_path_factory.mktemp("recon")) as start:
        yield start("--database-url", shared_database_url, "--max-head", "2048").port


@pytest.fixture(scope="module")
def hasty_port(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The port of a recon process whose heads have a second."""
    with recon_processes(tmp_path_factory.mktemp("hasty")) as start:
        yield start("--database-url", shared_database_url, "--head-timeout", "1").port


def _head_of(size: int) -> bytes:
    fixed = len(HEAD + b"X: \r\n\r\n")
    return HEAD + b"X: " + b"x" * (size - fixed) + b"\r\n\r\n"


FIRST = {
    "first": b"",
    "after a request": GET,
    "after a body": POST + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "after chunks": POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "after many": GET * 20,
}


@pytest.mark.parametrize("cut", [1, 1000, 100_000], ids=["byte by byte", "in parts", "at once"])
@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
async def test_the_size_of_a_head(first: bytes, cut: int, port: int) -> None:
    """A head may have exactly so many bytes, whatever came before it and however it is cut into segments."""
    for size, expected in ((2048, b"200"), (2049, b"431")):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        _at_once(writer)
        # No byte more than has to be there, since the answer may be lost to a client that still sends.
        wire = first + _head_of(size)[:2048]
        for start in range(0, len(wire), cut):
            writer.write(wire[start : start + cut])
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(10):
                answers = [await _answer(reader) for _ in range(wire.count(b" HTTP/1.1"))]
        finally:
            writer.close()

        assert [status for status, _ in answers] == [b"200"] * (len(answers) - 1) + [expected]
        assert (expected == b"431") == (b"--max-head" in answers[-1][1])


@pytest.mark.parametrize("size", range(1, 9))
async def test_the_first_bytes_of_a_head_count(size: int, port: int) -> None:
    """However few bytes of a head come in the first segment, they are a part of its size."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(10):
            for first in (b"", GET):  # of a new connection, and of one that is kept
                if first:
                    writer.write(first)
                    assert (await _answer(reader))[0] == b"200"
                head = _head_of(2048 + bool(first))[:2048]
                _at_once(writer)
                writer.write(head[:size])
                await asyncio.sleep(0.05)  # a segment of its own
                writer.write(head[size:])
                assert (await _answer(reader))[0] == (b"431" if first else b"200")
    finally:
        writer.close()


def _at_once(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n", 1)[0])
    return head.split(b" ", 2)[1], await reader.readexactly(length)


async def test_the_size_of_a_target(port: int) -> None:
    """A target that alone is too long is a 414 that names the option."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /" + b"x" * 3000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(5):
        status, body = await _answer(reader)
    writer.close()

    assert status == b"414"
    assert "--max-head" in json.loads(body)["detail"]


async def test_the_number_of_fields(port: int) -> None:
    """A head with more than 128 fields is a 431."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"X: y\r\n" * 128 + b"\r\n")
    async with asyncio.timeout(5):
        status, body = await _answer(reader)
    writer.close()

    assert status == b"431"
    assert "128 fields" in json.loads(body)["detail"]


@pytest.mark.parametrize("first", FIRST.values(), ids=FIRST)
async def test_the_time_of_a_head(first: bytes, hasty_port: int) -> None:
    """A head that has begun has --head-timeout, on a connection that is kept as well, however little it grows."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty_port)
    _at_once(writer)
    writer.write(first + b"G")  # the next head begins in the same segment
    dripped = itertools.chain(b"ET / HTTP/1.1\r\n", itertools.cycle(b"X: y\r\n"))

    async with asyncio.timeout(10):
        answer = asyncio.create_task(everything(reader))
        with suppress(ConnectionError):
            while not answer.done():
                await asyncio.sleep(0.1)
                writer.write(bytes([next(dripped)]))
                await writer.drain()
    writer.close()

    assert (await answer).count(b"HTTP/1.1 200 ") == first.count(b" HTTP/1.1")


async def test_an_idle_connection_has_no_head(hasty_port: int) -> None:
    """Between two requests a connection has the keep-alive's time, not a head's."""
    for request in FIRST.values():
        if not request:
            continue
        reader, writer = await asyncio.open_connection("127.0.0.1", hasty_port)
        for _ in range(2):
            writer.write(request)
            async with asyncio.timeout(5):
                for _ in range(request.count(b" HTTP/1.1")):
                    assert (await _answer(reader))[0] == b"200"
            if request == GET:
                await asyncio.sleep(2.5)  # longer than a head has
        writer.close()


BEHIND = {
    "a read": HEAD + H2C + b"\r\n",
    "a write": POST + H2C + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY),
    "chunks": POST + H2C + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "the second": GET + HEAD + H2C + b"\r\n",
    "several": (HEAD + H2C + b"\r\n") * 3,
    "forty": (HEAD + H2C + b"\r\n") * 40,
}


@pytest.mark.parametrize("cut", [False, True], ids=["at once", "in two"])
@pytest.mark.parametrize("offer", BEHIND.values(), ids=BEHIND)
async def test_behind_an_offer_to_upgrade(offer: bytes, cut: bool, port: int) -> None:
    """An offer to go on in HTTP/2 is ignored, and what is pipelined behind it is answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _at_once(writer)
    wire = offer + GET
    for part in (wire[: len(offer) - 5], wire[len(offer) - 5 :]) if cut else (wire,):
        writer.write(part)
        await asyncio.sleep(0.02)

    async with asyncio.timeout(5):
        answers = [await _answer(reader) for _ in range(wire.count(b" HTTP/1.1"))]
    writer.close()

    assert [status for status, _ in answers] == [b"200"] * len(answers)
    assert json.loads(answers[-1][1]) == {"status": "alive"}


async def test_many_requests_at_once(port: int) -> None:
    """A thousand requests of every kind in one segment, or cut anywhere, get a thousand answers in their order."""
    kinds = [request for request in FIRST.values() if request] + [BEHIND["a read"], BEHIND["chunks"]]
    wire = b"".join(itertools.islice(itertools.cycle(kinds), 250))
    for size in (len(wire), 977, 65_537):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sending = asyncio.create_task(_send(writer, wire, size))
        async with asyncio.timeout(30):
            for _ in range(wire.count(b" HTTP/1.1")):
                assert (await _answer(reader))[0] == b"200"
        await sending
        writer.close()


async def _send(writer: asyncio.StreamWriter, wire: bytes, size: int) -> None:
    for start in range(0, len(wire), size):
        writer.write(wire[start : start + size])
        await writer.drain()


LAST = HEAD + b"Connection: close\r\n\r\n"
VALID = {
    "reads": GET + LAST,
    "a body": FIRST["after a body"] + LAST,
    "chunks and a trailer": FIRST["after chunks"][:-2] + b"T: x\r\n\r\n" + LAST,
    "empty lines": b"\r\n\r\n" + LAST,
    "an offer": HEAD + H2C + b"\r\n" + LAST,
    "HTTP/1.0": GET + b"GET /healthz HTTP/1.0\r\n\r\n",
}
INVALID = {
    "bare LF": GET + b"GET /healthz HTTP/1.1\nHost: localhost\n\n",
    "an end of two kinds": GET + HEAD + b"\n",
    "a folded field": GET + HEAD + b"X: a\r\n b\r\n\r\n",
    "a bare CR": GET + HEAD + b"X: a\rb\r\n\r\n",
    "two lengths": GET + HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
    "a length and chunks": GET + HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "no chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n\r\n",
}


async def _statuses(port: int, *parts: bytes) -> list[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _at_once(writer)
    with suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.001)  # nearly always a segment of its own; the answers must be the same anyway
    received = await everything(reader)
    writer.close()
    return re.findall(rb"HTTP/1\.[01] (\d+) ", received)


@pytest.mark.parametrize("wire", [*VALID.values(), *INVALID.values()], ids=[*VALID, *INVALID])
async def test_a_stream_cut_in_two(wire: bytes, port: int) -> None:
    """Wherever a stream of requests is cut, it has the answers of the whole stream; one with an error does not hang."""
    valid = wire in VALID.values()
    async with asyncio.timeout(60):
        whole = await _statuses(port, wire)
        assert not valid or set(whole) == {b"200"}
        for cut in range(1, len(wire)):
            answers = await _statuses(port, wire[:cut], wire[cut:])
            # With an error, answers may be lost to a client that goes on sending; and what came in the same segment
            # before the error is not executed.
            assert answers == whole if valid else set(answers[:-1]) <= {b"200"}, cut


async def test_a_newcomer_among_many(start_recon: StartRecon, database_url: str) -> None:
    """With hundreds of busy connections a new one is served; the event loop accepts eight of them in each turn.

    The test counts the descriptors of the listening socket, since the time depends on the machine. 100 clients that
    came at once to 500 busy ones waited for 4.3 s (median) with one descriptor, and for 0.6 s with eight.
    """
    process = start_recon("--database-url", database_url)
    listening = Counter(each.readlink() for each in descriptors_of(process))
    with ExitStack() as stack:
        busy = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(300)]
        for _, writer in busy:
            stack.callback(writer.close)
            writer.write(GET * 20)
        status, _ = await probe(process.port)
        assert status == 200
    assert max(count for name, count in listening.items() if name.name.startswith("socket:")) == 8
