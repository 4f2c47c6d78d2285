"""Requests with and without API keys: which are let in where, and how keys are exchanged."""

import asyncio
import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from recon.keys import SCOPES, new_key
from tests.harness.databases import fetch
from tests.harness.postgres import suspended
from tests.harness.processes import MakeClient, StartRecon
from tests.test_keys import bearer, made

JSON = {"Content-Type": "application/json"}


async def test_without_keys_everybody_gets_in(client: "TestClient[Any, Any]") -> None:
    """With no keys configured none is asked for, and one that is sent does not matter."""
    for headers in ({}, bearer("anything")):
        assert (await client.post("/identify", json={"email": "a"}, headers=headers)).status == 200
        assert (await client.get("/metrics", headers=headers)).status == 200


GUARDED = {"identify": ("POST", "/identify"), "read": ("GET", "/metrics")}
OPEN = ["/healthz", "/readyz", "/docs", "/docs/start.js", "/openapi.json"]


@pytest.mark.parametrize("scope", SCOPES)
async def test_scopes(scope: str, make_client: MakeClient) -> None:
    """A key opens what its scope is for; elsewhere it is a 403, and what is open stays so."""
    secret, entry = made(scope)
    client = await make_client(api_keys=entry)

    implied = {"admin": {"identify", "read"}, "steward": {"read"}}
    for needed, (method, path) in GUARDED.items():
        response = await client.request(method, path, data=b'{"email": "a"}', headers=JSON | bearer(secret))

        assert response.status == (200 if needed in {scope, *implied.get(scope, ())} else 403)
        if response.status == 403:
            assert (await response.json(content_type=None))["type"] == "urn:recon:forbidden"
    for path in OPEN:
        assert (await client.get(path)).status == 200


SECRET, ENTRY = made("admin")
NOBODY = {
    "no header": {},
    "empty": {"Authorization": ""},
    "no scheme": {"Authorization": SECRET},
    "another scheme": {"Authorization": f"Basic {SECRET}"},
    "no secret": {"Authorization": "Bearer"},
    "blank": {"Authorization": "Bearer  "},
    "unknown": bearer(made()[0]),
    "the hash": bearer(hashlib.sha256(SECRET.encode()).hexdigest()),
    "cut": bearer(SECRET[:-1]),
    "longer": bearer(SECRET + "A"),
    "quoted": bearer(f'"{SECRET}"'),
    "twice": bearer(f"{SECRET}, {SECRET}"),
    "another case": bearer(SECRET.swapcase()),
    "not ASCII": bearer("ü\udc80"),
    "elsewhere": {"X-API-Key": SECRET, "Cookie": f"key={SECRET}"},
    "very long": bearer("x" * 8000),
}


async def test_nobody(make_client: MakeClient, database_url: str) -> None:
    """Without a key that recon knows everything guarded is a 401 that says what is missing, and leaves no row."""
    client = await make_client(api_keys=ENTRY)

    for (method, path), (name, headers) in itertools.product(GUARDED.values(), NOBODY.items()):
        for query in ("", f"?key={SECRET}&access_token={SECRET}"):
            response = await client.request(method, path + query, data=b'{"email": "a"}', headers=JSON | headers)

            assert response.status == 401, name
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert response.headers["X-Request-ID"]
            problem = await response.json(content_type=None)
            assert (problem["type"], problem["status"]) == ("urn:recon:unauthorized", 401)
    assert await fetch(database_url, "SELECT FROM contact") == []


async def test_the_scheme_in_any_case(make_client: MakeClient) -> None:
    """`Bearer` may be written in any case, with any number of blanks."""
    client = await make_client(api_keys=ENTRY)

    for scheme in ("Bearer ", "bearer ", "BEARER   "):
        response = await client.post("/identify", json={"email": "a"}, headers={"Authorization": scheme + SECRET})

        assert response.status == 200


@pytest.mark.parametrize("expect", [b"", b"Expect: 100-continue\r\n"])
async def test_a_body_is_not_waited_for(expect: bytes, start_recon: StartRecon, database_url: str) -> None:
    """Who may not ask is told so before the body is there, and is not told to send it."""
    env = os.environ | {"RECON_API_KEYS": ENTRY}
    process = start_recon("--database-url", database_url, env=env)
    head = (
        b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 13\r\n"
        + expect
    )

    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(head + b"\r\n")
        refused = await reader.readuntil(b"\r\n")
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(head + f"Authorization: Bearer {SECRET}\r\n\r\n".encode())
        if expect:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b'{"email":"a"}')
        answered = await reader.readuntil(b"\r\n")
        writer.close()

    assert refused == b"HTTP/1.1 401 Unauthorized\r\n"
    assert answered == b"HTTP/1.1 200 OK\r\n"


async def test_the_log_and_the_metrics_tell_who(start_recon: StartRecon, database_url: str) -> None:
    """The log has the name of the key that was used, allowed or not; refusals are counted by reason."""
    import aiohttp

    (shop, first), (watch, second) = made("identify"), made("read", name="watch")
    options = ("--database-url", database_url, "--log-level", "debug", "--log-format", "json")
    process = start_recon(*options, env=os.environ | {"RECON_API_KEYS": f"{first},{second}"})
    async with aiohttp.ClientSession(process.url) as session:
        for number, headers in enumerate([bearer(shop), bearer(watch), bearer(made()[0]), {}, {}]):
            await session.post("/identify", json={"email": "a"}, headers=headers | {"X-Request-ID": f"r-{number}"})
        async with session.get("/metrics", headers=bearer(watch)) as response:
            figures = await response.text()
    process.stop()

    used = {event["request_id"]: (event["status"], event.get("key")) for event in process.events() if "status" in event}
    assert [used[f"r-{number}"] for number in range(5)] == [
        (200, "shop"),
        (403, "watch"),
        (401, None),
        (401, None),
        (401, None),
    ]
    for reason, count in {"no key": 2, "unknown key": 1, "scope": 1}.items():
        assert f'recon_refused_requests_total{{reason="{reason}"}} {count}.0' in figures


async def test_keys_are_exchanged_without_a_restart(start_recon: StartRecon, database_url: str, tmp_path: Path) -> None:
    """What the file of keys becomes holds within seconds in every process; a mistake in it changes nothing."""
    import aiohttp

    file = tmp_path / "keys"
    (old, old_line), (new, new_line) = new_key("2026", ["identify"]), new_key("2027", ["identify"])
    file.write_text(old_line)
    process = start_recon("--database-url", database_url, "--workers", "2", "--api-keys-file", str(file))

    async def statuses(secret: str) -> set[int]:
        """What many requests, each on a connection of its own and so at any of the processes, are answered."""
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(process.url, connector=connector) as session:
            answers = [await session.post("/identify", json={"email": "a"}, headers=bearer(secret)) for _ in range(10)]
        return {answer.status for answer in answers}

    async def until(secret: str, status: int) -> None:
        async with asyncio.timeout(20):
            while await statuses(secret) != {status}:
                await asyncio.sleep(0.1)

    assert (await statuses(old), await statuses(new)) == ({200}, {401})
    file.write_text(f"{old_line}\n{new_line}\n")
    await until(new, 200)
    assert await statuses(old) == {200}
    file.write_text(f"{new_line}\n")
    await until(old, 401)
    file.write_text("")
    await until(new, 401)
    file.write_text(f"{new_line}\n")
    await until(new, 200)
    file.write_text(f"{old_line}\nrubbish\n")
    async with asyncio.timeout(20):
        while process.log.count("the current API keys stay in force") < 2:
            await asyncio.sleep(0.1)
    assert (await statuses(old), await statuses(new)) == ({401}, {200})
    assert "line 2 is not of the form" in process.log


async def test_a_process_starts_again_while_the_file_is_invalid(
    start_recon: StartRecon, database_url: str, tmp_path: Path
) -> None:
    """A process that replaces a dead one while the file is invalid serves once it is valid; meanwhile the others do."""
    import aiohttp

    file = tmp_path / "keys"
    (old, old_line), (new, new_line) = new_key("2026", ["identify"]), new_key("2027", ["identify"])
    file.write_text(old_line)
    process = start_recon("--database-url", database_url, "--workers", "2", "--api-keys-file", str(file))

    async def status(secret: str) -> int:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(process.url, connector=connector) as session:
            return (await session.post("/identify", json={"email": "a"}, headers=bearer(secret))).status

    async def until_logged(text: str, times: int) -> None:
        async with asyncio.timeout(20):
            while process.log.count(text) < times:
                await asyncio.sleep(0.1)

    _, killed, survivor = process.processes(workers=2)
    for other in (killed, survivor):  # each process has read the file once it answers while the other cannot
        with suspended(other.pid):
            async with asyncio.timeout(20):
                assert await status(old) == 200
    file.write_text("rubbish")
    await until_logged("the current API keys stay in force", 2)
    killed.kill()
    await until_logged("waiting for valid API keys", 1)
    answers = [await status(old) for _ in range(10)]
    file.write_text(new_line)
    await until_logged("was reloaded", 1)
    with suspended(survivor.pid):  # only the process that started again can answer
        async with asyncio.timeout(20):
            answer = await status(new)

    assert (answers, answer) == ([200] * 10, 200)


async def test_the_document_says_what_needs_a_key(make_client: MakeClient) -> None:
    """With keys on the OpenAPI document names them, and the operations that need one; else it does not."""
    from openapi_spec_validator import validate

    guarded = await (await (await make_client(api_keys=ENTRY)).get("/openapi.json")).json()
    everybodys = await (await (await make_client()).get("/openapi.json")).json()

    validate(guarded)
    needs = {
        path: [*operation["security"], *({"401", "403"} & set(operation["responses"]))]
        for path, operations in guarded["paths"].items()
        for operation in operations.values()
        if "security" in operation
    }
    assert needs.keys() == {*guarded["paths"]} - {"/healthz", "/readyz"}
    assert needs["/identify"][0] == {"apiKey": ["identify"]}
    assert all(len(entry) == 3 for entry in needs.values())
    assert guarded["components"]["securitySchemes"]["apiKey"]["scheme"] == "bearer"
    assert "security" not in json.dumps(everybodys)
