"""The messages of what a steward decides: the shapes of corrections and their answers, and the parsing of bodies."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from typing_extensions import TypedDict

from recon.api.messages import NOT_BLANK, TEXT, Identity, identity_shown, refuse_constants
from recon.api.questions import ByEmail, ByPhoneNumber
from recon.errors import FieldError, InvalidRequest
from recon.identities.corrections import Result
from recon.identities.lookup import MAX_ID
from recon.rules.identifiers import MAX_EMAIL, MAX_PHONE, Identifiers, normal_email, normal_phone, phone_key_for
from recon.rules.links import Identifier, Link
from recon.sql.stewardship import Blocked

M = TypeVar("M", bound=BaseModel)

MAX_NOTE = 1000  # characters
_MOST = 2**31 - 1  # of PostgreSQL's integer


def valid_note(note: str) -> str:
    """The note of a correction. Raises ValueError if it is too long or no plain text."""
    if len(note) > MAX_NOTE:
        raise ValueError(f"is longer than {MAX_NOTE} characters")
    if any(character < " " and character not in "\n\t" for character in note):
        raise ValueError("contains control characters")
    if any("\ud800" <= character <= "\udfff" for character in note):  # of a command line; JSON has none
        raise ValueError("is not valid UTF-8")
    return note


def _given(value: str | None) -> str:
    if value is None:
        raise ValueError("must not be blank")
    return value


class _Decision(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    note: Annotated[str, AfterValidator(valid_note)] | None = Field(
        default=None,
        description=f"Why: it is stored with the event. At most {MAX_NOTE} characters.",
        json_schema_extra={"pattern": rf"^[^\x00-\x08\x0b-\x1f]{{0,{MAX_NOTE}}}$"},
    )
    dryRun: bool = Field(default=False, description="Answer what the correction would come to, and change nothing.")


_IF_STATE = Field(
    default=None,
    pattern=r"^\d+\.\d+$",
    description="`state` of a dry run: make the correction only if nothing has changed since.",
)
_ID = Field(ge=0, le=MAX_ID, description="The id of any contact of the other identity.")
Value: TypeAlias = ByEmail | ByPhoneNumber


def _either(one: str, one_type: str | list[str], other: str, other_type: str | list[str]) -> dict[str, Any]:
    """The schema of exactly one of two members. Each may be null, which means that it was not given."""

    def only(given: str, its_type: str | list[str], absent: str) -> dict[str, Any]:
        return {"required": [given], "properties": {given: {"type": its_type}, absent: {"type": "null"}}}

    return {"oneOf": [only(one, one_type, other), only(other, other_type, one)]}


class SplitRequest(_Decision):
    """How to divide an identity: either by the links to cut, or by the identifiers to move out."""

    model_config = ConfigDict(json_schema_extra=_either("links", "array", "parts", "array"))

    links: list[str] | None = Field(
        default=None, description="Names of links, as `/identities/{contactId}/links` shows them. They are cut."
    )
    parts: list[list[Value]] | None = Field(default=None, description="Each list of identifiers becomes an identity.")
    rest: Literal["links", "together"] = Field(
        default="links", description="With `parts`: the rest separates along its links, or stays one identity."
    )
    keepApart: bool = Field(default=True, description="Keep what separates apart: no request joins it again.")
    ifState: str | None = _IF_STATE


class LinkRequest(_Decision):
    """Another identity to make one with this one."""

    contactId: Annotated[int, _ID]
    release: bool = Field(default=False, description="Link them even if they are kept apart, and lift that.")
    ifState: str | None = _IF_STATE


class KeepApartRequest(_Decision):
    """Another identity to keep apart from this one."""

    contactId: Annotated[int, _ID]


class ReleaseRequest(_Decision):
    """A constraint to lift: that of an event, or all between two identities."""

    model_config = ConfigDict(json_schema_extra=_either("contactId", "integer", "eventId", "integer"))

    contactId: Annotated[int, _ID] | None = None
    eventId: Annotated[int, Field(ge=0, le=MAX_ID, description="The event that keeps identities apart.")] | None = None


class DismissRequest(_Decision):
    """Take a withheld link off the review list."""


class BlockRequest(_Decision):
    """A value: either an email or a phone number."""

    model_config = ConfigDict(json_schema_extra=_either("email", "string", "phoneNumber", ["string", "integer"]))

    email: Annotated[str, AfterValidator(normal_email), AfterValidator(_given)] | None = Field(
        default=None,
        description="An email in any form.",
        json_schema_extra={"allOf": [{"pattern": TEXT % MAX_EMAIL}, {"pattern": NOT_BLANK}]},
    )
    phoneNumber: (
        Annotated[str | Annotated[int, Field(ge=0)], AfterValidator(normal_phone), AfterValidator(_given)] | None
    ) = Field(
        default=None,
        description="A phone number in any form, as text or as a whole number.",
        json_schema_extra={
            "allOf": [{"pattern": TEXT % MAX_PHONE}, {"pattern": NOT_BLANK}],
            "exclusiveMaximum": 10**MAX_PHONE,
        },
    )


class GuardsRequest(_Decision):
    """Settings of the guards; those that are not given stay as they are."""

    maxEmails: Annotated[int, Field(ge=0, le=_MOST)] | None = Field(
        default=None, description="The most emails that requests give an identity; 0 for no limit."
    )
    maxPhones: Annotated[int, Field(ge=0, le=_MOST)] | None = Field(
        default=None, description="The most phone numbers that requests give an identity; 0 for no limit."
    )
    blockCommon: bool | None = Field(default=None, description="Whether values of recon's own list identify nobody.")


class EraseRequest(_Decision):
    """How to erase an identity."""

    suppress: bool = Field(
        default=False,
        description="Keep a keyed digest of each identifier, so that no request or import brings the person back.",
    )
    ifState: str | None = _IF_STATE


class _Made(TypedDict, total=False):
    eventId: Annotated[
        int | None, Field(description="The event. If the correction was in effect already, the event by which it is.")
    ]
    repeated: Annotated[bool, Field(description="The Idempotency-Key came before: this is the first result.")]


class _Conditional(_Made, total=False):
    state: Annotated[str, Field(description="The state that it was planned on; for `ifState`.")]


class SplitResponse(_Conditional):
    """The identities that a split leaves."""

    contacts: list[Identity]
    cut: Annotated[list[str], Field(description="The links that join nothing any more.")]


class LinkResponse(_Conditional):
    """The identity that two have become."""

    contact: Identity


class IdentitiesResponse(_Made):
    """The identities that a correction concerned, as they are afterwards."""

    contacts: list[Identity]


class ReleaseResponse(IdentitiesResponse):
    """The identities that were kept apart."""

    released: Annotated[list[list[int]], Field(description="Pairs of primaries that nothing keeps apart any more.")]


class DecidedResponse(_Made):
    """A correction that changes no identity."""


class GuardsShown(TypedDict):
    """The settings of the guards."""

    maxEmails: int
    maxPhones: int
    blockCommon: bool


class GuardsResponse(GuardsShown, _Made):
    """The settings of the guards after a change."""


class EraseResponse(_Conditional):
    """The contacts that were erased."""

    contactIds: list[int]
    keptApart: Annotated[list[int], Field(description="The primaries of identities that it was kept apart from.")]
    reminder: Annotated[str, Field(description="Where the person's data may be besides recon's database.")]


class BlockedValue(TypedDict, total=False):
    """A value that identifies nobody: an email or a phone number."""

    email: str
    phoneNumber: str
    eventId: int
    at: datetime
    source: str | None
    note: str | None


class BlockedResponse(TypedDict):
    """Blocked values, oldest first."""

    blocked: list[BlockedValue]
    next: Annotated[int | None, Field(description="What to send as `after` for the next page; null at the end.")]


def many(result: Result) -> dict[str, Any]:
    """The answer of a correction of any number of identities."""
    return {"contacts": [identity_shown(each) for each in result.contacts], **_made(result)}


def one(result: Result) -> dict[str, Any]:
    """The answer of a correction that leaves one identity."""
    [identity] = result.contacts
    return {"contact": identity_shown(identity), **_made(result)}


def decided(result: Result) -> dict[str, Any]:
    """The answer of a correction that leaves no identity to be shown."""
    return _made(result)


def _made(result: Result) -> dict[str, Any]:
    state = {} if result.state is None else {"state": result.state}
    return {**result.more, "eventId": result.event_id, **state}


def path_shown(links: Iterable[Link], forms: Mapping[Identifier, str]) -> list[dict[str, Any]]:
    """A path of links, as the endpoints that read show it; `forms` has the text of each identifier."""
    return [
        {
            "name": link.name,
            "kind": link.kind.value,
            "joins": [{each.kind: forms.get(each, each.key)} for each in link.joins],
            "at": link.at,
            "source": link.source,
        }
        for link in links
    ]


def blocked_shown(value: Blocked) -> BlockedValue:
    """A blocked value as a list shows it."""
    named: BlockedValue = {"email": value.key} if value.kind == "email" else {"phoneNumber": value.phone_number or ""}
    return {
        **named,
        "eventId": value.event_id,
        "at": value.at,
        "source": value.source,
        "note": value.note,
    }


def parser(model: type[M]) -> Callable[[bytes], M]:
    """A function from a body to the request of this form. It raises InvalidRequest, quoting nothing of the body."""

    def parse(body: bytes) -> M:
        try:
            refuse_constants(body)  # and all else that is no JSON
            return model.model_validate_json(body)
        except ValidationError as error:
            raise InvalidRequest(_field_errors(error, model)) from None

    return parse


def digest(method: str, path: str, body: bytes) -> bytes:
    """What tells whether a request is the same as another: the SHA-256 of it with its body in canonical form."""
    members = {name: value for name, value in from_json(body).items() if name != "dryRun"}
    canonical = json.dumps(members, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{method} {path}\n{canonical}".encode()).digest()


def require_one(request: BaseModel, *names: str) -> None:
    """Raise InvalidRequest unless exactly one of these members was given."""
    given = [name for name in names if getattr(request, name) is not None]
    if len(given) != 1:
        expected = " or ".join(names)
        raise InvalidRequest([FieldError("", f"must have either {expected}")])


def identifiers_for(region: str | None) -> Callable[[Value], Identifiers]:
    """A function from a value of a request to its identifiers, for a database with this default region."""
    phone_key = phone_key_for(region)

    def identifiers(value: Value) -> Identifiers:
        if isinstance(value, ByEmail):
            return Identifiers(value.email, None, None)
        phone = str(value.phoneNumber)
        return Identifiers(None, phone, phone_key(phone))

    return identifiers


_EXPECTED = {
    "missing": "must be given",
    "bool_type": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "literal_error": "must be links or together",
    "string_pattern_mismatch": "must be the state of an earlier answer, such as 31.2",
}


def _field_errors(error: ValidationError, model: type[BaseModel]) -> list[FieldError]:
    """What is wrong, once for each place. The pointer of an unknown member would quote its name."""
    found: dict[str, str] = {}
    for item in error.errors(include_url=False, include_input=False):
        place = []
        for step in item["loc"]:
            if step in {"ByEmail", "ByPhoneNumber"}:
                break
            if not isinstance(step, str) or step in model.model_fields:
                place.append(step)
        pointer = "".join(f"/{step}" for step in place)
        if item["type"] == "value_error":
            found[pointer] = str(item["ctx"]["error"])
        elif len(place) > 1:
            found.setdefault(pointer, "must be an object with an email or a phoneNumber, and nothing else")
        elif item["type"] == "extra_forbidden":
            found[""] = f"must have no members other than {', '.join(model.model_fields)}"
        elif not place:
            found[""] = "must be a JSON object"
        else:
            found.setdefault(pointer, _EXPECTED.get(item["type"], "must be a whole number within its range"))
    return [FieldError(pointer, detail) for pointer, detail in found.items()]
