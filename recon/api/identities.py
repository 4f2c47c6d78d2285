"""What a steward asks: the endpoints that look identities up and explain them. None of them changes anything."""

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeAlias

from aiohttp import hdrs, web

from recon.api.identify import require_json
from recon.api.messages import (
    IdentifyRequest,
    IdentityResponse,
    LookupResponse,
    identify_response,
    lookup_response,
    request_parser,
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
from recon.identities.lookup import LIMIT, MAX_ID, MOST, Lookup
from recon.settings import Settings

Read: TypeAlias = Callable[[web.Request], Awaitable[bytes]]  # from a request to the body of its answer

_JSON = "application/json"
_WHOLE = re.compile(r"[0-9]{1,19}")

_CONTACT_ID = {
    "name": "contactId",
    "in": "path",
    "required": True,
    "description": "The id of any contact of the identity, live or soft-deleted.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_ID},
    "example": 1,
}
_AS_OF = {
    "name": "asOf",
    "in": "query",
    "description": "A position (the id of a contact or event), or a time with a time zone in ISO 8601: the identity as "
    "it was then. Without it, as it is now.",
    "schema": {
        "anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_ID}, {"type": "string", "format": "date-time"}]
    },
}
_AFTER = {
    "name": "after",
    "in": "query",
    "description": "The position that the page comes after: `next` of the page before.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_ID, "default": 0},
}
_LIMIT = {
    "name": "limit",
    "in": "query",
    "description": "How many positions the page has at most.",
    "schema": {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT},
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
            handler=_handler(_lookup(lookup, settings), seconds),
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
            handler=_handler(_show(lookup), seconds),
            scope="read",
            cors=True,
            summary="The identity of a contact, now or as it was at a position or time",
            operation=_operation("show", "The identity.", IdentityResponse, parameters=[_CONTACT_ID, _AS_OF]),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="GET",
            path="/identities/{contactId}/links",
            handler=_handler(_links(lookup), seconds),
            scope="read",
            cors=True,
            summary="The contacts and links of an identity, and what is kept apart from it",
            operation=_operation(
                "links", "A page of contacts and links.", LinksResponse, parameters=[_CONTACT_ID, _AFTER, _LIMIT]
            ),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="GET",
            path="/identities/{contactId}/history",
            handler=_handler(_history(lookup), seconds),
            scope="read",
            cors=True,
            summary="The contacts and events of an identity, oldest first",
            operation=_operation(
                "history", "A page of contacts and events.", HistoryResponse, parameters=[_CONTACT_ID, _AFTER, _LIMIT]
            ),
            problems=(400, 404, 410, 414, 431, 503),
        ),
        Endpoint(
            method="POST",
            path="/why",
            handler=_handler(_why(lookup, settings), seconds),
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
            handler=_handler(_withheld(lookup), seconds),
            scope="read",
            cors=True,
            summary="The links that guards withheld and that are open, oldest first",
            operation=_operation(
                "withheld",
                "A page of withheld links. It may have fewer than `limit` and yet not be the last.",
                WithheldResponse,
                parameters=[_AFTER, _LIMIT],
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


def _handler(read: Read, seconds: float) -> Handler:
    """The handler that answers with what `read` returns within so many seconds."""

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
        _parameters(request)
        return lookup_response(await lookup.lookup(parse(await _body(request), None)))

    return read


def _show(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        given = _parameters(request, "asOf")
        as_of = _position_or_time(given["asOf"]) if "asOf" in given else None
        return identify_response(await lookup.show(_contact_id(request), as_of))

    return read


def _links(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        return links_response(await lookup.links(_contact_id(request), *_page(request)))

    return read


def _history(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        return history_response(await lookup.history(_contact_id(request), *_page(request)))

    return read


def _why(lookup: Lookup, settings: Settings) -> Read:
    parse = why_parser(settings.default_region)

    async def read(request: web.Request) -> bytes:
        _parameters(request)
        return why_response(await lookup.why(*parse(await _body(request))))

    return read


def _withheld(lookup: Lookup) -> Read:
    async def read(request: web.Request) -> bytes:
        return withheld_response(await lookup.withheld(*_page(request)))

    return read


async def _body(request: web.Request) -> bytes:
    require_json(request)
    try:
        return await request.read()
    except (web.RequestPayloadError, ConnectionError):
        raise web.HTTPBadRequest(text="The body is not as its headers say.") from None


def _contact_id(request: web.Request) -> int:
    return _whole("contactId", request.match_info["contactId"], 0, MAX_ID)


def _page(request: web.Request) -> tuple[int, int]:
    """The page that the query asks for: the position that it comes after, and how many positions it has at most."""
    given = _parameters(request, "after", "limit")
    return _whole("after", given.get("after", "0"), 0, MAX_ID), _whole("limit", given.get("limit", str(LIMIT)), 1, MOST)


def _parameters(request: web.Request, *names: str) -> dict[str, str]:
    """The parameters of the query, each given once; an error quotes none, since it could be an identifier."""
    given = request.query
    if not set(given) <= set(names):
        known = ", ".join(names) if names else "none"
        raise InvalidParameter(f"The query has an unknown parameter; this endpoint takes {known}.")
    if len(given) > len(set(given)):
        raise InvalidParameter("The query has a parameter twice.")
    return dict(given)


def _whole(name: str, text: str, least: int, most: int) -> int:
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise InvalidParameter(f"{name} must be a whole number from {least} to {most}.")
    return int(text)


def _position_or_time(text: str) -> int | datetime:
    if _WHOLE.fullmatch(text):
        return _whole("asOf", text, 0, MAX_ID)
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
