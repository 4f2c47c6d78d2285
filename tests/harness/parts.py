"""What links hold together, for tests: recon itself divides identities by other code (`recon/rules/splits.py`)."""

from collections.abc import Collection, Iterable, Sequence

from recon.rules.journal import Record
from recon.rules.links import DisjointSets, Identifier, Link, identifiers_of


def parts_without(records: Iterable[Record], links: Sequence[Link], names: Collection[str]) -> list[set[Identifier]]:
    """What contacts fall into without the links of these names: the parts, that of the first contact first."""
    sets = DisjointSets[Identifier]()
    for link in links:
        if link.name not in names:
            sets.unite(link.joins)
    parts: dict[Identifier, set[Identifier]] = {}
    for record in records:
        for identifier in identifiers_of(record):
            parts.setdefault(sets.find(identifier), set()).add(identifier)
    return list(parts.values())
