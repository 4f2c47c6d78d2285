"""What a steward asks: the endpoints that look identities up and explain them. None of them changes anything."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeAlias

from aiohttp import hdrs, web

from recon.api.messages import (
    IdentifyRequest,
    IdentityResponse,
    LookupResponse,
    identify_response,
    lookup_response,
    request_parser,
)
from recon.api.parameters import (
    AFTER,
    CONTACT_ID,
    PAGE_SIZE,
    WHOLE,
    body_of,
    contact_id_of,
    page_of,
    parameters_of,
    whole,
)
from recon.api.questions import (
    HistoryResponse,
    LinksResponse,
    WhyRequest,
    WhyResponse,
    WithheldResponse,
    history_response,
    links_response,
    why_parser,
    why_response,
    withheld_response,
)
from recon.errors import InvalidParameter
from recon.http.endpoints import Endpoint, content
from recon.http.middleware import Handler
from recon.http.responses import JsonResponse
from recon.identities.deadlines import limited
from recon.identities.lookup import MAX_ID, Lookup
from recon.settings import Settings

Read: TypeAlias = Callable[[web.Request], Awaitable[bytes]]  # from a request to the body of its answer

_JSON = "application/json"

_AS_OF = {
    "name": "asOf",
    "in": "query",
    "description": "A position (the id of a contact or event), or a time with a time zone in ISO 8601: the identity as "
    "it was then. Without it, as it is now.",
    "schema": {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_ID}, {"type": "string", "format": "date-time"}]
    },
}
_LOOKUP_EXAMPLES = {
    "email": {"summary": "An email", "value": {"email": "mcfly@hillvalley.edu"}},
    "both": {
        "summary": "An email and a phone number, of one person or of two",
        "value": {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"},
    },
}
_WHY_EXAMPLES = {
    "identifiers": {
        "summary": "Two emails",
        "value": {"from": {"email": "lorraine@hillvalley.edu"}, "to": {"email": "mcfly@hillvalley.edu"}},
    },
    "contact": {
        "summary": "A contact and a phone number",
        "value": {"from": {"contactId": 1}, "to": {"phoneNumber": "123456"}},
    },
}


def endpoints(lookup: Lookup, settings: Settings) -> list[Endpoint]:
    """The endpoints that answer with what `lookup` says."""
    seconds = settings.request_timeout
    return [
        Endpoint(
            method="POST",
            path="/lookup",
            handler=handler_of(_lookup(lookup, settings), seconds),
            scope="read",
            cors=True,
            summary="The identities that hold an email or a phone number; stores nothing",
            operation=_operation(
                "lookup",
                "The identities: none, one, or that of the email and that of the phone number.",
                LookupResponse,
                body=(IdentifyRequest, _LOOKUP_EXAMPLES),
            ),
            problems=(400, 414, 431, 503),
        ),
        Endpoint(
            method="GET",
            path="/identities/{contactId}",
            handler=handler_of(_show(lookup), seconds),
            scope="read",
            cors=True,
            summary="The identity of a contact, now or as it was at a position or time",
            operation=_operation("show", "The identity.", IdentityResponse, parameters=[CONTACT_ID, _AS_OF]),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="GET",
            path="/identities/{contactId}/links",
            handler=handler_of(_links(lookup), seconds),
            scope="read",
            cors=True,
            summary="The contacts and links of an identity, and what is kept apart from it",
            operation=_operation(
                "links", "A page of contacts and links.", LinksResponse, parameters=[CONTACT_ID, AFTER, PAGE_SIZE]
            ),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="GET",
            path="/identities/{contactId}/history",
            handler=handler_of(_history(lookup), seconds),
            scope="read",
            cors=True,
            summary="The contacts and events of an identity, oldest first",
            operation=_operation(
                "history", "A page of contacts and events.", HistoryResponse, parameters=[CONTACT_ID, AFTER, PAGE_SIZE]
            ),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="POST",
            path="/why",
            handler=handler_of(_why(lookup, settings), seconds),
            scope="read",
            cors=True,
            summary="Why two identifiers or contacts are one person, or are not",
            operation=_operation(
                "why",
                "The path of links, or what keeps the two apart.",
                WhyResponse,
                body=(WhyRequest, _WHY_EXAMPLES),
            ),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="GET",
            path="/withheld",
            handler=handler_of(_withheld(lookup), seconds),
            scope="read",
            cors=True,
            summary="The links that guards withheld and that are open, oldest first",
            operation=_operation(
                "withheld",
                "A page of withheld links. It may have fewer than `limit` and yet not be the last.",
                WithheldResponse,
                parameters=[AFTER, PAGE_SIZE],
            ),
            problems=(400, 414, 431, 503),
        ),
    ]


def _operation(
    name: str,
    description: str,
    answer: type,
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: tuple[type, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    operation = {
        "tags": ["identity"],
        "operationId": name,
        "parameters": parameters or [],
        "responses": {"200": content(description, _JSON, answer)},
    }
    if body is not None:
        model, examples = body
        operation["requestBody"] = {"required": True, "content": {_JSON: {"schema": model, "examples": examples}}}
    return operation


def handler_of(read: Read, seconds: float) -> Handler:
    """Return the handler that answers with what `read` returns within so many seconds."""

    async def handler(request: web.Request) -> web.StreamResponse:
        async with limited(seconds):
            body = await read(request)
        if request.method == hdrs.METH_HEAD:
            return web.Response(body=body, content_type=_JSON)  # of which aiohttp sends the head alone
        return JsonResponse(body)

    return handler


def _lookup(lookup: Lookup, settings: Settings) -> Read:
    parse = request_parser(strict=settings.strict, default_region=settings.default_region)

    async def read(request: web.Request) -> bytes:
        parameters_of(request)
        return lookup_response(await lookup.lookup(parse(await body_of(request), None)))

    return read


def _show(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        given = parameters_of(request, "asOf")
        as_of = _position_or_time(given["asOf"]) if "asOf" in given else None
        return identify_response(await lookup.show(contact_id_of(request), as_of))

    return read


def _links(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        return links_response(await lookup.links(contact_id_of(request), *page_of(request)))

    return read


def _history(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        return history_response(await lookup.history(contact_id_of(request), *page_of(request)))

    return read


def _why(lookup: Lookup, settings: Settings) -> Read:
    parse = why_parser(settings.default_region)

    async def read(request: web.Request) -> bytes:
        parameters_of(request)
        return why_response(await lookup.why(*parse(await body_of(request))))

    return read


def _withheld(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        return withheld_response(await lookup.withheld(*page_of(request)))

    return read


def _position_or_time(text: str) -> int | datetime:
    if WHOLE.fullmatch(text):
        return whole("asOf", text, 0, MAX_ID)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None
    if time is None or time.tzinfo is None:
        raise InvalidParameter(
            "asOf must be a position, or a time with a time zone in ISO 8601, such as 2026-11-21T12:00:00Z (a + in a "
            "query is written %2B)."
        )
    return time
