import asyncio
import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

BODY = b'{"email": "a@shop.example"}'


def request(version: str, *headers: str) -> bytes:
    """Make a POST /identify, as bytes."""
    lines = [f"POST /identify {version}", "Content-Type: application/json", f"Content-Length: {len(BODY)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + BODY


@pytest.mark.parametrize(
    ("sent", "connection", "stays"),
    [
        (request("HTTP/1.1", "Host: localhost"), None, True),
        (request("HTTP/1.1", "Host: localhost", "Connection: close"), "close", False),
        (request("HTTP/1.0"), "close", False),
        (request("HTTP/1.0", "Connection: keep-alive"), "keep-alive", True),
    ],
    ids=["1.1", "1.1 close", "1.0", "1.0 keep-alive"],
)
async def test_an_answer_on_the_wire(
    sent: bytes, connection: str | None, stays: bool, client: "TestClient[Any, Any]"
) -> None:
    """The head has type, length, date, server, id and Connection, and the connection behaves accordingly."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    for _ in range(2 if stays else 1):
        writer.write(sent)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
        headers = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers.pop("Content-Length")))

        assert status == "HTTP/1.1 200 OK"
        assert json.loads(body)["contact"]["emails"] == ["a@shop.example"]
        assert headers.pop("Connection", None) == connection
        assert headers.pop("Date").endswith(" GMT")
        assert len(headers.pop("X-Request-ID")) == 32
        assert headers == {"Content-Type": "application/json", "Server": "recon"}
    if not stays:
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("target", ["OPTIONS *", "CONNECT shop.example:80", "GET http://shop.example", "GET /nothing"])
async def test_nothing_tells_what_recon_is_made_of(target: str, client: "TestClient[Any, Any]") -> None:
    """No response names a library, also not those that aiohttp makes itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(f"{target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()

    assert answer.startswith("HTTP/1.1 404 ")
    assert "Server: recon\r\n" in answer
    assert "aiohttp" not in answer.lower()
