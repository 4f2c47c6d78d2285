"""What recon does around each request: its id, its metrics, its log line, and its errors."""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any, TypeAlias, cast

from aiohttp import HttpVersion11, hdrs, web

from recon import metrics
from recon.errors import FieldError, InvalidRequest, ReconError, ShuttingDown
from recon.http.hosts import Hosts
from recon.http.problems import problem, problem_of, problem_of_http
from recon.http.responses import HEADERS, REQUEST_ID, SERVER
from recon.keys import Key
from recon.logs import failures

Handler: TypeAlias = Callable[[web.Request], Awaitable[web.StreamResponse]]
Count: TypeAlias = Callable[[str, int, float], None]  # records a request in the metrics: label, status, seconds

log = logging.getLogger(__name__)

# A request id that a client may choose: long enough for a UUID or a trace id, without characters that could forge a log
# line. Digits alone could be a phone number, and `recon_…` an API key.
_REQUEST_ID = re.compile(r"(?!recon_)(?=[^A-Za-z]*[A-Za-z])[A-Za-z0-9._-]{1,64}")
KEY = web.RequestKey("key", Key)  # the API key that the request came with
COUNTS = web.RequestKey("counts", Mapping[str, object])  # what the log line of a request that is many says of them


def answering(
    label: str,
    handler: Handler,
    *,
    closing: asyncio.Event,
    hosts: Hosts | None,
    cors_headers: Callable[[web.Request], dict[str, str]] | None,
    count: Count,
) -> Handler:
    """Wrap the handler with what every request needs: an id, metrics, a log line, and problem details for errors.

    `label` replaces the path in metrics and log. Once `closing` is set, each response closes its connection. With
    `hosts`, requests that name another host are refused. This is no aiohttp middleware: that chain of calls would cost
    each request time.
    """

    async def answer(request: web.Request) -> web.StreamResponse:
        """Answer the request, also if the handler fails, and record it in the metrics and the log."""
        response: web.StreamResponse
        wrong: Collection[FieldError] = ()
        started = time.perf_counter()
        request_id = request.headers.get(REQUEST_ID)
        if request_id is None or not _REQUEST_ID.fullmatch(request_id):
            request_id = f"{random.getrandbits(128):032x}"
        request[HEADERS] = {REQUEST_ID: request_id}
        if cors_headers is not None:
            request[HEADERS].update(cors_headers(request))
        try:
            if hosts is not None and (request.headers.get(hdrs.HOST) not in hosts.known or request.raw_path[0] != "/"):
                hosts.check(request)
            response = await handler(request)
        except Exception as error:
            if request.writer.output_size > 0:
                _record_abort(request, label, error, time.perf_counter() - started)
                # Close the connection: a second status line would become part of the body.
                raise ConnectionAbortedError("the response had begun") from error
            response = response_to(error, request_id)
            wrong = error.errors if isinstance(error, InvalidRequest) else ()
        if closing.is_set():
            response.force_close()
        seconds = time.perf_counter() - started
        count(label, response.status, seconds)
        _log(request, label, response.status, seconds, wrong)
        return response

    return answer


def response_to(error: Exception, request_id: str) -> web.Response:
    """Make the problem document of an error. One that recon does not expect is logged."""
    if isinstance(error, web.HTTPException):
        return problem_of_http(error)
    if isinstance(error, ReconError):
        return problem_of(error)
    if failures.may_be_logged():
        log.error("a request failed", exc_info=error, extra={"request_id": request_id, **failures.left_out()})
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "recon failed; its log has the cause.")


def _log(request: web.Request, label: str, status: int, seconds: float, wrong: Collection[FieldError]) -> None:
    level = _LEVELS[status // 100]
    if log.isEnabledFor(level) and (level == logging.DEBUG or failures.may_be_logged()):
        fields = _fields(request, seconds) | {"status": status}
        if wrong:
            fields["errors"] = [f"{error.pointer}: {error.detail}" for error in wrong]
        # Only the label: a path or a query can contain an identifier.
        log.log(level, "%s %s", request.method, label, extra=fields)


def _fields(request: web.Request, seconds: float) -> dict[str, Any]:
    fields: dict[str, Any] = {"request_id": request[HEADERS][REQUEST_ID], "ms": round(seconds * 1000, 1)}
    if KEY in request:
        fields["key"] = request[KEY].name
    if COUNTS in request:
        fields["counts"] = request[COUNTS]
    return fields | failures.left_out()


def _record_abort(request: web.Request, label: str, error: Exception, seconds: float) -> None:
    """Count and log a response that was cut off, because something failed after its status line was sent."""
    is_gone = request.transport is None or request.transport.is_closing()
    if isinstance(error, _CLIENTS) or (is_gone and isinstance(error, ConnectionError)):
        reason, level = "client", logging.DEBUG
    elif isinstance(error, ShuttingDown):
        reason, level = "shutdown", logging.INFO
    else:
        reason, level = "error", logging.WARNING if isinstance(error, ReconError) else logging.ERROR
    metrics.count_abort(label, reason)
    if log.isEnabledFor(level) and (level == logging.DEBUG or failures.may_be_logged()):
        fields = _fields(request, seconds) | {"reason": reason}
        cause = error if reason == "error" else None
        log.log(level, "%s %s was aborted", request.method, label, exc_info=cause, extra=fields)


# The client disconnected, or the rest of its body was malformed or did not arrive.
_CLIENTS = (web.HTTPBadRequest, web.HTTPRequestTimeout)

# The log level by the first digit of the status.
_LEVELS = {1: logging.DEBUG, 2: logging.DEBUG, 3: logging.DEBUG, 4: logging.INFO, 5: logging.WARNING}


async def finish_head(request: web.Request, response: web.StreamResponse) -> None:
    """Finish the head of a response just before it is sent (`on_response_prepare`).

    Add the headers that every response has, and name recon instead of aiohttp as the server. aiohttp itself answers a
    target that is no path (`*`) and so has no route; this answer becomes a problem document.
    """
    response.headers["Server"] = SERVER
    response.headers.update(request.get(HEADERS, {}))
    if isinstance(response, web.HTTPException):
        document = problem_of_http(response)
        response.body, response.content_type, response.charset = document.body, document.content_type, None
        response.headers["Content-Length"] = str(len(cast("bytes", document.body)))
    if request.method == hdrs.METH_HEAD:
        request.writer.length = 0  # otherwise aiohttp would send the body that a streaming handler writes
    elif request.version < HttpVersion11 and hdrs.CONNECTION not in response.headers:
        response.force_close()  # in HTTP/1.0, only the end of the connection ends a body without a length


async def expectation(request: web.Request) -> web.StreamResponse | None:
    """Answer the Expect header with 100 or a 417 problem document. aiohttp calls this before the wrapped handler."""
    if request.headers["Expect"].lower() != "100-continue":
        return problem_of_http(web.HTTPExpectationFailed())
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0  # this was not yet the response
    return None
