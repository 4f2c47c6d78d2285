"""The shape of an error in an answer: a problem document (RFC 9457)."""

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict


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
