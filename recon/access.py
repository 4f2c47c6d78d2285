"""Who may ask: API keys at each handler's door, and pages of other origins. What is off costs a request nothing."""

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from recon import metrics, middleware
from recon.errors import Forbidden, Unauthorized
from recon.keys import Keys

Expectation = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def allowing(keys: Keys | None, scope: str, handler: middleware.Handler) -> middleware.Handler:
    """The handler, for those alone whose key has the scope; the others are refused before their body is read."""
    if keys is None:
        return handler

    async def guarded(request: web.Request) -> web.StreamResponse:
        _require(keys, scope, request)
        return await handler(request)

    guarded.__doc__ = handler.__doc__
    return guarded


def expectation(keys: Keys | None, scope: str) -> Expectation:
    """What meets the Expect header of a guarded handler's requests: nobody is told to send a body in vain."""
    if keys is None:
        return middleware.expectation

    async def expected(request: web.Request) -> web.StreamResponse | None:
        holder = keys.holder(_secret(request) or "")
        if holder is None or scope not in holder.scopes:
            return None  # no "100 Continue": the handler says no, and counts it
        return await middleware.expectation(request)

    return expected


def _require(keys: Keys, scope: str, request: web.Request) -> None:
    secret = _secret(request)
    if secret is None:
        metrics.count_refusal("no key")
        raise Unauthorized
    holder = keys.holder(secret)
    if holder is None:
        metrics.count_refusal("unknown key")
        raise Unauthorized
    request[middleware.KEY_NAME] = holder.name
    if scope not in holder.scopes:
        metrics.count_refusal("scope")
        raise Forbidden


def _secret(request: web.Request) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


PREFLIGHT_KEPT = "600"  # seconds a browser need not ask again


def to_origins(origins: frozenset[str], routes: Iterable[web.RouteDef]) -> Iterable[web.RouteDef]:
    """The routes, so that scripts of pages from these origins may read the answers (CORS), errors included.

    No cookie or other credential that a browser adds by itself is ever asked for: whoever has no key has nothing.
    """
    if not origins:
        return routes
    return [
        web.route(route.method, route.path, _to_origins(origins, route.handler), **route.kwargs) for route in routes
    ]


def _to_origins(origins: frozenset[str], handler: middleware.Handler) -> middleware.Handler:
    async def named(request: web.Request) -> web.StreamResponse:
        response = await handler(request)
        response.headers["Vary"] = "Origin"
        origin = request.headers.get("Origin")
        if origin in origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = f"{middleware.REQUEST_ID}, Retry-After"
        return response

    return named


async def preflight(_: web.Request) -> web.Response:
    """What a browser may send to /identify from a page of another origin; whether at all, Allow-Origin says."""
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "POST",
            "Access-Control-Allow-Headers": f"Authorization, Content-Type, {middleware.REQUEST_ID}",
            "Access-Control-Max-Age": PREFLIGHT_KEPT,
        },
    )
