"""An independent model of what recon answers to requests and to stewards, and of what is stored then.

Written from the design with none of recon's code but the values of the journal. How an identity divides is up to
`splitting.Model`. What the design leaves open comes from the database: which ids are drawn, and which identifier of a
piece a split links (`Drawn`).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, TypeAlias

from recon.rules.journal import BY_AGE, Kind, Record
from tests.harness.chronicle import time_of
from tests.harness.splitting import Expected, Held, Model, Node, nodes_of, root_of

Answer: TypeAlias = dict[str, Any]
Pair: TypeAlias = tuple[str, str]  # the email and the match key of the phone number of a withheld link


class Refused(Exception):
    """The request is answered with this status and this type of problem."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Drawn:
    """What recon drew or chose for a request.

    Attributes
    ----------
    event : the id of its event, if it made one.
    created : the ids of the contacts that it created, by one of their identifiers.
    made : the members of the operator links that a split made.
    """

    event: int | None = None
    created: dict[Node, int] = field(default_factory=dict)
    made: Sequence[Sequence[Node]] = ()

    @property
    def event_id(self) -> int:
        """The id of the event that there must be."""
        assert self.event is not None, "no event was recorded"
        return self.event


@dataclass
class Registry:
    """All identities, and what guards know.

    Attributes
    ----------
    rows : the contacts.
    model : what connects identifiers, and what keeps contacts apart.
    blocked : the values that identify nobody, each with the event that blocked it.
    open : the withheld links that a steward is to look at.
    past : those that no guard withheld for a time. If one does again, they may be open without being withheld again.
    limits : the most emails, and the most phone numbers.
    erased : the erased contacts, each with the event.
    """

    rows: dict[int, Record] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    blocked: dict[Node, int | None] = field(default_factory=dict)
    open: set[Pair] = field(default_factory=set)
    past: set[Pair] = field(default_factory=set)
    limits: tuple[int, int] = (1000, 1000)
    erased: dict[int, int] = field(default_factory=dict)
    moment: int = 0

    # What it is asked.

    def of(self, root: int) -> list[Record]:
        """All contacts of an identity, oldest first."""
        return sorted((row for row in self.rows.values() if root_of(row) == root), key=BY_AGE)

    def live_of(self, root: int) -> list[Record]:
        """The live contacts of an identity, oldest first."""
        return [row for row in self.of(root) if row.deleted_at is None]

    def roots(self) -> list[int]:
        """The live identities."""
        return sorted({root_of(row) for row in self.rows.values() if row.deleted_at is None})

    def root(self, contact_id: int) -> int:
        """The identity of a contact. Raises Refused as an endpoint does."""
        if contact_id in self.erased:
            raise Refused(410, "erased")
        if contact_id not in self.rows:
            raise Refused(404, "not-found")
        root = root_of(self.rows[contact_id])
        if not self.live_of(root):
            raise Refused(410, "deleted")
        return root

    def shown(self, root: int) -> Answer:
        """An identity as answers have it."""
        rows = self.live_of(root)
        texts: dict[str, str] = {}
        for row in rows:
            if row.phone_key is not None:
                texts.setdefault(row.phone_key, str(row.phone_number))
        return {
            "primaryContactId": rows[0].id,
            "primaryContatctId": rows[0].id,
            "emails": list(dict.fromkeys(row.email for row in rows if row.email is not None)),
            "phoneNumbers": list(texts.values()),
            "secondaryContactIds": [row.id for row in rows[1:]],
        }

    def held(self, root: int) -> list[Node]:
        """The identifiers of an identity."""
        return sorted({node for row in self.live_of(root) for node in nodes_of(row)})

    def apart(self, one: int, other: int) -> set[int]:
        """The events that keep two identities apart."""
        return self.model.are_apart(self.live_of(one), self.live_of(other))

    def pairs_apart(self) -> set[tuple[int, int]]:
        """All pairs of identities that are kept apart."""
        return {pair for pair in combinations(self.roots(), 2) if self.apart(*pair)}

    def holder(self, node: Node) -> Record | None:
        """The oldest live contact that has an identifier."""
        live = sorted((row for row in self.rows.values() if row.deleted_at is None), key=BY_AGE)
        return next((row for row in live if node in nodes_of(row)), None)

    def guard(self, pair: Pair) -> str | None:
        """Why a link between these two would be withheld; None if it would not."""
        found = [self.holder(node) for node in (("email", pair[0]), ("phoneNumber", pair[1]))]
        one, other = (None if row is None else root_of(row) for row in found)
        if one == other:
            return None
        if one is not None and other is not None and self.apart(one, other):
            return "kept-apart"
        sizes = [(1, 0) if one is None else self._sizes(one), (0, 1) if other is None else self._sizes(other)]
        for limit, least, most in ((limit, *sorted(of_kind)) for limit, of_kind in zip(self.limits, zip(*sizes))):  # noqa: B905
            if least and 0 < limit < least + most:
                return "limit"
        return None

    def _sizes(self, root: int) -> tuple[int, int]:
        held = self.held(root)
        emails = sum(kind == "email" for kind, _ in held)
        return emails, len(held) - emails

    # What is asked of it.

    def identify(self, email: str | None, phone: str | None, drawn: Drawn) -> Answer:
        """A request with an email and a phone number, in the form in which they are stored."""
        withheld = []
        if email is not None and ("email", email) in self.blocked:
            withheld.append({"identifier": "email", "reason": "blocked", "primaryContactId": None})
            email = None
        if phone is not None and ("phoneNumber", key_of(phone)) in self.blocked:
            withheld.append({"identifier": "phoneNumber", "reason": "blocked", "primaryContactId": None})
            phone = None
        if email is not None and phone is not None and (reason := self.guard((email, key_of(phone)))):
            holder = self.holder(("phoneNumber", key_of(phone)))
            primary = None if holder is None else root_of(holder)
            withheld.append({"identifier": "phoneNumber", "reason": reason, "primaryContactId": primary})
            self.open.add((email, key_of(phone)))
            phone = None
        if email is None and phone is None:
            raise Refused(422, "blocked")
        root = self._link(email, phone, drawn)
        return {"contact": self.shown(root)} | ({"withheld": withheld} if withheld else {})

    def _link(self, email: str | None, phone: str | None, drawn: Drawn) -> int:
        """Rules 1 to 4. Returns the identity."""
        said = [("email", email)] if email is not None else []
        said += [("phoneNumber", key_of(phone))] if phone is not None else []
        holders = [self.holder(node) for node in said]
        known = [row for row in holders if row is not None]
        if len(known) == len(said):
            roots = list(dict.fromkeys(map(root_of, known)))
            if len(roots) == 2:
                root = self._absorb(*roots)
                self.model.evidence.append((drawn.event_id, Kind.MERGED, set(said)))
                return root
            return roots[0]
        root_id = root_of(known[0]) if known else None
        new = self._insert(drawn.created[said[0]], email, phone, root_id)
        if known:
            self.model.joins(new, known[0].id)
        return new if root_id is None else root_id

    def _insert(self, contact_id: int, email: str | None, phone: str | None, root: int | None) -> int:
        assert contact_id not in self.rows
        assert contact_id not in self.erased
        key = None if phone is None else key_of(phone)
        self.moment += 2
        self.rows[contact_id] = Record(contact_id, root, email, phone, key, time_of(self.moment), None, None)
        return contact_id

    def _absorb(self, one: int, other: int) -> int:
        """Rule 4: the younger primary and its contacts become secondaries of the older."""
        older, younger = sorted((one, other), key=lambda root: BY_AGE(self.rows[root]))
        for row in self.of(younger):
            self.rows[row.id] = replace(row, linked_id=older)
        return older

    def links(self, root: int) -> list[str]:
        """The names of the links of an identity."""
        return sorted({name for name, _ in self.model.links(self.live_of(root))})

    def split_links(self, contact_id: int, names: Collection[str], keep: bool, drawn: Drawn) -> Answer:
        """Cut links."""
        root = self.root(contact_id)
        if not set(names) <= set(self.links(root)):
            raise Refused(422, "invalid-correction")
        expected = self.model.split_links(self.of(root), names)
        if expected is None:
            raise Refused(409, "not-divided")
        return {"contacts": self._divide(root, expected, keep, drawn), "cut": sorted(names)}

    def split_parts(
        self, contact_id: int, lists: Sequence[Sequence[Node]], rest: str, keep: bool, drawn: Drawn
    ) -> Answer:
        """Move identifiers out."""
        root = self.root(contact_id)
        flat, held = [node for nodes in lists for node in nodes], set(self.held(root))
        is_whole = any(set(nodes) == held for nodes in lists)
        if not all(lists) or len(set(flat)) < len(flat) or not set(flat) <= held or is_whole:
            raise Refused(422, "invalid-correction")
        expected = self.model.split_parts(self.of(root), lists, rest, drawn.made, drawn.event_id)
        return {"contacts": self._divide(root, expected, keep, drawn)}

    def block(self, value: Node, drawn: Drawn) -> Answer:
        """Declare that a value identifies nobody."""
        if value in self.blocked:
            return {"contacts": [], "eventId": self.blocked[value]}
        self.blocked[value] = drawn.event_id
        holder = self.holder(value)
        if holder is None:
            return {"contacts": []}
        root = root_of(holder)
        return {"contacts": self._divide(root, self.model.block(self.of(root), value), False, drawn)}

    def unblock(self, value: Node, drawn: Drawn) -> Answer:
        """Allow a value again."""
        if self.blocked.pop(value, None) is None:
            return {"eventId": None}
        return {"eventId": drawn.event_id}

    def _divide(self, root: int, expected: Expected, keep: bool, drawn: Drawn) -> list[Answer]:
        """Store what a division comes to, and return the identities that it leaves."""
        before, new = self.of(root), {}
        for held in (held for held in expected.holds if isinstance(held, tuple)):
            [node] = expected.holds[held]
            new[held] = drawn.created[node]
        ids: dict[Held, int] = {row.id: row.id for row in before} | new
        for held, contact_id in new.items():
            origin = self.rows[held[1]]
            self.rows[contact_id] = replace(_with(origin, expected.holds[held]), id=contact_id)
        for row in before:
            if row.id in expected.gone:
                self.rows[row.id] = replace(row, deleted_at=time_of(self.moment))
            elif row.id in expected.holds:
                self.rows[row.id] = _with(row, expected.holds[row.id])
        for part, primary in expected.parts.items():
            self._root_at(ids[primary], (ids[each] for each, held in expected.holds.items() if held & part))
        if expected.heir is not None:
            soft = [row.id for row in before if self.rows[row.id].deleted_at is not None]
            self._root_at(ids[expected.heir], soft)
        for held, contact_id in new.items():
            self.model.joins(contact_id, held[1])
        if keep:
            contacts = {part: {row.id for row in self.of(ids[each])} for part, each in expected.parts.items()}
            self.model.constrain(drawn.event_id, expected, contacts)
        return [self.shown(ids[primary]) for primary in expected.parts.values()]

    def _root_at(self, root: int, contacts: Iterable[int]) -> None:
        for each in contacts:
            self.rows[each] = replace(self.rows[each], linked_id=None if each == root else root)

    def link(self, contact_id: int, other_id: int, release: bool, drawn: Drawn) -> Answer:
        """Make two identities one."""
        one, other = self.root(contact_id), self.root(other_id)
        if one == other:
            return {"contact": self.shown(one), "eventId": None}
        apart = self.apart(one, other)
        if apart and not release:
            raise Refused(409, "kept-apart")
        before = self.pairs_apart()
        joins = {nodes_of(self.rows[each])[0] for each in (contact_id, other_id)}
        self._lift(apart)
        freed = before - self.pairs_apart()
        self.model.evidence.append((drawn.event_id, Kind.LINKED, joins))
        answer: Answer = {"contact": self.shown(self._absorb(one, other))}
        return answer | ({"released": sorted(map(list, freed))} if apart else {})

    def keep_apart(self, contact_id: int, other_id: int, drawn: Drawn) -> Answer:
        """Forbid that two identities become one."""
        one, other = self.root(contact_id), self.root(other_id)
        if one == other:
            raise Refused(409, "one-identity")
        answer: Answer = {"contacts": [self.shown(one), self.shown(other)]}
        if apart := self.apart(one, other):
            return answer | {"eventId": max(apart)}
        sides = ({row.id for row in self.of(root)} for root in (one, other))
        self.model.constraints.append((drawn.event_id, *sides))
        return answer

    def release(self, contact_id: int, other_id: int, drawn: Drawn) -> Answer:
        """Lift all that keeps two identities apart."""
        one, other = self.root(contact_id), self.root(other_id)
        events = self.apart(one, other)
        if not events:
            return {"contacts": [self.shown(each) for each in {one, other}], "eventId": None, "released": []}
        assert drawn.event_id
        return self._release(events)

    def release_event(self, contact_id: int, event: int, drawn: Drawn) -> Answer:
        """Lift the constraint of an event that the identity is on a side of."""
        self.root(contact_id)
        assert drawn.event_id
        return self._release({event})

    def _release(self, events: Collection[int]) -> Answer:
        sides = {each for event, *both in self.model.constraints if event in events for side in both for each in side}
        concerned = {root_of(self.rows[each]) for each in sides & self.rows.keys()}
        before = self.pairs_apart()
        self._lift(events)
        shown = [self.shown(root) for root in concerned if self.live_of(root)]
        return {"contacts": shown, "released": sorted(map(list, before - self.pairs_apart()))}

    def _lift(self, events: Collection[int]) -> None:
        self.model.constraints = [each for each in self.model.constraints if each[0] not in events]

    def set_guards(self, emails: int, phones: int, drawn: Drawn) -> Answer:
        """Change the limits."""
        shown = {"maxEmails": emails, "maxPhones": phones}
        if (emails, phones) == self.limits:
            return shown | {"eventId": None}
        self.limits = (emails, phones)
        return shown | {"eventId": drawn.event_id}

    def dismiss(self, pair: Pair, drawn: Drawn) -> Answer:
        """Take an open withheld link off the review list."""
        self.open.discard(pair)
        self.past.discard(pair)
        return {"eventId": drawn.event_id}

    def erase(self, contact_id: int, drawn: Drawn) -> Answer:
        """Erase an identity."""
        if event := self.erased.get(contact_id):
            ids = sorted(each for each, by in self.erased.items() if by == event)
            return {"contactIds": ids, "keptApart": [], "eventId": event}
        if contact_id not in self.rows:
            raise Refused(404, "not-found")
        root = root_of(self.rows[contact_id])
        gone, apart = self.of(root), [each for each in self.roots() if each != root and self.apart(root, each)]
        values = set(self.held(root))
        for row in gone:
            del self.rows[row.id]
            self.erased[row.id] = drawn.event_id
        self.model.evidence = [each for each in self.model.evidence if not each[2] & values]
        for known in (self.open, self.past):
            known -= {pair for pair in known if _values(pair) & values}
        return {"contactIds": sorted(row.id for row in gone), "keptApart": apart}

    def review(self) -> None:
        """Close the withheld links that no guard withholds any more, or that have a blocked value."""
        for known in (self.open, self.past):
            known -= {pair for pair in known if _values(pair) & self.blocked.keys()}
        past = {pair for pair in self.open if self.guard(pair) is None}
        self.open -= past
        self.past |= past

    def accepts(self, listed: Collection[Pair]) -> bool:
        """Whether the review list may have exactly these withheld links."""
        again = set(listed) - self.open
        return self.open <= set(listed) and again <= self.past and all(map(self.guard, again))


def _values(pair: Pair) -> set[Node]:
    return {("email", pair[0]), ("phoneNumber", pair[1])}


def key_of(phone: str) -> str:
    """The match key of a phone number without letters."""
    return "".join(filter(str.isdigit, phone))


def _with(row: Record, held: set[Node]) -> Record:
    """A contact that has no identifiers but these."""
    if not any(kind == "email" for kind, _ in held):
        row = replace(row, email=None)
    if not any(kind == "phoneNumber" for kind, _ in held):
        row = replace(row, phone_number=None, phone_key=None)
    return row
