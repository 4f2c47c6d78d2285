"""A chunk of an import: requests that are decided and written in one transaction.

While PostgreSQL fetches a piece of the chunk, a thread decides the piece before it. What the rules decide of one piece
is not in the table yet when the next one is fetched, but in the clusters that they have changed: of a cluster that is
here already, what is fetched again is left out. All of it is one SERIALIZABLE transaction with one snapshot, so no
other transaction can come in between.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

from recon.database.transactions import Connection
from recon.identities import contention
from recon.rules.clusters import Clusters
from recon.rules.guards import Cause, Digest, Guards
from recon.rules.reconcile import Deciding, Plan, Reason
from recon.sql import contacts, guards, imports
from recon.transfer.pieces import Piece


async def apply(connection: Connection, pieces: Sequence[Piece], digest: Digest | None) -> Plan:
    """Decide and write the requests of these pieces, in order. Raises RowsHeld when another session holds a row."""
    plan = await _decided(connection, pieces, digest)
    if plan is None:
        requests = [request for piece in pieces for request in piece.requests]
        plan, _ = await contention.everything(connection, requests, float("inf"), digest)
        if plan.changes_anything():
            await contacts.change_contacts(connection, plan)
    elif plan.changes_anything():
        await imports.write(connection, plan)
    return plan


async def _decided(connection: Connection, pieces: Sequence[Piece], digest: Digest | None) -> Plan | None:
    """What the pieces come to; None if there are rows that need a repair, or marks of a keep-apart constraint."""
    step = _Step()
    rows, found = await imports.fetch_piece(connection, pieces[0].requests, digest)
    for piece, following in zip(pieces, [*pieces[1:], None], strict=True):
        deciding = asyncio.to_thread(step.add, rows, found, piece)
        if following is None:
            await deciding
        else:
            (rows, found), _ = await asyncio.gather(
                imports.fetch_piece(connection, following.requests, digest), deciding
            )
        if not step.is_plain:
            return None
    plan = step.deciding.finish()
    if pairs := plan.pairs():  # rare
        plan.drop_recorded(await guards.recorded(connection, pairs))
    return plan


class _Step:
    """Decides piece after piece."""

    def __init__(self) -> None:
        self.deciding = Deciding(Clusters(), imports.NEW_RANK)
        self.is_plain = True
        self._roots: set[int] = set()

    def add(self, rows: Sequence[Any], found: Guards, piece: Piece) -> None:
        """Take what was fetched for a piece, and decide it."""
        clusters = self.deciding.clusters
        found.blocked |= clusters.guards.blocked
        clusters.guards = found
        before = len(clusters.all)
        clusters.take(imports.contacts_of(rows, self._roots))
        taken = clusters.all[before:]
        if clusters.mends or clusters.losses or any(not each.settled or each.marks for each in taken):
            self.is_plain = False
            return
        self._roots.update(each.root for each in taken if each.root is not None)
        self.deciding.add(piece.requests)


def counted(plan: Plan, pieces: Sequence[Piece]) -> Counter[str]:
    """What the records of a chunk came to, by name."""
    reasons = Counter(decision.reason for decision in plan.decisions)
    counts = Counter(
        {
            "records": sum(piece.records for piece in pieces),
            "requests": len(plan.decisions),
            "created": reasons[Reason.CREATED],
            "extended": reasons[Reason.EXTENDED],
            "merged": reasons[Reason.MERGED],
            "known": reasons[Reason.KNOWN],
            "unlinked": sum(piece.unlinked for piece in pieces),
        }
    )
    for decision in plan.decisions:
        for each in decision.withheld:
            counts[f"withheld {each.cause}"] += 1
    return counts


def rejected(plan: Plan, pieces: Sequence[Piece]) -> list[tuple[int, Any, str]]:
    """(line, record, reason) of the records that make no request, or one of which all values identify nobody."""
    found = [each for piece in pieces for each in piece.invalid]
    blocked: dict[int, Any] = {}
    if any(decision.reason is Reason.REFUSED for decision in plan.decisions):
        origins = [origin for piece in pieces for origin in piece.origins]
        for decision, (line, raw) in zip(plan.decisions, origins, strict=True):
            if decision.reason is Reason.REFUSED:
                blocked[line] = raw
    return found + [(line, raw, f"{Cause.BLOCKED}: it identifies nobody") for line, raw in blocked.items()]
