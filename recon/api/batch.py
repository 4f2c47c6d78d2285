"""POST /identify/batch: lines → requests, a chunk at a time → answers, a line each, as the client reads them."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, cast

from aiohttp import web
from pydantic_core import to_json
from typing_extensions import TypedDict

from recon import metrics
from recon.api.messages import Parser, identify_response, partial_response, request_parser
from recon.api.parameters import parameters_of
from recon.errors import Blocked, InvalidParameter, ReconError, ShuttingDown
from recon.http.endpoints import Endpoint, content
from recon.http.middleware import COUNTS, KEY, response_to
from recon.http.ndjson import NDJSON, Lines, require_ndjson
from recon.http.responses import HEADERS, REQUEST_ID
from recon.http.streams import stream
from recon.http.unsent import PART, Sender
from recon.identities.chunks import MAX_CHUNK, Chunks, Course, Failed, Result
from recon.identities.identify import Applied, Partial, Refused
from recon.rules.clusters import Identity
from recon.rules.identifiers import Identifiers
from recon.rules.reconcile import Reason
from recon.settings import Settings

_REQUEST_EXAMPLE = """\
{"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"}
{"email": "mcfly@hillvalley.edu", "phoneNumber": "123456"}
{"email": 1955}
"""
_FIRST = identify_response(Identity(1, ["lorraine@hillvalley.edu"], ["123456"], []))
_SECOND = identify_response(Identity(1, ["lorraine@hillvalley.edu", "mcfly@hillvalley.edu"], ["123456"], [2]))
_ANSWER_EXAMPLE = f"""\
{{"line":1,"status":200,{_FIRST.decode()[1:]}
{{"line":2,"status":200,{_SECOND.decode()[1:]}
{{"line":3,"status":400,"problem":{{"type":"urn:recon:invalid-request","title":"Bad Request","status":400,\
"detail":"The request body is invalid.","errors":[{{"pointer":"/email","detail":"must be a string or null"}}]}}}}
{{"summary":{{"lines":3,"ok":2,"failed":1,"created":1,"extended":1,"merged":0,"known":0,"withheld":0}}}}
"""
# Seconds for a client that goes on sending to read why a batch ended, before the connection is closed.
_LINGERING = 5.0
_ERRORS_ONLY = {
    "name": "errorsOnly",
    "in": "query",
    "description": "Answer only the lines that failed, and the summary.",
    "schema": {"type": "boolean", "default": False},
}


class Summary(TypedDict):
    """What became of the lines. Blank lines are not among them."""

    lines: int
    ok: int
    failed: int
    created: int
    extended: int
    merged: int
    known: int
    withheld: int


def endpoints(chunks: Chunks, closing: asyncio.Event, settings: Settings, *, with_keys: bool) -> list[Endpoint]:
    """Return the endpoint POST /identify/batch; once `closing` is set, batches end."""
    return [
        Endpoint(
            method="POST",
            path="/identify/batch",
            handler=batch_handler(chunks, closing, settings, with_keys=with_keys),
            scope="identify",
            cors=True,
            stream=True,
            summary="Link many: a request a line, and an answer a line, in order",
            operation=_operation(),
            problems=(400, 414, 431, 503),
        )
    ]


def _operation() -> dict[str, Any]:
    answer = content(
        "A line for each line of the body, in its order, then the summary. If the summary is missing, the batch was "
        "cut off; if recon ended it, the last line says why, and is about the first line that was not done.",
        NDJSON,
        {"type": "string"},
    )
    answer["content"][NDJSON]["example"] = _ANSWER_EXAMPLE
    return {
        "tags": ["identity"],
        "operationId": "identifyBatch",
        "description": "Does what `POST /identify` does for each line of the body, one after another. The answer is "
        "streamed: read it while you send the body. A line that is invalid fails alone. Whenever a batch is cut off, "
        "the lines up to some line are done, and no later one; sending all again adds nothing.",
        "parameters": [_ERRORS_ONLY],
        "requestBody": {
            "required": True,
            "description": "One request a line, each as for `POST /identify`. Blank lines are skipped, and count in "
            "the numbers of lines.",
            # No schema: JSON Schema has none for lines, and any text is valid, since its lines fail alone.
            "content": {NDJSON: {"schema": {}, "example": _REQUEST_EXAMPLE}},
        },
        "responses": {"200": answer},
    }


def batch_handler(
    chunks: Chunks, closing: asyncio.Event, settings: Settings, *, with_keys: bool
) -> Callable[[web.Request], Any]:
    """Return the handler of POST /identify/batch."""
    parse = request_parser(strict=settings.strict, default_region=settings.default_region)

    async def handler(request: web.Request) -> web.StreamResponse:
        """Apply the requests of all lines, in order, and answer each."""
        require_ndjson(request)
        errors_only = _flag(parameters_of(request, "errorsOnly").get("errorsOnly", "false"))
        key = request[KEY] if with_keys else None
        caller = _Caller(
            request[HEADERS][REQUEST_ID],
            None if key is None else key.name,
            errors_only=errors_only,
            may_read=key is None or "read" in key.scopes,
        )
        lines = Lines(request, settings.max_body)
        batch = _Batch(caller, lines, parse, Course(chunks), closing)
        request[COUNTS] = batch.summary
        protocol = request.protocol if isinstance(request.protocol, Sender) else None
        try:
            return await stream(request, batch.answers(protocol), NDJSON)
        finally:
            if protocol is not None:
                protocol.busy, protocol.held = False, 0

    return handler


def _flag(text: str) -> bool:
    if text not in {"true", "false"}:
        raise InvalidParameter("errorsOnly must be true or false.")
    return text == "true"


class _Caller(NamedTuple):
    """The request of a batch: its id, the name of its API key, and what its answers show."""

    request_id: str
    source: str | None
    errors_only: bool
    may_read: bool


class _Request(NamedTuple):
    """A line of the body: what it says, or what is wrong with it."""

    line: int
    said: Identifiers | Exception


class _Batch:
    """Takes the lines of a body, and makes those of the answer."""

    def __init__(self, caller: _Caller, lines: Lines, parse: Parser, course: Course, closing: asyncio.Event) -> None:
        self._caller = caller
        self._lines = lines
        self._parse = parse
        self._course = course
        self._closing = closing
        self._pending: deque[_Request] = deque()
        self.summary = Summary(lines=0, ok=0, failed=0, created=0, extended=0, merged=0, known=0, withheld=0)

    async def answers(self, protocol: Sender | None) -> AsyncGenerator[bytes, None]:
        """Yield the answer in parts. If the batch cannot go on, the last line says why; then raise the error.

        Before the first line is done, raise the error alone: then it is the whole answer.
        """
        begun = False
        try:
            async for answered in self._answered():
                begun = True
                shown = [each for each in answered if each.failed or not self._caller.errors_only]
                if protocol is not None:
                    protocol.held = sum({id(each.body): len(each.body) for each in shown}.values())
                for part in _parts(shown):
                    yield part
                if protocol is not None:
                    protocol.held = 0
        except Exception as error:
            if not begun:
                raise
            line = self._pending[0].line if self._pending else self._lines.number + 1
            yield b"".join(_parts([self._failed(line, error)]))
            await self._lines.discard(_LINGERING)
            raise
        yield to_json({"summary": self.summary}) + b"\n"

    async def _answered(self) -> AsyncGenerator[list["_Answered"], None]:
        """Yield the answers to the lines in order, a part of a chunk at a time."""
        while await self._take():
            while self._pending:
                if self._closing.is_set():
                    raise ShuttingDown
                requests = [each.said for each in self._pending if isinstance(each.said, Identifiers)]
                results = await self._course.answer(requests) if requests else []
                yield self._matched(results)

    async def _take(self) -> bool:
        """Take the next chunk of lines; return whether there was any."""
        for number, text in await self._lines.take(MAX_CHUNK):
            try:
                if text is None:
                    raise web.HTTPRequestEntityTooLarge(self._lines.longest)
                self._pending.append(_Request(number, self._parse(text, self._caller.source)))
            except (ReconError, web.HTTPException) as error:
                self._pending.append(_Request(number, error))
        return bool(self._pending)

    def _matched(self, results: Sequence[Result]) -> list["_Answered"]:
        """Take the lines that have a result, or that were invalid and come before one that has none."""
        left = deque(results)
        answered = []
        while self._pending:
            line, said = self._pending[0]
            if isinstance(said, Exception):
                answered.append(self._failed(line, said))
            elif left:
                answered.append(self._result(line, left.popleft()))
            else:
                break
            self._pending.popleft()
        self._count(answered, results)
        return answered

    def _result(self, line: int, result: Result) -> "_Answered":
        if isinstance(result, Failed):
            return self._failed(line, result.error)
        answer = result.outcome
        if isinstance(answer, Refused):
            return self._failed(line, Blocked())
        if isinstance(answer, Partial):
            answer = partial_response(answer, may_read=self._caller.may_read)
        return _Answered(b'{"line":%d,"status":200,' % line, answer, 1)

    def _failed(self, line: int, error: Exception) -> "_Answered":
        problem = response_to(error, self._caller.request_id)
        head = b'{"line":%d,"status":%d,"problem":' % (line, problem.status)
        return _Answered(head, cast("bytes", problem.body) + b"}", 0, problem.status)

    def _count(self, answered: Sequence["_Answered"], results: Sequence[Result]) -> None:
        statuses = Counter(each.status for each in answered)
        for status, number in statuses.items():
            metrics.count_lines(status, number)
        summary, ok = self.summary, statuses[HTTPStatus.OK]
        summary["lines"] += len(answered)
        summary["ok"] += ok
        summary["failed"] += len(answered) - ok
        reasons = Counter(each.reason for each in results if not isinstance(each, Failed))
        for reason in (Reason.CREATED, Reason.EXTENDED, Reason.MERGED, Reason.KNOWN):
            summary[reason.value] += reasons[reason]  # type: ignore[literal-required] # they have these names
        summary["withheld"] += sum(isinstance(each, Applied) and isinstance(each.outcome, Partial) for each in results)


class _Answered(NamedTuple):
    """A line of the answer, in two pieces: lines share large identities.

    Attributes
    ----------
    head : its beginning.
    body : its end, from the byte `start` on, without the line break.
    """

    head: bytes
    body: bytes
    start: int
    status: int = 200

    @property
    def failed(self) -> bool:
        """Whether the request failed."""
        return self.status != HTTPStatus.OK


def _parts(answered: Iterable[_Answered]) -> Iterator[bytes]:
    """Join lines to parts of about PART bytes. The last one may be empty: then it sends the head of the response."""
    pieces: list[bytes] = []
    size = 0
    for head, body, start, _ in answered:
        pieces.append(head)
        if len(body) > PART:
            for begin in range(start, len(body), PART):
                pieces.append(body[begin : begin + PART])
                yield b"".join(pieces)
                pieces = []
            pieces.append(b"\n")
            size = 0
            continue
        pieces += (body[start:], b"\n")
        size += len(head) + len(body)
        if size >= PART:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces)
