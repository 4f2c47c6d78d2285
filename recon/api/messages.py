"""The messages of the API: the shapes of requests and answers, JSON to identifiers, and an identity to JSON."""

from collections.abc import Callable, Iterable
from typing import Annotated, Literal, NotRequired, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json, to_json
from typing_extensions import TypedDict

from recon.errors import FieldError, InvalidRequest
from recon.identities.identify import Partial
from recon.rules import clusters
from recon.rules.identifiers import (
    MAX_EMAIL,
    MAX_PHONE,
    Identifiers,
    check_email_syntax,
    check_phone_syntax,
    normal_email,
    normal_phone,
    phone_key_for,
)

_EXPECTED = {"email": "must be a string or null", "phoneNumber": "must be a string, a whole number or null"}
_NOTHING_GIVEN = "must have an email or a phoneNumber"
_UNKNOWN_FIELD = "must have no fields other than email and phoneNumber"


# For the published schema: at most so many characters, and no control characters. Blanks at the ends are trimmed first
# and do not count. (A `maxLength` would count them.)
TEXT = r"^[\t-\r ]*[^\x00-\x1f\x7f-\x9f]{0,%d}[\t-\r ]*$"
NOT_BLANK = r"\S"


class IdentifyRequest(BaseModel):
    """An email, a phone number, or both, of one person. At least one must be given."""

    # Strict, so that `true` is not a valid phone number, and `12` not a valid email.
    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={
            "examples": [{"email": "mcfly@hillvalley.edu", "phoneNumber": "123456"}],
            "anyOf": [
                {"required": ["email"], "properties": {"email": {"type": "string", "pattern": NOT_BLANK}}},
                {
                    "required": ["phoneNumber"],
                    "properties": {"phoneNumber": {"type": ["string", "integer"], "pattern": NOT_BLANK}},
                },
            ],
        },
    )

    email: Annotated[str, AfterValidator(normal_email)] | None = Field(
        default=None,
        description=(
            "An email address. Trimmed, composed (Unicode NFC) and lower-cased; blank and null mean absent. "
            f"At most {MAX_EMAIL} characters, as sent and in this form."
        ),
        json_schema_extra={"pattern": TEXT % MAX_EMAIL},
    )
    phoneNumber: Annotated[str | Annotated[int, Field(ge=0)], AfterValidator(normal_phone)] | None = Field(
        default=None,
        description=(
            "A phone number, as text or as a whole number. Numbers that differ only in spaces, + - . ( ) / and the "
            "width of their digits (Unicode NFKC) are the same; blank and null mean absent. "
            f"At most {MAX_PHONE} characters, as sent and in NFKC."
        ),
        json_schema_extra={"pattern": TEXT % MAX_PHONE, "exclusiveMaximum": 10**MAX_PHONE},
    )

    def identifiers(self, phone_key: Callable[[str], str], source: str | None) -> Identifiers:
        """Return the request's identifiers in canonical form; `phone_key` computes the phone number's match key."""
        phone = None if self.phoneNumber is None else str(self.phoneNumber)
        return Identifiers(self.email, phone, None if phone is None else phone_key(phone), source)


class StrictIdentifyRequest(IdentifyRequest):
    """An IdentifyRequest without other fields: a misspelt `phoneNumber` is an error instead of being ignored."""

    model_config = ConfigDict(extra="forbid")


class Identity(TypedDict):
    """Everything known about one person."""

    primaryContactId: Annotated[int, Field(description="The oldest contact of this person.")]
    primaryContatctId: Annotated[
        int, Field(description="The same id, spelt as the original task published it; clients of both spellings exist.")
    ]
    emails: Annotated[list[str], Field(description="The primary's own first, then in order of creation.")]
    phoneNumbers: Annotated[
        list[str],
        Field(description="The primary's own first, then in order of creation, each in the form first seen."),
    ]
    secondaryContactIds: Annotated[list[int], Field(description="All other contacts, in order of creation.")]


class Withheld(TypedDict):
    """An identifier of the request that was not linked."""

    identifier: Literal["email", "phoneNumber"]
    reason: Annotated[
        Literal["blocked", "kept-apart", "limit"],
        Field(
            description="blocked: the value identifies nobody. kept-apart: it would join two identities that a steward "
            "keeps apart. limit: the identity would have too many emails or phone numbers."
        ),
    ]
    primaryContactId: NotRequired[
        Annotated[
            int | None,
            Field(description="The identity that holds the identifier, if any. Only for API keys that may read."),
        ]
    ]


class IdentifyResponse(TypedDict):
    """The whole identity that the request's identifiers belong to."""

    contact: Identity
    withheld: NotRequired[
        Annotated[
            list[Withheld],
            Field(description="What the guards kept from being linked; absent if nothing was."),
        ]
    ]


class IdentityResponse(TypedDict):
    """A whole identity."""

    contact: Identity


class LookupResponse(TypedDict):
    """The identities that hold the request's identifiers: none, one, or that of the email and that of the phone."""

    contacts: list[Identity]


def identify_response(identity: clusters.Identity) -> bytes:
    """Return the IdentifyResponse with this identity, as JSON."""
    response: IdentifyResponse = {
        "contact": {
            "primaryContactId": identity.primary_id,
            "primaryContatctId": identity.primary_id,
            "emails": identity.emails,
            "phoneNumbers": identity.phone_numbers,
            "secondaryContactIds": identity.secondary_ids,
        }
    }
    return to_json(response)


def partial_response(partial: Partial, *, may_read: bool) -> bytes:
    """Encode the answer to a request of which something was withheld."""
    withheld: list[Withheld] = [
        Withheld(identifier=each.kind, reason=each.cause.value)
        | ({"primaryContactId": each.primary_id} if may_read else {})
        for each in partial.withheld
    ]
    return partial.identity[:-1] + b',"withheld":' + to_json(withheld) + b"}"


def identity_shown(identity: clusters.Identity) -> Identity:
    """An identity as every answer shows it."""
    return {
        "primaryContactId": identity.primary_id,
        "primaryContatctId": identity.primary_id,
        "emails": identity.emails,
        "phoneNumbers": identity.phone_numbers,
        "secondaryContactIds": identity.secondary_ids,
    }


def lookup_response(identities: Iterable[clusters.Identity]) -> bytes:
    """The answer with these identities, a LookupResponse, as JSON."""
    # The one encoder is on the path of a request, and stays in one piece: here its answers lose what is around them.
    contacts = [identify_response(identity).removeprefix(b'{"contact":')[:-1] for identity in identities]
    return b'{"contacts":[%s]}' % b",".join(contacts)


Parser: TypeAlias = Callable[[bytes, str | None], Identifiers]


def request_parser(*, strict: bool, default_region: str | None) -> Parser:
    """Return a function from a request's body and the name of its API key to its identifiers, for these settings.

    The function raises InvalidRequest, quoting nothing of the body, when the body is not a valid request.
    """
    model = StrictIdentifyRequest if strict else IdentifyRequest
    phone_key = phone_key_for(default_region)

    def parse(body: bytes, source: str | None) -> Identifiers:
        try:
            if b"NaN" in body or b"Infinity" in body:
                refuse_constants(body)
            request = model.model_validate_json(body)
        except ValidationError as error:
            raise InvalidRequest(_field_errors(error)) from None
        if request.email is None and request.phoneNumber is None:
            raise InvalidRequest([FieldError("", _NOTHING_GIVEN)])
        identifiers = request.identifiers(phone_key, source)
        if strict:
            _check_syntax(identifiers, default_region)
        return identifiers

    return parse


def refuse_constants(body: bytes) -> None:
    """Raise InvalidRequest for NaN and Infinity, which JSON does not have, and for all else that is no JSON.

    The model's own parsing lets them pass in fields that it ignores, and has no setting for that.
    """
    try:
        from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequest([FieldError("", _json_error(str(error)))]) from None


# Messages of pydantic's parser about valid JSON that exceeds its limits. The rest of a message is the position.
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
        if item["type"] == "extra_forbidden":  # the pointer would quote the client's field name
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


def _check_syntax(identifiers: Identifiers, region: str | None) -> None:
    errors = []
    if identifiers.email is not None:
        try:
            check_email_syntax(identifiers.email)
        except ValueError as error:
            errors.append(FieldError("/email", str(error)))
    if identifiers.phone is not None:
        try:
            check_phone_syntax(identifiers.phone, region)
        except ValueError as error:
            errors.append(FieldError("/phoneNumber", str(error)))
    if errors:
        raise InvalidRequest(errors)
