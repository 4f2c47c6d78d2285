"""The identities that a correction is about: found by any of their contacts, with all of these."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from recon.database.transactions import Connection
from recon.errors import Deleted, Erased, NotFound
from recon.identities.lookup import MAX_ID
from recon.rules.clusters import Cluster, Contact, Identity, consolidate
from recon.rules.guards import Mark, marks_of
from recon.rules.journal import BY_AGE, Record
from recon.sql import corrections as sql
from recon.sql import journal
from recon.sql.corrections import State


@dataclass(slots=True)
class Subject:
    """An identity as a correction sees it.

    Attributes
    ----------
    root : the id that its contacts are linked to.
    state : what tells whether it has changed.
    records : all its contacts, soft-deleted ones included, by position.
    live : the live ones, oldest first.
    """

    root: int
    state: State
    records: list[Record]
    live: list[Record]

    @property
    def primary(self) -> Record:
        """Its primary; if that is gone, its oldest live contact, which is to become it."""
        return next((record for record in self.live if record.linked_id is None), self.live[0])

    @property
    def marks(self) -> set[Mark]:
        """The sides of constraints that its contacts are on."""
        return {mark for record in self.records for mark in marks_of(record.apart)}

    def named(self, contact_id: int) -> Record:
        """The contact of this id if it is live, otherwise the oldest live one."""
        return next((record for record in self.live if record.id == contact_id), self.live[0])


async def find(connection: Connection, contact_id: int, *, live: bool = True) -> Subject:
    """The identity of a contact. Raises NotFound or Erased if there is none, and Deleted if `live` and none is live."""
    root = await journal.find_root(connection, contact_id=contact_id) if contact_id <= MAX_ID else None
    if root is None:
        if contact_id <= MAX_ID and await sql.was_erased(connection, contact_id):
            raise Erased
        raise NotFound
    if live and not root.is_live:
        raise Deleted
    return await fetch(connection, root.id)


async def fetch(connection: Connection, root: int) -> Subject:
    """The identity at a root."""
    records = await journal.fetch_records(connection, root)
    states = await sql.fetch_states(connection, [root])
    live = sorted((record for record in records if record.deleted_at is None), key=BY_AGE)
    return Subject(root, states[root], records, live)


def identity(records: Sequence[Record]) -> Identity:
    """What live contacts, oldest first, add up to."""
    cluster = Cluster(None, contacts(records))
    return consolidate(cluster.primary, cluster.contacts)


def contacts(records: Iterable[Record]) -> list[Contact]:
    """The contacts as matching knows them."""
    return [
        Contact(rank, record.id, record.linked_id, record.email, record.phone_number, record.phone_key)
        for rank, record in enumerate(records)
    ]


def united(first: Subject, second: Subject) -> tuple[Subject, Subject, Identity]:
    """Return which of two identities stays when they become one (rule 4), which is absorbed, and the one identity."""
    older, younger = sorted((first, second), key=lambda subject: BY_AGE(subject.primary))
    cluster = Cluster(None, contacts(sorted([*older.live, *younger.live], key=BY_AGE)))
    primary = next(contact for contact in cluster.contacts if contact.id == older.primary.id)
    return older, younger, consolidate(primary, cluster.contacts)
