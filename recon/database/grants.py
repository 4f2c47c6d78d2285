"""What database roles may do: the privileges for serving, corrections and exports, and those that a role lacks."""

import logging
from collections.abc import Iterable
from typing import NamedTuple

import asyncpg

from recon.database.definitions import Connection
from recon.errors import SchemaMismatch

log = logging.getLogger(__name__)


class Privilege(NamedTuple):
    """A privilege on a table, or on some of its columns. As text: "UPDATE (email, phone_number) on contact"."""

    name: str
    table: str
    columns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self._granted()} on {self.table}"

    def statement(self, role: str) -> str:
        """What grants it to a role, whose name is quoted."""
        return f"GRANT {self._granted()} ON {self.table} TO {role};"

    def _granted(self) -> str:
        return f"{self.name} ({', '.join(self.columns)})" if self.columns else self.name


_IDENTIFIERS = ("email", "phone_number", "phone_key")
_LINK = ("linked_id", "link_precedence")
# All that a role needs that serves, and nothing more, besides the sequence.
SERVING = (
    Privilege("SELECT", "contact"),
    Privilege("INSERT", "contact", ("id", *_IDENTIFIERS, *_LINK, "created_at", "updated_at", "source")),
    # What a merge changes, and what the guards change of new contacts and of rows written by other programs. SELECT ...
    # FOR UPDATE asks for it, too.
    Privilege("UPDATE", "contact", (*_IDENTIFIERS, *_LINK, "updated_at", "deleted_at", "apart")),
    Privilege("UPDATE", "writer_lane"),  # the least that LOCK TABLE is content with; the table has nothing to update
    *(Privilege("SELECT", table) for table in ("setting", "blocked", "erased", "event_contact", "event")),
    Privilege("INSERT", "event"),
)
_RECORDS = ("event_contact", "blocked", "erased", "correction", "import")
# What corrections and imports need in addition.
CORRECTIONS = (
    Privilege("INSERT", "contact", ("apart",)),
    Privilege("DELETE", "contact"),  # erasure; LOCK TABLE is content with it
    Privilege("UPDATE", "event", ("undone_by", *_IDENTIFIERS, "note", "detail")),
    *(Privilege(name, table) for table in _RECORDS for name in ("SELECT", "INSERT", "UPDATE", "DELETE")),
    Privilege("UPDATE", "setting", ("max_emails", "max_phones", "block_common")),
)
# What exports need, and nothing more, besides the sequence.
READING = tuple(
    Privilege("SELECT", table) for table in ("contact", "event", "event_contact", "blocked", "erased", "setting")
)
# The sequence of contact.id, whatever its name is. UPDATE moves it past ids that another program has given explicitly.
_GRANT_SEQUENCE = """DO $grant$ BEGIN
    EXECUTE format('GRANT {privileges} ON SEQUENCE %s TO %I', pg_get_serial_sequence('contact', 'id'), {literal});
END $grant$;"""
_LACKING = """
SELECT place, attribute
FROM unnest($1::int[], $2::text[], $3::text[], $4::text[]) AS needed (place, name, relation, attribute)
WHERE NOT CASE WHEN attribute IS NULL THEN has_table_privilege(relation, name)
    ELSE has_column_privilege(relation, attribute, name) END
ORDER BY place
"""
_MAY_DRAW_IDS = "SELECT has_sequence_privilege(pg_get_serial_sequence('contact', 'id'), 'USAGE')"
_MAY_MOVE_IDS = "SELECT has_sequence_privilege(pg_get_serial_sequence('contact', 'id'), 'UPDATE')"


def grants(role: str) -> str:
    """The statements that let `role` serve."""
    return "\n-- What serving needs.\n" + _statements(SERVING, role)


def steward_grants(role: str) -> str:
    """The statements that let `role` serve and make corrections."""
    return "\n-- What serving and corrections need.\n" + _statements((*SERVING, *CORRECTIONS), role)


def reader_grants(role: str) -> str:
    """The statements that let `role` export."""
    return "\n-- What exports need.\n" + _statements(READING, role, "SELECT")


def _statements(privileges: Iterable[Privilege], role: str, on_sequence: str = "USAGE, UPDATE") -> str:
    escaped, literal = role.replace('"', '""'), role.replace("'", "''")
    lines = [privilege.statement(f'"{escaped}"') for privilege in privileges]
    return "\n".join([*lines, _GRANT_SEQUENCE.format(privileges=on_sequence, literal=f"'{literal}'"), ""])


async def apply_grants(connection: Connection, statements: str) -> None:
    """Make these grants. Raises SchemaMismatch when this role may not do so, or there is no such role."""
    try:
        await connection.execute(statements)
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError) as error:
        raise SchemaMismatch(f"the grants were not made: {error}") from None


async def require_grants(connection: Connection) -> None:
    """Raise SchemaMismatch, which names what is missing, unless this role has the privileges that serving takes."""
    if missing := await _missing(connection, SERVING):
        raise SchemaMismatch(
            f"this role lacks privileges that serving needs ({'; '.join(missing)}): "
            "run `recon schema --apply --grant ROLE` as the tables' owner"
        )


async def missing_steward_grants(connection: Connection) -> list[str]:
    """The privileges that corrections take and this role lacks, those for serving included: "DELETE on contact", ….

    Not in a transaction that has failed. Raises SchemaMismatch when the database has only a part of the schema.
    """
    return await _missing(connection, (*SERVING, *CORRECTIONS))


async def warn_of_grants(connection: Connection) -> None:
    """Log if this role can serve, but cannot move the sequence past ids that another program gave explicitly."""
    if not await connection.fetchval(_MAY_MOVE_IDS):
        log.warning(
            "this role may not move the sequence of contact.id past ids that another program gives explicitly: "
            "run `recon schema --apply --grant ROLE` as the tables' owner"
        )


async def _missing(connection: Connection, privileges: tuple[Privilege, ...]) -> list[str]:
    needed = [
        (place, privilege.name, privilege.table, column)
        for place, privilege in enumerate(privileges)
        for column in privilege.columns or (None,)
    ]
    try:
        rows = await connection.fetch(_LACKING, *zip(*needed, strict=True))
        may_draw_ids = await connection.fetchval(_MAY_DRAW_IDS)
    except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError) as error:
        raise SchemaMismatch(f"the database has only a part of recon's schema: {error}") from None
    columns: dict[int, list[str]] = {}
    for place, column in rows:
        columns.setdefault(place, []).extend([] if column is None else [column])
    missing = [str(privileges[place]._replace(columns=tuple(lacking))) for place, lacking in columns.items()]
    return missing if may_draw_ids else [*missing, "USAGE on the sequence of contact.id"]
