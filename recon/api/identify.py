"""POST /identify: body → identifiers → identify → JSON."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from recon.api.messages import IdentifyRequest, IdentifyResponse, partial_response, request_parser
from recon.http.endpoints import Endpoint, content
from recon.http.middleware import KEY
from recon.http.responses import ENCODINGS, UTF_8, JsonResponse, unsupported_encoding
from recon.identities.identify import Answer, Partial
from recon.rules.identifiers import Identifiers
from recon.settings import Settings

_JSON = "application/json"

_REQUEST_EXAMPLES = {
    "both": {
        "summary": "An email and a phone number",
        "value": {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"},
    },
    "another-email": {
        "summary": "The same phone number with another email: one person",
        "value": {"email": "mcfly@hillvalley.edu", "phoneNumber": "123456"},
    },
    "phone-only": {"summary": "A phone number alone, as a number", "value": {"phoneNumber": 123456}},
}
_ANSWER_EXAMPLE = {
    "contact": {
        "primaryContactId": 1,
        "primaryContatctId": 1,
        "emails": ["lorraine@hillvalley.edu", "mcfly@hillvalley.edu"],
        "phoneNumbers": ["123456"],
        "secondaryContactIds": [2],
    }
}
_LINKS = {
    "again": {
        "description": "Requests are idempotent: repeating one, for example after a 503, adds nothing.",
        "operationId": "identify",
        "requestBody": "$request.body",
    }
}


def endpoints(
    identify: Callable[[Identifiers], Awaitable[Answer]], settings: Settings, *, with_keys: bool
) -> list[Endpoint]:
    """Return the endpoint POST /identify. `identify` links the request's identifiers and returns the answer.

    `with_keys` tells whether requests have API keys.
    """
    return [
        Endpoint(
            method="POST",
            path="/identify",
            handler=identify_handler(identify, settings, with_keys=with_keys),
            scope="identify",
            cors=True,
            summary="Link an email and a phone number, and return the whole identity",
            operation=_operation(),
            problems=(400, 414, 422, 431, 503),
        )
    ]


def _operation() -> dict[str, Any]:
    answer = content("The whole identity.", _JSON, IdentifyResponse)
    answer["content"][_JSON]["example"] = _ANSWER_EXAMPLE
    answer["links"] = _LINKS
    return {
        "tags": ["identity"],
        "operationId": "identify",
        "description": "Links an email, a phone number, or both to everything known about that person, and returns "
        "the complete identity. Idempotent: repeating a request adds nothing. What the guards forbid to "
        "link is named in `withheld`; a request with nothing but values that identify nobody is a 422.",
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": IdentifyRequest, "examples": _REQUEST_EXAMPLES}},
        },
        "responses": {"200": answer},
    }


def identify_handler(
    identify: Callable[[Identifiers], Awaitable[Answer]], settings: Settings, *, with_keys: bool
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Return the handler of POST /identify."""
    parse = request_parser(strict=settings.strict, default_region=settings.default_region)

    async def handler(request: web.Request) -> web.StreamResponse:
        """Link an email, a phone number, or both, and answer with the complete identity."""
        require_json(request)
        try:
            body = await request.read()
        except (web.RequestPayloadError, ConnectionError):  # ConnectionError: the client disconnected
            raise web.HTTPBadRequest(text="The body does not match its headers.") from None
        key = request[KEY] if with_keys else None
        answer = await identify(parse(body, None if key is None else key.name))
        if isinstance(answer, Partial):
            answer = partial_response(answer, may_read=key is None or "read" in key.scopes)
        return JsonResponse(answer)

    return handler


def require_json(request: web.Request) -> None:
    """Raise the error for a body that is not declared as JSON in UTF-8, or has an encoding that recon does not know."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.lower() not in ENCODINGS:
        raise unsupported_encoding()
    if request.headers.get("Content-Type") == _JSON:  # nearly always: then there is nothing to parse
        return
    kind = request.content_type
    is_json = kind == _JSON or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json or (request.charset or "utf-8").lower() not in UTF_8:
        raise web.HTTPUnsupportedMediaType(text="The body must be JSON in UTF-8, with Content-Type: application/json.")
