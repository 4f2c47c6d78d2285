"""The checker of a history: whether every answer of recon, and every row that it stored, is correct.

    async with driving(urls, requests=5_000, seed=1) as history:  # see `shop`
        ...  # inject a fault
    assert check(history, await contacts(database_url)) == []

`check` decides, from a history and the live rows of a database that was empty before:

1. The rows: each cluster has one primary, its oldest row. Each row has the identifiers of a request that
   was not refused, and at least one that no older row has.
2. The clusters are the connected components of the acknowledged requests and of those unknown requests
   that can have taken effect.
3. Each answer is the consolidation of its rows, and contains only what was linked by requests that had
   started before the answer ended.
4. The answers are linearizable (I4 and I6): each has a moment between the start of its request and its end,
   such that the clusters only grow, each step by a request that is in progress then. While nothing is split
   or erased, the clusters in the answers are a forest: two of them are disjoint, or the larger one is a
   later state of the smaller one. A state begins after the start of the last request that saw a smaller
   one, while a request that leads to it is in progress, and before the end of the first answer that shows
   it. If such moments exist for all states, then taking the earliest one for each state, smallest state
   first, finds them.

A correct history has no violations. If every request was acknowledged, every wrong answer is found. An
unknown request may be used to explain two effects of which it can have had only one. The time is
near-linear in the total size of the distinct answers.
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
    """Return the live rows of a database, oldest first, as `check` needs them."""
    return await fetch(url, CONTACTS)


def check(history: History, rows: Sequence[Contact]) -> list[str]:
    """Return the violations in a history and the rows that it left: a line each, which begins with the kind.

    lost        an acknowledged request whose identifiers are missing or in different clusters
    primary     a cluster without exactly one primary, or whose primary is not the oldest row
    duplicate   a row without a new identifier
    refused     a row of a request that was refused
    unsent      an identifier, or a row, that no request had (by then)
    unlinked    identifiers in one cluster that no request had linked (by then)
    answer      an answer that is not the consolidation of its rows, or lacks an identifier of its request
    stale       an answer that lacks something that an earlier answer had before this request started
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
    """The rows, oldest first, and the clusters that they form."""

    def __init__(self, rows: Sequence[Contact]) -> None:
        self.rows = sorted(rows, key=lambda row: (row["created_at"], row["id"]))
        self.by_id = {row["id"]: row for row in self.rows}
        self.clusters: dict[int, list[Contact]] = defaultdict(list)  # by the id that the rows link to
        self.roots: dict[str, set[int]] = defaultdict(set)  # by identifier
        self.added_to: dict[int, int] = {}  # by id of a row that was added to a cluster: an older row of it
        holders: dict[str, int] = {}
        for row in self.rows:
            root = row["linked_id"] or row["id"]
            self.clusters[root].append(row)
            for name in names_of(row):
                self.roots[name].add(root)
                if holders.setdefault(name, row["id"]) != row["id"]:
                    self.added_to[row["id"]] = holders[name]


def names_of(row: Contact) -> list[str]:
    """The identifiers in a row, in the form in which they are the same."""
    return [*_email_names(filter(None, [row["email"]])), *_phone_names(filter(None, [row["phone_number"]]))]


def _email_names(emails: Iterable[str]) -> Iterator[str]:
    return map(email_name, emails)


def _phone_names(phones: Iterable[str]) -> Iterator[str]:
    return map(phone_name, phones)


@dataclass(eq=False)
class _Answer:
    """An answer, and the exchanges that got it."""

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
        """The exchange that got it first."""
        return self.exchanges[0]


class Components:
    """The connected components of identifiers (union-find)."""

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
    """Check that the row that is oldest by the database's clock is the oldest by the clients' clock too."""
    sent: dict[tuple[str | None, str | None], float] = {}
    for exchange in possible:
        sent.setdefault(exchange.request.row, exchange.started)
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
    sent = {exchange.request.row for exchange in history.of(Outcome.ACKNOWLEDGED, Outcome.UNKNOWN)}
    refused = {name for exchange in history.of(Outcome.REFUSED) for name in exchange.request.names}
    known: set[str] = set()
    for row in table.rows:
        names = names_of(row)
        if (row["email"], row["phone_number"]) not in sent:
            kind = "refused" if refused.intersection(names) else "unsent"
            yield f"{kind}: contact {row['id']} ({', '.join(names)})"
        if known.issuperset(names):
            yield f"duplicate: contact {row['id']} ({', '.join(names)}) brought nothing new"
        known.update(names)


def _lost(table: _Table, acknowledged: list[Exchange]) -> Iterator[str]:
    for exchange in acknowledged:
        roots = [table.roots.get(name, set()) for name in exchange.request.names]
        if not all(roots):
            yield f"lost: {exchange} was acknowledged, and is not there"
        elif not set.intersection(*roots):
            yield f"lost: {exchange} was acknowledged, and is not together, but in the clusters of {roots}"


def _unlinked_rows(table: _Table, possible: list[Exchange]) -> Iterator[str]:
    components = Components()
    for exchange in possible:
        roots = [table.roots.get(name, set()) for name in exchange.request.names]
        if set.intersection(*roots):  # it can have taken effect
            components.join(exchange.request.names)
    for root, rows in table.clusters.items():
        parts = {components.find(name) for row in rows for name in names_of(row)}
        if len(parts) > 1:
            yield f"unlinked: the cluster of contact {root} is {len(parts)} by its requests: {sorted(parts)}"


def _wrong_answers(table: _Table, answers: list[_Answer]) -> Iterator[str]:
    for answer in answers:
        for exchange in answer.exchanges:
            if not answer.names.issuperset(exchange.request.names):
                yield f"answer: {exchange} was answered with somebody else"
        missing = [row_id for row_id in answer.ids if row_id not in table.by_id]
        if missing:
            yield f"lost: {answer.first} was answered with contacts that are not there: {missing}"
        elif answer.contact != _consolidated([table.by_id[row_id] for row_id in answer.ids]):
            yield f"answer: {answer.first} was not answered with what contacts {answer.ids} add up to"


def _skipping_answers(table: _Table, answers: list[_Answer]) -> Iterator[str]:
    """Find answers that have a row but lack the row that it was added to, or one added to their rows before it."""
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
    """Consolidate the rows of a cluster to an answer."""
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
    """Find answers with more than the requests that started before the answer first ended had linked."""
    components = Components()
    begun = iter(sorted(possible, key=lambda exchange: exchange.started))
    exchange = next(begun, None)
    for answer in sorted(answers, key=lambda answer: answer.first.ended):
        while exchange is not None and exchange.started <= answer.first.ended:
            components.join(exchange.request.names)
            exchange = next(begun, None)
        unsent = [name for name in answer.names if name not in components]
        if unsent:
            yield f"unsent: {answer.first} was answered with {unsent}"
        elif len({components.find(name) for name in answer.names}) > 1:
            yield f"unlinked: {answer.first} was answered with people whom nothing had linked"


@dataclass(eq=False)
class _State:
    """A cluster at some time: its contacts and identifiers, the exchanges that saw it, its earliest beginning."""

    parts: frozenset[int | str]
    seen: list[Exchange]
    since: Exchange | None = None  # it cannot have begun before this exchange started

    def __str__(self) -> str:
        """Its contacts' ids."""
        return f"contacts {sorted(part for part in self.parts if isinstance(part, int))}"

    @property
    def until(self) -> list[Exchange]:
        """The exchanges that started before it became another state."""
        return [*self.seen, *([self.since] if self.since else [])]


def _moments(table: _Table, answers: list[_Answer], unknown: list[Exchange]) -> Iterator[str]:
    """Find for each state, smallest first, the earliest moment at which it can have begun."""
    unknown_by_name: dict[str, list[Exchange]] = defaultdict(list)
    for exchange in unknown:
        for name in exchange.request.names:
            unknown_by_name[name].append(exchange)
    largest: dict[int | str, _State] = {}  # so far, by contact and identifier
    for state in sorted(_states(table, answers), key=lambda state: len(state.parts)):
        smaller = {largest[part] for part in state.parts if part in largest}
        for other in smaller:
            if not other.parts <= state.parts:
                yield f"order: {other} and {state} were seen, and neither can have been the earlier"
        silent = {id(each): each for part in state.parts for each in unknown_by_name.get(str(part), ())}
        candidates = [each for each in (*state.seen, *silent.values()) if state.parts.issuperset(each.request.names)]
        changing = causes = [each for each in candidates if _changes(each, largest)]
        after = [each for other in smaller if other.parts <= state.parts for each in other.until]
        # Not by set operations: they would iterate over all of `largest`.
        for row in [table.by_id[part] for part in state.parts if part in table.by_id and part not in largest]:
            creators = [each for each in changing if each.request.row == (row["email"], row["phone_number"])]
            after += [min(creators, key=_started)] if creators else []
            if all(each.outcome is Outcome.ACKNOWLEDGED for each in creators):
                causes = [each for each in causes if each in creators]  # so one of them caused this state
        yield from _begin(state, max(after, key=_started, default=None), causes)
        largest.update(dict.fromkeys(state.parts, state))


def _changes(exchange: Exchange, largest: dict[int | str, _State]) -> bool:
    """Whether a request changes anything, given these states."""
    states = {largest.get(name) for name in exchange.request.names}
    return len(states) > 1 or None in states


def _states(table: _Table, answers: list[_Answer]) -> Iterable[_State]:
    """All clusters in answers and in the table."""
    states: dict[frozenset[int | str], _State] = {}
    for answer in answers:
        parts = answer.names.union(answer.ids)
        states.setdefault(parts, _State(parts, [])).seen.extend(answer.exchanges)
    for rows in table.clusters.values():
        parts = frozenset(part for row in rows for part in (row["id"], *names_of(row)))
        states.setdefault(parts, _State(parts, []))
    return states.values()


def _started(exchange: Exchange) -> float:
    return exchange.started


def _begin(state: _State, after: Exchange | None, causes: list[Exchange]) -> Iterator[str]:
    """Set the earliest beginning of a state: not before `after` started, and while one of `causes` was in progress."""
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
