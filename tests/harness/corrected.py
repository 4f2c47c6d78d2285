"""A chronicle with corrections: splits, blocks, links, and what guards withhold because of them.

How an identity is divided is up to the caller, so that histories are more varied than those of recon's own plans. What
is recorded of a divide has the form that journal.Event documents.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from recon.rules.divides import once_together
from recon.rules.guards import Mark, marks_of, opposed
from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, identifiers_of
from tests.harness.chronicle import Chronicle, Said, entry

Chosen = Callable[[object], bool]  # which of two


@dataclass
class Corrected(Chronicle):
    """What requests, other programs and stewards do to a table, one after another.

    Attributes
    ----------
    blocked : the values that identify nobody.
    about : for each divide, the primaries before and after it, as the table event_contact has them.
    """

    blocked: set[Identifier] = field(default_factory=set)
    about: dict[int, set[int]] = field(default_factory=dict)

    def identify(self, said: Said) -> None:
        """A request. Blocked values count as not sent; with opposed identities, only its email counts."""
        email, phone = self._allowed(said)
        if not email and not phone:
            return
        self._take_away_blocked((email, phone))
        while self._mend((email, phone)):
            pass
        one, other = self._met((email, phone))
        if one is not None and other is not None and self._opposed(one, other):
            phone = None
        last = self.last
        super().identify((email, phone))
        if self.last > last and (new := self.rows.get(self.last)) is not None and new.linked_id is not None:
            holder = next(row for row in self._live() if row is not new and self._holds(row, (email, phone)))
            self.rows[new.id] = replace(new, apart=holder.apart)

    def split(self, contact_id: int, leaves: Chosen, keeps_email: Chosen, *, apart: bool) -> None:
        """A steward divides an identity: the identifiers for which `leaves` is true go to another."""
        root = _root(self.rows[contact_id])
        live = [row for row in self._live() if _root(row) == root]
        sides = {each: leaves(each) for row in live for each in identifiers_of(row)}
        if len(set(sides.values())) < 2:
            return
        lost, side_of = {}, {}
        for row in live:
            kept, *others = identifiers_of(row)
            if others and sides[kept] != sides[others[0]]:
                if not keeps_email(row.id):
                    kept, others = others[0], [kept]
                lost[row.id] = others[0]
                self.rows[row.id] = _without(row, others[0])
            side_of[row.id] = sides[kept]
        moved, created = [], []
        for row_id, identifier in lost.items():
            old = next(row for row in live if row.id == row_id)
            to = next((row for row in self._live() if row.id in side_of and identifier in identifiers_of(row)), None)
            if to is None:
                self.last += 1
                to = replace(_only(old, identifier), id=self.last, linked_id=root, source=None)
                self.rows[to.id] = to
                created.append(to.id)
                side_of[to.id] = sides[identifier]
            moved.append([row_id, identifier.kind, to.id, old.phone_number if identifier.kind != "email" else None])
        groups = [[each for each, side in side_of.items() if side == which] for which in (False, True)]
        detail: dict[str, Any] = {"moved": moved, "created": created} | self._divide(root, groups)
        if apart:
            for side, group in enumerate(groups):
                self._mark(group, Mark(self.last + 1, 0, side))
        self.about[self.last + 1] = {root, *detail["parts"]}
        self._correct(Kind.SPLIT, live[0].id, None, detail)

    def block(self, value: Identifier) -> None:
        """A steward declares that a value identifies nobody. What only the value connected falls into pieces."""
        if value in self.blocked:
            return
        self.blocked.add(value)
        holders = {_root(row) for row in self._live() if value in identifiers_of(row)}
        detail: dict[str, Any] = {"moved": [], "deleted": [], "roots": [], "parts": []}
        old = set()
        for root in sorted(holders):
            taken = self._take_away(value, root)
            old.add(root)
            for name, found in (taken | self._divide(root, self._pieces(root))).items():
                detail[name] = detail.get(name, []) + found
        said = (value.key, None) if value.kind == "email" else (None, value.key)
        self.about[self.last + 1] = old.union(detail["parts"])
        self._correct(Kind.BLOCKED, None, None, detail, said)

    def link(self, one: int, other: int) -> None:
        """A steward makes two identities one, and releases what keeps them apart."""
        roots = sorted({_root(self.rows[one]), _root(self.rows[other])}, key=self._rank_or_id)
        if len(roots) < 2 or any(self.identity(root) is None for root in roots):
            return
        primary, absorbed = self._settled(roots[0]), self._settled(roots[1])
        released = self._opposed(primary, absorbed)
        for row in list(self.rows.values()):
            self.rows[row.id] = replace(row, apart=tuple(m for m in marks_of(row.apart) if m.event not in released))
        contacts = [row.id for row in self.rows.values() if _root(row) == absorbed]
        self._absorb(Kind.LINKED, primary, absorbed, detail={"contacts": contacts, "released": sorted(released)})

    def connected(self, contact_id: int, position: int) -> tuple[list[Record], list[Event]]:
        """What is stored of the identity, and of those that were one with it until a divide after the position."""
        records, events = self.stored(contact_id)
        while True:
            known = {record.id for record in records}
            found = once_together(events, known, position)
            if found <= known:
                return records, events
            for each in found - known:
                if each not in {record.id for record in records}:
                    more, about = self.stored(each)
                    records += more
                    events += [event for event in about if event not in events]

    def stored(self, contact_id: int) -> tuple[list[Record], list[Event]]:
        """As for a chronicle; the events that left a contact as a primary are about it, too."""
        root = _root(self.rows[contact_id])
        records = [row for row in self._by_age() if _root(row) == root]
        ids = {record.id for record in records}
        return records, [event for event in self.events if self._named(event) & ids]

    def _named(self, event: Event) -> set[int | None]:
        return {event.primary_id, event.other_id, *self.about.get(event.id, ())}

    def _allowed(self, said: Said) -> Said:
        email, phone = said
        return (
            None if email and Identifier("email", email) in self.blocked else email,
            None if phone and Identifier("phoneNumber", phone) in self.blocked else phone,
        )

    def _met(self, said: Said) -> list[int | None]:
        email, phone = said
        return [
            next((_root(row) for row in self._live() if email and row.email == email), None),
            next((_root(row) for row in self._live() if phone and row.phone_key == phone), None),
        ]

    def _mend(self, said: Said) -> bool:
        """As for a chronicle, but what is kept apart stays apart: the younger contact loses the identifier."""
        met = {_root(row) for row in self._live() if self._holds(row, said)}
        rows = [row for row in self._live() if _root(row) in met]
        for one, other in combinations(rows, 2):
            shared = [each for each in identifiers_of(one) if each in identifiers_of(other)]
            if _root(one) != _root(other) and shared and self._opposed(_root(one), _root(other)):
                detail = self._taken([other], shared[0])
                named = (shared[0].key, None) if shared[0].kind == "email" else (None, shared[0].key)
                self._correct(Kind.WITHHELD, _root(one), _root(other), detail, named)
                return True
        return super()._mend(said)

    def _take_away_blocked(self, said: Said) -> None:
        """Rows of other programs that have blocked values lose them when they are met."""
        for root in sorted({_root(row) for row in self._live() if self._holds(row, said)}):
            for value in sorted(self.blocked):
                if any(value in identifiers_of(row) for row in self._live() if _root(row) == root):
                    named = (value.key, None) if value.kind == "email" else (None, value.key)
                    self._correct(Kind.WITHHELD, root, None, self._take_away(value, root), named)

    def _take_away(self, value: Identifier, root: int) -> dict[str, Any]:
        held = [row for row in self._live() if _root(row) == root and value in identifiers_of(row)]
        return self._taken(held, value)

    def _taken(self, rows: Iterable[Record], value: Identifier) -> dict[str, Any]:
        moved: list[list[Any]] = []
        deleted = []
        for row in rows:
            if len(identifiers_of(row)) == 1:
                deleted.append(row.id)
                self.rows[row.id] = replace(row, deleted_at=row.created_at)
            else:
                moved.append([row.id, value.kind, None, row.phone_number if value.kind != "email" else None])
                self.rows[row.id] = _without(row, value)
        return {"moved": moved, "deleted": deleted}

    def _divide(self, root: int, groups: Iterable[Iterable[int]]) -> dict[str, Any]:
        """Each group of live contacts becomes an identity under its oldest; the others stay with the root."""
        parts = []
        for group in groups:
            members = sorted((self.rows[each] for each in group), key=lambda row: (row.created_at, row.id))
            if members:
                parts.append((members[0].id, [row.id for row in members]))
        gone = [row.id for row in self.rows.values() if _root(row) == root and row.deleted_at is not None]
        parts.sort(key=lambda part: (part[0] != root, self.rows[part[0]].created_at, part[0]))
        if parts:
            parts[0][1].extend(gone)
        for new, members_of in parts:
            for each in members_of:
                self.rows[each] = replace(self.rows[each], linked_id=None if each == new else new)
        return {
            "roots": [[new, root, members_of] for new, members_of in parts if new != root],
            "parts": [new for new, _ in parts],
        }

    def _pieces(self, root: int) -> list[list[int]]:
        """What shared identifiers connect of the live contacts of an identity."""
        pieces: list[tuple[set[Identifier], list[int]]] = []
        for row in self._live():
            if _root(row) == root:
                mine, ids = set(identifiers_of(row)), [row.id]
                for piece in [piece for piece in pieces if piece[0] & mine]:
                    pieces.remove(piece)
                    mine, ids = mine | piece[0], piece[1] + ids
                pieces.append((mine, ids))
        return [ids for _, ids in pieces]

    def _opposed(self, one: int, other: int) -> set[int]:
        return opposed(self._marks(one), self._marks(other))

    def _marks(self, root: int) -> set[Mark]:
        return {mark for row in self.rows.values() if _root(row) == root for mark in marks_of(row.apart)}

    def _mark(self, contacts: Iterable[int], mark: Mark) -> None:
        for each in contacts:
            marks = marks_of(self.rows[each].apart) | {mark}
            self.rows[each] = replace(self.rows[each], apart=tuple(marks))

    def _rank_or_id(self, root: int) -> tuple[Any, int]:
        return self._rank(root) if self.identity(root) is not None else (self.rows[root].created_at, root)

    def _correct(
        self,
        kind: Kind,
        primary_id: int | None,
        other_id: int | None,
        detail: dict[str, Any],
        said: Said = (None, None),
    ) -> None:
        self.last += 1
        self.events.append(
            replace(
                entry(self.last, kind, 0, 0, said, detail=detail), primary_id=primary_id, other_id=other_id, note="why"
            )
        )
        self._answer()


def _without(row: Record, identifier: Identifier) -> Record:
    if identifier.kind == "email":
        return replace(row, email=None)
    return replace(row, phone_number=None, phone_key=None)


def _only(row: Record, identifier: Identifier) -> Record:
    if identifier.kind == "email":
        return replace(row, phone_number=None, phone_key=None)
    return replace(row, email=None)


def _root(row: Record) -> int:
    return row.id if row.linked_id is None else row.linked_id
