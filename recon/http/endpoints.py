"""One record per endpoint, and the routes that are made from the records.

A new endpoint is a record and its handler. Derived from the records are: the router, the access check, CORS preflight,
405 with Allow, the labels of metrics and log, the OpenAPI document, and the table in docs/api.md.
"""

import asyncio
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

from aiohttp import web

from recon import metrics
from recon.http import access
from recon.http.hosts import Hosts
from recon.http.middleware import Count, Handler, answering
from recon.http.streams import Streams
from recon.keys import SCOPES, Keys

_PATH = re.compile(r"/|(/([A-Za-z0-9._-]+|\{\w+\}))+")  # without aiohttp's `{name:regex}`, which OpenAPI lacks


@dataclass(frozen=True)
class Endpoint:
    """A method at a path, and everything that recon knows about it.

    Attributes
    ----------
    method, path : `path` may have parameters, such as /contacts/{id}. This pattern is the label of metrics and log.
    handler : takes the request and returns the response. GET also answers HEAD, for which no body is sent.
    scope : the scope that the API key of a request must have; None if no key is needed.
    summary : one line for the OpenAPI document and docs/api.md; empty for files that neither lists.
    operation : the OpenAPI operation, or None for an endpoint that is not in the document. A model may stand where a
        schema is expected. Derived are: summary, path parameters that are plain strings, security, and the problems
        that follow from this record (401, 403, 421, and with a request body 408, 413, 415).
    problems : the statuses of all other problems that the handler answers with.
    max_body : maximum bytes of `request.read()`, instead of the setting. A handler that reads `request.content` must
        bound that itself.
    any_host : whether requests may name any host. This is for probes, which use any address of the process; the
        response must contain no data.
    cors : whether the endpoint answers CORS preflight, so that pages of the origins in the settings may call it.
    stream : whether the handler streams its response: a stream may last for ever, is cut at shutdown, and has its own
        metrics instead of a latency.
    """

    method: str
    path: str
    handler: Handler
    _: KW_ONLY
    scope: str | None = None
    summary: str = ""
    operation: dict[str, Any] | None = None
    problems: Collection[int] = ()
    max_body: int | None = None
    any_host: bool = False
    cors: bool = False
    stream: bool = False

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise ValueError(f"{self.path} is not a path of plain segments and {{name}}")
        if self.scope is not None and self.scope not in SCOPES:
            raise ValueError(f"{self.method} {self.path}: the scope {self.scope} is not one of {', '.join(SCOPES)}")


class Policy(NamedTuple):
    """Settings and state that all endpoints of an application share.

    Attributes
    ----------
    keys : the API keys, or None if none is needed.
    hosts : the hosts that a request may name, or None if every host may be named.
    origins : the origins whose pages may read responses.
    closing : set at shutdown; from then on each response closes its connection (connection draining).
    streams : the streamed responses in progress.
    """

    keys: Keys | None
    hosts: Hosts | None
    origins: frozenset[str]
    closing: asyncio.Event
    streams: Streams


def routes(endpoints: Iterable[Endpoint], policy: Policy) -> Iterator[web.RouteDef]:
    """Make the routes of the endpoints, and the routes that answer CORS preflight, 405 and 404."""
    paths: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, []).append(endpoint)
    for path, at_path in paths.items():
        any_host = all(endpoint.any_host for endpoint in at_path)
        with_preflight = [endpoint.method for endpoint in at_path if endpoint.cors]
        if with_preflight and policy.origins:
            at_path.append(Endpoint("OPTIONS", path, access.preflight(with_preflight), any_host=any_host))
        refusing = _refusing(web.HTTPMethodNotAllowed, "", _methods(at_path))
        # The router uses the route `*` for every method that has no route before it.
        for endpoint in [*at_path, Endpoint("*", path, refusing, any_host=any_host)]:
            yield _route(endpoint, policy)
    yield web.route("*", "/{unknown:.*}", _answering("unknown", _refusing(web.HTTPNotFound), policy, policy.hosts))


def _methods(endpoints: Iterable[Endpoint]) -> set[str]:
    methods = {endpoint.method for endpoint in endpoints}
    return methods | {"HEAD"} if "GET" in methods else methods


def _refusing(error: type[web.HTTPException], *arguments: Any) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        raise error(*arguments)

    return handler


def _route(endpoint: Endpoint, policy: Policy) -> web.RouteDef:
    handler = endpoint.handler
    if endpoint.max_body is not None:
        handler = _limited(handler, endpoint.max_body)
    if endpoint.stream:
        handler = policy.streams.counted(endpoint.path, handler)
    handler = access.require_scope(policy.keys, endpoint.scope, handler)
    hosts = None if endpoint.any_host else policy.hosts
    count = metrics.count_streamed if endpoint.stream else metrics.count_request
    return web.route(
        endpoint.method,
        endpoint.path,
        _answering(endpoint.path, handler, policy, hosts, count),
        expect_handler=access.expectation(policy.keys, endpoint.scope),
    )


def _limited(handler: Handler, max_body: int) -> Handler:
    async def limited(request: web.Request) -> web.StreamResponse:
        request._client_max_size = max_body  # noqa: SLF001 (a clone of the request, with another limit, costs more)
        return await handler(request)

    return limited


def _answering(
    label: str, handler: Handler, policy: Policy, hosts: Hosts | None, count: Count = metrics.count_request
) -> Handler:
    headers = access.for_origins(policy.origins)
    return answering(label, handler, closing=policy.closing, hosts=hosts, cors_headers=headers, count=count)


def content(description: str, media_type: str, schema: type | dict[str, Any]) -> dict[str, Any]:
    """Make the OpenAPI response of a media type; `schema` may be a model."""
    return {"description": description, "content": {media_type: {"schema": schema}}}
