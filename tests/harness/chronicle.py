"""An independent model of the rules with the journal: rows, events, and every answer that there was at each position.

It shares no code with recon but the values that it makes. It is quadratic, and meant for small histories.
"""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from typing import Any

from recon.rules.clusters import Identity
from recon.rules.journal import Event, Kind, Record

Said = tuple[str | None, str | None]  # an email and a phone number of digits, which is its own match key
Answers = dict[int, Identity | None]  # by contact; None where no contact of the identity is live

START = datetime(2026, 1, 1, tzinfo=UTC)


def time_of(position: int) -> datetime:
    """When a position was written: two positions share each second."""
    return START + timedelta(seconds=position // 2)


def contact(
    contact_id: int, email: str | None, phone: str | None, linked_id: int | None = None, *, deleted: bool = False
) -> Record:
    """A contact that was created at its position."""
    at = time_of(contact_id)
    return Record(contact_id, linked_id, email, phone, phone, at, at if deleted else None, "shop")


def entry(
    position: int,
    kind: Kind,
    primary_id: int,
    other_id: int,
    said: Said = (None, None),
    *,
    detail: dict[str, Any] | None = None,
) -> Event:
    """An event of the journal; the identifiers are its email and its phone number."""
    email, phone = said
    return Event(
        position, time_of(position), kind, primary_id, other_id, email, phone, phone, "shop", None, detail, None
    )


@dataclass
class Chronicle:
    """What requests and other programs do to a table, one after another.

    Attributes
    ----------
    rows : all contacts by id, as they are stored now.
    answers : for each position, the identity of every contact right after it.
    """

    rows: dict[int, Record] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    answers: dict[int, Answers] = field(default_factory=dict)
    last: int = 0

    def identify(self, said: Said) -> None:
        """A request, by rules 1 to 4. First, what it meets is mended."""
        email, phone = said
        while self._mend(said):
            pass
        email_root = next((_root(row) for row in self._live() if email and row.email == email), None)
        phone_root = next((_root(row) for row in self._live() if phone and row.phone_key == phone), None)
        found = sorted({root for root in (email_root, phone_root) if root is not None}, key=self._rank)
        if not found:
            self._insert(said, None)
            return
        primary = self._settled(found[0])
        if len(found) == 2:
            self._absorb(Kind.MERGED, primary, found[1], said)
        elif (email and email_root is None) or (phone and phone_root is None):
            self._insert(said, primary)

    def insert(self, said: Said, *, linked_to: int | None) -> None:
        """Another program inserts a row: a primary, or a secondary in the identity of a contact."""
        self._insert(said, None if linked_to is None else _root(self.rows[linked_to]))

    def edit(self, contact_id: int, said: Said, *, deleted: bool) -> None:
        """Another program updates a row: identifiers, soft delete, or both. No change is no event."""
        old = self.rows[contact_id]
        new = replace(old, email=said[0], phone_number=said[1], phone_key=said[1])
        detail: dict[str, Any] = {}
        if new.email != old.email:
            detail["email"] = old.email
        if new.phone_key != old.phone_key:
            detail |= {"phoneNumber": old.phone_number, "phoneKey": old.phone_key}
        if deleted and old.deleted_at is None:
            kind = Kind.DELETED
            new = replace(new, deleted_at=time_of(self.last + 1))
        else:
            kind = Kind.EDITED
            if old.deleted_at is not None and not deleted:
                detail["deletedAt"] = old.deleted_at.isoformat()
                new = replace(new, deleted_at=None)
        if kind is Kind.DELETED or detail:
            self.rows[contact_id] = new
            self._record(kind, _root(old), contact_id, detail=detail or None)

    def identity(self, contact_id: int) -> Identity | None:
        """The identity of a contact now, computed from the rows alone."""
        root = _root(self.rows[contact_id])
        members = [row for row in self._live() if _root(row) == root]
        if not members:
            return None
        primary = self.rows[self._primary(root)]
        members = [primary, *(row for row in members if row is not primary)]
        return Identity(
            primary.id,
            list(dict.fromkeys(row.email for row in members if row.email is not None)),
            list(dict.fromkeys(row.phone_number for row in members if row.phone_number is not None)),
            [row.id for row in members[1:]],
        )

    def stored(self, contact_id: int) -> tuple[list[Record], list[Event]]:
        """All contacts of the present identity of a contact, oldest first, and all events about them."""
        root = _root(self.rows[contact_id])
        records = [row for row in self._by_age() if _root(row) == root]
        ids = {record.id for record in records}
        return records, [event for event in self.events if {event.primary_id, event.other_id} & ids]

    def _mend(self, said: Said) -> bool:
        """Unite two of the clusters that a request meets, if two of them share an identifier."""
        met = {_root(row) for row in self._live() if self._holds(row, said)}
        rows = [row for row in self._live() if _root(row) in met]
        for one, other in combinations(rows, 2):
            if _root(one) != _root(other) and self._holds(one, (other.email, other.phone_key)):
                winner, loser = sorted((_root(one), _root(other)), key=self._rank)
                shared = (one.email, None) if one.email and one.email == other.email else (None, one.phone_key)
                detail = {"contacts": [row.id for row in rows if _root(row) == loser]}
                self._absorb(Kind.MENDED, self._settled(winner), loser, shared, detail)
                return True
        return False

    def _settled(self, root: int) -> int:
        """The primary of a cluster, which becomes its root if that is gone."""
        primary = self._primary(root)
        if primary != root:
            self._absorb(Kind.MENDED, primary, root)
        return primary

    def _absorb(
        self, kind: Kind, primary: int, root: int, said: Said = (None, None), detail: dict[str, Any] | None = None
    ) -> None:
        for row in [row for row in self.rows.values() if _root(row) == root]:
            self.rows[row.id] = replace(row, linked_id=None if row.id == primary else primary)
        self._record(kind, primary, root, said, detail)

    def _insert(self, said: Said, linked_id: int | None) -> None:
        self.last += 1
        self.rows[self.last] = contact(self.last, *said, linked_id)
        self._answer()

    def _record(
        self,
        kind: Kind,
        primary_id: int,
        other_id: int,
        said: Said = (None, None),
        detail: dict[str, Any] | None = None,
    ) -> None:
        self.last += 1
        self.events.append(entry(self.last, kind, primary_id, other_id, said, detail=detail))
        self._answer()

    def _answer(self) -> None:
        self.answers[self.last] = {contact_id: self.identity(contact_id) for contact_id in self.rows}

    def _primary(self, root: int) -> int:
        """The root if it is live, else the oldest live contact."""
        live = [row.id for row in self._live() if _root(row) == root]
        return root if root in live else live[0]

    def _rank(self, root: int) -> tuple[datetime, int]:
        primary = self._primary(root)
        return self.rows[primary].created_at, primary

    def _by_age(self) -> list[Record]:
        return sorted(self.rows.values(), key=lambda row: (row.created_at, row.id))

    def _live(self) -> list[Record]:
        return [row for row in self._by_age() if row.deleted_at is None]

    @staticmethod
    def _holds(row: Record, said: Said) -> bool:
        email, phone = said
        return (email is not None and row.email == email) or (phone is not None and row.phone_key == phone)


def _root(row: Record) -> int:
    return row.id if row.linked_id is None else row.linked_id
