"""A new endpoint is one record and its handler: made-up endpoints get everything that recon's own have."""

import asyncio
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from openapi_spec_validator import validate

from recon.http.endpoints import Endpoint
from recon.keys import new_key
from tests.api.test_health import figures
from tests.harness import made_up
from tests.harness.made_up import contact
from tests.harness.processes import MakeClient

SHOP = "https://shop.example"
MARK = "5550199"
READ, READ_ENTRY = new_key("reader", ["read"])
IDENTIFY, IDENTIFY_ENTRY = new_key("shop", ["identify"])


def _bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the made-up endpoints to recon."""
    monkeypatch.setattr("recon.app.api", made_up.api)


@pytest.fixture
async def guarded(make_client: MakeClient) -> "TestClient[Any, Any]":
    """A client of a recon with API keys and CORS."""
    return await make_client(api_keys=f"{READ_ENTRY},{IDENTIFY_ENTRY}", cors_origins=SHOP)


async def test_the_handler_answers(client: "TestClient[Any, Any]") -> None:
    """The handler gets the path parameter and the body."""
    assert await (await client.get(f"/contacts/{MARK}")).json() == {"id": MARK}
    assert await (await client.put("/contacts/1", data=b"x" * 10)).json() == {"size": 10}


async def test_its_own_body_limit(make_client: MakeClient) -> None:
    """The record's limit applies to its endpoint only; other endpoints have the limit of the settings."""
    client = await make_client(max_body=1024)

    large = await client.put("/contacts/1", data=b"x" * 11)
    body = b'{"email": "a", "other": "%s"}'
    fits = await client.post("/identify", data=body % (b"x" * 900), headers={"Content-Type": "application/json"})
    too_large = await client.post("/identify", data=body % (b"x" * 1024), headers={"Content-Type": "application/json"})

    assert (large.status, large.content_type) == (413, "application/problem+json")
    assert (fits.status, too_large.status) == (200, 413)


async def test_a_larger_body_limit(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record's limit may be above the limit of the settings."""
    larger = Endpoint("POST", "/larger", made_up.replace, max_body=100_000)
    monkeypatch.setattr(
        "recon.app.api", lambda *arguments, **options: [*made_up.real_api(*arguments, **options), larger]
    )
    client = await make_client(max_body=1024)

    statuses = [(await client.post("/larger", data=b"x" * size)).status for size in (100_000, 100_001)]

    assert statuses == [200, 413]


async def test_its_scope(guarded: "TestClient[Any, Any]") -> None:
    """Each method of a path needs a key with its scope: no key is a 401, a key with another scope a 403."""
    statuses = {
        (method, secret): (await guarded.request(method, "/contacts/1", headers=_bearer(secret))).status
        for method in ("GET", "HEAD", "PUT")
        for secret in (READ, IDENTIFY, "unknown")
    }

    assert statuses == {
        ("GET", READ): 200,
        ("GET", IDENTIFY): 403,
        ("GET", "unknown"): 401,
        ("HEAD", READ): 200,
        ("HEAD", IDENTIFY): 403,
        ("HEAD", "unknown"): 401,
        ("PUT", READ): 403,
        ("PUT", IDENTIFY): 200,
        ("PUT", "unknown"): 401,
    }


@pytest.mark.parametrize(
    ("key", "answer"), [(IDENTIFY, b"HTTP/1.1 100 "), (READ, b"HTTP/1.1 403 ")], ids=["its scope", "another"]
)
async def test_who_is_told_to_continue(key: str, answer: bytes, guarded: "TestClient[Any, Any]") -> None:
    """A client that sends `Expect: 100-continue` gets a 100 if its key has the scope, else it is refused at once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    head = f"PUT /contacts/1 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nExpect: 100-continue\r\n"
    writer.write(head.encode() + b"Content-Length: 10\r\n\r\n")
    async with asyncio.timeout(5):
        line = await reader.readline()
    writer.close()

    assert line.startswith(answer)


async def test_other_expectations(client: "TestClient[Any, Any]") -> None:
    """An unsupported expectation is a 417, also for other methods of the path."""
    for method in ("GET", "PUT", "DELETE"):
        assert (await client.request(method, "/contacts/1", headers={"Expect": "wonders"})).status == 417


@pytest.mark.parametrize(
    ("settings", "allowed"), [({}, "GET,HEAD,PUT"), ({"cors_origins": SHOP}, "GET,HEAD,OPTIONS,PUT")]
)
async def test_other_methods(settings: dict[str, str], allowed: str, make_client: MakeClient) -> None:
    """Another method is a 405 whose Allow has the methods of all records of the path."""
    client = await make_client(**settings)

    response = await client.delete("/contacts/1")

    assert (response.status, response.headers["Allow"]) == (405, allowed)
    assert (await response.json(content_type=None))["status"] == 405


async def test_preflight(guarded: "TestClient[Any, Any]") -> None:
    """CORS preflight allows exactly the methods of the path that have CORS, and needs no key."""
    methods = {}
    for path in ("/contacts/1", "/lines", "/identify"):
        response = await guarded.options(path, headers={"Origin": SHOP, "Access-Control-Request-Method": "GET"})
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (204, SHOP)
        methods[path] = response.headers["Access-Control-Allow-Methods"]
    refused = await guarded.options("/metrics", headers={"Origin": SHOP})

    assert methods == {"/contacts/1": "GET, PUT", "/lines": "GET", "/identify": "POST"}
    assert refused.status == 405


async def test_its_label(client: "TestClient[Any, Any]", caplog: pytest.LogCaptureFixture) -> None:
    """Metrics and log contain the path's pattern, and never the path of the request."""
    caplog.set_level("DEBUG", "recon")
    before = await figures(client)

    await client.get(f"/contacts/{MARK}")
    await client.delete(f"/contacts/{MARK}")
    await client.get(f"/contacts/{MARK}/{MARK}")

    after = await figures(client)
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["recon_http_requests_total", "/contacts/{id}", "200"] == 1
    assert grown["recon_http_requests_total", "/contacts/{id}", "405"] == 1
    assert grown["recon_http_requests_total", "unknown", "404"] == 1
    assert grown["recon_http_request_seconds_count", "/contacts/{id}"] == 2
    assert not [name for name in after if MARK in "".join(name)]
    assert {"GET /contacts/{id}", "DELETE /contacts/{id}", "GET unknown"} <= set(caplog.messages)
    assert MARK not in caplog.text


async def test_its_operation(guarded: "TestClient[Any, Any]") -> None:
    """The OpenAPI document has the operation, with the parameters, security and problems that the record implies."""
    document = await (await guarded.get("/openapi.json")).json()

    validate(document)
    get, put = (document["paths"]["/contacts/{id}"][method] for method in ("get", "put"))
    assert get["parameters"] == [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    assert (get["summary"], get["security"]) == ("A made-up contact", [{"apiKey": ["read"]}])
    assert set(get["responses"]) == {"200", "401", "403", "421"}
    assert set(put["responses"]) == {"200", "401", "403", "408", "413", "415", "421"}
    assert "security" not in document["paths"]["/lines"]["get"]
    assert "post" not in document["paths"]["/lines"]


@pytest.mark.parametrize("path", ["contacts", "/contacts/", "/contacts/{id", "/{id:[0-9]+}", "/a b", "/{}", ""])
def test_what_is_no_path(path: str) -> None:
    """The record refuses a path that OpenAPI cannot express."""
    with pytest.raises(ValueError, match="is not a path"):
        Endpoint("GET", path, contact)


def test_what_is_no_scope() -> None:
    """The record refuses an unknown scope."""
    with pytest.raises(ValueError, match="the scope reed is not one of identify, read, steward, erase, admin"):
        Endpoint("GET", "/contacts", contact, scope="reed")
