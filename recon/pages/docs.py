"""The page that documents the API and sends requests, and the OpenAPI document that it shows."""

from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any

from aiohttp import web
from pydantic_core import to_json

from recon.http.endpoints import Endpoint
from recon.http.middleware import Handler
from recon.http.unsent import PART

_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
# The page may load its own files and the pictures in its style sheet, and send requests to recon. Swagger UI sets
# styles by script, so the policy need not allow inline styles.
_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_A_DAY = "public, max-age=86400"


def endpoints(document: dict[str, Any]) -> list[Endpoint]:
    """The OpenAPI document, the page at /docs, and the page's files. They hold no secrets and are open."""
    pages, static = files("recon.pages"), files("swagger_ui") / "static"
    assets = {name: _fixed((static / name).read_bytes(), kind, _A_DAY) for name, kind in _ASSETS.items()}
    assets["start.js"] = _fixed((pages / "docs.js").read_bytes(), "text/javascript")
    page = (pages / "docs.html").read_bytes()
    return [
        _get("/", _redirect_to_docs, "Redirect to `/docs`"),
        _get("/openapi.json", _fixed(to_json(document), "application/json"), "OpenAPI document"),
        _get("/docs", _fixed(page, "text/html"), "Documentation of the API, with forms to try it"),
        *(_get(f"/docs/{name}", handler) for name, handler in assets.items()),
    ]


def _get(path: str, handler: Handler, summary: str = "") -> Endpoint:
    return Endpoint(method="GET", path=path, handler=handler, summary=summary)


async def _redirect_to_docs(_: web.Request) -> web.Response:
    return web.Response(status=302, headers={"Location": "/docs"})


def _fixed(body: bytes, media_type: str, cache: str = "no-cache") -> Handler:
    charset = "utf-8" if media_type.startswith("text/") else None
    headers = {"Cache-Control": cache, "Content-Length": str(len(body))} | _SECURITY

    async def handler(_: web.Request) -> web.Response:
        return web.Response(body=_in_parts(body), content_type=media_type, charset=charset, headers=headers)

    return handler


async def _in_parts(body: bytes) -> AsyncIterator[bytes]:
    """Yield the parts of a body, each after the client has read the part before: a slow client costs little memory."""
    for start in range(0, len(body), PART):
        yield body[start : start + PART]
