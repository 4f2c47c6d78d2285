"""A real PostgreSQL for every test, and ways to run recon on it."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest
from aiohttp.test_utils import TestClient

from recon.app import create_app
from recon.database.definitions import SCHEMA
from recon.settings import Settings

RECON = Path(sys.executable).with_name("recon")
# One for each of the processes that run the tests, which may share a server.
TEMPLATE = f"recon_template_{os.getpid()}"

# What the settings are read from must be what a test says, not what the machine happens to have.
for _name in [name for name in os.environ if name.startswith("RECON_") and not name.startswith("RECON_TEST_")]:
    del os.environ[_name]
for _name in ("PORT", "DATABASE_URL"):
    os.environ.pop(_name, None)

# Nor may it matter whether the tests run in the background or under nohup, whose children ignore these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The container is stopped by the fixture that started it; the reaper would be one more image to pull.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
IMAGE = "postgres:17"


def _docker_has_postgres() -> bool:
    """Whether a Docker engine answers, and has the image or can pull it."""

    def succeeds(*command: str, seconds: float) -> bool:
        with suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(["docker", *command], capture_output=True, timeout=seconds, check=False)
            return done.returncode == 0
        return False

    return succeeds("info", seconds=20) and (
        succeeds("image", "inspect", IMAGE, seconds=20) or succeeds("pull", IMAGE, seconds=300)
    )


def _kind_of_server() -> str:
    if os.environ.get("RECON_TEST_DATABASE_URL"):
        return "RECON_TEST_DATABASE_URL"
    chosen = os.environ.get("RECON_TEST_POSTGRES")
    if chosen not in {None, "docker", "embedded"}:
        raise pytest.UsageError("RECON_TEST_POSTGRES is docker or embedded")
    if chosen is None:
        chosen = "docker" if _docker_has_postgres() else "embedded"
    return {"docker": f"testcontainers, {IMAGE}", "embedded": "embedded"}[chosen]


SERVER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Decide once where the tests' databases are."""
    config.stash[SERVER] = _kind_of_server()
    if os.geteuid() == 0:
        # A PostgreSQL that root starts is another user, and each session of pytest closes the folder that all sessions
        # of root share to other users. So each has a folder of its own.
        folder = tempfile.mkdtemp(prefix="recon-pytest-")
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_report_header(config: pytest.Config) -> str:
    """Say where the tests' databases are."""
    return f"PostgreSQL: {config.stash[SERVER]}"


@contextmanager
def _server(kind: str) -> Iterator[str]:
    if kind == "RECON_TEST_DATABASE_URL":
        yield os.environ["RECON_TEST_DATABASE_URL"]
    elif kind == "embedded":
        from postgres import postgres

        # On a TCP port, unlike recon's own, so that pgbouncer, which is another user, can connect.
        with tempfile.TemporaryDirectory(prefix="recon-test-") as folder, postgres(Path(folder)) as server:
            yield server.url()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own deprecations
            from testcontainers.postgres import PostgresContainer

            with PostgresContainer(IMAGE, driver=None) as container:
                yield container.get_connection_url()


async def execute(url: str, *statements: str) -> None:
    """Run statements, each on its own, on one connection."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def fetch(url: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    """The rows of a statement."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(statement, *arguments)
    finally:
        await connection.close()


def at_database(url: str, name: str) -> str:
    """The same server's URL, for another database."""
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@pytest.fixture(scope="session")
def server_url(pytestconfig: pytest.Config) -> Iterator[str]:
    """The server that the tests' databases are on, with a template database that has the schema."""
    with _server(pytestconfig.stash[SERVER]) as url:
        asyncio.run(
            execute(
                url,
                f"CREATE DATABASE {TEMPLATE} ENCODING UTF8 TEMPLATE template0",
            )
        )
        asyncio.run(execute(at_database(url, TEMPLATE), SCHEMA))
        yield url
        asyncio.run(execute(url, f"DROP DATABASE {TEMPLATE} WITH (FORCE)"))


@contextmanager
def _new_database(server_url: str, template: str) -> Iterator[str]:
    name = f"recon_test_{os.getpid()}_{time.monotonic_ns()}"
    asyncio.run(execute(server_url, f"CREATE DATABASE {name} ENCODING UTF8 TEMPLATE {template}"))
    try:
        yield at_database(server_url, name)
    finally:
        asyncio.run(execute(server_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """A database of this test's own, with the schema and no rows."""
    with _new_database(server_url, TEMPLATE) as url:
        yield url


@pytest.fixture(scope="module")
def shared_database_url(server_url: str) -> Iterator[str]:
    """A database for all tests of a module, which empty it themselves."""
    with _new_database(server_url, TEMPLATE) as url:
        yield url


@pytest.fixture
def bare_database_url(server_url: str) -> Iterator[str]:
    """A database of this test's own with nothing in it."""
    with _new_database(server_url, "template0") as url:
        yield url


MakeClient = Callable[..., Awaitable["TestClient[Any, Any]"]]


@pytest.fixture
def make_client(aiohttp_client: Any, database_url: str) -> MakeClient:
    """Run recon in this process, with the given settings, on the test's database."""

    async def make(**settings: Any) -> "TestClient[Any, Any]":
        if region := settings.get("default_region"):
            await execute(database_url, f"UPDATE setting SET default_region = '{region}'")
        return await aiohttp_client(create_app(Settings(**{"database_url": database_url} | settings)))

    return make


@pytest.fixture
async def client(make_client: MakeClient) -> "TestClient[Any, Any]":
    """A client of recon with its default settings."""
    return await make_client()


def free_port() -> int:
    """A port that nothing listens on right now.

    None of those that the system gives to outgoing connections: one of these could be gone before it is used.
    """
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


OUTAGE = "recon cannot use the database"  # what a line of the log begins with, and the cause follows


class Process:
    """A running `recon serve`, on a free port unless one is given; `command` is another program that serves so."""

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        port: int | None = None,
        command: Sequence[str | Path] = (RECON,),
        **options: Any,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        with log.open("wb") as stderr:
            self.popen = subprocess.Popen(
                [*command, "serve", "--port", str(self.port), *arguments], stderr=stderr, **options
            )

    @property
    def log(self) -> str:
        """What it has logged so far."""
        return self._log.read_text()

    def events(self) -> list[dict[str, Any]]:
        """What it has logged so far, parsed."""
        return [json.loads(line) for line in self.log.splitlines()]

    def failures(self) -> list[dict[str, Any]]:
        """The logged events that nobody expects of a recon whose database comes and goes."""
        return [
            event
            for event in self.events()
            if (event["level"] in {"error", "critical"} and not event["event"].startswith(OUTAGE)) or "where" in event
        ]

    def wait_until_ready(self, seconds: float = 60) -> None:
        """Return once /readyz says so."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.popen.poll() is None, self.log
            with suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.02)
        raise AssertionError(f"not ready after {seconds} seconds:\n{self.log}")

    def processes(self, workers: int = 1) -> list[psutil.Process]:
        """Return the process and its workers, once these are there; with one worker, they are the same."""
        master = psutil.Process(self.popen.pid)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            family = [master, *master.children()]
            if workers == 1 or len(family) > workers:
                return family
            time.sleep(0.02)
        raise AssertionError(f"fewer than {workers} workers after 30 seconds:\n{self.log}")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Ask it to stop; its exit code."""
        if self.popen.poll() is None:
            self.popen.send_signal(signum)
        return self.popen.wait(30)


async def everything(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, be it by a reset, at which asyncio forgets what came just before it."""
    received = bytearray()
    with suppress(ConnectionError):
        while some := await reader.read(65_536):
            received += some
    return bytes(received + reader._buffer)  # type: ignore[attr-defined]


StartRecon = Callable[..., Process]


@contextmanager
def recon_processes(folder: Path) -> Iterator[StartRecon]:
    """A function that starts `recon serve` with arguments, and waits until it is ready unless told otherwise."""
    with ExitStack() as stack:
        started = 0

        def start(*arguments: str, ready: bool = True, **options: Any) -> Process:
            nonlocal started
            started += 1
            process = Process([*arguments], folder / f"recon-{started}.log", **options)
            stack.callback(process.stop)
            if ready:
                process.wait_until_ready()
            return process

        yield start


@pytest.fixture
def start_recon(tmp_path: Path) -> Iterator[StartRecon]:
    """Start `recon serve` as a process of its own; it is stopped when the test ends."""
    with recon_processes(tmp_path) as start:
        yield start


def recon(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a recon command to its end."""
    return subprocess.run([RECON, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)
