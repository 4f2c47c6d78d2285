"""What a steward decides: the endpoints that correct identities, and the lists that stewards keep."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from aiohttp import web
from pydantic import BaseModel
from pydantic_core import to_json

from recon.api.decisions import (
    BlockedResponse,
    BlockRequest,
    DecidedResponse,
    DismissRequest,
    EraseRequest,
    EraseResponse,
    GuardsRequest,
    GuardsResponse,
    GuardsShown,
    IdentitiesResponse,
    KeepApartRequest,
    LinkRequest,
    LinkResponse,
    ReleaseRequest,
    ReleaseResponse,
    SplitRequest,
    SplitResponse,
    blocked_shown,
    decided,
    digest,
    identifiers_for,
    many,
    one,
    parser,
    path_shown,
    require_one,
)
from recon.api.identities import Read, handler_of
from recon.api.parameters import AFTER, CONTACT_ID, PAGE_SIZE, body_of, contact_id_of, page_of, parameters_of, whole
from recon.database.transactions import Database
from recon.errors import InvalidParameter, NotDivided
from recon.http.endpoints import Endpoint, content
from recon.http.middleware import KEY, Handler
from recon.http.responses import JsonResponse
from recon.identities.corrections import Correction, Corrections, Encode, Terms
from recon.identities.dividing import Block, Split, Unblock, identifier_of
from recon.identities.erasing import Erase
from recon.identities.guarding import Dismiss, SetGuards, fetch_blocked, fetch_limits
from recon.identities.linking import KeepApart, Link, Release
from recon.identities.lookup import MAX_ID
from recon.rules.identifiers import Identifiers, phone_key_for
from recon.settings import Settings, suppress_key

M = TypeVar("M", bound=BaseModel)
Make: TypeAlias = Callable[[web.Request, Any], Correction]  # from a request and its parsed body

_JSON = "application/json"
_KEY = re.compile(r"[!-~]{1,255}")  # visible ASCII characters
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "1 to 255 visible ASCII characters, new for each correction. The same key with the same request "
    "returns the first result, with `repeated`.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_EVENT_ID = {
    "name": "eventId",
    "in": "path",
    "required": True,
    "description": "The event of a withheld link.",
    "schema": {"type": "integer", "minimum": 0, "maximum": MAX_ID},
    "example": 5,
}
_PROBLEMS = (400, 404, 409, 410, 414, 422, 431, 503)
_NOTE = "Seen by the support desk"
_LINK_EXAMPLE = {"contactId": 3, "note": _NOTE}


class _Endpoints:
    """Makes the endpoints of corrections.

    Parameters
    ----------
    corrections : what makes them.
    with_keys : whether requests have API keys.
    """

    def __init__(self, corrections: Corrections, *, with_keys: bool) -> None:
        self._corrections = corrections
        self._with_keys = with_keys

    def correction(
        self,
        path: str,
        summary: str,
        *,
        name: str,
        body: type[BaseModel],
        answer: tuple[type, Encode],
        make: Make,
        examples: dict[str, dict[str, Any]],
        method: str = "POST",
        scope: str = "steward",
    ) -> Endpoint:
        """The endpoint of a kind of correction: `make` makes one of a request, `answer` is its shape and encoder."""
        shape, encode = answer
        described = {"{contactId}": CONTACT_ID, "{eventId}": _EVENT_ID}
        parameters = [value for part, value in described.items() if part in path]
        return Endpoint(
            method=method,
            path=path,
            handler=self._handler(parser(body), make, encode),
            scope=scope,
            cors=True,
            summary=summary,
            operation={
                "tags": ["corrections"],
                "operationId": name,
                "parameters": [*parameters, _IDEMPOTENCY_KEY],
                "requestBody": {"required": True, "content": {_JSON: {"schema": body, "examples": examples}}},
                "responses": {"200": content("The result of the correction.", _JSON, shape)},
            },
            problems=_PROBLEMS,
        )

    def _handler(self, parse: Callable[[bytes], BaseModel], make: Make, encode: Encode) -> Handler:
        async def handler(request: web.Request) -> web.StreamResponse:
            parameters_of(request)
            body = await body_of(request)
            parsed: Any = parse(body)
            terms = Terms(
                source=request[KEY].name if self._with_keys else None,
                note=parsed.note,
                dry_run=parsed.dryRun,
                if_state=getattr(parsed, "ifState", None),
                key=_idempotency_key(request),
                request=digest(request.method, request.path, body),
            )
            try:
                answer = await self._corrections.make(make(request, parsed), terms, encode)
            except NotDivided as error:
                raise NotDivided(path_shown(*error.path)) from None
            return JsonResponse(to_json(answer))

        return handler


def endpoints(corrections: Corrections, database: Database, settings: Settings, *, with_keys: bool) -> list[Endpoint]:
    """The endpoints of corrections. `with_keys` tells whether requests have API keys."""
    made = _Endpoints(corrections, with_keys=with_keys)
    seconds = settings.request_timeout
    return [
        _split(made, settings),
        *_of_identities(made),
        made.correction(
            "/withheld/{eventId}/dismiss",
            "Take a withheld link off the review list",
            body=DismissRequest,
            answer=(DecidedResponse, decided),
            make=lambda request, _: Dismiss(whole("eventId", request.match_info["eventId"], 0, MAX_ID)),
            examples={"dismiss": {"summary": "With a reason", "value": {"note": _NOTE}}},
            name="dismiss",
        ),
        _reading(
            "/blocked",
            "The values that stewards blocked",
            name="blocked",
            answer=BlockedResponse,
            read=_blocked(database),
            seconds=seconds,
        ),
        *_of_values(made, settings),
        _erase(made, corrections, settings),
        _reading(
            "/guards",
            "The settings of the guards",
            name="guards",
            answer=GuardsShown,
            read=_guards(database),
            seconds=seconds,
        ),
        made.correction(
            "/guards",
            "Change the settings of the guards",
            body=GuardsRequest,
            answer=(GuardsResponse, decided),
            make=lambda _, body: SetGuards(body.maxEmails, body.maxPhones, body.blockCommon),
            examples={
                "limits": {"summary": "Other limits", "value": {"maxEmails": 50, "maxPhones": 20, "note": _NOTE}}
            },
            name="setGuards",
            method="PATCH",
        ),
    ]


def _split(made: _Endpoints, settings: Settings) -> Endpoint:
    identifiers = identifiers_for(settings.default_region)

    def split(request: web.Request, body: SplitRequest) -> Split:
        require_one(body, "links", "parts")
        parts = [[identifier_of(identifiers(value)) for value in values] for values in body.parts or ()]
        return Split(contact_id_of(request), body.links, parts, body.rest, body.keepApart)

    return made.correction(
        "/identities/{contactId}/split",
        "Divide an identity, by links to cut or identifiers to move out",
        body=SplitRequest,
        answer=(SplitResponse, many),
        make=split,
        examples={
            "parts": {
                "summary": "Move identifiers out",
                "value": {"parts": [[{"email": "mcfly@hillvalley.edu"}]], "note": _NOTE, "dryRun": True},
            },
            "links": {"summary": "Cut a link", "value": {"links": ["contact:2"], "note": _NOTE}},
        },
        name="split",
    )


def _erase(made: _Endpoints, corrections: Corrections, settings: Settings) -> Endpoint:
    key = suppress_key(settings)
    phone_key = phone_key_for(settings.default_region)

    def erase(request: web.Request, body: EraseRequest) -> Erase:
        return Erase(contact_id_of(request), phone_key, body.suppress, key, corrections.has_lane)

    return made.correction(
        "/identities/{contactId}/erase",
        "Erase an identity, and whatever the database says of it",
        body=EraseRequest,
        answer=(EraseResponse, decided),
        make=erase,
        examples={"preview": {"summary": "What would be erased", "value": {"dryRun": True}}},
        name="erase",
        scope="erase",
    )


def _of_values(made: _Endpoints, settings: Settings) -> list[Endpoint]:
    phone_key = phone_key_for(settings.default_region)
    examples = {"phone": {"summary": "A phone number", "value": {"phoneNumber": "1234567890", "note": _NOTE}}}

    def value(body: BlockRequest) -> Identifiers:
        require_one(body, "email", "phoneNumber")
        phone = None if body.phoneNumber is None else str(body.phoneNumber)
        return Identifiers(body.email, phone, None if phone is None else phone_key(phone))

    return [
        made.correction(
            "/blocked",
            "Block a value that identifies nobody: it leaves all contacts and no longer links",
            body=BlockRequest,
            answer=(IdentitiesResponse, many),
            make=lambda _, body: Block(value(body)),
            examples=examples,
            name="block",
        ),
        made.correction(
            "/blocked/release",
            "Allow a blocked value again",
            body=BlockRequest,
            answer=(DecidedResponse, decided),
            make=lambda _, body: Unblock(value(body)),
            examples=examples,
            name="unblock",
        ),
    ]


def _of_identities(made: _Endpoints) -> list[Endpoint]:
    return [
        made.correction(
            "/identities/{contactId}/link",
            "Make two identities one",
            body=LinkRequest,
            answer=(LinkResponse, one),
            make=lambda request, body: Link(contact_id_of(request), body.contactId, body.release),
            examples={"link": {"summary": "Another identity", "value": _LINK_EXAMPLE}},
            name="link",
        ),
        made.correction(
            "/identities/{contactId}/keep-apart",
            "Keep two identities apart: no request joins them",
            body=KeepApartRequest,
            answer=(IdentitiesResponse, many),
            make=lambda request, body: KeepApart(contact_id_of(request), body.contactId),
            examples={"keep-apart": {"summary": "Another identity", "value": _LINK_EXAMPLE}},
            name="keepApart",
        ),
        made.correction(
            "/identities/{contactId}/release",
            "Lift what keeps identities apart",
            body=ReleaseRequest,
            answer=(ReleaseResponse, many),
            make=_release,
            examples={"release": {"summary": "All that keeps two identities apart", "value": _LINK_EXAMPLE}},
            name="release",
        ),
    ]


def _release(request: web.Request, body: ReleaseRequest) -> Release:
    require_one(body, "contactId", "eventId")
    return Release(contact_id_of(request), body.contactId, body.eventId)


def _reading(path: str, summary: str, *, name: str, answer: type, read: Read, seconds: float) -> Endpoint:
    """The endpoint of a list, or of settings."""
    return Endpoint(
        method="GET",
        path=path,
        handler=handler_of(read, seconds),
        scope="read",
        cors=True,
        summary=summary,
        operation={
            "tags": ["corrections"],
            "operationId": name,
            "parameters": [AFTER, PAGE_SIZE] if answer is BlockedResponse else [],
            "responses": {"200": content(f"{summary}.", _JSON, answer)},
        },
        problems=(400, 414, 431, 503),
    )


def _blocked(database: Database) -> Read:
    async def read(request: web.Request) -> bytes:
        found, following = await fetch_blocked(database, *page_of(request))
        return to_json({"blocked": [blocked_shown(value) for value in found], "next": following})

    return read


def _guards(database: Database) -> Read:
    async def read(request: web.Request) -> bytes:
        parameters_of(request)
        return to_json((await fetch_limits(database)).shown())

    return read


def _idempotency_key(request: web.Request) -> str | None:
    keys = request.headers.getall("Idempotency-Key", [])
    if len(keys) > 1:
        raise InvalidParameter("The request has more than one Idempotency-Key.")
    if keys and not _KEY.fullmatch(keys[0]):
        raise InvalidParameter("The Idempotency-Key must have 1 to 255 visible ASCII characters.")
    return keys[0] if keys else None
