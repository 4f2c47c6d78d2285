"""The values that cross the borders between modules, and the shapes that cross the wire."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from recon.identifiers import MAX_EMAIL, MAX_PHONE, normal_email, normal_phone


@dataclass(slots=True)
class Contact:
    """A row of the table, as far as matching needs it.

    `rank` is its place, oldest first, in `(created_at, id)` order among the rows that were fetched
    together, so that nothing above the database ever compares clocks.
    """

    rank: int
    id: int | None  # None until the row has been inserted
    linked_id: int | None
    email: str | None
    phone_number: str | None
    phone_key: str | None


# For the published schema: no more than so many characters and no control characters, but for the blanks at the ends,
# which are trimmed first. (A `maxLength` would count them.)
_TEXT = r"^[\t-\r ]*[^\x00-\x1f\x7f-\x9f]{0,%d}[\t-\r ]*$"
_NOT_BLANK = r"\S"


class IdentifyRequest(BaseModel):
    """What a shop has just learnt: an email, a phone number, or both. At least one must be given."""

    # Strict, so that `true` is no phone number and `12` no email; other fields are ignored.
    model_config = ConfigDict(
        strict=True,
        extra="ignore",
        json_schema_extra={
            "examples": [{"email": "mcfly@hillvalley.edu", "phoneNumber": "123456"}],
            "anyOf": [
                {"required": ["email"], "properties": {"email": {"type": "string", "pattern": _NOT_BLANK}}},
                {
                    "required": ["phoneNumber"],
                    "properties": {"phoneNumber": {"type": ["string", "integer"], "pattern": _NOT_BLANK}},
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
        json_schema_extra={"pattern": _TEXT % MAX_EMAIL},
    )
    phoneNumber: Annotated[str | Annotated[int, Field(ge=0)], AfterValidator(normal_phone)] | None = Field(
        default=None,
        description=(
            "A phone number, as text or as a whole number. Numbers that differ only in spaces, + - . ( ) / and the "
            "width of their digits (Unicode NFKC) are the same; blank and null mean absent. "
            f"At most {MAX_PHONE} characters, as sent and in NFKC."
        ),
        json_schema_extra={"pattern": _TEXT % MAX_PHONE, "exclusiveMaximum": 10**MAX_PHONE},
    )


class StrictIdentifyRequest(IdentifyRequest):
    """The same without other fields: a misspelt `phoneNumber` is an error, not a phone number that gets lost."""

    model_config = ConfigDict(extra="forbid")


class Identity(TypedDict):
    """Everything known about one person."""

    primaryContactId: Annotated[int, Field(description="The oldest contact of this person.")]
    primaryContatctId: Annotated[
        int, Field(description="The same again, spelt as the original task published it; clients of both kinds exist.")
    ]
    emails: Annotated[list[str], Field(description="The primary's own first, then in order of creation.")]
    phoneNumbers: Annotated[
        list[str],
        Field(description="The primary's own first, then in order of creation, each in the form first seen."),
    ]
    secondaryContactIds: Annotated[list[int], Field(description="All other contacts, in order of creation.")]


class IdentifyResponse(TypedDict):
    """The whole identity that the request's identifiers belong to."""

    contact: Identity


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
