"""Endpoints that recon does not have, for tests of what every endpoint has."""

from typing import Any

from aiohttp import web

import recon.app
from recon.endpoints import Endpoint, content

real_api = recon.app.api

OBJECT = {"type": "object"}


async def contact(request: web.Request) -> web.StreamResponse:
    """A path parameter."""
    return web.json_response({"id": request.match_info["id"]})


async def replace(request: web.Request) -> web.StreamResponse:
    """A body."""
    return web.json_response({"size": len(await request.read())})


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
]


def api(*arguments: Any) -> list[Endpoint]:
    """The endpoints of recon, and these."""
    return real_api(*arguments) + ENDPOINTS
