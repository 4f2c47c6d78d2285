"""The pool: sessions of one database, each used by one piece of work at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import asyncpg

from recon import metrics
from recon.database.connecting import (
    CONNECT_TIMEOUT,
    Outage,
    connect,
    no_longer_served,
    require_own_session,
    unavailability,
)
from recon.database.definitions import Connection
from recon.errors import OutcomeUnknown, ReconError, Unavailable
from recon.settings import DatabaseSettings

T = TypeVar("T")
Work: TypeAlias = Callable[[Connection], Awaitable[T]]

_PREPARED_STATEMENTS = 100  # maximum of a session; recon has fewer


class Pool:
    """Sessions that are opened when they are needed, up to `settings.pool_size`.

    Not asyncpg's pool: that resets a connection in a task of its own whenever it is released, and under load a task is
    a turn of the event loop, for which each batch would have to wait. recon leaves nothing in a session that would need
    resetting.

    Parameters
    ----------
    url : URL of the database.
    settings : how the process uses it.
    session : PostgreSQL's settings of each session.
    outage : logs why no session can be opened.
    """

    def __init__(self, url: str, settings: DatabaseSettings, session: Mapping[str, str], outage: Outage) -> None:
        self._url = url
        self._session = dict(session)
        self._pgbouncer = settings.pgbouncer
        self._time_limit = settings.transaction_timeout
        self._outage = outage
        self._slots = asyncio.Semaphore(settings.pool_size)
        self._idle: list[Connection] = []  # the last one is used next

    async def run(self, work: Work[T], seconds: float | None = None) -> T:
        """Run `work` on a session that nothing else uses meanwhile.

        `seconds` is the time limit, instead of the settings'. Raises Unavailable if the database cannot be reached, or
        does not answer within the time limit.
        """
        async with self._slots:
            with unavailability(), no_longer_served():
                connection = self._idle_session() or await self._replacement()
                metrics.POOL_USED.inc()
                try:
                    with self._watched(connection, seconds or self._time_limit):
                        return await work(connection)
                except (asyncio.CancelledError, OutcomeUnknown):
                    # The server may still execute what it was sent, a BEGIN for example: the session is not used again.
                    connection.terminate()
                    raise
                finally:
                    metrics.POOL_USED.dec()
                    if connection.is_closed() or connection.is_in_transaction():
                        await self.discard(connection)
                    else:
                        self._idle.append(connection)

    async def open(self) -> Connection:
        """Open a session. Raises ReconError if that fails, and logs it."""
        try:
            return await self._opened()
        except ReconError as error:
            self._outage.report(error)
            raise

    async def discard(self, connection: Connection) -> None:
        """Close a session."""
        metrics.POOL_SIZE.dec()
        try:
            await connection.close(timeout=CONNECT_TIMEOUT)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            connection.terminate()

    async def close(self) -> None:
        """Close all idle sessions."""
        while self._idle:
            await self.discard(self._idle.pop())

    def _idle_session(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():  # a restart of the database closes all sessions
                return connection
            metrics.POOL_SIZE.dec()
        return None

    async def _replacement(self) -> Connection:
        connection = await self.open()
        self._outage.end()
        return connection

    async def _opened(self) -> Connection:
        connection = await connect(
            self._url,
            server_settings=self._session,
            statement_cache_size=0 if self._pgbouncer else _PREPARED_STATEMENTS,
            # Refuse a standby, even if it is the only host: it may become the primary.
            target_session_attrs=None if self._pgbouncer else "read-write",
        )
        metrics.POOL_SIZE.inc()
        if not self._pgbouncer:
            try:
                with self._watched(connection, CONNECT_TIMEOUT):
                    await require_own_session(connection, self._session)
            except BaseException:
                await self.discard(connection)
                raise
        return connection

    @contextmanager
    def _watched(self, connection: Connection, seconds: float) -> Iterator[None]:
        """Watchdog: after `seconds`, close this session and all idle ones.

        A server that hangs answers neither a ROLLBACK nor a Terminate nor, perhaps, the next session. When it responds
        again, it finds its connections closed and rolls back.
        """
        watchdog = asyncio.get_running_loop().call_later(seconds, self.give_up, connection)
        try:
            yield
        except AttributeError as error:  # the driver's, when `give_up` comes between two protocol messages
            if not connection.is_closed():
                raise
            raise Unavailable from error
        finally:
            watchdog.cancel()

    def give_up(self, connection: Connection) -> None:
        """Close a session and all idle ones at once, without sending anything to the server."""
        connection.terminate()
        metrics.POOL_SIZE.dec(len(self._idle))
        while self._idle:
            self._idle.pop().terminate()
