"""Errors that need a bare socket: bytes that are not HTTP, odd targets and encodings, a client that leaves."""

import asyncio
import json
import re
from typing import Any

import pytest

from tests.harness.processes import StartRecon, recon_processes

MB = 1024 * 1024
POST = b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
RUBBISH = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
    "bad method": b"P\x00ST /identify HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "unknown method": b"RUBBISH /identify HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bad version": b"GET / HTTP/9.9.9\r\nHost: localhost\r\n\r\n",
    "bad header": b"GET / HTTP/1.1\r\nHost x\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
}


@pytest.fixture(scope="module")
def recon_port(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The port of a recon process."""
    with recon_processes(tmp_path_factory.mktemp("recon")) as start:
        yield start("--database-url", shared_database_url).port


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "rubbish"])
@pytest.mark.parametrize("body", [b"rubbish", b'{"email": "a"}'])
async def test_another_content_encoding(encoding: str, body: bytes, recon_port: int) -> None:
    """A body that is compressed with something else than gzip or deflate is a 415 that names these two."""
    reader, writer = await asyncio.open_connection("127.0.0.1", recon_port)
    fields = b"Content-Encoding: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (encoding.encode(), len(body))
    writer.write(POST + fields + body)
    async with asyncio.timeout(10):
        head, _, answer = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()

    assert head.startswith((b"HTTP/1.1 415 ", b"HTTP/1.0 415 "))
    assert b"\r\nAccept-Encoding: gzip, deflate\r\n" in head + b"\r\n"
    assert json.loads(answer)["status"] == 415


async def test_the_log_says_what_was_wrong(start_recon: StartRecon, database_url: str) -> None:
    """The log line of a 400 has the pointers and details of the problem, and nothing of the values."""
    process = start_recon("--database-url", database_url, "--strict")
    bodies = [
        b'{"email": ["secret"]}',
        b'{"email": "secret", "phoneNumber": "secret"}',
        b"secret",
        b'{"email": "secret@secret@secret.example"}',
        b'{"email": "\xf0\x9f\xa6\x84secret@secret..example"}',
    ]
    said = []
    for body in bodies:
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        said.append(json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["errors"])
        writer.close()
    process.stop()

    lines = [event["errors"] for event in process.events() if event["event"] == "POST /identify"]
    assert lines == [[f"{error['pointer']}: {error['detail']}" for error in errors] for errors in said]
    assert lines[0] == ["/email: must be a string or null"]
    assert "secret" not in process.log


async def test_a_client_that_leaves_early(start_recon: StartRecon, database_url: str) -> None:
    """Who closes the connection in the middle of a body is told nothing, and is no failure of recon's."""
    process = start_recon("--database-url", database_url)
    _, writer = await asyncio.open_connection("127.0.0.1", process.port)
    writer.write(POST + b"Content-Length: 100\r\n\r\n{")
    await asyncio.to_thread(process.wait_until_ready)  # a request later, recon is reading the body

    writer.close()

    async with asyncio.timeout(10):
        while not (events := [event for event in process.events() if "status" in event]):
            await asyncio.sleep(0.01)
    assert [(event["event"], event["status"], event["level"]) for event in events] == [("POST /identify", 400, "info")]


@pytest.mark.parametrize(
    "target", [b"OPTIONS *", b"CONNECT x:443", b"GET http://[::1", b"CONNECT x:443 HTTP/1.1\r\nExpect: wonders"]
)
async def test_a_target_that_is_no_path(target: bytes, recon_port: int) -> None:
    """What no route could ever match is refused in the same form as all else, and quotes nothing."""
    reader, writer = await asyncio.open_connection("127.0.0.1", recon_port)
    line, _, header = target.partition(b" HTTP/1.1\r\n")
    writer.write(line + b" HTTP/1.1\r\nHost: localhost\r\n" + (header and header + b"\r\n") + b"\r\n")
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length
        body = await reader.readexactly(int(length[1]))
    writer.close()

    assert b"\r\nContent-Type: application/problem+json\r\n" in head
    assert b"\r\nServer: recon\r\n" in head
    assert json.loads(body)["status"] == int(head.split()[1]) in {400, 404, 417}
    assert b"wonders" not in body


@pytest.mark.parametrize("rubbish", RUBBISH.values(), ids=RUBBISH)
async def test_rubbish_on_the_socket(rubbish: bytes, recon_port: int) -> None:
    """What is no HTTP at all gets a 400 problem document, and the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", recon_port, limit=MB)
    writer.write(rubbish)
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()

    assert head.startswith((b"HTTP/1.1 400 ", b"HTTP/1.0 400 "))
    assert b"Content-Type: application/problem+json" in head
    assert b"Server: recon\r\n" in head + b"\r\n"
    assert json.loads(body)["status"] == 400
