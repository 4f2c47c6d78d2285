"""Connecting: each failure is one line with its cause, and recon retries after every failure."""

import asyncio
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import trustme

from recon.database import connecting
from recon.database.connecting import Outage, connect
from recon.database.transactions import Database
from recon.database.upgrade import apply_schema_to
from recon.errors import SchemaMismatch, Unavailable, Unreachable
from recon.sql import invariants
from tests.harness.databases import execute
from tests.harness.processes import Process, StartRecon, recon

SECRET = "hunter2"  # noqa: S105


def url_of(url: str, *, user: str | None = None, database: str | None = None) -> str:
    """Return the same server's URL, with another user and the secret as its password, or with another database."""
    parts = urlsplit(url)
    if user is not None:
        parts = parts._replace(netloc=f"{user}:{SECRET}@{parts.netloc.rpartition('@')[2]}")
    return urlunsplit(parts._replace(path=f"/{database}") if database else parts)


@contextmanager
def role(url: str, options: str = "LOGIN") -> Iterator[str]:
    """Create a role of the server with a password."""
    name = f"recon_test_role_{os.getpid()}"
    asyncio.run(execute(url, f"CREATE ROLE {name} {options} PASSWORD '{SECRET}'"))
    try:
        yield name
    finally:
        asyncio.run(execute(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}"))


async def reason(url: str) -> str:
    """Return why there is no session; check that `recon check` and `recon schema --apply` give the same reason."""
    reasons = []
    for attempt in (connect, invariants.check, apply_schema_to):
        with pytest.raises(Unreachable) as caught:
            await attempt(url)  # type: ignore[operator]
        assert str(caught.value) == Unavailable.__doc__  # what a client may read
        reasons.append(caught.value.reason)
    assert len(set(reasons)) == 1
    assert SECRET not in reasons[0]
    assert reasons[0].isprintable()
    where, _, why = reasons[0].partition(": ")
    assert where.startswith("PostgreSQL at ")
    return why


def test_what_postgresql_refuses(database_url: str) -> None:
    """If PostgreSQL refuses the session, the line names the database and the role."""
    name = urlsplit(database_url).path[1:]
    asyncio.run(execute(database_url, f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC"))

    assert asyncio.run(reason(url_of(database_url, database="nowhere"))) == "the database nowhere does not exist"
    with role(database_url) as user:
        expected = f"the role {user} may not connect to the database {name}"
        assert asyncio.run(reason(url_of(database_url, user=user))) == expected
    asyncio.run(execute(database_url, f"GRANT CONNECT ON DATABASE {name} TO PUBLIC"))
    with role(database_url, "LOGIN CONNECTION LIMIT 0") as user:
        expected = f"PostgreSQL has no connection left for the role {user}"
        assert asyncio.run(reason(url_of(database_url, user=user))) == expected
    with role(database_url, "NOLOGIN") as user:
        expected = f"the role {user} does not exist or may not log in"
        assert asyncio.run(reason(url_of(database_url, user=user))) == expected


class Answering(asyncio.Protocol):
    """Answers a client's first message, which asks for TLS, and its next one."""

    def __init__(self, answers: list[bytes], clients: set[asyncio.BaseTransport]) -> None:
        self._answers = iter(answers)
        self._clients = clients

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._clients.add(transport)

    def data_received(self, _: bytes) -> None:
        self._transport.write(next(self._answers, b""))  # type: ignore[attr-defined]

    def connection_lost(self, _: Exception | None) -> None:
        self._clients.discard(self._transport)


@asynccontextmanager
async def server(*answers: bytes) -> AsyncIterator[str]:
    """Run a server that sends these answers to each client; yield its URL."""
    clients: set[asyncio.BaseTransport] = set()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Answering([*answers], clients), "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://recon:{SECRET}@127.0.0.1:{port}/shop"
    finally:
        listening.close()
        while clients:
            for each in list(clients):
                each.abort()  # type: ignore[attr-defined]
            await asyncio.sleep(0)


def refusal(sqlstate: str, text: str, function: str = "") -> bytes:
    """Make PostgreSQL's message that refuses a session."""
    fields = {"S": "FATAL", "V": "FATAL", "C": sqlstate, "M": text} | ({"R": function} if function else {})
    body = b"".join(f"{field}{value}".encode() + b"\0" for field, value in fields.items()) + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body


@pytest.mark.parametrize(
    ("sqlstate", "function", "why"),
    [
        ("28P01", "auth_failed", "the password is wrong, or the role recon does not exist"),
        (
            "28000",
            "ClientAuthentication",
            "pg_hba.conf has no entry for the role recon, the database shop and this host",
        ),
        ("28000", "", "the role recon does not exist or may not log in, or pg_hba.conf does not let it in"),
        ("53300", "", "PostgreSQL has no connection left for the role recon"),
        ("57P03", "", "PostgreSQL is starting up, shutting down or recovering"),
        ("0A000", "", "the server or a connection pooler refuses the session (SQLSTATE 0A000)"),
        ("08P01", "", "the server or a connection pooler refuses the session (SQLSTATE 08P01)"),
        ("XX000", "", "the server or a connection pooler refuses the session (SQLSTATE XX000)"),
    ],
)
async def test_the_cause_is_told_by_code(sqlstate: str, function: str, why: str) -> None:
    """The cause is derived from SQLSTATE; PostgreSQL's text, which may quote anything, is not passed on."""
    async with server(b"N", refusal(sqlstate, f"nein, {SECRET}", function)) as url:
        assert await reason(url) == why


JUNK = [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"", "the server does not accept TLS, or is not PostgreSQL"),
    (b"SSH-2.0-OpenSSH_9\r\n", b"", "the server does not accept TLS, or is not PostgreSQL"),
    (b"N", b"R\0\0\0\4", "the server does not answer as PostgreSQL does (InternalClientError)"),
    (b"N", b"R\0\0\0\x08\0\0\0\x63", "the server does not answer as PostgreSQL does (InterfaceError)"),
    (b"N", b"E\0\0\0\5\0", "the server or a connection pooler refuses the session (SQLSTATE none)"),
]


@pytest.mark.parametrize(("first", "answer", "why"), JUNK)
async def test_junk_on_the_port(first: bytes, answer: bytes, why: str) -> None:
    """A server that is not PostgreSQL is reported as the cause."""
    async with server(first, answer) as url:
        assert await reason(url) == why


async def test_what_the_network_refuses(unused_tcp_port: int) -> None:
    """The line names the network's failure, and all hosts of the URL."""
    user = f"postgresql://recon:{SECRET}@"

    assert await reason(f"{user}127.0.0.1:{unused_tcp_port}/shop") == "Connection refused"
    assert await reason(f"{user}host.invalid/shop") == "the host name cannot be resolved"
    assert await reason(f"{user}/shop?host=/nowhere") == "No such file or directory"
    with pytest.raises(Unreachable) as caught:
        await connect(f"{user}127.0.0.1:{unused_tcp_port},localhost:{unused_tcp_port}/shop")
    hosts = f"127.0.0.1:{unused_tcp_port}, localhost:{unused_tcp_port}"
    assert caught.value.reason == f"PostgreSQL at {hosts}, database shop, user recon: Connection refused"


async def test_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    """The line says why the certificate is invalid."""
    trusted, other = trustme.CA(), trustme.CA()
    trusted.cert_pem.write_to_path(tmp_path / "root.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.issue_cert("127.0.0.1").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        try:
            await writer.start_tls(context)
        except OSError:
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    url = f"postgresql://recon:{SECRET}@127.0.0.1:{port}/shop?sslmode=verify-full&sslrootcert={tmp_path / 'root.crt'}"

    assert (await reason(url)).startswith("TLS failed (unable to get local issuer certificate")
    listening.close()


@pytest.mark.parametrize("parameters", ["?work_mem=much", f"?password={SECRET}&work_mem=much"])
async def test_a_parameter_that_postgresql_refuses(database_url: str, parameters: str) -> None:
    """PostgreSQL's message quotes the parameter; recon passes it on only if it cannot contain a password."""
    joined = parameters.replace("?", "&") if "?" in database_url else parameters

    with pytest.raises(SchemaMismatch, match="the database URL cannot be used") as caught:
        await connect(database_url + joined)

    assert ("much" in str(caught.value)) is (SECRET not in parameters)


def test_the_cause_is_logged_again_after_30_seconds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A new cause is logged at once, the same cause every 30 seconds, and the end of the outage once."""
    now = 1000.0
    monkeypatch.setattr(connecting, "_now", lambda: now)
    caplog.set_level("INFO")
    outage = Outage("postgresql://u@db/d")
    outage.end()  # of nothing
    for seconds, why in ((0, "a"), (1, "a"), (1, "b"), (28, "a"), (29.9, "a"), (30, "a"), (30.5, "b"), (31, "b")):
        now = 1000 + seconds
        outage.report(Unreachable(why))
        caplog.records[-1].seconds = seconds
    outage.end()
    outage.end()

    lines = [(record.getMessage().rpartition(": ")[2]) for record in caplog.records]
    assert lines == ["a", "b", "a", "b", "recon can use the database now"]


Step = Callable[[], Awaitable[None]]


def test_waiting_goes_on_whatever_happens(server_url: str, start_recon: StartRecon) -> None:
    """Without the privilege CONNECT (42501), recon logs the cause and waits; after GRANT CONNECT it serves."""
    name = f"recon_test_waiting_{os.getpid()}"
    with role(server_url) as user:
        asyncio.run(
            execute(
                server_url,
                f"CREATE DATABASE {name} ENCODING UTF8 TEMPLATE template0",
                f"REVOKE CONNECT ON DATABASE {name} FROM PUBLIC",
            )
        )
        try:
            process = start_recon("--database-url", url_of(server_url, user=user, database=name), ready=False)
            line = f"database {name}, user {user}: the role {user} may not connect to the database {name}"
            _wait_for(process, line)
            assert "hunter2" not in process.log
            assert "Traceback" not in process.log
            status, body = _readyz(process)
            assert status == 503
            assert name not in body
            assert user not in body
            asyncio.run(
                execute(
                    server_url, f"ALTER DATABASE {name} OWNER TO {user}", f"GRANT CONNECT ON DATABASE {name} TO PUBLIC"
                )
            )

            process.wait_until_ready()
            _wait_for(process, "recon can use the database now")
        finally:
            process.stop()
            asyncio.run(execute(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


def _wait_for(process: Process, line: str) -> None:
    deadline = time.monotonic() + 30
    while line not in process.log:
        assert process.popen.poll() is None, process.log
        assert time.monotonic() < deadline, process.log
        time.sleep(0.02)


def _readyz(process: Process) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{process.url}/readyz", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_an_outage_while_recon_serves_is_logged(
    database_url: str, server_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """When the database stops accepting connections, recon logs it once, and once more when it is available."""
    caplog.set_level("INFO")
    name = urlsplit(database_url).path[1:]
    async with Database(database_url).opened() as database:
        await execute(
            server_url,
            f"ALTER DATABASE {name} ALLOW_CONNECTIONS false",
            f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{name}'",
        )
        for _ in range(3):
            with pytest.raises(Unavailable):
                await database.check()
        await execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        await database.check()

    lines = [record.getMessage() for record in caplog.records if record.name == "recon.database.connecting"]
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"the database {name} accepts no connections",
        "recon can use the database now",
    ]


@pytest.mark.parametrize("command", [["check"], ["schema", "--apply"]])
def test_every_command_names_host_and_cause(command: list[str], database_url: str) -> None:
    """Every command fails with one line, without a traceback."""
    done = recon(*command, "--database-url", url_of(database_url, database="nowhere"))

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("recon: PostgreSQL at ")
    assert line.endswith(": the database nowhere does not exist")
