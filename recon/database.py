"""The pool, the schema, and transactions that are retried until they are serial. Knows no contacts."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from typing import TypeAlias, TypeVar

import asyncpg

from recon import metrics
from recon.errors import OutcomeUnknown, RetriesExhausted, SchemaMismatch, Unavailable

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Work: TypeAlias = Callable[[Connection], Awaitable[T]]

log = logging.getLogger(__name__)

OLDEST_SERVER = 150_000  # PostgreSQL 15, as `server_version_num` says it
SCHEMA = files("recon").joinpath("schema.sql").read_text()
SCHEMA_VERSION = 1  # what the last line of schema.sql says

CONNECT_TIMEOUT = 5.0  # seconds until a connection attempt counts as failed
STARTUP_RETRY = 1.0  # seconds between looks at a database that is not there yet

# How every session plans: each statement of a request is a walk along indexes, from the first row of a
# never-analysed table to the millionth. A sequential scan under SERIALIZABLE reads, and so conflicts
# with, the whole table; a generic plan spares planning each time.
SESSION = {
    "application_name": "recon",
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

_RETRIED = {"40001": "serialization_failure", "40P01": "deadlock_detected"}
_COMPLETION_UNKNOWN = "40003"
# Classes and codes of SQLSTATE that say "not now", whatever the request: connections, resources,
# operator intervention (shutdown, time-outs), the system, log-in, a missing database, an object or lock
# that is not available, a standby.
_UNAVAILABLE = ("08", "28", "3D", "53", "55", "57", "58", "25006")


class Database:
    """Connections to one database that holds, or is given, recon's schema.

    Parameters
    ----------
    url : where it is.
    pool_size : most connections at a time.
    retry_limit : most tries of a transaction that meets others.
    statement_timeout : seconds a statement may take, waiting for locks included.
    writer_lane : whether writing transactions go one after another (for speed alone).
    isolation : weaker than SERIALIZABLE only where a test shows what that does.
    """

    def __init__(
        self,
        url: str,
        *,
        pool_size: int = 16,
        retry_limit: int = 200,
        statement_timeout: float = 10,
        writer_lane: bool = True,
        isolation: str = "SERIALIZABLE",
    ) -> None:
        self._url = url
        self._retry_limit = retry_limit
        self._begin = f"BEGIN ISOLATION LEVEL {isolation}"
        if writer_lane:
            # In the same message as BEGIN and before any snapshot: who waited here sees what the one
            # before it wrote. A lock taken by a later statement would come too late for that.
            self._begin += "; LOCK TABLE writer_lane IN EXCLUSIVE MODE"
        self._slots = asyncio.Semaphore(pool_size)
        self._idle: list[Connection] = []  # the last one used is the next to be used
        self._statement_timeout = statement_timeout
        self._session = SESSION | {
            "default_transaction_isolation": isolation.lower(),
            "statement_timeout": f"{statement_timeout * 1000:.0f}",  # milliseconds, as the next
            "idle_in_transaction_session_timeout": f"{statement_timeout * 1000:.0f}",
        }
        self._ready = False
        self._why_not_ready: str | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Database"]:
        """Serve from entering to leaving; a database that is not there yet is waited for in the background.

        Raises SchemaMismatch when it is there and cannot be served.
        """
        waiting: asyncio.Task[None] | None = None
        try:
            await self._prepare()
        except Unavailable as error:
            why = type(error.__cause__).__name__  # not its text, which may have a user's name in it
            log.warning("the database cannot be reached (%s); waiting for it", why)
            waiting = asyncio.create_task(self._wait_until_prepared())
        try:
            yield self
        finally:
            if waiting is not None:
                waiting.cancel()
            self._ready = False
            while self._idle:
                await self._close(self._idle.pop())

    async def check(self) -> None:
        """Raise Unavailable unless the database answers and has the schema."""
        if not self._ready:
            raise Unavailable(self._why_not_ready)
        try:
            await self._on_connection(require_schema)
        except SchemaMismatch as error:
            raise Unavailable(str(error)) from None

    async def snapshot(self, step: str, work: Work[T]) -> T:
        """Run `work`, a single statement that only reads, as its own serializable transaction.

        No BEGIN and no COMMIT: the session's default isolation does it, in one round trip. `work` may
        run more than once.
        """
        return await self._until_serial(step, work)

    async def serializable(self, step: str, work: Work[T]) -> T:
        """Run `work` in a serializable transaction, COMMIT included, until it meets no other.

        `work` may run more than once, so what it leaves behind outside the database must be
        replaced, not added to, by its next run. Raises RetriesExhausted after too many tries,
        OutcomeUnknown when the database was lost during COMMIT, Unavailable when it was before.
        """

        async def transaction(connection: Connection) -> T:
            await connection.execute(self._begin)
            try:
                result = await work(connection)
            except BaseException:
                if not connection.is_closed():
                    await connection.execute("ROLLBACK")
                raise
            await _commit(connection)
            return result

        return await self._until_serial(step, transaction)

    async def _until_serial(self, step: str, transaction: Work[T]) -> T:
        if not self._ready:
            raise Unavailable(self._why_not_ready)
        for tries in range(self._retry_limit):
            try:
                result = await self._on_connection(transaction)
            except asyncpg.PostgresError as error:
                reason = _RETRIED.get(error.sqlstate or "")
                if reason is None:
                    metrics.count_transaction(step, "failed")
                    raise
                metrics.RETRIES.labels(step, reason).inc()
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

    async def _on_connection(self, work: Work[T]) -> T:
        """Run `work` on a connection that is nobody else's meanwhile.

        Not asyncpg's pool: that resets a connection in a task of its own whenever it is handed back, and
        under load a task is a turn of the event loop, for which each batch would have to wait. recon
        leaves nothing behind in a session that would need resetting.
        """
        async with self._slots:
            with _unavailability():
                connection = self._idle_one() or await self._connect()
                metrics.POOL_USED.inc()
                try:
                    return await work(connection)
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

    async def _connect(self) -> Connection:
        connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT_TIMEOUT,
            command_timeout=self._statement_timeout + CONNECT_TIMEOUT,  # for a server that no longer answers at all
            server_settings=self._session,
        )
        metrics.POOL_SIZE.inc()
        return connection

    async def _close(self, connection: Connection) -> None:
        metrics.POOL_SIZE.dec()
        try:
            await connection.close(timeout=CONNECT_TIMEOUT)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()

    async def _prepare(self) -> None:
        await apply_schema_to(self._url)
        self._ready = True

    async def _wait_until_prepared(self) -> None:
        while not self._ready:
            await asyncio.sleep(STARTUP_RETRY)
            try:
                await self._prepare()
            except Unavailable:
                continue
            except SchemaMismatch as error:
                if self._why_not_ready != str(error):
                    self._why_not_ready = str(error)
                    log.error("%s", error)  # noqa: TRY400 (its message says it all)
        log.info("the database is there; serving")


SCHEMA_COMMENT = "SELECT obj_description(to_regclass('contact'), 'pg_class')"
_SERVER = """
SELECT current_setting('server_version_num')::int AS version, current_setting('server_encoding') AS encoding,
    to_regclass('contact') IS NOT NULL AS has_contact
"""
# What two processes that create the same things at once may get; the second finds them made.
_CREATION_RACES = (
    asyncpg.UniqueViolationError,
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateObjectError,
    asyncpg.DuplicateFunctionError,
    asyncpg.InternalServerError,  # "tuple concurrently updated"
    asyncpg.DeadlockDetectedError,
)
_CREATION_TRIES = 20


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """A connection outside the pool, for what is not part of a request. Raises Unavailable."""
    with _unavailability():
        connection = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT)
        try:
            yield connection
        finally:
            await connection.close()


async def require_schema(connection: Connection) -> None:
    """Raise SchemaMismatch unless the database has this version's schema."""
    if await connection.fetchval(SCHEMA_COMMENT) != _comment(SCHEMA_VERSION):
        raise SchemaMismatch(
            f"the database does not have recon's schema {SCHEMA_VERSION}; `recon schema --apply` makes it"
        )


async def apply_schema_to(url: str) -> bool:
    """`apply_schema` on a connection of its own."""
    async with connected(url) as connection:
        return await apply_schema(connection)


async def apply_schema(connection: Connection) -> bool:
    """Give the database the schema unless it has it; True when it was missing at first look.

    Safe when several do so at once. Raises SchemaMismatch, with what to do, when the database is too
    old, not in UTF-8, or has another schema than this version's.
    """
    for _ in range(_CREATION_TRIES):
        server = await connection.fetchrow(_SERVER)
        comment = await connection.fetchval(SCHEMA_COMMENT)
        if server is None or server["version"] < OLDEST_SERVER:
            raise SchemaMismatch("recon needs PostgreSQL 15 or newer")
        if server["encoding"] != "UTF8":
            raise SchemaMismatch(f"recon needs a database in UTF8; this one is in {server['encoding']}")
        if comment == _comment(SCHEMA_VERSION):
            return False
        if server["has_contact"]:
            found = f"schema {comment.rpartition(' ')[2]}" if comment else "a table contact that is not recon's"
            raise SchemaMismatch(f"this recon serves schema {SCHEMA_VERSION}, but the database has {found}")
        try:
            async with connection.transaction():
                await connection.execute(SCHEMA)
        except asyncpg.InsufficientPrivilegeError:
            raise SchemaMismatch(
                "the database has no schema yet, and this role may not make it: run `recon schema --apply` as its owner"
            ) from None
        except _CREATION_RACES:
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE))  # noqa: S311
        else:
            return True
    raise SchemaMismatch("the schema could not be created: others keep changing it")


def _comment(version: int) -> str:
    return f"recon schema {version}"


async def _commit(connection: Connection) -> None:
    try:
        await connection.execute("COMMIT")
    except asyncpg.PostgresError as error:
        if _is_unavailability(error):
            raise OutcomeUnknown from error
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise OutcomeUnknown from error


@contextmanager
def _unavailability() -> Iterator[None]:
    """Turn what the driver raises when the database is not there into Unavailable."""
    try:
        yield
    except asyncpg.DataError:
        raise
    except asyncpg.PostgresError as error:
        if error.sqlstate == _COMPLETION_UNKNOWN:
            raise OutcomeUnknown from error
        if _is_unavailability(error):
            raise Unavailable from error
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise Unavailable from error


def _is_unavailability(error: asyncpg.PostgresError) -> bool:
    return (error.sqlstate or "").startswith((*_UNAVAILABLE, _COMPLETION_UNKNOWN))
