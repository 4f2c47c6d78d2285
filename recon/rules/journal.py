"""The journal's values: contacts as they are stored, and the events that record every other change to identities.

Contacts and events draw their ids from one sequence, in decision order. So an id is a *position*: everything that
happened has one total order. A contact is created at the position that is its id.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Any


class Kind(StrEnum):
    """What an event records."""

    MERGED = "merged"  # a request made two identities one
    MENDED = "mended"  # recon repaired rows written by other programs
    LINKED = "linked"  # a steward made two identities one
    SPLIT = "split"  # a steward divided an identity
    KEPT_APART = "kept_apart"  # a steward forbade a link between identities
    RELEASED = "released"  # a steward lifted such a constraint
    WITHHELD = "withheld"  # a guard withheld a link
    DISMISSED = "dismissed"  # a steward took a withheld link off the review list
    BLOCKED = "blocked"  # a steward declared that a value identifies nobody
    UNBLOCKED = "unblocked"  # a steward allowed such a value again
    GUARDS = "guards"  # a steward changed the settings of the guards
    REKEYED = "rekeyed"  # an operator had all match keys computed anew
    EDITED = "edited"  # another program changed a contact
    DELETED = "deleted"  # another program soft-deleted a contact
    ERASED = "erased"  # a steward erased an identity


@dataclass(slots=True)  # not frozen: that would take three times as long
class Record:
    """A contact as it is stored, soft-deleted ones included.

    Attributes
    ----------
    linked_id : the primary of this secondary; None for a primary.
    phone_key : what the phone number is matched by; None exactly if `phone_number` is.
    deleted_at : when it was soft-deleted; None if it is live.
    source : the name of the API key of the request; None if another program wrote the row, or without API keys.
    apart : the sides of keep-apart constraints that it is on, as for `guards.marks_of`.
    """

    id: int
    linked_id: int | None
    email: str | None
    phone_number: str | None
    phone_key: str | None
    created_at: datetime
    deleted_at: datetime | None
    source: str | None
    apart: Sequence[Sequence[int]] | None = None


BY_AGE = attrgetter("created_at", "id")  # a sort key: the oldest contact first


@dataclass(slots=True)  # not frozen: that would take three times as long
class Event:
    """An entry of the journal.

    What `primary_id`, `other_id`, the identifiers and `detail` say depends on the kind:

    `merged`
        A request with `email` and `phone_key` merged the identity of the primary `other_id` into that of `primary_id`,
        which stays primary. `other_id` is what the rows of the absorbed identity were linked to.
    `mended`, with `email` or `phone_key`
        Two identities shared this identifier. The identity of `other_id` was absorbed by that of `primary_id`.
        `detail` is {"contacts": [ids of the absorbed identity's contacts]}.
    `mended`, with neither
        The primary `other_id` of an identity was gone, and `primary_id` became primary. `detail` is None.
    `deleted`
        Another program soft-deleted the contact `other_id` of the identity whose primary was `primary_id`. `detail` is
        None, or as for `edited` if other columns changed at the same time.
    `edited`
        Another program changed the contact `other_id` of the identity whose primary was `primary_id`. `detail` has the
        old values of what changed, among "email", "phoneNumber", "phoneKey" and "deletedAt". The last is ISO 8601 text,
        and says that a soft delete was taken back.
    `linked`
        A steward made the identity of `other_id` part of that of `primary_id`. `detail` is {"joins": the members of the
        operator link, "released": [the events whose marks were removed], "contacts": [ids of the absorbed identity's
        contacts]}. An identifier in a detail is {"email": key} or {"phoneNumber": key}.
    `split`
        A steward divided the identity whose primary was `primary_id`. `detail` is that of `changes.Change.detail`:
        "cut" has the names of links, "moved" [contact, "email" or "phoneNumber", the contact that has the identifier
        now, the text that the contact had if that is another], "created" and "deleted" contacts, "roots" [new root, old
        root, [contacts whose root changed, and new ones of that part]], "links" the members of each operator link that
        it made, "left" [event with the operator link, member that left it], "parts" the primaries afterwards, and
        "apart" whether they were to be kept apart.
    `blocked`
        A steward declared that `email` or `phone_key` identifies nobody. `detail` is as for `split`, for all identities
        that had the value; no contact has it now.
    `rekeyed`
        An operator gave the database another default region, or had its match keys computed anew. `detail` is {"from":
        the region before, "to": the region, "counts": how many "contacts", "emails" among them, "events", "blocked" and
        "suppressed" phone numbers were changed}. A block that became another one's is undone by this event.

    Attributes
    ----------
    source : the name of the API key of the request; None if another program made the change, or without API keys.
    note : the reason that a steward gave for a correction.
    undone_by : the id of the event that undid this one.
    """

    id: int
    at: datetime
    kind: Kind
    primary_id: int | None
    other_id: int | None
    email: str | None
    phone_number: str | None
    phone_key: str | None
    source: str | None
    note: str | None
    detail: dict[str, Any] | None
    undone_by: int | None
