"""Every way to get an error: always a problem document, never a 500, never a row."""

import gzip
import io
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp.test_utils import TestClient

from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient

JSON = {"Content-Type": "application/json"}
MB = 1024 * 1024

# Bodies of JSON, or nearly, each with the pointers of what is wrong in it.
BAD_BODIES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", [""]),
    "blank": (b"   ", [""]),
    "no JSON": (b"email=doc@hillvalley.edu", [""]),
    "cut off": (b'{"email": "doc@hil', [""]),
    "trailing rubbish": (b'{"email": "doc@hillvalley.edu"} {}', [""]),
    "two documents": (b'{"email": "a"}{"email": "b"}', [""]),
    "not UTF-8": (b'{"email": "\xff\xfe"}', [""]),
    "UTF-16": ('{"email": "a"}'.encode("utf-16"), [""]),
    "byte order mark": (b'\xef\xbb\xbf{"email": "a"}', [""]),
    "null": (b"null", [""]),
    "a string": (b'"doc@hillvalley.edu"', [""]),
    "a number": (b"1", [""]),
    "an array": (b'[{"email": "doc@hillvalley.edu"}]', [""]),
    "no fields": (b"{}", [""]),
    "only other fields": (b'{"mail": "doc@hillvalley.edu"}', [""]),
    "both null": (b'{"email": null, "phoneNumber": null}', [""]),
    "both blank": (b'{"email": "  ", "phoneNumber": "\\t"}', [""]),
    "email is a number": (b'{"email": 1}', ["/email"]),
    "email is a boolean": (b'{"email": true}', ["/email"]),
    "email is an array": (b'{"email": ["doc@hillvalley.edu"]}', ["/email"]),
    "email is an object": (b'{"email": {"nested": "object"}, "phoneNumber": "1"}', ["/email"]),
    "phone is a boolean": (b'{"phoneNumber": true}', ["/phoneNumber"]),
    "phone is a fraction": (b'{"phoneNumber": 1.5}', ["/phoneNumber"]),
    "phone is a fraction of nothing": (b'{"phoneNumber": 123456.0}', ["/phoneNumber"]),
    "phone is an exponent": (b'{"phoneNumber": 1e6}', ["/phoneNumber"]),
    "phone is negative": (b'{"phoneNumber": -1}', ["/phoneNumber"]),
    "phone is an array": (b'{"phoneNumber": []}', ["/phoneNumber"]),
    "phone has a leading zero as a number": (b'{"phoneNumber": 0123}', [""]),
    "phone has 200 digits": (b'{"phoneNumber": ' + b"9" * 200 + b"}", ["/phoneNumber"]),
    "phone has 5,000 digits": (b'{"phoneNumber": ' + b"9" * 5000 + b"}", [""]),
    "both wrong": (b'{"email": 1, "phoneNumber": false}', ["/email", "/phoneNumber"]),
    "NaN": (b'{"phoneNumber": NaN}', [""]),
    "NaN in another field": (b'{"email": "a", "other": NaN}', [""]),
    "Infinity": (b'{"email": "a", "other": -Infinity}', [""]),
    "NUL": (b'{"email": "a\\u0000b"}', ["/email"]),
    "only NUL": (b'{"phoneNumber": "\\u0000"}', ["/phoneNumber"]),
    "raw NUL": (b'{"email": "a\x00b"}', [""]),
    "escape": (b'{"phoneNumber": "1\\u001b[31m"}', ["/phoneNumber"]),
    "line break inside": (b'{"email": "a\\nb"}', ["/email"]),
    "lone surrogate": (b'{"email": "\\ud800"}', [""]),
    "reversed surrogates": (b'{"email": "\\udc00\\ud800"}', [""]),
    "lone surrogate in another field": (b'{"email": "a", "other": "\\udfff"}', [""]),
    "long email": (b'{"email": "' + b"a" * 321 + b'"}', ["/email"]),
    "long phone": (b'{"phoneNumber": "' + b"1" * 65 + b'"}', ["/phoneNumber"]),
    "short phone, long in NFKC": (b'{"phoneNumber": "' + "\ufdfa".encode() * 4 + b'"}', ["/phoneNumber"]),
    "huge email": (b'{"email": "' + b"a" * 60_000 + b'"}', ["/email"]),
    "deep array": (b'{"email": "a", "other": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", [""]),
    "deep object": (b'{"email": ' * 5_000 + b"1" + b"}" * 5_000, [""]),
    "deep NaN": (b'{"email": "a", "other": ' + b"[" * 20_000 + b"NaN" + b"]" * 20_000 + b"}", [""]),
}


async def _problem(response: Any, status: int) -> dict[str, Any]:
    """The response's problem document, checked."""
    assert response.status == status
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-ID"]
    problem = await response.json(content_type=None)
    assert set(problem) <= {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == status
    assert problem["type"]
    assert problem["title"]
    return problem


@pytest.mark.parametrize(("body", "pointers"), BAD_BODIES.values(), ids=BAD_BODIES)
async def test_a_bad_body(body: bytes, pointers: list[str], client: "TestClient[Any, Any]", database_url: str) -> None:
    """A body that says nothing usable is a 400 that names what is wrong, and leaves no row."""
    problem = await _problem(await client.post("/identify", data=body, headers=JSON), 400)

    assert problem["type"] == "urn:recon:invalid-request"
    assert [error["pointer"] for error in problem["errors"]] == pointers
    assert all(error["detail"] for error in problem["errors"])
    assert await fetch(database_url, "SELECT FROM contact") == []


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/jsonp",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "rubbish",
    ],
)
async def test_another_content_type(content_type: str | None, client: "TestClient[Any, Any]") -> None:
    """What does not say that it is JSON in UTF-8 is a 415 that says what to send."""
    headers = {"Content-Type": content_type} if content_type else {}
    skip = [] if content_type else ["Content-Type"]

    response = await client.post("/identify", data=b'{"email": "a"}', headers=headers, skip_auto_headers=skip)

    assert "application/json" in (await _problem(response, 415))["detail"]


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/vnd.shop+json",
    ],
)
async def test_json_by_any_name(content_type: str, client: "TestClient[Any, Any]") -> None:
    """JSON in UTF-8 is taken however it is spelt."""
    response = await client.post("/identify", data=b'{"email": "a"}', headers={"Content-Type": content_type})

    assert response.status == 200


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_body(chunked: bool, client: "TestClient[Any, Any]", database_url: str) -> None:
    """A body over the limit is a 413, declared or not, and leaves no row."""
    body = b'{"email": "a", "other": "' + b"x" * 2 * MB + b'"}'

    async def chunks() -> Any:
        for start in range(0, len(body), 65_536):
            yield body[start : start + 65_536]

    try:
        response = await client.post("/identify", data=chunks() if chunked else io.BytesIO(body), headers=JSON)
    except ConnectionError:
        pytest.skip("the connection was closed while the body was still being sent, as HTTP allows")

    await _problem(response, 413)
    assert await fetch(database_url, "SELECT FROM contact") == []


BEYOND = {
    "deep": (b'{"email": "a", "other": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "is nested too deeply"),
    "deep NaN": (b'{"email": "a", "other": ' + b"[" * 9_000 + b"NaN" + b"]" * 9_000 + b"}", "is nested too deeply"),
    "long": (b'{"phoneNumber": ' + b"9" * 5000 + b"}", "has a number that is too long"),
    "long elsewhere": (b'{"email": "a", "other": ' + b"9" * 5000 + b"}", "has a number that is too long"),
}


@pytest.mark.parametrize(("body", "detail"), BEYOND.values(), ids=BEYOND)
async def test_json_beyond_the_limits(body: bytes, detail: str, client: "TestClient[Any, Any]") -> None:
    """JSON that is valid but nested too deeply, or has a number that is too long, is told so."""
    problem = await _problem(await client.post("/identify", data=body, headers=JSON), 400)

    [error] = problem["errors"]
    assert error["detail"].startswith(f"{detail} at line 1 column ")


async def test_a_body_that_unpacks_to_much(client: "TestClient[Any, Any]") -> None:
    """A compressed body counts as large as it unpacks, and one that does not unpack is a 400."""
    headers = JSON | {"Content-Encoding": "gzip"}

    bomb = await client.post("/identify", data=gzip.compress(b" " * 50 * MB), headers=headers)
    broken = await client.post("/identify", data=b"not gzip", headers=headers)

    await _problem(bomb, 413)
    await _problem(broken, 400)


@pytest.mark.parametrize(
    "path", ["/nothing", "/identify/", "/docs/nothing.js", "/docs/../recon/cli.py", "/%00", "/identify?x=1/.."]
)
async def test_an_unknown_path(path: str, client: "TestClient[Any, Any]") -> None:
    """A path that is not there is a 404 (or, with a query, the path without it)."""
    await _problem(await client.get(path), 405 if path.startswith("/identify?") else 404)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
async def test_another_method(method: str, client: "TestClient[Any, Any]") -> None:
    """A method that a path does not take is a 405 that says which it takes."""
    response = await client.request(method, "/identify")

    assert response.status == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        await _problem(response, 405)


@pytest.mark.parametrize(("method", "path"), [("POST", "/identify"), ("GET", "/healthz"), ("GET", "/nothing")])
async def test_a_strange_expectation(method: str, path: str, client: "TestClient[Any, Any]") -> None:
    """An Expect header that is not 100-continue is a 417, wherever it is sent."""
    response = await client.request(method, path, json={"email": "a"}, headers={"Expect": "wonders"})

    assert response.status == 417
    assert response.content_type == "application/problem+json"
    patient = await client.post("/identify", json={"email": "a"}, expect100=True)
    assert patient.status == 200


STRICT = {
    "bad email": ({"email": "doc at hillvalley"}, ["/email"]),
    "bad phone": ({"phoneNumber": "123456"}, ["/phoneNumber"]),
    "both": ({"email": "x", "phoneNumber": "x"}, ["/email", "/phoneNumber"]),
    "a phone by another name": ({"email": "doc@hillvalley.edu", "phone": "+1 201 555 0123"}, [""]),
    "an email by another name": ({"Email": "doc@hillvalley.edu"}, [""]),
    "several other fields": ({"email": 1, "a": None, "b": {"c": 1}}, ["/email", ""]),
}


@pytest.mark.parametrize(("request_", "pointers"), STRICT.values(), ids=STRICT)
async def test_strict(request_: dict[str, str], pointers: list[str], make_client: MakeClient) -> None:
    """With strict checking on, what could not be an address or a number is a 400."""
    client = await make_client(strict=True)

    problem = await _problem(await client.post("/identify", json=request_), 400)

    assert [error["pointer"] for error in problem["errors"]] == pointers
    accepted = await client.post("/identify", json={"email": "doc@hillvalley.edu", "phoneNumber": "+1 201 555 0123"})
    assert accepted.status == 200


async def test_strict_names_the_fields_that_it_knows(make_client: MakeClient, database_url: str) -> None:
    """With strict checking on, a field that recon does not know is refused, its name and value are not quoted."""
    client = await make_client(strict=True)
    body = {"email": "doc@hillvalley.edu", "s3cret": "s3cret", "s3cret/2": 1}

    response = await client.post("/identify", json=body)

    problem = await _problem(response, 400)
    assert problem["errors"] == [{"pointer": "", "detail": "must have no fields other than email and phoneNumber"}]
    assert "s3cret" not in await response.text()
    assert await fetch(database_url, "SELECT FROM contact") == []


async def test_other_fields_are_ignored(client: "TestClient[Any, Any]") -> None:
    """Without strict checking, fields that recon does not know change nothing."""
    response = await client.post("/identify", json={"email": "doc@hillvalley.edu", "phone": "1", "other": {"a": [1]}})

    assert (await response.json())["contact"]["phoneNumbers"] == []


@pytest.mark.parametrize("strict", [False, True])
async def test_the_document_says_whether_other_fields_are_refused(strict: bool, make_client: MakeClient) -> None:
    """The OpenAPI document allows other fields unless strict checking is on."""
    client = await make_client(strict=strict)

    document = await (await client.get("/openapi.json")).json()

    schema = document["components"]["schemas"]["IdentifyRequest"]
    assert schema.get("additionalProperties", True) is not strict


async def test_nothing_of_the_request_is_quoted(client: "TestClient[Any, Any]") -> None:
    """An error does not repeat what was sent: it may be on its way to a log."""
    for body in (b'{"email": "secret\\u0000"}', b'{"email": ["secret"]}', b'{"email": secret}', b'{"secret": 1}'):
        response = await client.post("/identify", data=body, headers=JSON)

        assert response.status == 400
        assert "secret" not in await response.text()


async def test_a_database_that_went_away(make_client: MakeClient, database_url: str, server_url: str) -> None:
    """Without its database recon is alive, not ready, and answers 503 with Retry-After."""
    client = await make_client()
    assert (await client.get("/readyz")).status == 200
    name = urlsplit(database_url).path[1:]
    await execute(
        server_url,
        f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'",
    )

    answers = [await client.post("/identify", json={"email": "a"}), await client.get("/readyz")]

    for response in answers:
        problem = await _problem(response, 503)
        assert problem["type"] == "urn:recon:unavailable"
        assert int(response.headers["Retry-After"]) > 0
    assert (await client.get("/healthz")).status == 200
    await execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    assert (await client.post("/identify", json={"email": "a"})).status == 200
    assert (await client.get("/readyz")).status == 200


async def test_an_unforeseen_error(
    make_client: MakeClient, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What recon did not foresee is a 500 problem document without details."""
    client = await make_client()
    await execute(database_url, "ALTER TABLE contact ADD CONSTRAINT made_up CHECK (email <> 'unlucky')")

    response = await client.post("/identify", json={"email": "unlucky"})

    assert "unlucky" not in json.dumps(await _problem(response, 500))
    assert "a request failed" in caplog.text


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/nothing"])
async def test_a_strange_expectation_elsewhere(path: str, client: "TestClient[Any, Any]") -> None:
    """Every path refuses it in the same form."""
    response = await client.get(path, headers={"Expect": "wonders"})

    assert response.status == 417
    assert (response.content_type, response.headers["Server"]) == ("application/problem+json", "recon")
