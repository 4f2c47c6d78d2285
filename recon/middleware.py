"""Around each request: its id, its metrics, its line in the log, and errors as problem documents."""

import asyncio
import logging
import random
import re
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from pydantic_core import to_json

from recon import metrics
from recon.errors import FieldError, Forbidden, InvalidRequest, ReconError, Unauthorized, Unavailable
from recon.models import Problem
from recon.response import SERVER

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

# The error's class to its status: all that HTTP needs to know of recon's errors.
STATUS = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
RETRY_AFTER = "1"  # seconds

REQUEST_ID = "X-Request-ID"
# What is taken over from a caller: enough for a UUID or a trace id, nothing that could forge a log line. Digits
# alone could be a phone number, and `recon_…` an API key.
_REQUEST_ID = re.compile(r"(?!recon_)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9._-]{1,64}")
KEY_NAME = web.RequestKey("key", str)  # the name of the API key that the request came with, for the log


def routed(routes: Sequence[web.RouteDef], closing: asyncio.Event) -> Iterator[web.RouteDef]:
    """The routes with everything that is done around each request, and what answers 405 and 404 beside them.

    Once `closing` is set, each answer ends its connection. Not a middleware of aiohttp's: each request would pay
    for its chain of calls.
    """

    def around(method: str, path: str, handler: Handler, **options: Any) -> web.RouteDef:
        label = "unknown" if "{" in path else path
        options = {"expect_handler": expectation} | options
        return web.route(method, path, _around(label, handler, closing), **options)

    methods: defaultdict[str, set[str]] = defaultdict(set)
    for route in routes:
        methods[route.path] |= {"GET", "HEAD"} if route.method == "GET" else {route.method}
        yield around(route.method, route.path, route.handler, **route.kwargs)
    for path, allowed in methods.items():
        yield around("*", path, _refusing(web.HTTPMethodNotAllowed, "", allowed))
    yield around("*", "/{unknown:.*}", _refusing(web.HTTPNotFound))


def _refusing(error: type[web.HTTPException], *arguments: Any) -> Handler:
    async def handler(_: web.Request) -> web.StreamResponse:
        raise error(*arguments)

    return handler


def _around(path: str, handler: Handler, closing: asyncio.Event) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        """Answer the request, whatever happens, and leave a trace of it."""
        response: web.StreamResponse
        started = time.perf_counter()
        request_id = request.headers.get(REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{random.getrandbits(128):032x}"
        try:
            response = await handler(request)
        except web.HTTPException as error:
            response = _problem_of_http(error)
        except ReconError as error:
            response = _problem_of(error)
        except Exception:
            log.exception("a request failed", extra={"request_id": request_id})
            response = problem(HTTPStatus.INTERNAL_SERVER_ERROR, "recon failed; the log says where.")
        response.headers[REQUEST_ID] = request_id
        if closing.is_set():
            response.force_close()
        _record(request, path, response.status, time.perf_counter() - started, request_id)
        return response

    return answer


def problem(
    status: int, detail: str | None = None, *, code: str | None = None, errors: list[FieldError] | None = None
) -> web.Response:
    """An RFC 9457 problem document."""
    kind = f"urn:recon:{code}" if code else "about:blank"
    body = Problem(type=kind, title=HTTPStatus(status).phrase, status=int(status))
    if detail:
        body["detail"] = detail
    if errors:
        body["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in errors]
    response = web.Response(body=to_json(body), status=status, content_type="application/problem+json")
    response.headers["X-Content-Type-Options"] = "nosniff"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = RETRY_AFTER
    elif status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _problem_of(error: ReconError) -> web.Response:
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    errors = error.errors if isinstance(error, InvalidRequest) else None
    return problem(status, str(error), code=error.code, errors=errors)


_DETAILS = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path; /docs lists what there is.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not take this method; Allow lists those that it takes.",
    HTTPStatus.EXPECTATION_FAILED: "The only expectation that recon meets is 100-continue.",  # aiohttp quotes the other
}


def _problem_of_http(error: web.HTTPException) -> web.Response:
    response = problem(error.status, _DETAILS.get(HTTPStatus(error.status)) or error.text)
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()  # the rest of the body may still come
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


def _record(request: web.Request, route: str, status: int, seconds: float, request_id: str) -> None:
    metrics.count_request(route, status, seconds)
    level = _LEVELS[status // 100]
    if log.isEnabledFor(level) and (level == logging.DEBUG or _failures.may_be_logged()):
        fields = {"request_id": request_id, "status": status, "ms": round(seconds * 1000, 1)} | _failures.left_out()
        if KEY_NAME in request:
            fields["key"] = request[KEY_NAME]
        # Only the route: a path or a query that somebody made up may hold anything.
        log.log(level, "%s %s", request.method, route, extra=fields)


class _Failures:
    """How many failed requests the log has had in this second, and how many it was spared.

    In a storm a line for each that is refused would take more time than serving it: refusing must be cheap.
    """

    LINES_A_SECOND = 50

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0
        self._spared = 0

    def may_be_logged(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines <= self.LINES_A_SECOND:
            return True
        self._spared += 1
        return False

    def left_out(self) -> dict[str, int]:
        """What the next line is to say of those that had none."""
        if not self._spared:
            return {}
        spared, self._spared = self._spared, 0
        return {"failures_not_logged_before": spared}


_failures = _Failures()

# By the first digit of the status.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.DEBUG, 4: logging.INFO, 5: logging.WARNING}


async def sign(_: web.Request, response: web.StreamResponse) -> None:
    """Put recon's name where aiohttp would put its own, in whatever is answered.

    And a problem document where aiohttp answers by itself, to a target that is no path and so meets no route: `*`.
    """
    response.headers["Server"] = SERVER
    if isinstance(response, web.HTTPException):
        told = _problem_of_http(response)
        response.body, response.content_type, response.charset = told.body, told.content_type, None
        response.headers["Content-Length"] = str(len(cast("bytes", told.body)))


async def expectation(request: web.Request) -> web.StreamResponse | None:
    """Meet the Expect header of a request, or refuse it as middleware cannot: it comes before that."""
    if request.headers["Expect"].lower() != "100-continue":
        return problem(HTTPStatus.EXPECTATION_FAILED, _DETAILS[HTTPStatus.EXPECTATION_FAILED])
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # that was not yet the answer
    return None


def protocol_error(
    _protocol: web.RequestHandler,
    request: web.BaseRequest,
    status: int = 500,
    exc: BaseException | None = None,
    message: str | None = None,  # noqa: ARG001 (aiohttp passes it; it quotes the rubbish)
) -> web.StreamResponse:
    """Answer what never became a request (rubbish on the socket) with a problem document as well.

    Takes the place of aiohttp's own, which answers in plain text, quotes the rubbish and logs it.
    """
    if request.writer.output_size > 0:
        raise ConnectionError("the answer has been begun; it cannot become an error")
    known = isinstance(exc, HttpProcessingError)
    if not known:
        log.error("not answered as a request", exc_info=exc)
    elif _failures.may_be_logged():
        log.info("not answered as a request", extra=_failures.left_out())
    response = problem(status, "This is not HTTP as recon understands it." if known else None)
    response.headers["Server"] = SERVER
    response.force_close()
    return response
