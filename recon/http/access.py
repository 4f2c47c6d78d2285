"""Access control: the API key, checked before each handler, and CORS. A feature that is off costs a request nothing."""

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from recon import metrics
from recon.errors import Forbidden, Unauthorized
from recon.http import middleware
from recon.http.responses import REQUEST_ID
from recon.keys import Keys

Expectation = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


def require_scope(keys: Keys | None, scope: str | None, handler: middleware.Handler) -> middleware.Handler:
    """Wrap the handler so that a request needs a key with the scope. Others are refused before their body is read."""
    if keys is None or scope is None:
        return handler

    async def guarded(request: web.Request) -> web.StreamResponse:
        _check(keys, scope, request)
        return await handler(request)

    return guarded


def expectation(keys: Keys | None, scope: str | None) -> Expectation:
    """Answer the Expect header of a guarded endpoint: no client without access is asked to send its body."""
    if keys is None or scope is None:
        return middleware.expectation

    async def expected(request: web.Request) -> web.StreamResponse | None:
        holder = keys.holder(_secret(request) or "")
        if holder is None or scope not in holder.scopes:
            return None  # no "100 Continue": the handler refuses the request and counts the refusal
        return await middleware.expectation(request)

    return expected


def _check(keys: Keys, scope: str, request: web.Request) -> None:
    secret = _secret(request)
    if secret is None:
        metrics.count_refusal("no key")
        raise Unauthorized
    holder = keys.holder(secret)
    if holder is None:
        metrics.count_refusal("unknown key")
        raise Unauthorized
    request[middleware.KEY] = holder
    if scope not in holder.scopes:
        metrics.count_refusal("scope")
        raise Forbidden


def _secret(request: web.Request) -> str | None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    return secret.strip() or None if scheme.lower() == "bearer" else None


PREFLIGHT_MAX_AGE = "600"  # seconds for which a browser caches the answer to a preflight request


def for_origins(origins: frozenset[str]) -> Callable[[web.Request], dict[str, str]] | None:
    """Return a function from a request to its CORS headers, or None if there are no origins.

    With these headers, scripts of pages from the origins can read every response, errors included. recon uses no
    cookies or other credentials that a browser adds by itself, so a page without a key gets no data.
    """
    if not origins:
        return None

    def headers(request: web.Request) -> dict[str, str]:
        origin = request.headers.get("Origin")
        if origin not in origins:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": f"{REQUEST_ID}, Retry-After",
        }

    return headers


def preflight(methods: Iterable[str]) -> middleware.Handler:
    """Return the handler of CORS preflight requests: it lists the methods and headers that a page may use.

    `Access-Control-Allow-Origin`, which `for_origins` adds, tells the browser whether the page's origin is allowed.
    """
    headers = {
        "Access-Control-Allow-Methods": ", ".join(sorted(methods)),
        "Access-Control-Allow-Headers": f"Authorization, Content-Type, Idempotency-Key, {REQUEST_ID}",
        "Access-Control-Max-Age": PREFLIGHT_MAX_AGE,
    }

    async def handler(_: web.Request) -> web.Response:
        return web.Response(status=204, headers=headers)

    return handler
