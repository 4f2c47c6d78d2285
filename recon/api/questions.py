"""The messages of what a steward asks: the shapes of requests and answers, and values to JSON."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from typing_extensions import TypedDict

from recon.api.messages import NOT_BLANK, TEXT, refuse_constants
from recon.errors import FieldError, InvalidRequest
from recon.identities.lookup import MAX_ID, End, History, Links, Review, Why
from recon.rules.identifiers import MAX_EMAIL, MAX_PHONE, Identifiers, normal_email, normal_phone, phone_key_for
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, Link
from recon.rules.review import KeptApart

_ONE_OF = "must have an email, a phoneNumber or a contactId, and nothing else"


def _given(value: str | None) -> str:
    if value is None:
        raise ValueError("must not be blank")
    return value


class _Who(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class ByEmail(_Who):
    """An identifier: an email."""

    email: Annotated[str, AfterValidator(normal_email), AfterValidator(_given)] = Field(
        description=f"An email address in any form. At most {MAX_EMAIL} characters.",
        json_schema_extra={"allOf": [{"pattern": TEXT % MAX_EMAIL}, {"pattern": NOT_BLANK}]},
    )


class ByPhoneNumber(_Who):
    """An identifier: a phone number."""

    phoneNumber: Annotated[str | Annotated[int, Field(ge=0)], AfterValidator(normal_phone), AfterValidator(_given)] = (
        Field(
            description=f"A phone number in any form, as text or as a whole number. At most {MAX_PHONE} characters.",
            json_schema_extra={
                "allOf": [{"pattern": TEXT % MAX_PHONE}, {"pattern": NOT_BLANK}],
                "exclusiveMaximum": 10**MAX_PHONE,
            },
        )
    )


class ByContact(_Who):
    """A contact, live or soft-deleted."""

    contactId: Annotated[int, Field(ge=0, le=MAX_ID, description="The id of a contact.")]


class WhyRequest(BaseModel):
    """Two identifiers or contacts."""

    model_config = ConfigDict(strict=True, extra="forbid")

    from_: ByEmail | ByPhoneNumber | ByContact = Field(alias="from")
    to: ByEmail | ByPhoneNumber | ByContact


def why_parser(default_region: str | None) -> Callable[[bytes], tuple[End, End]]:
    """A function from the body of a WhyRequest to the two that it names, for a database with this default region.

    The function raises InvalidRequest, quoting nothing of the body, when the body is not a valid request.
    """
    phone_key = phone_key_for(default_region)

    def end(who: ByEmail | ByPhoneNumber | ByContact) -> End:
        if isinstance(who, ByContact):
            return who.contactId
        if isinstance(who, ByEmail):
            return Identifiers(who.email, None, None)
        phone = str(who.phoneNumber)
        return Identifiers(None, phone, phone_key(phone))

    def parse(body: bytes) -> tuple[End, End]:
        try:
            refuse_constants(body)  # and all else that is no JSON
            request = WhyRequest.model_validate_json(body)
        except ValidationError as error:
            raise InvalidRequest(_field_errors(error)) from None
        return end(request.from_), end(request.to)

    return parse


def _field_errors(error: ValidationError) -> list[FieldError]:
    """What is wrong, once for each of `from` and `to`: an error of an identifier's own rules, or of the shape."""
    found: dict[str, FieldError] = {}
    for item in error.errors(include_url=False, include_input=False):
        member = str(item["loc"][0]) if item["loc"] else ""
        if member not in {"from", "to"}:
            return [FieldError("", "must be a JSON object with from and to, and nothing else")]
        if item["type"] == "value_error":
            found[member] = FieldError(f"/{member}/{item['loc'][2]}", str(item["ctx"]["error"]))
        else:
            found.setdefault(member, FieldError(f"/{member}", _ONE_OF))
    return list(found.values())


class Named(TypedDict, total=False):
    """An identifier: an email or a phone number, in the form first seen."""

    email: str
    phoneNumber: str


class LinkedContact(TypedDict):
    """A contact of an identity."""

    contactId: int
    email: str | None
    phoneNumber: str | None
    createdAt: datetime
    source: Annotated[str | None, Field(description="The name of the API key of the request that brought it.")]


class LinkShown(TypedDict):
    """Evidence that identifiers belong to one person."""

    name: Annotated[str, Field(description="contact:12, event:31 or unexplained:7, by the id of the contact or event.")]
    kind: Annotated[
        Literal["contact", "merge", "operator", "unexplained"],
        Field(
            description="contact: one request had both identifiers. merge: so had a request that made two identities "
            "one. operator: a steward put them together. unexplained: nothing recorded says why."
        ),
    ]
    joins: list[Named]
    at: Annotated[datetime | None, Field(description="When; null for an unexplained link.")]
    source: Annotated[str | None, Field(description="The name of the API key of the request.")]


_NEXT = Field(description="What to send as `after` for the next page; null at the end.")


class KeptApartShown(TypedDict):
    """A constraint that keeps identities apart."""

    contactIds: Annotated[list[int], Field(description="The primaries of the identities that are kept apart.")]
    eventId: Annotated[int, Field(description="The event that made the constraint: keep apart, or split.")]
    at: datetime
    source: Annotated[str | None, Field(description="The name of the steward's API key.")]
    note: Annotated[str | None, Field(description="The reason that the steward gave.")]


class WithheldShown(TypedDict):
    """A link that a guard withheld."""

    eventId: int
    at: datetime
    reason: Annotated[
        str,
        Field(
            json_schema_extra={"enum": ["kept-apart", "limit"]},
            description="kept-apart: the two identities are kept apart. limit: one identity would have too many "
            "identifiers.",
        ),
    ]
    email: str
    phoneNumber: str
    contactId: Annotated[int | None, Field(description="The identity that answered the request.")]
    otherContactId: Annotated[int | None, Field(description="The one that held the other identifier; null: none did.")]
    source: Annotated[str | None, Field(description="The name of the API key of the request.")]


class LinksResponse(TypedDict):
    """Live contacts and links of an identity, and what guards keep apart from it, by position."""

    contacts: list[LinkedContact]
    links: list[LinkShown]
    keptApart: Annotated[
        list[KeptApartShown], Field(description="From whom it is kept apart. Constraints have the position eventId.")
    ]
    withheld: Annotated[list[WithheldShown], Field(description="Open withheld links. They have the position eventId.")]
    next: Annotated[int | None, _NEXT]


class WithheldResponse(TypedDict):
    """Open withheld links, oldest first."""

    withheld: list[WithheldShown]
    next: Annotated[int | None, _NEXT]


class HistoryEntry(TypedDict):
    """A contact or an event."""

    position: Annotated[int, Field(description="The id of the contact or event: everything has one order.")]
    at: datetime
    kind: Annotated[
        str, Field(json_schema_extra={"enum": ["contact", *Kind]}, description="contact, or the kind of the event.")
    ]
    source: Annotated[str | None, Field(description="The name of the API key of the request.")]
    note: Annotated[str | None, Field(description="Of a correction: the reason that the steward gave.")]
    email: str | None
    phoneNumber: str | None
    primaryContactId: Annotated[
        int | None, Field(description="Of an event: the primary of the identity, after a merge that which stayed.")
    ]
    otherContactId: Annotated[
        int | None,
        Field(
            description="Of an event: the primary that was absorbed or replaced, or the other one of two identities, "
            "or the contact that was changed. Of dismissed: the withheld event."
        ),
    ]
    detail: Annotated[
        dict[str, Any] | None,
        Field(
            description="edited, deleted: the values before. mended, linked: the contacts that were absorbed. split, "
            "blocked: what was cut, moved, created and deleted, and the primaries afterwards."
        ),
    ]


class HistoryResponse(TypedDict):
    """Contacts and events of an identity, oldest first."""

    entries: list[HistoryEntry]
    next: Annotated[int | None, _NEXT]


class WhyResponse(TypedDict):
    """Why two identifiers or contacts are one person, or that they are not."""

    same: bool
    path: Annotated[
        list[LinkShown] | None, Field(description="The links from the one to the other; null if they are two people.")
    ]
    keptApart: Annotated[list[KeptApartShown], Field(description="The constraints that keep the two apart.")]
    withheld: Annotated[list[WithheldShown], Field(description="The open withheld links between the two.")]
    sentence: Annotated[str, Field(description="The same in plain English.")]


def links_response(page: Links) -> bytes:
    """A LinksResponse as JSON."""
    response: LinksResponse = {
        "contacts": [_contact(record) for record in page.contacts],
        "links": [_link(link, page.forms) for link in page.links],
        "keptApart": [_kept_apart(each) for each in page.kept_apart],
        "withheld": [_withheld(event) for event in page.withheld],
        "next": page.next,
    }
    return to_json(response)


def history_response(page: History) -> bytes:
    """A HistoryResponse as JSON."""
    response: HistoryResponse = {"entries": [entry_shown(entry) for entry in page.entries], "next": page.next}
    return to_json(response)


def withheld_response(page: Review) -> bytes:
    """A WithheldResponse as JSON."""
    response: WithheldResponse = {"withheld": [_withheld(event) for event in page.entries], "next": page.next}
    return to_json(response)


def why_response(why: Why) -> bytes:
    """A WhyResponse as JSON."""
    response: WhyResponse = {
        "same": why.path is not None,
        "path": None if why.path is None else [_link(link, why.forms) for link in why.path],
        "keptApart": [_kept_apart(each) for each in why.kept_apart],
        "withheld": [_withheld(event) for event in why.withheld],
        "sentence": why.sentence,
    }
    return to_json(response)


def _kept_apart(constraint: KeptApart) -> KeptApartShown:
    event = constraint.event
    return {
        "contactIds": constraint.contact_ids,
        "eventId": event.id,
        "at": event.at,
        "source": event.source,
        "note": event.note,
    }


def _withheld(event: Event) -> WithheldShown:
    return {
        "eventId": event.id,
        "at": event.at,
        "reason": (event.detail or {})["reason"],
        "email": str(event.email),
        "phoneNumber": str(event.phone_number),
        "contactId": event.primary_id,
        "otherContactId": event.other_id,
        "source": event.source,
    }


def _contact(record: Record) -> LinkedContact:
    return {
        "contactId": record.id,
        "email": record.email,
        "phoneNumber": record.phone_number,
        "createdAt": record.created_at,
        "source": record.source,
    }


def _link(link: Link, forms: Mapping[Identifier, str]) -> LinkShown:
    return {
        "name": link.name,
        "kind": link.kind.value,
        "joins": [_named(identifier, forms) for identifier in link.joins],
        "at": link.at,
        "source": link.source,
    }


def _named(identifier: Identifier, forms: Mapping[Identifier, str]) -> Named:
    text = forms[identifier]
    return {"email": text} if identifier.kind == "email" else {"phoneNumber": text}


def entry_shown(entry: Record | Event) -> HistoryEntry:
    """A contact or an event as every answer shows it."""
    if isinstance(entry, Event):
        at, kind, ids = entry.at, entry.kind.value, (entry.primary_id, entry.other_id)
        note, detail = entry.note, entry.detail
    else:
        at, kind, ids, note, detail = entry.created_at, "contact", (None, None), None, None
    return {
        "position": entry.id,
        "at": at,
        "kind": kind,
        "source": entry.source,
        "note": note,
        "email": entry.email,
        "phoneNumber": entry.phone_number,
        "primaryContactId": ids[0],
        "otherContactId": ids[1],
        "detail": detail,
    }
