"""POST /identify: body → model → identify → JSON."""

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from pydantic import ValidationError
from pydantic_core import from_json

from recon.errors import FieldError, InvalidRequest
from recon.identifiers import Identifiers, check_email_syntax, check_phone_syntax, plain_key, regional_key
from recon.identify import Answer
from recon.models import IdentifyRequest, StrictIdentifyRequest
from recon.response import JsonResponse, unsupported_encoding
from recon.settings import Settings

_EXPECTED = {"email": "must be a string or null", "phoneNumber": "must be a string, a whole number or null"}
_JSON = "application/json"
_ENCODINGS = {"gzip", "deflate", "identity"}
_UTF_8 = {"utf-8", "utf8", "us-ascii"}
_NOTHING_GIVEN = "must have an email or a phoneNumber"
_UNKNOWN_FIELD = "must have no fields other than email and phoneNumber"


def identify_handler(
    identify: Callable[[Identifiers], Awaitable[Answer]], settings: Settings
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The handler that answers with what `identify` says of the request's identifiers."""
    phone_key = regional_key(settings.default_region) if settings.default_region else plain_key
    model = StrictIdentifyRequest if settings.strict else IdentifyRequest

    async def handler(request: web.Request) -> web.StreamResponse:
        """File an email, a phone number, or both, and answer with the whole identity."""
        _require_json(request)
        try:
            body = await request.read()
        except (web.RequestPayloadError, ConnectionError):  # the latter when the client left in the middle of it
            raise web.HTTPBadRequest(text="The body is not as its headers say.") from None
        said = parse(body, model)
        if settings.strict:
            _check_syntax(said, settings.default_region)
        phone = None if said.phoneNumber is None else str(said.phoneNumber)
        answer = await identify(Identifiers(said.email, phone, None if phone is None else phone_key(phone)))
        return JsonResponse(answer)

    return handler


def parse(body: bytes, model: type[IdentifyRequest] = IdentifyRequest) -> IdentifyRequest:
    """The request in a body of JSON; raises InvalidRequest, quoting nothing of it, when there is none."""
    try:
        if b"NaN" in body or b"Infinity" in body:
            _refuse_constants(body)
        said = model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequest(_field_errors(error)) from None
    if said.email is None and said.phoneNumber is None:
        raise InvalidRequest([FieldError("", _NOTHING_GIVEN)])
    return said


def _refuse_constants(body: bytes) -> None:
    """Refuse NaN and Infinity, which JSON does not have.

    The model's own parsing lets them pass in fields that it ignores, and has no setting for that.
    """
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest([FieldError("", _json_error(str(error)))]) from None


# What pydantic's parser says of JSON that is valid, but more than it takes. The rest of its message is the place.
_BEYOND = {
    "recursion limit exceeded": "is nested too deeply",
    "number out of range": "has a number that is too long",
}


def _json_error(message: str) -> str:
    for beyond, detail in _BEYOND.items():
        if message.startswith(beyond):
            return detail + message.removeprefix(beyond)
    return f"is not JSON: {message}"


def _field_errors(error: ValidationError) -> list[FieldError]:
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        if item["type"] == "extra_forbidden":  # the pointer would quote the client
            found[""] = _UNKNOWN_FIELD
            continue
        field = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "json_invalid":
            detail = _json_error(item["ctx"]["error"])
        elif item["type"] == "value_error":
            detail = str(item["ctx"]["error"])
        elif field:
            detail = _EXPECTED[field]
        else:
            detail = "must be a JSON object"
        found[f"/{field}" if field else ""] = detail
    return [FieldError(pointer, detail) for pointer, detail in found.items()]


def _check_syntax(said: IdentifyRequest, region: str | None) -> None:
    errors = []
    if said.email is not None:
        try:
            check_email_syntax(said.email)
        except ValueError as error:
            errors.append(FieldError("/email", str(error)))
    if said.phoneNumber is not None:
        try:
            check_phone_syntax(str(said.phoneNumber), region)
        except ValueError as error:
            errors.append(FieldError("/phoneNumber", str(error)))
    if errors:
        raise InvalidRequest(errors)


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
