"""Errors as problem details (RFC 9457): their shape, and the status of each error."""

from http import HTTPStatus
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field
from pydantic_core import to_json
from typing_extensions import TypedDict

from recon.errors import (
    Conflict,
    FieldError,
    Forbidden,
    ForeignHost,
    Gone,
    InvalidParameter,
    InvalidRequest,
    KeptApart,
    NotDivided,
    NotFound,
    ReconError,
    Unauthorized,
    Unavailable,
    Unprocessable,
)

# The status of each class of error: all that HTTP code needs to know about recon's errors.
STATUS = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    InvalidParameter: HTTPStatus.BAD_REQUEST,
    Unauthorized: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Gone: HTTPStatus.GONE,
    Conflict: HTTPStatus.CONFLICT,
    Unprocessable: HTTPStatus.UNPROCESSABLE_ENTITY,
    ForeignHost: HTTPStatus.MISDIRECTED_REQUEST,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}
RETRY_AFTER = "1"  # seconds


class ProblemField(TypedDict):
    """One thing that is wrong with the request's body."""

    pointer: Annotated[str, Field(description="A JSON pointer into the body; empty for the body itself.")]
    detail: str


class _ProblemRequired(TypedDict):
    type: Annotated[str, Field(description="A stable name for the kind of problem.")]
    title: str
    status: int


class Problem(_ProblemRequired, total=False):
    """An error, as RFC 9457 describes it."""

    detail: str
    errors: list[ProblemField]
    path: Annotated[list[Any], Field(description="not-divided: the links that still connect the identity.")]
    keptApart: Annotated[list[Any], Field(description="kept-apart: who decided it, when and why.")]


# The details of errors that aiohttp raises.
_DETAILS = {
    HTTPStatus.NOT_FOUND: "This path does not exist; /docs lists the endpoints.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not accept this method; Allow lists the accepted ones.",
    HTTPStatus.EXPECTATION_FAILED: "recon supports no expectation other than 100-continue.",  # aiohttp quotes the value
}


def problem(
    status: int,
    detail: str | None = None,
    *,
    code: str | None = None,
    errors: list[FieldError] | None = None,
    members: dict[str, Any] | None = None,
) -> web.Response:
    """An RFC 9457 problem document; `members` are those that its type has besides the common ones."""
    kind = f"urn:recon:{code}" if code else "about:blank"
    body = Problem(type=kind, title=HTTPStatus(status).phrase, status=int(status))
    if detail:
        body["detail"] = detail
    if errors:
        body["errors"] = [{"pointer": error.pointer, "detail": error.detail} for error in errors]
    response = web.Response(
        body=to_json({**body, **(members or {})}), status=status, content_type="application/problem+json"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        response.headers["Retry-After"] = RETRY_AFTER
    elif status == HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


def problem_of(error: ReconError) -> web.Response:
    """Make the problem document of an error of recon."""
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    errors = error.errors if isinstance(error, InvalidRequest) else None
    members: dict[str, Any] = {}
    if isinstance(error, NotDivided):
        members["path"] = error.path
    elif isinstance(error, KeptApart):
        members["keptApart"] = error.kept_apart
    return problem(status, str(error), code=error.code, errors=errors, members=members)


def problem_of_http(error: web.HTTPException) -> web.Response:
    """Make the problem document of an error that aiohttp has a class for."""
    response = problem(error.status, _DETAILS.get(HTTPStatus(error.status)) or error.text)
    if error.status == HTTPStatus.REQUEST_TIMEOUT:
        response.force_close()  # the rest of the body may still come
    for name in ("Allow", "Accept-Encoding"):
        if name in error.headers:
            response.headers[name] = error.headers[name]
    return response
