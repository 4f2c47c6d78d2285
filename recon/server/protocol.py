"""One connection: the TLS handshake, then requests whose heads are bounded in size and time."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NamedTuple

from aiohttp import HttpVersion11, StreamReader, web
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError
from aiohttp.streams import EMPTY_PAYLOAD

from recon import metrics
from recon.background import run_once
from recon.http.problems import problem, problem_of_http
from recon.http.responses import SERVER, unsupported_encoding
from recon.http.unsent import Sender, Unsent
from recon.logs import failures

log = logging.getLogger(__name__)

_receive = web.RequestHandler.data_received  # `super()` would cost each request time
_END = b"\r\n\r\n"  # the end of a head, and of a chunked body
# Maximum requests of one connection that aiohttp parses ahead (pipelining); the bytes after them wait in `_unparsed`.
_MAX_AHEAD = 32
MAX_FIELDS = 128  # of a head: each takes memory beyond its bytes


class Limits(NamedTuple):
    """The limits of a connection, and how the server counts connections.

    Attributes
    ----------
    tls : the certificate to serve https with, if any.
    handshake : seconds that the TLS handshake may take.
    max_head : bytes that the head of a request may have.
    admit : called with each new connection; returns False if too many are open.
    forget : called with each connection that has ended.
    """

    tls: ssl.SSLContext | None
    handshake: float
    max_head: int
    admit: Callable[["Connection"], bool]
    forget: Callable[["Connection"], None]


class Connection(Sender):
    """A client's connection, from the moment at which it is accepted.

    aiohttp bounds the lines of a head, but not their sum, and does not tell whether a head is incomplete. So recon
    gives the bytes to aiohttp's parser in parts, each of which ends where a head or a body ends. Nearly all requests
    arrive whole and alone: such a request is one part.

    Attributes
    ----------
    head_since : the time (of the event loop) of the first byte of a head that is incomplete; None between requests. A
        new connection begins with such a head.
    doing, since : what the connection was doing at the last check, and since when.
    """

    __slots__ = (
        "_between_requests",
        "_body",
        "_body_left",
        "_failed",
        "_handshake",
        "_head",
        "_last",
        "_limits",
        "_line_complete",
        "_max_head",
        "_refused",
        "_unparsed",
        "doing",
        "head_since",
        "since",
    )

    def __init__(self, manager: web.Server, unsent: Unsent, limits: Limits, **options: Any) -> None:
        super().__init__(manager, unsent, **options)
        self._limits = limits
        self._max_head = limits.max_head
        self._handshake: asyncio.Task[None] | None = None
        self._refused: HTTPStatus | None = None
        self._failed = False  # the bytes are not valid HTTP: those after them are ignored
        self._unparsed = b""  # bytes that aiohttp is not ready to parse
        self.doing: tuple[str, int, int] = ("head", 0, 0)
        self.since: float = self._loop.time()
        self._between_requests = False
        self._await_head()
        self.head_since: float | None = self.since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the TLS handshake or the HTTP protocol on an accepted connection."""
        self.socket_transport = transport  # type: ignore[assignment] # it is asyncio.Transport
        if not self._limits.admit(self):
            return
        if self._limits.tls is None:
            self._between_requests = True
            super().connection_made(transport)
        else:
            self._handshake = run_once("a TLS handshake", self._shake_hands(transport, self._limits.tls))

    async def _shake_hands(self, transport: Any, tls: ssl.SSLContext) -> None:
        seconds = self._limits.handshake
        handshake = asyncio.create_task(
            self._loop.start_tls(transport, self, tls, server_side=True, ssl_handshake_timeout=seconds)
        )
        await asyncio.sleep(0)  # until the handshake has begun; then TLS takes over the transport
        early, self._unparsed = self._unparsed, b""
        self._loop.call_soon(_feed, transport.get_protocol(), early)
        try:
            secured = await handshake
        except OSError:  # the client's failure, or it has disconnected: not an error of recon
            secured = None
        if secured is None or secured.is_closing():
            self._limits.forget(self)
            return
        self._handshake = None
        self.head_since = self._loop.time()
        self._between_requests = True
        super().connection_made(secured)
        early, self._unparsed = self._unparsed, b""
        if early:  # a request arrived together with the end of the handshake
            self.data_received(early)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._limits.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that arrived."""
        size = len(data)
        if self._between_requests and size <= self._max_head:
            end = data.find(_END) + 4  # len(_END); looking up a name would cost each request time
            # One whole head, and no second one behind it: usually a request that arrives whole and alone.
            if end > 3 and (end == size or data.find(_END, end) < 0):  # noqa: PLR2004 (that is, it was found)
                count = self._request_count
                _receive(self, data)
                if self._request_count != count:
                    payload = self._messages[-1][1]
                    self.head_since = None
                    if payload.total_bytes != size - end or not payload.is_eof():
                        self._after_head(data[end:])
                return
        self._parse_in_parts(data)

    def _after_head(self, rest: bytes) -> None:
        """Note the state of the parser after a head, and after `rest`, which contains no end of another head."""
        message: Any  # a request, or an error if the head is invalid
        message, payload = self._messages[-1]
        self._note_head(message, payload)
        if self._body is not None:
            self._note_part_of_body(rest)
        elif not self._failed:
            rest = rest if payload is EMPTY_PAYLOAD else rest[payload.total_raw_bytes :]
            if rest and message.upgrade and not self._upgraded:
                # aiohttp's parser drops what follows an offer to upgrade to a protocol that aiohttp does not know.
                self._parse_in_parts(rest)
            elif rest:
                self._note_part_of_head(rest)
        self._between_requests = self._is_between_requests()

    def _parse_in_parts(self, data: bytes) -> None:
        """Give the data to the parser in parts, each of which ends at most one head or one body."""
        if self._handshake is not None:
            self._unparsed += data  # the beginning of the TLS handshake, or a request that arrived with its end
            return
        if not data and not self._failed:
            self._parse(b"")  # with empty data, aiohttp signals that it is ready for more
        data = self._unparsed + data
        start = 0
        while start < len(data) and not self._failed:
            if self._reading_paused or len(self._messages) >= _MAX_AHEAD:
                break
            part = data[start : start + self._part(data, start)]
            start += len(part)
            self._parse(part)
        self._unparsed = b"" if self._failed else data[start:]
        self._between_requests = self._is_between_requests()

    def _is_between_requests(self) -> bool:
        """Whether the next byte is the first of a head."""
        return not (self._failed or self._unparsed or self._head or self._body)

    def _part(self, data: bytes, start: int) -> int:
        """Return how many bytes from `start` on belong to the current head or body."""
        if self._body_left is not None:
            return self._body_left or len(data)
        across = (self._last + data[start : start + len(_END) - 1]).find(_END)
        if across >= 0:
            size = across + len(_END) - len(self._last)
        else:
            end = data.find(_END, start)
            size = end + len(_END) - start if end >= 0 else len(data)
        return size if self._body is not None else min(size, self._limits.max_head - self._head)

    def _parse(self, part: bytes) -> None:
        count, body = self._request_count, self._body
        super().data_received(part)
        if self._request_count != count:
            self._note_head(*self._messages[-1])
            if self._failed and body is not None:  # otherwise its handler would wait for the rest
                body.set_exception(web.RequestPayloadError("The body is malformed."))
        elif self._body is None:
            if part:
                self._note_part_of_head(part)
        elif self._body.is_eof():
            self._await_head()
        else:
            self._note_part_of_body(part)

    def _await_head(self) -> None:
        self.head_since = None
        self._head = 0
        self._line_complete = False
        self._last = b""
        self._body: StreamReader | None = None
        self._body_left: int | None = None

    def _note_head(self, message: Any, payload: StreamReader) -> None:
        """Note that a head is complete, and perhaps its body too."""
        self._await_head()
        headers = getattr(message, "headers", None)
        if headers is None:
            self._failed = True
        elif not payload.is_eof():
            self._body = payload
            if "Content-Length" in headers:
                self._body_left = int(headers["Content-Length"])

    def _note_part_of_body(self, part: bytes) -> None:
        if self._body_left is not None:
            self._body_left -= len(part)
        else:
            self._last = (self._last + part)[-len(_END) + 1 :]

    def _note_part_of_head(self, part: bytes) -> None:
        self._last = (self._last + part)[-len(_END) + 1 :]
        self._head += len(part)
        self._line_complete = self._line_complete or b"\n" in part
        if self.head_since is None:
            self.head_since = self._loop.time()
        if self._head >= self._limits.max_head:
            fields, target = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, HTTPStatus.REQUEST_URI_TOO_LONG
            self._refused = fields if self._line_complete else target
            self._failed = True
            super().data_received(b"\0")  # invalid in a head, so that aiohttp calls handle_error in order

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 (aiohttp passes it; it quotes what was sent)
    ) -> web.StreamResponse:
        """Answer input that is not a valid request with a problem document; aiohttp would quote and log the input."""
        if request.writer.output_size > 0:
            if request.version < HttpVersion11:
                self.abort()  # the end of the connection would look like the end of the body
            raise ConnectionError("the response has begun: aiohttp closes the connection, without a last chunk")
        if failures.may_be_logged():
            if isinstance(exc, HttpProcessingError):
                log.info("not answered as a request", extra=failures.left_out())
            else:
                log.error("not answered as a request", exc_info=exc, extra=failures.left_out())
        response = self._problem(status, exc)
        response.headers["Server"] = SERVER
        response.force_close()
        return response

    def log_exception(self, *_: Any, exc_info: BaseException | None = None) -> None:
        """Log and count a response that failed while aiohttp sent it, after its handler had returned it."""
        if isinstance(exc_info, (HttpProcessingError, web.HTTPException, web.RequestPayloadError)):
            return  # the rest of a body, which aiohttp reads and ignores when the response has been sent
        metrics.count_abort("unknown", "error")  # aiohttp does not say for which request
        if failures.may_be_logged():
            log.error("a response was aborted", exc_info=exc_info, extra=failures.left_out())
        self.abort()  # or the end of the connection would look like that of a body without a length

    def _problem(self, status: int, exc: BaseException | None) -> web.Response:
        if self._refused is not None:
            part = "head" if self._refused is HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE else "target"
            limit = f"{self._limits.max_head} bytes, the limit that --max-head sets for the whole head"
            return problem(self._refused, f"The request's {part} is larger than {limit}.")
        if isinstance(exc, ContentEncodingError):
            return problem_of_http(unsupported_encoding())
        if not isinstance(exc, HttpProcessingError):
            return problem(status)
        if exc.message.startswith("Too many headers"):
            fields = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            return problem(fields, f"The request's head has more than {MAX_FIELDS} fields.")
        return problem(status, "The request is not valid HTTP.")

    def activity(self, now: float) -> tuple[str, float]:
        """Return what the connection is doing, and since when (time of the event loop)."""
        doing = (self._doing(), self._request_count, self.parts)
        if doing != self.doing:
            self.doing, self.since = doing, now
        if doing[0] == "head" and self.head_since is not None:
            return "head", self.head_since
        return doing[0], self.since

    def _doing(self) -> str:
        if self in self.unsent:
            return "answer"  # which the client does not read fast enough
        if self._current_request is not None:
            return "working" if self.busy or self._current_request.content.is_eof() else "body"
        if self._messages:
            return "working"
        return "idle" if self.head_since is None else "head"

    def end_body(self, error: Exception) -> None:
        """Make the handler of the current request fail with `error` when it reads the body."""
        if self._current_request is not None:
            self._current_request.content.set_exception(error)

    def end(self) -> None:
        """Close the connection."""
        if self.transport is None:
            self.abort()  # the TLS handshake is not complete
        else:
            self.force_close()


def _feed(protocol: Any, data: bytes) -> None:
    """Give a protocol the bytes that arrived before it took over the transport."""
    while data:
        buffer = protocol.get_buffer(len(data))
        size = min(len(data), len(buffer))
        buffer[:size] = data[:size]
        protocol.buffer_updated(size)
        data = data[size:]
