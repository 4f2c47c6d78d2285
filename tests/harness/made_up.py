"""Endpoints for tests of what endpoints share; `python tests/harness/made_up.py serve …` is `recon serve` with them."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

import recon.app
from recon.cli.main import main
from recon.errors import Unavailable
from recon.http.endpoints import Endpoint, content
from recon.http.streams import stream

real_api = recon.app.api

LINE = b'{"line": 1}\n'
OBJECT = {"type": "object"}


async def contact(request: web.Request) -> web.StreamResponse:
    """Answer with a path parameter."""
    return web.json_response({"id": request.match_info["id"]})


async def replace(request: web.Request) -> web.StreamResponse:
    """Answer with the size of the body."""
    return web.json_response({"size": len(await request.read())})


ERRORS = {
    "bug": ValueError("5550199"),
    "unavailable": Unavailable("5550199"),
    "problem": web.HTTPNotFound(text="5550199"),
    "timeout": TimeoutError("5550199"),
    "connection": ConnectionError("5550199"),
}


async def _parts(request: web.Request) -> AsyncGenerator[bytes, None]:
    """Yield `count` lines, with pauses of `pause` seconds; then hang or raise an error, as `then` says."""
    for _ in range(int(request.query.get("count", "3"))):
        yield LINE
        await asyncio.sleep(float(request.query.get("pause", "0")))
    then = request.query.get("then")
    if then == "hang":
        await asyncio.Event().wait()
    if then in ERRORS:
        raise ERRORS[then]


async def lines(request: web.Request) -> web.StreamResponse:
    """Stream the lines of `_parts`."""
    return await stream(request, _parts(request), "application/x-ndjson")


async def body(request: web.Request) -> web.StreamResponse:
    """Lines as well, which aiohttp would send after the handler."""
    return web.Response(body=_parts(request), content_type="application/x-ndjson")


async def _much(request: web.Request) -> AsyncGenerator[bytes, None]:
    for _ in range(int(request.query["megabytes"]) * 16):
        yield b"x" * 65_535 + b"\n"


async def much(request: web.Request) -> web.StreamResponse:
    """Stream more than the buffers of sockets hold."""
    return await stream(request, _much(request), "text/plain")


async def by_hand(_request: web.Request) -> web.StreamResponse:
    """Stream a response with aiohttp only, without recon's `stream`."""
    response = web.StreamResponse()
    await response.prepare(_request)
    await response.write(LINE)
    return response


async def twice(request: web.Request) -> web.StreamResponse:
    """Make a mistake: return a second response after one has begun."""
    await by_hand(request)
    return web.json_response({})


def _operation(name: str, media_type: str, schema: Any) -> dict[str, Any]:
    return {"operationId": name, "responses": {"200": content("It worked.", media_type, schema)}}


ENDPOINTS = [
    Endpoint(
        "GET",
        "/contacts/{id}",
        contact,
        scope="read",
        summary="A made-up contact",
        operation=_operation("contact", "application/json", OBJECT),
        cors=True,
    ),
    Endpoint(
        "PUT",
        "/contacts/{id}",
        replace,
        scope="identify",
        summary="A body of ten bytes",
        operation=_operation("replace", "application/json", OBJECT)
        | {"requestBody": {"content": {"application/json": {"schema": OBJECT}}}},
        max_body=10,
        cors=True,
    ),
    Endpoint(
        "GET",
        "/lines",
        lines,
        operation=_operation("lines", "application/x-ndjson", {"type": "string"}),
        cors=True,
        stream=True,
    ),
    Endpoint("POST", "/lines", lines, stream=True),
    Endpoint("GET", "/body", body, stream=True),
    Endpoint("GET", "/body-of-no-stream", body),
    Endpoint("GET", "/much", much, stream=True),
    Endpoint("GET", "/by-hand", by_hand, stream=True),
    Endpoint("GET", "/twice", twice, stream=True),
]


def api(*arguments: Any, **options: Any) -> list[Endpoint]:
    """Return the endpoints of recon, and these."""
    return real_api(*arguments, **options) + ENDPOINTS


if __name__ == "__main__":
    recon.app.api = api
    main()
