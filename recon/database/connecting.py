"""Connecting to the database: sessions outside and inside the pool, and the cause, in one line, when that fails."""

import logging
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic as _now
from typing import Any

import asyncpg

from recon.database.definitions import Connection
from recon.dsn import has_password_parameter, server_of
from recon.errors import OutcomeUnknown, ReconError, RowsHeld, SchemaMismatch, Unavailable, Unreachable

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 3.0  # seconds until a connection attempt counts as failed
REPEAT = 30.0  # seconds after which the log repeats why recon cannot use the database

_COMPLETION_UNKNOWN = "40003"
_LOCK_NOT_AVAILABLE = "55P03"
# Classes and codes of SQLSTATE that mean "unavailable", whatever the request: connections, resources,
# operator intervention (shutdown, time-outs), the system, log-in, a missing database, an object or lock
# that is not available, a standby, a server that protects itself against transaction-id wraparound.
_UNAVAILABLE = ("08", "28", "3D", "53", "54000", "55", "57", "58", "25006")

# Why PostgreSQL, or a pooler in front of it, refuses a new session, by SQLSTATE. Its own text is not passed on: it can
# be in any language and quote anything.
_REFUSALS = {
    "28P01": "the password is wrong, or the role {user} does not exist",
    "28000": "the role {user} does not exist or may not log in, or pg_hba.conf does not let it in",
    "42501": "the role {user} may not connect to the database {database}",
    "3D000": "the database {database} does not exist",
    "55000": "the database {database} accepts no connections",
    "53300": "PostgreSQL has no connection left for the role {user}",
    "57P01": "PostgreSQL is shutting down",
    "57P03": "PostgreSQL is starting up, shutting down or recovering",
    "08003": "the server closed the connection",
    "25006": "the server is read-only, as a standby is; recon needs the primary",
}
# More exact reasons for 28000, by the function of PostgreSQL that raised it.
_LOGIN_REFUSALS = {
    "ClientAuthentication": "pg_hba.conf has no entry for the role {user}, the database {database} and this host",
    "InitializeSessionUserId": "the role {user} does not exist or may not log in",
    "auth_failed": "the role {user} could not be authenticated by the method in pg_hba.conf",
}
_ERRNO = re.compile(r"\[Errno (\d+)\]")


async def connect(url: str, **options: Any) -> Connection:
    """Open a session. Raises Unreachable with the cause, or SchemaMismatch if retrying would not help."""
    try:
        return await asyncpg.connect(url, timeout=CONNECT_TIMEOUT, **options)
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" not in str(error):
            raise Unreachable(f"{server_of(url)}: {_cause(url, error)}") from error
        raise SchemaMismatch(f"{_POOLER}{_quoted(url, error, ' (it says: {})')}") from None
    except (
        asyncpg.ClientConfigurationError,
        asyncpg.InvalidParameterValueError,
        asyncpg.UndefinedObjectError,
    ) as error:
        raise SchemaMismatch(f"the database URL cannot be used{_quoted(url, error, ': {}')}") from None
    except Exception as error:  # a server that is not PostgreSQL makes the driver raise anything
        raise Unreachable(f"{server_of(url)}: {_cause(url, error)}") from error


def _quoted(url: str, error: Exception, frame: str) -> str:
    """Quote the server's message about a parameter, unless it may contain a part of an unencoded password."""
    return "" if has_password_parameter(url) else frame.format(str(error).partition("\n")[0])


def _cause(url: str, error: Exception) -> str:
    """Return why there is no session. Quotes nothing but the names of host, database and role."""
    if isinstance(error, asyncpg.PostgresError):
        return _refusal(error).format(**server_of(url)._asdict())
    if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return "only a standby answers; recon needs the primary"
    if isinstance(error, OSError):
        return _network_failure(error)
    return f"the server does not answer as PostgreSQL does ({type(error).__qualname__})"


def _refusal(error: asyncpg.PostgresError) -> str:
    sqlstate = error.sqlstate or "none"
    if sqlstate == "28000" and error.server_source_function in _LOGIN_REFUSALS:
        return _LOGIN_REFUSALS[error.server_source_function]
    return _REFUSALS.get(sqlstate) or f"the server or a connection pooler refuses the session (SQLSTATE {sqlstate})"


def _network_failure(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({getattr(error, 'verify_message', None) or error.reason})"
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    if error.errno is not None:
        return os.strerror(error.errno)
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT:.0f} seconds"
    if "SSL" in str(error):  # an error of the driver
        return "the server does not accept TLS, or is not PostgreSQL"
    # A host name with several addresses has the errors of all of them in one text.
    numbers = dict.fromkeys(map(int, _ERRNO.findall(str(error))))
    return ", ".join(map(os.strerror, numbers)) or f"the connection was lost ({type(error).__qualname__})"


_POOLER = "a connection pooler is between recon and the database; `--pgbouncer` (RECON_PGBOUNCER=1) makes that work"
_OWN_SESSION = "SELECT pg_backend_pid() = $1 AND current_setting('default_transaction_isolation') = $2"


async def require_own_session(connection: Connection, session: dict[str, str]) -> None:
    """Raise SchemaMismatch unless the session keeps the settings that it was opened with.

    Reads are serializable by the session's default isolation level. A connection pooler may silently drop this
    setting, or run the next transaction in another session. It is detected by the process id that it made up.
    """
    # Without a name: a named statement would remain in the pooler's session.
    statement = await connection.prepare(_OWN_SESSION, name="")
    if not await statement.fetchval(connection.get_server_pid(), session["default_transaction_isolation"]):
        raise SchemaMismatch(_POOLER)


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Open a session outside the pool, for work other than requests. Raises Unreachable with the cause."""
    with reaching(url):
        # No prepared statements: a connection pooler may run each transaction in another session.
        connection = await connect(url, statement_cache_size=0)
        try:
            yield connection
        finally:
            await connection.close(timeout=CONNECT_TIMEOUT)


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Outside of requests: turn every error of the database and the driver into Unreachable, with its cause."""
    try:
        yield
    except asyncpg.PostgresError as error:
        cause = f"the database refused a statement (SQLSTATE {error.sqlstate}, {type(error).__qualname__})"
        raise Unreachable(f"{server_of(url)}: {cause}") from error
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        cause = f"the connection was lost ({type(error).__qualname__})"
        raise Unreachable(f"{server_of(url)}: {cause}") from error


@contextmanager
def unavailability() -> Iterator[None]:
    """For a request: turn the errors that the driver raises without a working database into Unavailable."""
    try:
        yield
    except asyncpg.DataError:
        raise
    except asyncpg.PostgresError as error:
        if error.sqlstate == _COMPLETION_UNKNOWN:
            raise OutcomeUnknown from error
        if error.sqlstate == _LOCK_NOT_AVAILABLE:
            raise RowsHeld from error
        if is_unavailability(error):
            raise Unavailable from error
        raise
    except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise Unavailable from error


@contextmanager
def no_longer_served() -> Iterator[None]:
    """While recon serves, turn SchemaMismatch into Unavailable: an operator may repair the database."""
    try:
        yield
    except SchemaMismatch as error:
        raise Unavailable(str(error)) from None


def is_unavailability(error: asyncpg.PostgresError) -> bool:
    """Whether an error of PostgreSQL means that the database is not available, whatever the request."""
    return (error.sqlstate or "").startswith((*_UNAVAILABLE, _COMPLETION_UNKNOWN))


class Outage:
    """Logs why recon cannot use the database: each cause at once, and again every 30 seconds while it lasts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._logged: dict[str, float] = {}  # each cause, and when it was logged last
        self._lasts = False

    def report(self, error: ReconError) -> None:
        """Log why recon cannot use the database, unless the same line was logged in the last 30 seconds."""
        cause = error.reason if isinstance(error, Unreachable) else f"{server_of(self._url)}: {error}"
        now = _now()
        if now - self._logged.get(cause, -REPEAT) >= REPEAT:
            # Causes are kept when the outage ends: causes that come and go must not fill the log.
            self._logged = {each: then for each, then in self._logged.items() if now - then < REPEAT} | {cause: now}
            self._lasts = True
            log.error("recon cannot use the database and tries again every second: %s", cause)

    def end(self) -> None:
        """Log that recon can use the database, if the last line said that it could not."""
        if self._lasts:
            self._lasts = False
            log.info("recon can use the database now")
