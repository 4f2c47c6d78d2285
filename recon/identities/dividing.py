"""The corrections that divide identities: split, and block with its opposite."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from recon.database.transactions import Connection
from recon.errors import InvalidCorrection, NotDivided
from recon.identities import subjects
from recon.identities.corrections import Plan
from recon.identities.subjects import Subject
from recon.rules import splits
from recon.rules.changes import Change, New, Part
from recon.rules.clusters import Contact, Identity, consolidate
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Event, Kind
from recon.rules.links import Identifier, display_forms
from recon.rules.splits import Fault, InvalidParts, UnknownLink
from recon.sql import divisions, journal, stewardship, withheld
from recon.sql.corrections import State, Written

_FAULTS = {
    Fault.EMPTY: "names no identifier",
    Fault.REPEATED: "names an identifier that it or an earlier list names, too",
    Fault.UNKNOWN: "names an identifier that the identity does not have",
    Fault.WHOLE: "names all of the identity: nothing would separate",
}


@dataclass(frozen=True, slots=True)
class Split:
    """Divide the identity of a contact: by the links to cut, or by the identifiers to move out.

    Attributes
    ----------
    links : the names of links; None for a split by `parts`.
    parts : each list of identifiers becomes an identity.
    rest : with `parts`, whether what no list names separates along its links or stays together.
    keep_apart : whether no request may join again what separates.
    """

    contact_id: int
    links: Sequence[str] | None = None
    parts: Sequence[Sequence[Identifier]] = ()
    rest: Literal["links", "together"] = "links"
    keep_apart: bool = True

    async def plan(self, connection: Connection) -> Plan:
        """Plan it. Raises NotDivided if everything is still connected, InvalidCorrection if it cannot be."""
        subject = await subjects.find(connection, self.contact_id)
        change = self._change(subject, await journal.fetch_events(connection, subject.root))
        event = Written(Kind.SPLIT, subject.root, undoes=change.undone)

        async def write(connection: Connection, event_id: int) -> None:
            await _write(connection, change, event, event_id)

        return Plan(
            {subject.root: subject.state},
            event,
            created=change.created,
            write=write,
            contacts=lambda: [_identity(part) for part in change.parts],
            more={"cut": change.cut},
            touched=_touched(change),
            has_state=True,
        )

    def _change(self, subject: Subject, events: Sequence[Event]) -> Change:
        try:
            if self.links is None:
                return splits.split_parts(subject.records, events, self.parts, self.rest, self.keep_apart)
            if not self.links:
                raise InvalidCorrection("/links names no link.")
            return splits.split_links(subject.records, events, list(dict.fromkeys(self.links)), self.keep_apart)
        except splits.NotDivided as error:
            raise NotDivided((error.path, display_forms(subject.live))) from None
        except UnknownLink as error:
            number = list(self.links or ()).index(error.names[0])
            raise InvalidCorrection(f"/links/{number} names a link that the identity does not have.") from None
        except InvalidParts as error:
            place = "/parts" if error.number is None else f"/parts/{error.number}"
            raise InvalidCorrection(f"{place} {_FAULTS[error.fault]}.") from None


@dataclass(frozen=True, slots=True)
class Block:
    """Declare that a value identifies nobody, and take it away from the identities that have it.

    `value` has an email, or a phone number with its match key.
    """

    value: Identifiers

    async def plan(self, connection: Connection) -> Plan:
        """Plan it."""
        value = identifier_of(self.value)
        before = await stewardship.find_blocked(connection, value)
        roots = await stewardship.find_holders(connection, value)
        holders = _Holders()
        for root in roots:
            subject = await subjects.fetch(connection, root)
            holders.add(subject, splits.block(subject.records, await journal.fetch_events(connection, root), value))

        async def is_current(connection: Connection) -> bool:
            found = await stewardship.find_blocked(connection, value)
            return found == before and await stewardship.find_holders(connection, value) == roots

        if before is not None and not roots:
            return Plan({}, None, before.event_id, is_current=is_current)
        change = holders.change
        closed = await withheld.find_with_values(connection, [value])
        event = _about(Kind.BLOCKED, self.value)
        event.primary_id = next(iter(roots), None)
        event.undoes = [*change.undone, *closed]

        async def write(connection: Connection, event_id: int) -> None:
            await stewardship.block(connection, value, self.value.phone, event_id)
            await _write(connection, change, event, event_id)

        return Plan(
            holders.states,
            event,
            created=change.created,
            write=write,
            contacts=lambda: [_identity(part) for part in change.parts],
            is_current=is_current,
            touched=_touched(change),
        )


@dataclass(frozen=True, slots=True)
class Unblock:
    """Allow a value again, for the future alone."""

    value: Identifiers

    async def plan(self, connection: Connection) -> Plan:
        """Plan it."""
        value = identifier_of(self.value)
        before = await stewardship.find_blocked(connection, value)

        async def is_current(connection: Connection) -> bool:
            return await stewardship.find_blocked(connection, value) == before

        if before is None:
            return Plan({}, None, is_current=is_current)
        event = _about(Kind.UNBLOCKED, self.value)
        event.undoes = [before.event_id]

        async def write(connection: Connection, _: int) -> None:
            await stewardship.unblock(connection, value)

        return Plan({}, event, write=write, is_current=is_current)


@dataclass(slots=True)
class _Holders:
    """The identities that have a value: usually one, more after other programs wrote."""

    states: dict[int, State] = field(default_factory=dict)
    change: Change = field(default_factory=lambda: Change([]))

    def add(self, subject: Subject, change: Change) -> None:
        self.states[subject.root] = subject.state
        if len(self.states) == 1:
            self.change = change
            return
        for name in ("parts", "losses", "created", "deleted", "roots", "cut", "undone", "left", "about"):
            setattr(self.change, name, [*getattr(self.change, name), *getattr(change, name)])


async def _write(connection: Connection, change: Change, event: Written, event_id: int) -> None:
    """Write the change, and complete its event, for which all contacts have their ids now."""
    await divisions.write_change(connection, change, event_id)
    event.detail = change.detail()
    event.contacts = [*event.detail["parts"], *(old for _, old, _ in change.roots)]


def _about(kind: Kind, value: Identifiers) -> Written:
    return Written(kind, email=value.email, phone_number=value.phone, phone_key=value.phone_key)


def identifier_of(value: Identifiers) -> Identifier:
    """Return the one identifier of a value."""
    if value.email is not None:
        return Identifier("email", value.email)
    return Identifier("phoneNumber", str(value.phone_key))


def _identity(part: Part) -> Identity:
    contacts = [
        Contact(rank, record.id, None, record.email, record.phone_number, record.phone_key)
        for rank, record in enumerate(part.records)
    ]
    root = part.root.id if isinstance(part.root, New) else part.root
    return consolidate(next(contact for contact in contacts if contact.id == root), contacts)


def _touched(change: Change) -> set[int]:
    changed = {loss.contact_id for loss in change.losses}.union(change.deleted)
    changed.update(*(contacts for _, _, contacts in change.roots))
    return changed.union(contact for contact, _, _ in change.marks if isinstance(contact, int))
