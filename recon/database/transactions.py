"""Serializable transactions, retried until they commit without a conflict, and whether the database can be served."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial

import asyncpg

from recon import background, metrics
from recon.database.connecting import (
    Outage,
    connected,
    is_unavailability,
    reaching,
)
from recon.database.definitions import SCHEMA_VERSION
from recon.database.definitions import Connection as Connection  # noqa: PLC0414 (the layers above know it from here)
from recon.database.grants import missing_steward_grants, warn_of_grants
from recon.database.pool import Pool, T, Work
from recon.database.schema import (
    apply_schema,
    require_parts,
    require_same_region,
    require_served,
    require_suppress_key,
    skip_taken_ids,
)
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

log = logging.getLogger(__name__)

CHECK_TIMEOUT = 2.0  # seconds until a database that has not answered counts as away
WATCH_EVERY = 5.0  # seconds between the checks of a process that serves: schema and region may change meanwhile
_ENDING = 1.0  # seconds in which the background tasks may end
STARTUP_RETRY = 1.0  # seconds between looks at a database that is not there yet

# How every session plans: each statement of a request is a walk along indexes, from the first row of a
# never-analysed table to the millionth. A sequential scan under SERIALIZABLE reads, and so conflicts
# with, the whole table; a generic plan spares planning each time.
SESSION = {
    "application_name": f"recon schema {SCHEMA_VERSION}",  # by which the database refuses processes of other versions
    "lock_timeout": "0",  # whatever the role's is: waiting for the lane is normal, and statement_timeout bounds it
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# Exponential backoff with full jitter: the longest pause before an attempt, in seconds, grows from the first value to
# the second, so that few competing transactions retry soon and many spread out.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1

# How long a transaction that has the lane waits for any other lock, which only other programs can hold, in
# milliseconds: all writers wait meanwhile.
_LOCK_TIMEOUT = 5
# How long a transaction that only waits for a lock waits, in milliseconds; then its caller checks which requests still
# need the lock.
_LONG_LOCK_TIMEOUT = 1000

_DEFAULTS = DatabaseSettings()

_RETRIED = {"40001": "serialization_failure", "40P01": "deadlock_detected"}


class Database:
    """Connections to one database that holds, or is given, recon's schema.

    Parameters
    ----------
    url : where it is.
    settings : how it is used; the defaults unless given.

    Attributes
    ----------
    has_lane : whether writing transactions run one after another, so that ids are in the order of the commits.
    """

    def __init__(self, url: str, settings: DatabaseSettings = _DEFAULTS) -> None:
        self._url = url
        self._default_region = settings.default_region
        self._suppress_check = settings.suppress_check
        self._retry_limit = settings.retry_limit
        self._begin = f"BEGIN ISOLATION LEVEL {settings.isolation}"
        self._begin_snapshot: str | None = None  # no need: the session's default isolation does it
        milliseconds = f"{settings.statement_timeout * 1000:.0f}"
        session = SESSION | {
            "default_transaction_isolation": settings.isolation.lower(),
            "statement_timeout": milliseconds,
            "idle_in_transaction_session_timeout": milliseconds,
        }
        if settings.pgbouncer:
            # A session is lent for a transaction: each brings its settings along, in the same message as
            # BEGIN, and no prepared statement outlives it. pgbouncer refuses settings at connecting but for a few.
            set_local = "".join(f"; SET LOCAL {name} = '{value}'" for name, value in session.items())
            self._begin_snapshot = f"{self._begin} READ ONLY{set_local}"
            self._begin += set_local
            session = {"application_name": SESSION["application_name"]}
        # Not serializable: all others would have to remember what they read for as long as that waits.
        # Its time-out for locks comes before that for statements: then it is known that it waited for a lock.
        lock_timeout = max(1, min(_LONG_LOCK_TIMEOUT, round(settings.statement_timeout * 500)))
        self._begin_waiting = (
            self._begin.replace(settings.isolation, "READ COMMITTED", 1) + f"; SET LOCAL lock_timeout = {lock_timeout}"
        )
        # With the lane, the order of commits is a serial order, and any snapshot shows what some first part of it
        # wrote: then no read is part of a serialization conflict.
        reading_isolation = "REPEATABLE READ" if settings.writer_lane else settings.isolation
        self._begin_reading = self._begin.replace(settings.isolation, f"{reading_isolation} READ ONLY", 1)
        self.has_lane = settings.writer_lane
        # What such a snapshot lacks comes in a later page, so that the order of the commits does not matter to it.
        self._begin_following = self._begin.replace(settings.isolation, "REPEATABLE READ READ ONLY", 1)
        if settings.writer_lane:
            # In the same message as BEGIN and before any snapshot: a transaction that waited here sees what
            # its predecessor wrote. A lock that a later statement takes would come too late for that.
            self._begin += f"; LOCK TABLE writer_lane IN EXCLUSIVE MODE; SET LOCAL lock_timeout = {_LOCK_TIMEOUT}"
        self._ready, self._may_create = False, True
        self._why_not_ready: str | None = None
        self._waiting: asyncio.Task[None] | None = None
        self._outage = Outage(url)
        self._pool = Pool(url, settings, session, self._outage)

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
        watch = background.keep_running("watch over the schema", self._watch)
        try:
            yield self
        finally:
            self._ready = False
            tasks = [task for task in (watch, self._waiting) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_ENDING)  # so that they close the sessions that they use
            await self._pool.close()

    async def prepare(self) -> None:
        """Create the schema in a database that has none, and try a session.

        Raises SchemaMismatch when it is there and cannot be served, Unavailable when it is not there.
        """
        async with connected(self._url) as connection:
            await apply_schema(connection, self._default_region, create=self._may_create)
        # In another session: a session that looked while another process created the schema may still miss parts of it.
        with reaching(self._url):
            connection = await self._pool.open()
            try:
                await require_parts(connection)
                await require_served(connection, self._default_region)
                await require_suppress_key(connection, self._suppress_check)
                await warn_of_grants(connection)
            finally:
                await self._pool.discard(connection)

    async def check(self) -> None:
        """Raise Unavailable unless recon can serve the database. If it answers and recon cannot, stop serving."""
        if not self._ready:
            raise Unavailable(self._why_not_ready)
        try:
            async with asyncio.timeout(CHECK_TIMEOUT):
                await self._pool.run(self._check)
        except TimeoutError as error:
            raise Unavailable from error

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_EVERY)
            if self._ready:
                with suppress(Unavailable):  # it is logged, and `check` has stopped serving if necessary
                    await self.check()

    async def _check(self, connection: Connection) -> None:
        try:
            await require_served(connection, self._default_region)
        except SchemaMismatch as error:
            if self._ready:
                self._wait(error)
            raise

    def require_region(self, found: str | None) -> None:
        """Raise Unavailable unless the default region of a snapshot is this process's; stop serving if it is not.

        What decides by match keys must look in its own snapshot: a new region and new keys are committed together.
        """
        try:
            require_same_region(found, self._default_region)
        except NotPrepared as error:
            if self._ready:
                self._wait(error)
            raise Unavailable(str(error)) from None

    async def snapshot(self, step: str, work: Work[T]) -> T:
        """Run `work`, a single statement that only reads, as its own serializable transaction.

        No BEGIN and no COMMIT: the session's default isolation does it, in one round trip (but not
        through pgbouncer, where other clients share the session). `work` may run more than once.
        """
        return await self._until_serial(
            step, work if self._begin_snapshot is None else _reading(self._begin_snapshot, work)
        )

    async def reading(self, step: str, work: Work[T]) -> T:
        """Run `work`, statements that only read, on one snapshot, which is the state after some committed transaction.

        No writer waits for it. `work` may run more than once. Raises what `serializable` raises, but not
        OutcomeUnknown: nothing was changed.
        """
        return await self._until_serial(step, _reading(self._begin_reading, work))

    async def following(self, step: str, work: Work[T]) -> T:
        """Run `work`, statements that only read, on one snapshot, which no transaction has to wait or be retried for.

        With the lane or without, it shows all that was committed when it began. `work` may run more than once.
        """
        return await self._until_serial(step, _reading(self._begin_following, work))

    async def serializable(self, step: str, work: Work[T]) -> T:
        """Run `work` in a serializable transaction, COMMIT included, until it commits without a serialization conflict.

        `work` may run more than once, so what it leaves behind outside the database must be
        replaced, not added to, by its next run. In the lane it may not wait for locks of other sessions: it raises
        RowsHeld then. Raises RetriesExhausted after too many attempts, OutcomeUnknown when the connection was lost
        during COMMIT, Unavailable when it was lost before.
        """
        return await self._until_serial(step, _transaction(self._begin, work))

    async def planning(self, work: Work[T], seconds: float) -> T:
        """Run `work` as `reading` does, with a time limit of its own for the transaction and each statement of it."""
        begin = self._begin_reading + _statement_timeout(seconds)
        return await self._correction("plan correction", _reading(begin, work), seconds)

    async def correcting(
        self, work: Work[T], seconds: float, rolled_back: Callable[[], None] | None = None, step: str = "correct"
    ) -> T:
        """Run `work` as `serializable` does, with a time limit of its own for the transaction and each statement of it.

        The wait for the lane is a statement, too. `rolled_back` is called when PostgreSQL has refused a COMMIT: until
        the next one, nothing is changed. Raises Unavailable, which names the missing grants, if this role may not make
        corrections (nor imports).
        """
        # Before the lane: a correction waits for it as long as it may.
        begin, separator, lane = self._begin.partition("; LOCK TABLE")
        begin += _statement_timeout(seconds) + separator + lane
        return await self._correction(step, _transaction(begin, work, rolled_back or _ignore), seconds)

    async def _correction(self, step: str, transaction: Work[T], seconds: float) -> T:
        try:
            return await self._until_serial(step, transaction, seconds)
        except asyncpg.InsufficientPrivilegeError as error:
            missing = "; ".join(await self._pool.run(missing_steward_grants))
            raise Unavailable(
                f"This process's database role lacks privileges that corrections and imports need ({missing}): "
                "run `recon schema --apply --grant-steward ROLE` as the tables' owner. Nothing was changed."
            ) from error

    async def wait(self, work: Work[None]) -> None:
        """Run `work`, which waits for locks of other sessions and changes nothing, apart from the lane.

        Raises RowsHeld when it has waited for a second, or half of the time that a statement may take.
        """
        await self._until_serial("wait", _transaction(self._begin_waiting, work))

    async def _until_serial(self, step: str, transaction: Work[T], seconds: float | None = None) -> T:
        if not self._ready:
            raise Unavailable(self._why_not_ready)
        for tries in range(self._retry_limit):
            try:
                result = await self._pool.run(transaction, seconds)
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
        return "ids_taken" if await self._pool.run(skip) else None

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


def _statement_timeout(seconds: float) -> str:
    """What gives the rest of a transaction this time limit for each statement, and for its pauses between two."""
    limit = f"{seconds * 1000:.0f}"
    return f"; SET LOCAL statement_timeout = {limit}; SET LOCAL idle_in_transaction_session_timeout = {limit}"


def _ignore() -> None:
    pass


def _transaction(begin: str, work: Work[T], rolled_back: Callable[[], None] = _ignore) -> Work[T]:
    async def transaction(connection: Connection) -> T:
        result = await _begun(connection, begin, work)
        try:
            await _commit(connection)
        except asyncpg.PostgresError:
            rolled_back()
            raise
        return result

    return transaction


def _reading(begin: str, work: Work[T]) -> Work[T]:
    async def transaction(connection: Connection) -> T:
        result = await _begun(connection, begin, work)
        # If the connection is lost here, it is known that nothing was changed: that is Unavailable, not OutcomeUnknown.
        await connection.execute("COMMIT")
        return result

    return transaction


async def _begun(connection: Connection, begin: str, work: Work[T]) -> T:
    await connection.execute(begin)
    try:
        return await work(connection)
    except asyncpg.PostgresError:  # after anything else the pool closes the session
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise


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
