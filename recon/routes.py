"""POST /identify: body → identifiers → identify → JSON."""

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web

from recon.identifiers import Identifiers
from recon.identify import Answer
from recon.messages import request_parser
from recon.response import JsonResponse, unsupported_encoding
from recon.settings import Settings

_JSON = "application/json"
_ENCODINGS = {"gzip", "deflate", "identity"}
_UTF_8 = {"utf-8", "utf8", "us-ascii"}


def identify_handler(
    identify: Callable[[Identifiers], Awaitable[Answer]], settings: Settings
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler that answers with what `identify` says of the request's identifiers."""
    parse = request_parser(strict=settings.strict, default_region=settings.default_region)

    async def handler(request: web.Request) -> web.StreamResponse:
        """File an email, a phone number, or both, and answer with the whole identity."""
        _require_json(request)
        try:
            body = await request.read()
        except (web.RequestPayloadError, ConnectionError):  # the latter when the client left in the middle of it
            raise web.HTTPBadRequest(text="The body is not as its headers say.") from None
        return JsonResponse(await identify(parse(body)))

    return handler


def _require_json(request: web.Request) -> None:
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.lower() not in _ENCODINGS:
        raise unsupported_encoding()
    if request.headers.get("Content-Type") == _JSON:  # nearly always: then there is nothing to parse
        return
    kind = request.content_type
    is_json = kind == _JSON or (kind.startswith("application/") and kind.endswith("+json"))
    if not is_json or (request.charset or "utf-8").lower() not in _UTF_8:
        raise web.HTTPUnsupportedMediaType(text="The body must be JSON in UTF-8, with Content-Type: application/json.")
