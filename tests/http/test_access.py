"""CORS and the security headers of the docs page."""

import asyncio
import itertools
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from recon.keys import new_key
from tests.harness.processes import MakeClient, StartRecon

SHOP, TILL = "https://shop.example", "http://till.example:8080"
ELSEWHERE = ["https://evil.example", "https://shop.example.evil.example", "http://shop.example", "null", "*", ""]
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}


async def test_no_page_of_another_origin_by_default(client: "TestClient[Any, Any]") -> None:
    """By default, browsers let no page of another origin send requests or read responses."""
    preflight = await client.options("/identify", headers=PREFLIGHT | {"Origin": SHOP})
    answer = await client.post("/identify", json={"email": "a"}, headers={"Origin": SHOP})

    assert (preflight.status, answer.status) == (405, 200)
    for response in (preflight, answer):
        assert not [name for name in response.headers if name.startswith("Access-Control-") or name == "Vary"]


@pytest.mark.parametrize("origin", [SHOP, TILL])
async def test_a_page_of_a_named_origin(origin: str, make_client: MakeClient) -> None:
    """A page of an allowed origin can send requests with its API key, and read responses, errors included."""
    secret, entry = new_key("shop", ["identify"])
    client = await make_client(cors_origins=f"{SHOP}, {TILL}", api_keys=entry)
    headers = {"Origin": origin}

    preflight = await client.options("/identify", headers=PREFLIGHT | headers)
    answers = [
        await client.post("/identify", json=body, headers=headers | {"Authorization": f"Bearer {key}"})
        for body, key in (({"email": "a"}, secret), ({}, secret), ({"email": "a"}, "unknown"))
    ]

    assert preflight.status == 204
    assert preflight.headers["Access-Control-Allow-Methods"] == "POST"
    assert {"Authorization", "Content-Type"} <= set(preflight.headers["Access-Control-Allow-Headers"].split(", "))
    assert [answer.status for answer in answers] == [200, 400, 401]
    for response in (preflight, *answers):
        assert response.headers["Access-Control-Allow-Origin"] == origin
        assert response.headers["Vary"] == "Origin"
        assert "Access-Control-Allow-Credentials" not in response.headers


async def test_a_page_of_another_origin(make_client: MakeClient) -> None:
    """Another origin gets no Allow-Origin, never `*`; `Vary` tells caches that the response depends on the origin."""
    client = await make_client(cors_origins=SHOP)

    for method, origin in itertools.product(("OPTIONS", "POST"), ELSEWHERE):
        headers = PREFLIGHT | {"Origin": origin}
        response = await client.request(method, "/identify", json={"email": "a"}, headers=headers)

        assert "Access-Control-Allow-Origin" not in response.headers
        assert response.headers["Vary"] == "Origin"


async def test_the_docs_page_is_held_to_its_own(make_client: MakeClient) -> None:
    """The docs page runs only recon's scripts, cannot be framed, and sends no referrer."""
    client = await make_client()

    for path in ("/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/openapi.json"):
        headers = (await client.get(path)).headers

        policy = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"


ASKED = {
    "answer": b'POST /identify HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 13\r\n{"email":"a"}',
    "unknown": b"GET /nothing HTTP/1.1\r\n",
    "refused method": b"DELETE /identify HTTP/1.1\r\n",
    "preflight": b"OPTIONS /identify HTTP/1.1\r\n",
    "operation": b"GET /metrics HTTP/1.1\r\n",
    "docs": b"GET /docs HTTP/1.1\r\n",
    "redirect": b"GET / HTTP/1.1\r\n",
    "expectation": b"POST /identify HTTP/1.1\r\nExpect: wonders-7\r\nContent-Length: 0\r\n",
    "expectation elsewhere": b"GET /healthz HTTP/1.1\r\nExpect: wonders-7\r\n",
    "expectation nowhere": b"GET /nothing HTTP/1.1\r\nExpect: wonders-7\r\n",
    "no HTTP": b"hello\r\n",
    "no method": b"\x00 / HTTP/1.1\r\n",
    "two lengths": b"POST /identify HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n",
    "large header": b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
    "asterisk": b"OPTIONS * HTTP/1.1\r\n",
    "authority": b"CONNECT shop.example:443 HTTP/1.1\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n",
    "upgrade": b"GET /docs HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    "bad target": b"GET //[ HTTP/1.1\r\n",
    "absolute": b"GET http://[::1/ HTTP/1.1\r\n",
}


async def test_no_answer_names_a_library(start_recon: StartRecon, database_url: str) -> None:
    """No response names a library or a version, under gunicorn neither."""
    process = start_recon("--database-url", database_url, "--workers", "2", "--cors-origins", SHOP)

    for name, asked in ASKED.items():
        head, sep, body = asked.partition(b"\r\n{")
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(
                head.removesuffix(b"\r\n") + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n" + sep[2:] + body
            )
            answer = (await reader.read()).lower()
            writer.close()

        assert answer.startswith(b"http/1."), (name, answer)
        assert answer.count(b"\r\nserver: recon\r\n") == 1, (name, answer)
        for library in (b"aiohttp", b"python/", b"python_info", b"gunicorn", b"uvloop", b"wonders-7"):
            assert library not in answer, (name, answer)
    assert "Traceback" not in process.log
