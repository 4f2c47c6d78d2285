"""What tests of the plans of splits and blocks share: identifiers, identities by hand, and what a plan comes to."""

from typing import Any

from recon.rules.changes import Change, New
from recon.rules.journal import Event, Kind
from recon.rules.links import Identifier
from tests.harness.chronicle import contact, entry


def email(key: str) -> Identifier:
    """An email."""
    return Identifier("email", key)


def phone(key: str) -> Identifier:
    """A phone number."""
    return Identifier("phoneNumber", key)


def operator(position: int, *members: Identifier, left: Any = (), kind: Kind = Kind.SPLIT) -> Event:
    """An event with one operator link, or without, that names contact 1."""
    detail: dict[str, Any] = {"links": [[each.stated() for each in members]] if members else []}
    if kind is Kind.LINKED:
        detail = {"joins": [each.stated() for each in members]}
    return entry(position, kind, 1, 1, detail=detail | {"left": [[event, each.stated()] for event, each in left]})


def held(change: Change) -> list[list[Any]]:
    """The contacts of each part: the id and the identifiers of a stored one, the origin and those of a new one."""
    return [
        [
            (("new", each.origin) if isinstance(each, New) else each.id, each.email, each.phone_number)
            for each in part.records
        ]
        for part in change.parts
    ]


def drawn(change: Change, first: int) -> Change:
    """The change with ids for its new contacts."""
    for new_id, new in enumerate(change.created, first):
        new.id = new_id
    return change


GEORGE_AND_BIFF = [contact(11, "george", "919191"), contact(27, "biffsucks", "717171", 11)]
THEIR_MERGE = entry(28, Kind.MERGED, 11, 27, ("george", "717171"))
THREE = [contact(1, "a", None), contact(2, "b", None, 1), contact(3, "c", None, 1), contact(4, "d", "1", 1)]
TOGETHER = operator(9, email("a"), email("b"), email("c"), email("d"))
