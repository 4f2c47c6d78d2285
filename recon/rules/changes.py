"""What a division of an identity changes, as values: the plan that is shown, written, and kept in the event."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple

from recon.rules.journal import Record
from recon.rules.links import Identifier


@dataclass(slots=True, eq=False)  # two new contacts are two, whatever they hold
class New:
    """A contact that a correction creates for the identifier that another contact loses.

    Attributes
    ----------
    origin : the contact that loses it, with whose date and marks the new one is created.
    id : None until it is drawn. The ids of new contacts are drawn in the order of `Change.created`.
    """

    origin: int
    email: str | None
    phone_number: str | None
    phone_key: str | None
    created_at: datetime
    id: int | None = None


class Loss(NamedTuple):
    """A contact loses an identifier.

    Attributes
    ----------
    to : the oldest contact of the same part that has the identifier now; None if the identifier is blocked.
    phone_number : the text that the contact had, if it is not that of `to`.
    """

    contact_id: int
    kind: Literal["email", "phoneNumber"]
    to: int | New | None
    phone_number: str | None


@dataclass(slots=True)
class Part:
    """An identity that a division leaves.

    Attributes
    ----------
    root : its primary, to which its contacts are linked afterwards. The `linked_id` of `records` is the one before.
    records : its live contacts with the identifiers that they have afterwards, oldest first.
    """

    root: int | New
    records: list[Record | New]


@dataclass(slots=True)
class Change:
    """All that a division changes.

    Attributes
    ----------
    parts : the identities afterwards, that of the oldest primary first; none if no contact is live.
    losses : what contacts lose, oldest contact first.
    created : new contacts, oldest first.
    deleted : contacts that become soft-deleted, because the blocked value is all that they have.
    roots : (new root, old root, the contacts whose root changes, live ones first) for each part with a new root.
    marks : (contact, group, side) of the keep-apart constraint that the event makes. Soft-deleted contacts have them
        too. A new contact has the marks of its origin besides.
    cut : the names of the links that join nothing afterwards.
    undone : the events among these.
    left : members that leave operator links that go on: the event with the link, and the identifier.
    links : the operator links that the event makes, one for each part that would fall into pieces.
    about : (contact, event) for each earlier event that holds a part together, but names no contact of it: the event
        is to be found by this contact, the part's root, too.
    apart : whether the parts were to be kept apart.
    """

    parts: list[Part]
    losses: list[Loss] = field(default_factory=list)
    created: list[New] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    roots: list[tuple[int | New, int, list[int]]] = field(default_factory=list)
    marks: list[tuple[int | New, int, int]] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    undone: list[int] = field(default_factory=list)
    left: list[tuple[int, Identifier]] = field(default_factory=list)
    links: list[list[Identifier]] = field(default_factory=list)
    about: list[tuple[int | New, int]] = field(default_factory=list)
    apart: bool = False

    def detail(self) -> dict[str, Any]:
        """What the event's detail says of the change. All new contacts must have their ids."""
        created = {
            id_of(part.root): [id_of(record) for record in part.records if isinstance(record, New)]
            for part in self.parts
        }
        return {
            "cut": self.cut,
            "moved": [
                [loss.contact_id, loss.kind, None if loss.to is None else id_of(loss.to), loss.phone_number]
                for loss in self.losses
            ],
            "created": [id_of(new) for new in self.created],
            "deleted": self.deleted,
            "roots": [
                [id_of(root), old, [*contacts, *created.get(id_of(root), ())]] for root, old, contacts in self.roots
            ],
            "links": [[member.stated() for member in members] for members in self.links],
            "left": [[event_id, member.stated()] for event_id, member in self.left],
            "parts": [id_of(part.root) for part in self.parts],
            "apart": self.apart,
        }


def id_of(contact: int | New) -> int:
    """The id of a contact of a change. Raises ValueError before that of a new one is drawn."""
    if not isinstance(contact, New):
        return contact
    if contact.id is None:
        raise ValueError("a contact has no id before it is drawn")
    return contact.id
