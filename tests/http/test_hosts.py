"""The hosts that a request may name: protection against DNS rebinding."""

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, make_mocked_request

from recon.http.hosts import Hosts
from recon.keys import new_key
from recon.settings import Settings
from tests.harness.processes import MakeClient, StartRecon

LOOPBACK = [
    *["localhost", "localhost:8000", "LOCALHOST", "localhost.", "shop.localhost:8000"],
    *["127.0.0.1", "127.0.0.1:8000", "127.255.0.1", "[::1]", "[::1]:8000", "[0:0:0:0:0:0:0:1]"],
]
FOREIGN = [
    *["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil-localhost"],
    *[
        "192.0.2.1",
        "[2001:db8::1]",
        "0.0.0.0",  # noqa: S104
        "localhost:8000:8000",
        "localhost:x",
        "[::1]x",
        "[::1",
        "localhost@evil",
    ],
    *["evil@localhost", "localhost,evil.example", "localhost evil.example", ""],
]
PATHS = ["/", "/docs", "/openapi.json", "/docs/start.js", "/metrics", "/nothing"]


async def _status(client: "TestClient[Any, Any]", host: str, method: str = "GET", path: str = "/openapi.json") -> int:
    response = await client.request(method, path, headers={"Host": host}, allow_redirects=False)
    if response.status == 421:
        assert response.content_type == "application/problem+json"
        problem = await response.json(content_type=None)
        assert problem["type"] == "urn:recon:foreign-host"
        assert "--allowed-hosts" in problem["detail"]
        assert not host or host not in str(problem)
    return response.status


async def test_without_keys_recon_serves_this_machine_alone(client: "TestClient[Any, Any]") -> None:
    """Without keys, only loopback names and addresses are allowed, on every route; other hosts get a 421."""
    for _ in range(2):  # the second time from the cache
        assert {host: await _status(client, host) for host in LOOPBACK} == dict.fromkeys(LOOPBACK, 200)
        assert {host: await _status(client, host) for host in FOREIGN} == dict.fromkeys(FOREIGN, 421)
    assert {path: await _status(client, "evil.example", path=path) for path in PATHS} == dict.fromkeys(PATHS, 421)
    for method in ("POST", "PUT", "OPTIONS"):
        assert await _status(client, "evil.example", method, "/identify") == 421
    # They contain no data, and probes use any address.
    for path in ("/healthz", "/readyz"):
        assert await _status(client, "evil.example", path=path) == 200
    metrics = await (await client.get("/metrics")).text()
    assert 'recon_refused_requests_total{reason="host"}' in metrics


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"allow_anonymous": True}, {"evil.example": 200, "localhost": 200, "shop.example": 200}),
        ({"allowed_hosts": "Shop.example"}, {"evil.example": 421, "localhost": 200, "shop.example": 200}),
        (
            {"allow_anonymous": True, "allowed_hosts": "a.example, SHOP.example 192.0.2.1"},
            {"evil.example": 421, "localhost": 200, "shop.EXAMPLE:443": 200, "a.example.": 200, "192.0.2.1:80": 200},
        ),
        ({"api_keys": new_key("shop", ["admin"])[1]}, {"evil.example": 200, "localhost": 200}),
        (
            {"api_keys": new_key("shop", ["admin"])[1], "allowed_hosts": "shop.example,2001:db8::1"},
            {"evil.example": 421, "127.0.0.1": 200, "shop.example": 200, "[2001:db8::1]:8000": 200},
        ),
    ],
    ids=["anonymous", "a list", "anonymous with a list", "keys", "keys with a list"],
)
async def test_other_hosts(settings: dict[str, Any], expected: dict[str, int], make_client: MakeClient) -> None:
    """With keys or --allow-anonymous every host is allowed; a list of allowed hosts always applies."""
    client = await make_client(**settings)

    assert {host: await _status(client, host) for host in expected} == expected


def test_what_is_remembered_is_bounded() -> None:
    """The cache of allowed Host values is bounded, in number and length."""
    hosts = Hosts(frozenset())
    for host in ["a" * 400 + ".localhost", *(f"{number}.localhost" for number in range(1500))]:
        hosts.check(make_mocked_request("GET", "/", headers={"Host": host}))

    assert len(hosts.known) == 1000
    assert max(map(len, filter(None, hosts.known))) <= 300


@pytest.mark.parametrize("hosts", ["https://shop.example", "shop.example:443", "shop.example/x", "*", "*.shop.example"])
def test_what_is_no_host(hosts: str) -> None:
    """The list contains names, without port, path or pattern."""
    with pytest.raises(ValueError, match="must be host names"):
        Settings(allowed_hosts=hosts)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_hosts_on_the_wire(workers: str, start_recon: StartRecon, database_url: str) -> None:
    """The host in an absolute target is checked too, and no Host, several, and HTTP/1.0 are distinguished."""
    port = start_recon("--database-url", database_url, "--workers", workers).port
    cases = {
        b"GET /docs HTTP/1.1\r\nHost: evil.example": b"421",
        b"GET http://evil.example/docs HTTP/1.1\r\nHost: localhost": b"421",
        b"GET http://localhost/docs HTTP/1.1\r\nHost: evil.example": b"421",
        b"GET http://localhost:80/docs HTTP/1.1\r\nHost: localhost": b"200",
        b"GET http://[::1]:80/docs HTTP/1.1\r\nHost: localhost": b"200",
        b"GET /docs HTTP/1.1": b"400",
        b"GET /docs HTTP/1.1\r\nHost: localhost\r\nHost: evil.example": b"400",
        b"GET /docs HTTP/1.0": b"200",
        b"GET /docs HTTP/1.0\r\nHost: evil.example": b"421",
    }
    got = {}
    for request in cases:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request + b"\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(5):
            got[request] = (await reader.read()).split(b" ", 2)[1]
        writer.close()

    assert got == cases
