"""Transactions that keep all writers from the table contact, for commands outside of serving."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncpg

from recon.database.definitions import SCHEMA_VERSION, Connection
from recon.database.pool import T, Work
from recon.errors import ReconError, RetriesExhausted, RowsHeld, SchemaMismatch

_TRIES = 5  # of a transaction that meets a serialization conflict: with all writers kept out, hardly any does
_LOCK_TIMEOUT = 1.0  # seconds: as long as it waits for the table, all writers wait behind it
_LONGEST_PAUSE = 1.0  # seconds before the next try, in which the writers that waited go on

# The transaction may take longer than requests, and its changes are no other program's. It sorts and joins millions of
# rows, for which PostgreSQL's default memory is small.
_SESSION = (
    f"SET LOCAL application_name = 'recon schema {SCHEMA_VERSION}'; SET LOCAL statement_timeout = 0; "
    "SET LOCAL work_mem = '64MB'; "
    "SET LOCAL idle_in_transaction_session_timeout = 0"
)
BEGIN_READING = f"BEGIN ISOLATION LEVEL REPEATABLE READ; {_SESSION}"
# All locks come before the snapshot: it shows what the last writer has committed.
BEGIN_EXCLUSIVE = (
    f"BEGIN ISOLATION LEVEL SERIALIZABLE; {_SESSION}; SET LOCAL lock_timeout = {_LOCK_TIMEOUT * 1000:.0f}; "
    "LOCK TABLE writer_lane IN EXCLUSIVE MODE; LOCK TABLE contact IN EXCLUSIVE MODE; SET LOCAL lock_timeout = 0"
)


@dataclass(frozen=True, slots=True)
class Session:
    """A session in which a command runs one transaction after another.

    Attributes
    ----------
    patience : seconds that `exclusively` waits for other sessions to release the table contact.
    name : a random name, in letters and digits.
    """

    connection: Connection
    patience: float
    name: str = field(default_factory=lambda: secrets.token_hex(8))

    async def reading(self, work: Work[T]) -> T:
        """Run `work` on one snapshot; it may write temporary tables. Raises SchemaMismatch if this role may not."""
        return await self._run(BEGIN_READING, work)

    async def exclusively(self, work: Work[T], waiting: Callable[[], None]) -> T:
        """Run `work` in a serializable transaction in which no other session writes to contacts; reads go on.

        `work` may run more than once. `waiting` is called when another session keeps the table, perhaps several times.
        Raises RowsHeld when it keeps it too long, SchemaMismatch when this role may not do what `work` does.
        """
        deadline = time.monotonic() + self.patience
        for _ in range(_TRIES):
            while True:
                try:
                    return await self._run(BEGIN_EXCLUSIVE, work)
                except asyncpg.LockNotAvailableError:
                    waiting()
                    if time.monotonic() > deadline:
                        raise RowsHeld from None
                except (asyncpg.SerializationError, asyncpg.DeadlockDetectedError):
                    break
                await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311 (jitter, not a secret)
        raise RetriesExhausted

    async def _run(self, begin: str, work: Work[T]) -> T:
        try:
            await self.connection.execute(begin)
            result = await work(self.connection)
            await self.connection.execute("COMMIT")
        except asyncpg.InsufficientPrivilegeError as error:
            await self._roll_back()
            raise SchemaMismatch(f"nothing was changed: {error}; run the command as the tables' owner") from None
        except (asyncpg.PostgresError, ReconError):  # after anything else the session is closed
            await self._roll_back()
            raise
        return result

    async def _roll_back(self) -> None:
        if not self.connection.is_closed():
            await self.connection.execute("ROLLBACK")
