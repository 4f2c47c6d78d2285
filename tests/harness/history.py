"""Whether all that recon answered was right, and all that it left behind.

    async with driving(urls, requests=5_000, seed=1) as history:  # see `shop`
        ...  # something breaks
    assert check(history, await contacts(database_url)) == []

`check` decides, from a history and the live rows of a database that was empty before:

1. The rows: one primary a cluster, its oldest; each row is what a request said that was not refused, and
   brought an identifier that no older row has.
2. The clusters are the connected components of what was acknowledged and of those unknown requests
   that can have happened.
3. Each answer is what its rows add up to, and holds nothing but what requests that had begun by its
   end had linked.
4. There is a moment for each answer between its request and its end, such that the clusters only
   grow, each step by a request of that moment: I4 and I6. While nothing is split or erased, the clusters
   that are seen are a forest: two of them have nothing in common, or the larger is a later state of the
   smaller. A state begins after the last request that saw a smaller one began, while a request that leads
   to it is under way, and before the first answer with it ends. Taking the earliest such moment for each,
   the smallest state first, finds moments for all if there are any.

What is right is never complained of. Where every request was acknowledged, no answer that is wrong passes
either; an unknown request may be taken to explain two things of which it can have done only one. All of it
is near-linear in the size of what was answered, where the same answer counts once.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import asyncpg

from tests.harness.databases import fetch
from tests.harness.exchanges import Exchange, History, Outcome, email_name, phone_name

Contact = asyncpg.Record
CONTACTS = """
SELECT id, email, phone_number, linked_id, created_at FROM contact WHERE deleted_at IS NULL ORDER BY created_at, id
"""


async def contacts(url: str) -> list[Contact]:
    """The live rows of a database, oldest first: what `check` wants."""
    return await fetch(url, CONTACTS)


def check(history: History, rows: Sequence[Contact]) -> list[str]:
    """All that is wrong with a history and the rows that it left, a line each, which begins with what it is.

    lost        acknowledged, but not there or not together
    primary     not exactly one primary, or not the oldest
    duplicate   a row that brought nothing new
    refused     a row of a request that was refused
    unsent      an identifier, or a row, that nobody sent (by then)
    unlinked    together, and nobody said so (by then)
    answer      not what its rows add up to, or without what was asked for
    stale       an answer that lacks what had been answered before it was asked for
    order       two answers of which neither can be the later one
    """
    acknowledged = history.of(Outcome.ACKNOWLEDGED)
    possible = history.of(Outcome.ACKNOWLEDGED, Outcome.UNKNOWN)
    by_body: dict[bytes, list[Exchange]] = defaultdict(list)
    for exchange in acknowledged:
        by_body[exchange.body].append(exchange)
    answers = [_Answer.of(body, exchanges) for body, exchanges in by_body.items()]
    table = _Table(rows)
    return [
        *_primaries(table),
        *_ages(table, answers, possible),
        *_origins(table, history),
        *_lost(table, acknowledged),
        *_unlinked_rows(table, possible),
        *_wrong_answers(table, answers),
        *_skipping_answers(table, answers),
        *_unlinked_answers(answers, possible),
        *_moments(table, answers, history.of(Outcome.UNKNOWN)),
    ]


class _Table:
    """The rows, oldest first, and which cluster has what."""

    def __init__(self, rows: Sequence[Contact]) -> None:
        self.rows = sorted(rows, key=lambda row: (row["created_at"], row["id"]))
        self.by_id = {row["id"]: row for row in self.rows}
        self.clusters: dict[int, list[Contact]] = defaultdict(list)  # by the id that the rows link to
        self.roots: dict[str, set[int]] = defaultdict(set)  # by identifier
        self.added_to: dict[int, int] = {}  # by id of a row that was added to a cluster: a row that was there
        holders: dict[str, int] = {}
        for row in self.rows:
            root = row["linked_id"] or row["id"]
            self.clusters[root].append(row)
            for name in _names(row):
                self.roots[name].add(root)
                if holders.setdefault(name, row["id"]) != row["id"]:
                    self.added_to[row["id"]] = holders[name]


def _names(row: Contact) -> list[str]:
    """The identifiers in a row."""
    return [*_email_names(filter(None, [row["email"]])), *_phone_names(filter(None, [row["phone_number"]]))]


def _email_names(emails: Iterable[str]) -> Iterator[str]:
    return map(email_name, emails)


def _phone_names(phones: Iterable[str]) -> Iterator[str]:
    return map(phone_name, phones)


@dataclass(eq=False)
class _Answer:
    """An answer, and who got it."""

    contact: dict[str, Any]
    exchanges: list[Exchange]
    ids: list[int]
    names: frozenset[str]

    @classmethod
    def of(cls, body: bytes, exchanges: list[Exchange]) -> "_Answer":
        contact = json.loads(body)["contact"]
        ids = [contact["primaryContactId"], *contact["secondaryContactIds"]]
        names = frozenset([*_email_names(contact["emails"]), *_phone_names(contact["phoneNumbers"])])
        return cls(contact, sorted(exchanges, key=lambda exchange: exchange.ended), ids, names)

    @property
    def first(self) -> Exchange:
        """Who got it first."""
        return self.exchanges[0]


class _Components:
    """Identifiers, joined by and by (union-find)."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}

    def join(self, names: Sequence[str]) -> None:
        first = self.find(names[0])
        for name in names[1:]:
            self._parents[self.find(name)] = first

    def find(self, name: str) -> str:
        parents = self._parents
        parent = parents.setdefault(name, name)
        while parent != name:
            parents[name] = name = parents[parent]
            parent = parents[name]
        return name

    def __contains__(self, name: str) -> bool:
        return name in self._parents


def _primaries(table: _Table) -> Iterator[str]:
    for root, rows in table.clusters.items():
        if table.by_id.get(root) is None or table.by_id[root]["linked_id"] is not None:
            yield f"primary: the cluster of contact {root} has none"
        elif rows[0]["id"] != root:
            yield f"primary: contact {rows[0]['id']} is older than its primary {root}"
    for name, roots in table.roots.items():
        if len(roots) > 1:
            yield f"primary: {name} has {len(roots)}: {sorted(roots)}"


def _ages(table: _Table, answers: list[_Answer], possible: list[Exchange]) -> Iterator[str]:
    """The oldest by the database's clock must be it by that of the clients too."""
    sent: dict[tuple[str | None, str | None], float] = {}
    for exchange in possible:
        sent.setdefault(exchange.said.row, exchange.started)
    seen: dict[int, float] = {}
    for answer in answers:
        for row_id in answer.ids:
            seen[row_id] = min(seen.get(row_id, inf), answer.first.ended)
    for rows in table.clusters.values():
        latest, since = rows[0], -inf
        for row in rows:
            if seen.get(row["id"], inf) < since:
                yield f"primary: {latest['id']} counts as older than {row['id']}, which was answered before it was sent"
            began = sent.get((row["email"], row["phone_number"]), -inf)
            if began > since:
                latest, since = row, began


def _origins(table: _Table, history: History) -> Iterator[str]:
    said = {exchange.said.row for exchange in history.of(Outcome.ACKNOWLEDGED, Outcome.UNKNOWN)}
    refused = {name for exchange in history.of(Outcome.REFUSED) for name in exchange.said.names}
    known: set[str] = set()
    for row in table.rows:
        names = _names(row)
        if (row["email"], row["phone_number"]) not in said:
            kind = "refused" if refused.intersection(names) else "unsent"
            yield f"{kind}: contact {row['id']} ({', '.join(names)})"
        if known.issuperset(names):
            yield f"duplicate: contact {row['id']} ({', '.join(names)}) brought nothing new"
        known.update(names)


def _lost(table: _Table, acknowledged: list[Exchange]) -> Iterator[str]:
    for exchange in acknowledged:
        roots = [table.roots.get(name, set()) for name in exchange.said.names]
        if not all(roots):
            yield f"lost: {exchange} was acknowledged, and is not there"
        elif not set.intersection(*roots):
            yield f"lost: {exchange} was acknowledged, and is not together, but in the clusters of {roots}"


def _unlinked_rows(table: _Table, possible: list[Exchange]) -> Iterator[str]:
    components = _Components()
    for exchange in possible:
        roots = [table.roots.get(name, set()) for name in exchange.said.names]
        if set.intersection(*roots):  # then it can have happened
            components.join(exchange.said.names)
    for root, rows in table.clusters.items():
        parts = {components.find(name) for row in rows for name in _names(row)}
        if len(parts) > 1:
            yield f"unlinked: the cluster of contact {root} is {len(parts)} by what was said: {sorted(parts)}"


def _wrong_answers(table: _Table, answers: list[_Answer]) -> Iterator[str]:
    for answer in answers:
        for exchange in answer.exchanges:
            if not answer.names.issuperset(exchange.said.names):
                yield f"answer: {exchange} was answered with somebody else"
        missing = [row_id for row_id in answer.ids if row_id not in table.by_id]
        if missing:
            yield f"lost: {answer.first} was answered with contacts that are not there: {missing}"
        elif answer.contact != _consolidated([table.by_id[row_id] for row_id in answer.ids]):
            yield f"answer: {answer.first} was not answered with what contacts {answer.ids} add up to"


def _skipping_answers(table: _Table, answers: list[_Answer]) -> Iterator[str]:
    """Answers that lack a row though they have one that was added to it, or was added after it."""
    for answer in answers:
        ids = {row_id for row_id in answer.ids if row_id in table.by_id}
        root = min((table.by_id[row_id]["linked_id"] or row_id for row_id in ids), default=0)
        lacking: list[int] = []
        for row in table.clusters.get(root, ()):
            if row["id"] not in ids:
                lacking += [row["id"]] if table.added_to.get(row["id"]) in ids else []
                continue
            lacking += [other for other in [table.added_to.get(row["id"])] if other is not None and other not in ids]
            if lacking:
                yield f"stale: {answer.first} was answered with contact {row['id']}, but without {lacking}"
                break


def _consolidated(rows: list[Contact]) -> dict[str, Any]:
    """The answer that the rows of a cluster add up to."""
    oldest, *others = sorted(rows, key=lambda row: (row["created_at"], row["id"]))
    phones: dict[str, str] = {}
    for row in (oldest, *others):
        if row["phone_number"] is not None:
            phones.setdefault(phone_name(row["phone_number"]), row["phone_number"])
    return {
        "primaryContactId": oldest["id"],
        "primaryContatctId": oldest["id"],
        "emails": list(dict.fromkeys(row["email"] for row in (oldest, *others) if row["email"] is not None)),
        "phoneNumbers": list(phones.values()),
        "secondaryContactIds": [row["id"] for row in others],
    }


def _unlinked_answers(answers: list[_Answer], possible: list[Exchange]) -> Iterator[str]:
    """Answers that hold more than the components of all that had begun by the end of whoever got them first."""
    components = _Components()
    begun = iter(sorted(possible, key=lambda exchange: exchange.started))
    exchange = next(begun, None)
    for answer in sorted(answers, key=lambda answer: answer.first.ended):
        while exchange is not None and exchange.started <= answer.first.ended:
            components.join(exchange.said.names)
            exchange = next(begun, None)
        unsent = [name for name in answer.names if name not in components]
        if unsent:
            yield f"unsent: {answer.first} was answered with {unsent}"
        elif len({components.find(name) for name in answer.names}) > 1:
            yield f"unlinked: {answer.first} was answered with people whom nothing had linked"


@dataclass(eq=False)
class _State:
    """A cluster as it was at some time: its contacts and identifiers, who saw it, and since when it can have been."""

    parts: frozenset[int | str]
    seen: list[Exchange]
    since: Exchange | None = None  # the earliest moment is that of this one's start

    def __str__(self) -> str:
        """Its contacts' ids."""
        return f"contacts {sorted(part for part in self.parts if isinstance(part, int))}"

    @property
    def until(self) -> list[Exchange]:
        """Whoever began before it became another."""
        return [*self.seen, *([self.since] if self.since else [])]


def _moments(table: _Table, answers: list[_Answer], unknown: list[Exchange]) -> Iterator[str]:
    """Go through the states from the smallest on, and find for each the earliest moment that it can have begun."""
    unknown_by_name: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in unknown:
        for name in exchange.said.names:
            unknown_by_name[name].append(exchange)
    largest: dict[int | str, _State] = {}  # so far, by what is in it
    for state in sorted(_states(table, answers), key=lambda state: len(state.parts)):
        smaller = {largest[part] for part in state.parts if part in largest}
        for other in smaller:
            if not other.parts <= state.parts:
                yield f"order: {other} and {state} were seen, and neither can have been the earlier"
        silent = {id(each): each for part in state.parts for each in unknown_by_name.get(str(part), ())}
        candidates = [each for each in (*state.seen, *silent.values()) if state.parts.issuperset(each.said.names)]
        changing = causes = [each for each in candidates if _changes(each, largest)]
        after = [each for other in smaller if other.parts <= state.parts for each in other.until]
        # Not by the sets' own methods: they would go through all of a dictionary.
        for row in [table.by_id[part] for part in state.parts if part in table.by_id and part not in largest]:
            creators = [each for each in changing if each.said.row == (row["email"], row["phone_number"])]
            after += [min(creators, key=_started)] if creators else []
            if all(each.outcome is Outcome.ACKNOWLEDGED for each in creators):
                causes = [each for each in causes if each in creators]  # answered with this state, so it began it
        yield from _begin(state, max(after, key=_started, default=None), causes)
        largest.update(dict.fromkeys(state.parts, state))


def _changes(exchange: Exchange, largest: dict[int | str, _State]) -> bool:
    """Whether a request has something to do where the states are as given."""
    states = {largest.get(name) for name in exchange.said.names}
    return len(states) > 1 or None in states


def _states(table: _Table, answers: list[_Answer]) -> Iterable[_State]:
    """All clusters that were answered, and those of the table."""
    states: dict[frozenset[int | str], _State] = {}
    for answer in answers:
        parts = answer.names.union(answer.ids)
        states.setdefault(parts, _State(parts, [])).seen.extend(answer.exchanges)
    for rows in table.clusters.values():
        parts = frozenset(part for row in rows for part in (row["id"], *_names(row)))
        states.setdefault(parts, _State(parts, []))
    return states.values()


def _started(exchange: Exchange) -> float:
    return exchange.started


def _begin(state: _State, after: Exchange | None, causes: list[Exchange]) -> Iterator[str]:
    """Settle since when a state can have been: not before `after` began, and while one of `causes` was under way."""
    possible = [each for each in causes if after is None or after.started <= each.latest]
    if possible:
        first = min(possible, key=_started)
        state.since = first if after is None else max(first, after, key=_started)
        for exchange in state.seen:
            if exchange.ended < state.since.started:
                yield f"stale: {state.since} began after {exchange} had been answered with more, and comes before it"
    else:
        state.since = min(state.until, key=_started, default=None)
        if causes:
            yield f"stale: {after} began after {causes[0]} had been answered with more, and comes before it"
        else:
            yield f"unlinked: no request can have led to {state}"
