"""All that happened to contacts, step by step from the first: which of them were one identity, and when."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import inf
from typing import NamedTuple

from recon.rules.divides import UNITING, created_by, is_divide, losses_of, parts_of
from recon.rules.journal import BY_AGE, Event, Kind, Record
from recon.rules.links import Identifier, identifiers_of

_ALWAYS = 0  # a position before all others: the ids of a sequence start at 1
_JOINING = UNITING | {Kind.DELETED, Kind.EDITED}
_NOTHING: frozenset[int] = frozenset()


class Change(NamedTuple):
    """What another program, or a divide, made of a contact."""

    position: int
    before: Record
    after: Record


class _Bond(NamedTuple):
    """Two contacts, by their ids, that are in one identity from a position on, until a divide."""

    since: int
    one: int
    other: int


class _Cut(NamedTuple):
    """Contacts that a divide took out of their identity: they are one of their own from its position on."""

    since: int
    contacts: Sequence[int]


class _Leave(NamedTuple):
    """A contact left the identity with a root, at the position of a divide; infinite if it never did."""

    position: float
    before: int


_NEVER = _Leave(inf, 0)


class Groups:
    """Contacts, by their ids, in groups that are united and divided. A contact that was not united is a group."""

    def __init__(self) -> None:
        self._group_of: dict[int, set[int]] = {}

    def of(self, contact_id: int) -> set[int]:
        """The group of a contact."""
        return self._group_of.get(contact_id) or self._group_of.setdefault(contact_id, {contact_id})

    def together(self, one: int, other: int) -> bool:
        """Tell whether two contacts are in one group."""
        return self.of(one) is self.of(other)

    def unite(self, one: int, other: int) -> None:
        """Unite the groups of two contacts."""
        larger, smaller = self.of(one), self.of(other)
        if len(larger) < len(smaller):
            larger, smaller = smaller, larger
        larger |= smaller
        self._group_of.update(dict.fromkeys(smaller, larger))

    def take_out(self, contacts: Iterable[int]) -> None:
        """Make a group of its own of these contacts."""
        group = set(contacts)
        for contact_id in group:
            self.of(contact_id).discard(contact_id)
        self._group_of.update(dict.fromkeys(group, group))


class Replay:
    """What bonds contacts, and what divides them, found by replaying all that happened.

    Parameters
    ----------
    records : the contacts as they were created, those that divides created included.
    present : what each contact is linked to now.
    events : all events about them, by position.
    changes : what other programs and divides made of the contacts, newest first.
    births : the positions of the contacts that divides created.
    """

    def __init__(
        self,
        records: Sequence[Record],
        present: Mapping[int, int],
        events: Sequence[Event],
        changes: Iterable[Change],
        births: Mapping[int, int],
    ) -> None:
        self._steps: list[_Bond | _Cut] = []
        self._groups = Groups()
        self._records = {record.id: record for record in records}
        self._cuts = _cuts(events)
        self._fates = _fates(events, self._cuts)
        self._present = present
        self._primaries = _primaries(events)
        self._births = births
        self._divided: dict[int, int] = {}  # the last divide that took a contact out of its identity, or created it
        self._holders: dict[Identifier, dict[int, None]] = {}  # the live contacts with each identifier
        self._changes: defaultdict[int, list[Change]] = defaultdict(list)
        for change in changes:
            self._changes[change.position].insert(0, change)
        self._strays = _strays(events, self._changes)
        self._run(events)
        self._count_to_present()

    def group(self, contact_id: int, position: int) -> set[int]:
        """The contacts, by their ids, that were one identity with this one right after a position was written."""
        groups = Groups()
        for step in sorted(self._steps, key=_since):
            if step.since > position:
                break
            if isinstance(step, _Bond):
                groups.unite(step.one, step.other)
            else:
                groups.take_out(step.contacts)
        return groups.of(contact_id)

    def _run(self, events: Iterable[Event]) -> None:
        steps: list[tuple[int, Record | Event]] = [
            (record.id, record) for record in self._records.values() if record.id not in self._births
        ]
        steps += [(event.id, event) for event in events]
        for position, step in sorted(steps, key=_position):
            if isinstance(step, Record):
                self._create(step)
                continue
            if is_divide(step):
                self._divide(step)
            elif step.kind in _JOINING and step.primary_id is not None and step.other_id is not None:
                self._join(step, step.primary_id, step.other_id)
            for change in self._changes.get(position, ()):
                self._change(change)

    def _create(self, record: Record) -> None:
        """A contact joins the identity that holds one of its identifiers, unless it was created as a primary."""
        for identifier in () if record.id in self._primaries else identifiers_of(record):
            if (record.id, identifier) in self._strays:
                continue
            holder = self._holder(identifier)
            if holder is not None and not self._is_parted(record.id, holder):
                self._bond(record.id, record.id, holder)
        self._hold(record)

    def _join(self, event: Event, primary_id: int, other_id: int) -> None:
        """An event unites the identities of its two contacts, or says that they are in one."""
        if event.kind is Kind.MERGED:
            self._take_sides(event, primary_id, other_id)
        elif absorbed := _absorbed(event):
            for contact_id in absorbed:
                self._count(contact_id, other_id, unless=primary_id)
        else:
            self._count(other_id, primary_id)
        self._bond(event.id, primary_id, other_id)

    def _divide(self, event: Event) -> None:
        """A divide lists the contacts that left their identity. The others stay in it, and so do those it created."""
        parts = parts_of(event)
        for _, before, contacts in parts:
            for contact_id in contacts:
                if self._births.get(contact_id) != event.id:
                    self._count(contact_id, before)
        root_before = {}
        for _, before, contacts in parts:
            self._groups.take_out(contacts)
            self._steps.append(_Cut(event.id, contacts))
            self._divided.update(dict.fromkeys(contacts, event.id))
            root_before.update(dict.fromkeys(contacts, before))
        origins = {loss.to: loss.contact_id for loss in losses_of(event) if loss.to is not None}
        for contact_id in created_by(event):
            self._divided[contact_id] = event.id
            if contact_id in origins and contact_id not in root_before:
                origin = origins[contact_id]
                self._bond(event.id, root_before.get(origin, origin), contact_id)
            if contact_id in self._records:
                self._hold(self._records[contact_id])

    def _change(self, change: Change) -> None:
        """A contact gains and loses identifiers, and stays in its identity."""
        for identifier in identifiers_of(change.before):
            self._holders.get(identifier, {}).pop(change.before.id, None)
        self._hold(change.after)

    def _count_to_present(self) -> None:
        """What nothing bonds to the oldest contact of its present identity counts to that."""
        oldest: dict[int, int] = {}
        for record in sorted(self._records.values(), key=BY_AGE):
            self._count(record.id, oldest.setdefault(self._present[record.id], record.id))

    def _take_sides(self, event: Event, primary_id: int, other_id: int) -> None:
        """A merge tells of unexplained contacts too: the identifiers of its request were in the two identities."""
        first = self._holder(Identifier("email", event.email or ""))
        second = self._holder(Identifier("phoneNumber", event.phone_key or ""))
        if first is None or second is None:  # edited or erased
            return
        if self._groups.together(first, other_id) or self._groups.together(second, primary_id):
            first, second = second, first
        self._count(first, primary_id, unless=other_id)
        self._count(second, other_id, unless=primary_id)

    def _holder(self, identifier: Identifier) -> int | None:
        """A live contact with the identifier. All such are in one identity until another program adds one."""
        holders = self._holders.get(identifier, ())
        return next((holder for holder in holders if (holder, identifier) not in self._strays), None)

    def _hold(self, record: Record) -> None:
        if record.deleted_at is None:
            for identifier in identifiers_of(record):
                self._holders.setdefault(identifier, {})[record.id] = None

    def _is_parted(self, contact_id: int, holder: int) -> bool:
        """Tell whether a new contact and the holder of its identifier were in two identities.

        A later repair found them there, or they are there now, and no divide took one of them out of the other's.
        """
        one, other, after = contact_id, holder, contact_id
        differing = self._fates.get(one, _NOTHING) ^ self._fates.get(other, _NOTHING)
        if not differing and self._present[one] == self._present[other]:  # nearly always
            return False
        while True:
            cuts = _next(self._cuts.get(one, ()), after), _next(self._cuts.get(other, ()), after)
            until = min(cut.position for cut in cuts)
            if any(after < position < until for position in differing):
                return True
            if until == inf:
                return self._present.get(one) != self._present.get(other)
            if cuts[0].position == cuts[1].position:
                return cuts[0].before != cuts[1].before
            # What the divide does not list stayed with the root, or was in another identity.
            one, other = (other, cuts[0].before) if cuts[0].position == until else (one, cuts[1].before)
            if _next(self._cuts.get(other, ()), after).position == until:
                return True
            after = int(until)
            differing = self._fates.get(one, _NOTHING) ^ self._fates.get(other, _NOTHING)

    def _count(self, contact_id: int, root: int, unless: int | None = None) -> None:
        """Count a contact that nothing bonds to `root` (or to `unless`) to the identity of `root`.

        It counts to it always, or since the divide that took one of the two out of an identity, or created it.
        """
        # A contact that is bonded to `unless` contradicts the journal: no consistent history has one.
        if unless is None or not self._groups.together(contact_id, unless):  # pragma: no branch
            self._bond(max(self._divided.get(contact_id, _ALWAYS), self._divided.get(root, _ALWAYS)), contact_id, root)

    def _bond(self, since: int, one: int, other: int) -> None:
        if not self._groups.together(one, other):
            self._groups.unite(one, other)
            self._steps.append(_Bond(since, one, other))


def is_shared(event: Event) -> bool:
    """Tell whether the event is the repair of two identities that shared an identifier."""
    return event.kind is Kind.MENDED and (event.email is not None or event.phone_key is not None)


def _absorbed(event: Event) -> set[int]:
    """The contacts of the identity that was absorbed, of the events that list them; empty for other events."""
    if event.other_id is None or not (is_shared(event) or event.kind is Kind.LINKED):
        return set()
    return {event.other_id, *(event.detail or {}).get("contacts", ())}


def _cuts(events: Iterable[Event]) -> dict[int, list[_Leave]]:
    """When divides took each contact out of an identity, first to last."""
    cuts: dict[int, list[_Leave]] = {}
    for event in events:
        if is_divide(event):
            for _, before, contacts in parts_of(event):
                leave = _Leave(event.id, before)
                for contact_id in contacts:
                    cuts.setdefault(contact_id, []).append(leave)
    return cuts


def _fates(events: Sequence[Event], cuts: Mapping[int, Sequence[_Leave]]) -> dict[int, frozenset[int]]:
    """The events by which each contact was absorbed, because its identity was another one until then.

    After an event that joins, its two contacts are in one identity, and so are absorbed together until a divide. Thus
    this is known also for contacts that were soft-deleted then, which the event need not list.
    """
    fates: dict[int, frozenset[int]] = {}
    for event in reversed(events):
        primary_id, other_id = event.primary_id, event.other_id
        if event.kind not in _JOINING or primary_id is None or other_id is None:
            continue
        if primary_id in fates:
            until = min(_next(cuts.get(each, ()), event.id).position for each in (primary_id, other_id))
            together = fates[primary_id]
            if until < inf:
                apart = frozenset(position for position in fates.get(other_id, _NOTHING) if position > until)
                together = apart.union(position for position in together if position < until)
            fates[other_id] = together
        for contact_id in _absorbed(event):
            fates[contact_id] = fates.get(contact_id, _NOTHING) | {event.id}
    return fates


def _primaries(events: Iterable[Event]) -> set[int]:
    """The contacts that events name as primaries before any repair or divide made them one: they were created so."""
    created: set[int] = set()
    promoted: set[int] = set()
    for event in events:
        if is_divide(event):
            promoted.update(part.root for part in parts_of(event))
        if event.kind not in _JOINING or event.primary_id is None or event.other_id is None:
            continue
        if event.kind is Kind.MENDED and not is_shared(event):
            promoted.add(event.primary_id)
        named = {event.primary_id, event.other_id} if event.kind in UNITING else {event.primary_id}
        created |= named - promoted
    return created


def _strays(events: Iterable[Event], changes: Mapping[int, Sequence[Change]]) -> set[tuple[int, Identifier]]:
    """The identifiers with which other programs inserted contacts, and which a guard took away again.

    Such an identifier never bonded its contact to the others that have it.
    """
    changed: set[int] = set()
    strays: set[tuple[int, Identifier]] = set()
    for event in events:
        found = changes.get(event.id, ())
        if event.kind is Kind.WITHHELD:
            for _, before, after in found:
                kept = identifiers_of(after) if after.deleted_at is None else ()
                if before.id not in changed:
                    strays.update((before.id, each) for each in identifiers_of(before) if each not in kept)
        changed.update(change.before.id for change in found)
    return strays


def _next(leaves: Sequence[_Leave], position: int) -> _Leave:
    """The first of these, which are in order, after a position; at an infinite one if there is none."""
    place = bisect_right(leaves, _Leave(position + 0.5, 0))
    return leaves[place] if place < len(leaves) else _NEVER


def _since(step: _Bond | _Cut) -> int:
    return step.since


def _position(step: tuple[int, Record | Event]) -> int:
    return step[0]
