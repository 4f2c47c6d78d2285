"""Dry runs in this process, and the exports that they begin with."""

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from recon.rules.clusters import Contact, consolidate
from recon.rules.guards import Guards
from recon.rules.identifiers import plain_key
from recon.transfer.dry_run import DryRun, Outcome, common_values
from recon.transfer.existing import Export
from recon.transfer.pieces import Piece
from recon.transfer.text import Text
from tests.harness.databases import fetch

LIVE = "SELECT id, linked_id, email, phone_number, phone_key FROM contact WHERE deleted_at IS NULL ORDER BY id"


def outcome(pieces: Sequence[Piece], guards: Guards, export: Path | None = None) -> Outcome:
    """Decide the pieces in memory, on an export if there is one."""
    run = DryRun(guards)
    if export is not None:
        with closing(Text(str(export))) as text:
            for people in Export(text, plain_key).people():
                run.take(people)
    for piece in pieces:
        run.add(piece, common_values(piece.requests))
    return run.outcome()


async def export_of(url: str, path: Path) -> Path:
    """Write the identities of a database to a file as `recon export` does."""
    people: dict[int, list[Contact]] = {}
    for rank, row in enumerate(await fetch(url, LIVE)):
        people.setdefault(row["linked_id"] or row["id"], []).append(Contact(rank, *row))
    lines: list[dict[str, Any]] = []
    for contacts in people.values():
        found = consolidate(contacts[0], contacts)
        lines.append(
            {
                "primaryContactId": found.primary_id,
                "emails": found.emails,
                "phoneNumbers": found.phone_numbers,
                "secondaryContactIds": found.secondary_ids,
            }
        )
    return _written(path, [*lines, {"position": 1 + len(lines)}])


def _written(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
