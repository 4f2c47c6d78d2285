"""The pool, and transactions that are retried until they are serial. Knows no contacts."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TypeAlias, TypeVar

import asyncpg

from recon import background, metrics
from recon.database.connecting import (
    CONNECT_TIMEOUT,
    Outage,
    connect,
    connected,
    is_unavailability,
    no_longer_served,
    reaching,
    require_own_session,
    unavailability,
)
from recon.database.definitions import Connection as Connection  # noqa: PLC0414 (the layers above know it from here)
from recon.database.schema import apply_schema, require_parts, require_served, skip_taken_ids, warn_of_grants
from recon.errors import (
    NotPrepared,
    OutcomeUnknown,
    ReconError,
    RetriesExhausted,
    RowsHeld,
    SchemaMismatch,
    Unavailable,
)
from recon.settings import DatabaseSettings

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], Awaitable[T]]

log = logging.getLogger(__name__)

CHECK_TIMEOUT = 2.0  # seconds until a database that has not answered counts as away
STARTUP_RETRY = 1.0  # seconds between looks at a database that is not there yet

# How every session plans: each statement of a request is a walk along indexes, from the first row of a
# never-analysed table to the millionth. A sequential scan under SERIALIZABLE reads, and so conflicts
# with, the whole table; a generic plan spares planning each time.
SESSION = {
    "application_name": "recon",
    "lock_timeout": "0",  # whatever the role's is: waiting for the lane is normal, and statement_timeout bounds it
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# The longest pause before a try, in seconds. It grows from the first to the second, so that few rivals
# meet again at once and many spread out.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1

# How long a transaction that has the lane waits for any other lock, which only other programs can hold, in
# milliseconds: all writers wait meanwhile.
_LOCK_TIMEOUT = 5
# How long a transaction waits that does nothing else, in milliseconds; then its caller looks who still wants that.
_LONG_LOCK_TIMEOUT = 1000

_DEFAULTS = DatabaseSettings()

_RETRIED = {"40001": "serialization_failure", "40P01": "deadlock_detected"}


class Database:
    """Connections to one database that holds, or is given, recon's schema.

    Parameters
    ----------
    url : where it is.
    settings : how it is used; the defaults unless given.
    """

    def __init__(self, url: str, settings: DatabaseSettings = _DEFAULTS) -> None:
        self._url = url
        self._default_region = settings.default_region
        self._retry_limit = settings.retry_limit
        self._begin = f"BEGIN ISOLATION LEVEL {settings.isolation}"
        self._begin_reading: str | None = None  # no need: the session's default isolation does it
        milliseconds = f"{settings.statement_timeout * 1000:.0f}"
        self._session = SESSION | {
            "default_transaction_isolation": settings.isolation.lower(),
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
        }
        self._prepared_statements = 100  # most of a connection; there are fewer
        if settings.pgbouncer:
            # A session is lent for a transaction: each brings its settings along, in the same message as
            # BEGIN, and no prepared statement outlives it. pgbouncer refuses settings at connecting but for a few.
            set_local = "".join(f"; SET LOCAL {name} = '{value}'" for name, value in self._session.items())
            self._begin_reading = f"{self._begin} READ ONLY{set_local}"
            self._begin += set_local
            self._session = {"application_name": SESSION["application_name"]}
            self._prepared_statements = 0
        # Not serializable: all others would have to remember what they read for as long as that waits.
        # Its time-out for locks comes before that for statements: then it is known that it waited for a lock.
        lock_timeout = max(1, min(_LONG_LOCK_TIMEOUT, round(settings.statement_timeout * 500)))
        self._begin_waiting = (
            self._begin.replace(settings.isolation, "READ COMMITTED", 1) + f"; SET LOCAL lock_timeout = {lock_timeout}"
        )
        if settings.writer_lane:
            # In the same message as BEGIN and before any snapshot: who waited here sees what the one
            # before it wrote. A lock taken by a later statement would come too late for that.
            self._begin += f"; LOCK TABLE writer_lane IN EXCLUSIVE MODE; SET LOCAL lock_timeout = {_LOCK_TIMEOUT}"
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._idle: list[Connection] = []  # the last one used is the next to be used
        self._transaction_timeout = settings.transaction_timeout
        self._ready, self._may_create = False, True
        self._why_not_ready: str | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._outage = Outage(url)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Database"]:
        """Serve from entering to leaving; a database that is not there or not prepared yet is waited for meanwhile.

        Raises SchemaMismatch when it is there and cannot be served.
        """
        try:
            await self.prepare()
            self._ready = True
        except (Unavailable, NotPrepared) as error:
            self._wait(error)
        try:
            yield self
        finally:
            if self._waiting is not None:
                self._waiting.cancel()
            self._ready = False
            while self._idle:
                await self._close(self._idle.pop())

    async def prepare(self) -> None:
        """Create the schema in a database that has none, and try a session.

        Raises SchemaMismatch when it is there and cannot be served, Unavailable when it is not there.
        """
        async with connected(self._url) as connection:
            await apply_schema(connection, self._default_region, create=self._may_create)
        # In another session: one that met the schema while somebody else was making it may go on missing parts of it.
        with reaching(self._url):
            connection = await self._connect()
            try:
                await require_parts(connection)
                await require_served(connection, self._default_region)
                await warn_of_grants(connection)
            finally:
                await self._close(connection)

    async def check(self) -> None:
        """Raise Unavailable unless recon can serve the database. If it answers and recon cannot, stop serving."""
        if not self._ready:
            raise Unavailable(self._why_not_ready)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self._on_connection(self._check)
        except TimeoutError as error:
            raise Unavailable from error

    async def _check(self, connection: Connection) -> None:
        try:
            await require_served(connection, self._default_region)
        except SchemaMismatch as error:
            if self._ready:
                self._wait(error)
            raise

    async def snapshot(self, step: str, work: Work[T]) -> T:
        """Run `work`, a single statement that only reads, as its own serializable transaction.

        No BEGIN and no COMMIT: the session's default isolation does it, in one round trip (but not
        through pgbouncer, where a session's defaults are anybody's). `work` may run more than once.
        """
        return await self._until_serial(
            step, work if self._begin_reading is None else _transaction(self._begin_reading, work)
        )

    async def serializable(self, step: str, work: Work[T]) -> T:
        """Run `work` in a serializable transaction, COMMIT included, until it meets no other.

        `work` may run more than once, so what it leaves behind outside the database must be
        replaced, not added to, by its next run. In the lane it may not wait for locks of other sessions: it raises
        RowsHeld then. Raises RetriesExhausted after too many tries, OutcomeUnknown when the database was lost during
        COMMIT, Unavailable when it was before.
        """
        return await self._until_serial(step, _transaction(self._begin, work))

    async def wait(self, work: Work[None]) -> None:
        """Run `work`, which waits for locks of other sessions and changes nothing, apart from the lane.

        Raises RowsHeld when it has waited for a second, or half of the time that a statement may take.
        """
        await self._until_serial("wait", _transaction(self._begin_waiting, work))

    async def _until_serial(self, step: str, transaction: Work[T]) -> T:
        if not self._ready:
            raise Unavailable(self._why_not_ready)
        for tries in range(self._retry_limit):
            try:
                result = await self._on_connection(transaction)
            except asyncpg.PostgresError as error:
                reason = _RETRIED.get(error.sqlstate or "")
                if reason is None and isinstance(error, asyncpg.UniqueViolationError):
                    reason = await self._skip_taken_ids(error)
                if reason is None:
                    metrics.count_transaction(step, "failed")
                    raise
                metrics.RETRIES.labels(step, reason).inc()
            except RowsHeld:
                metrics.RETRIES.labels(step, "lock_not_available").inc()  # in another way, by the caller
                raise
            except BaseException:
                metrics.count_transaction(step, "failed")
                raise
            else:
                metrics.count_transaction(step, "committed")
                return result
            pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(tries, 10))
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 (jitter, not a secret)
        metrics.count_transaction(step, "failed")
        raise RetriesExhausted

    async def _skip_taken_ids(self, error: asyncpg.UniqueViolationError) -> str | None:
        """The reason to retry when contacts of another program have the ids that were drawn."""
        skip = partial(skip_taken_ids, constraint=error.constraint_name)
        return "ids_taken" if await self._on_connection(skip) else None

    async def _on_connection(self, work: Work[T]) -> T:
        """Run `work` on a connection that is nobody else's meanwhile.

        Not asyncpg's pool: that resets a connection in a task of its own whenever it is handed back, and
        under load a task is a turn of the event loop, for which each batch would have to wait. recon
        leaves nothing behind in a session that would need resetting.
        """
        async with self._slots:
            with unavailability(), no_longer_served():
                connection = self._idle_one() or await self._connect()
                metrics.POOL_USED.inc()
                try:
                    with self._watched(connection, self._transaction_timeout):
                        return await work(connection)
                except (asyncio.CancelledError, OutcomeUnknown):
                    # The server may yet do what it was sent, begin a transaction for one: nobody is to get into that.
                    connection.terminate()
                    raise
                finally:
                    metrics.POOL_USED.dec()
                    if connection.is_closed() or connection.is_in_transaction():
                        await self._close(connection)
                    else:
                        self._idle.append(connection)

    def _idle_one(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():  # as all are after the database was restarted
                return connection
            metrics.POOL_SIZE.dec()
        return None

    @contextmanager
    def _watched(self, connection: Connection, seconds: float) -> Iterator[None]:
        """Let what still waits for the server's answer by then fail, and all idle connections with it.

        A server that does not answer would answer neither a ROLLBACK nor a farewell, nor, perhaps, the next
        session. When it is back, it finds its connections gone and rolls back.
        """
        watchdog = asyncio.get_running_loop().call_later(seconds, self._give_up, connection)
        try:
            yield
        except AttributeError as error:  # the driver's, when `_give_up` comes between two messages
            if not connection.is_closed():
                raise
            raise Unavailable from error
        finally:
            watchdog.cancel()

    def _give_up(self, connection: Connection) -> None:
        connection.terminate()
        metrics.POOL_SIZE.dec(len(self._idle))
        while self._idle:
            self._idle.pop().terminate()

    async def _connect(self) -> Connection:
        try:
            connection = await self._new_session()
        except ReconError as error:
            self._outage.report(error)
            raise
        if self._ready:
            self._outage.end()
        return connection

    async def _new_session(self) -> Connection:
        connection = await connect(
            self._url,
            server_settings=self._session,
            statement_cache_size=self._prepared_statements,
            # A standby is not to be served, also when it is the only host: it may become the primary.
            target_session_attrs=None if self._begin_reading else "read-write",
        )
        metrics.POOL_SIZE.inc()
        if self._begin_reading is None:
            try:
                with self._watched(connection, CONNECT_TIMEOUT):
                    await require_own_session(connection, self._session)
            except BaseException:
                await self._close(connection)
                raise
        return connection

    async def _close(self, connection: Connection) -> None:
        metrics.POOL_SIZE.dec()
        try:
            await connection.close(timeout=CONNECT_TIMEOUT)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()

    def _wait(self, error: ReconError) -> None:
        """Serve no more until the database can be served. A schema that was there and is lost is not created again."""
        self._ready, self._may_create = False, not self._ready
        self._why_not_ready = str(error)
        self._outage.report(error)
        self._waiting = background.keep_running("wait for the database", self._wait_until_prepared)

    async def _wait_until_prepared(self) -> None:
        while not self._ready:
            await asyncio.sleep(STARTUP_RETRY)
            try:
                await self.prepare()
            except (Unavailable, SchemaMismatch) as error:
                self._why_not_ready = str(error)
                self._outage.report(error)
            else:
                self._ready = True
                self._outage.end()


def _transaction(begin: str, work: Work[T]) -> Work[T]:
    async def transaction(connection: Connection) -> T:
        await connection.execute(begin)
        try:
            result = await work(connection)
        except asyncpg.PostgresError:  # after anything else `_on_connection` ends the session
            if not connection.is_closed():
                await connection.execute("ROLLBACK")
            raise
        await _commit(connection)
        return result

    return transaction


async def _commit(connection: Connection) -> None:
    try:
        await connection.execute("COMMIT")
    except asyncpg.PostgresError as error:
        if is_unavailability(error):
            raise OutcomeUnknown from error
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise OutcomeUnknown from error


# Classes of SQLSTATE that say that the data of a statement is to blame, or what a trigger made of it: data exceptions,
# constraints, WITH CHECK OPTION, what functions raise.
_BLAME_DATA = ("22", "23", "38", "39", "44", "P0")


def may_be_one_requests_fault(error: Exception) -> bool:
    """Whether a transaction could succeed without one of its requests: not when it never got as far as their data."""
    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "").startswith(_BLAME_DATA)
    return not isinstance(error, Unavailable)
