"""Fixtures: a real PostgreSQL, a database for every test, and recon on it."""

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trustme
from aiohttp.test_utils import TestClient

from recon.app import create_app
from recon.database.definitions import SCHEMA
from recon.settings import Settings
from tests.harness.databases import Administrator, at_database, execute
from tests.harness.memory import folder_in_memory
from tests.harness.processes import MakeClient, StartRecon, recon_processes
from tests.harness.storm import many_files

# Each of the processes that run the tests has its own template; they may share a server.
TEMPLATE = f"recon_template_{os.getpid()}"

# Settings must come from the test, not from the environment of the machine.
for _name in [name for name in os.environ if name.startswith("RECON_") and not name.startswith("RECON_TEST_")]:
    del os.environ[_name]
for _name in ("PORT", "DATABASE_URL"):
    os.environ.pop(_name, None)

# In the background and under nohup, child processes would ignore these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# How long an example takes depends on the machine and on what else runs there.
hypothesis.settings.register_profile("recon", deadline=None)
hypothesis.settings.load_profile("recon")

# The container is stopped by the fixture that started it; the reaper would be one more image to pull.
os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
IMAGE = "postgres:17"
DATA = "/var/lib/postgresql/data"  # in the container
# No test loses power, so nothing waits for a disk; and what is measured shares the cores with no vacuum.
NOT_DURABLE = {"fsync": "off", "full_page_writes": "off", "autovacuum": "off"}


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
        raise pytest.UsageError("RECON_TEST_POSTGRES must be docker or embedded")
    if chosen is None:
        chosen = "docker" if _docker_has_postgres() else "embedded"
    return {"docker": f"testcontainers, {IMAGE}", "embedded": "embedded"}[chosen]


SERVER = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Choose the server of the tests' databases, once."""
    config.stash[SERVER] = _kind_of_server()
    # A PostgreSQL that root starts runs as another user, and each session of pytest closes root's shared temporary
    # folder to other users. So each session has its own folder.
    folder = tempfile.mkdtemp(prefix="recon-pytest-", dir=folder_in_memory())
    os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_report_header(config: pytest.Config) -> str:
    """Name the server of the tests' databases."""
    return f"PostgreSQL: {config.stash[SERVER]}"


@contextmanager
def _server(kind: str) -> Iterator[str]:
    if kind == "RECON_TEST_DATABASE_URL":
        yield os.environ["RECON_TEST_DATABASE_URL"]
    elif kind == "embedded":
        from tests.harness.postgres import postgres

        # On a TCP port, unlike recon's embedded server, so that pgbouncer, which runs as another user, can connect.
        with (
            tempfile.TemporaryDirectory(prefix="recon-test-", dir=folder_in_memory()) as folder,
            postgres(Path(folder), NOT_DURABLE) as server,
        ):
            yield server.url()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own deprecations
            from testcontainers.postgres import PostgresContainer

            settings = [f"--{name}={value}" for name, value in NOT_DURABLE.items()]
            container = PostgresContainer(IMAGE, driver=None, command=["postgres", *settings])
            with container.with_tmpfs_mount(DATA):
                yield container.get_connection_url()


@pytest.fixture(scope="session")
def administrator(pytestconfig: pytest.Config) -> Iterator[Administrator]:
    """Who creates and drops the tests' databases; there is a template database that has the schema."""
    with _server(pytestconfig.stash[SERVER]) as url, Administrator(url) as administrator:
        administrator.execute(f"CREATE DATABASE {TEMPLATE} ENCODING UTF8 TEMPLATE template0")
        asyncio.run(execute(at_database(url, TEMPLATE), SCHEMA))
        yield administrator
        administrator.execute(f"DROP DATABASE {TEMPLATE} WITH (FORCE)")


@pytest.fixture(scope="session")
def server_url(administrator: Administrator) -> str:
    """The server of the tests' databases."""
    return administrator.url


@contextmanager
def _new_database(administrator: Administrator, template: str) -> Iterator[str]:
    name = f"recon_test_{os.getpid()}_{time.monotonic_ns()}"
    # To copy files is faster than to log their pages, where nothing waits for a disk.
    administrator.execute(f"CREATE DATABASE {name} ENCODING UTF8 TEMPLATE {template} STRATEGY file_copy")
    try:
        yield at_database(administrator.url, name)
    finally:
        administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database_url(administrator: Administrator) -> Iterator[str]:
    """A database for this test, with the schema and no rows."""
    with _new_database(administrator, TEMPLATE) as url:
        yield url


@pytest.fixture(scope="module")
def shared_database_url(administrator: Administrator) -> Iterator[str]:
    """A database that all tests of a module share; they empty it themselves."""
    with _new_database(administrator, TEMPLATE) as url:
        yield url


@pytest.fixture
def bare_database_url(administrator: Administrator) -> Iterator[str]:
    """An empty database for this test, without the schema."""
    with _new_database(administrator, "template0") as url:
        yield url


@pytest.fixture
def make_client(aiohttp_client: Any, database_url: str) -> MakeClient:
    """A function that runs recon in this process, with the given settings, on the test's database."""

    async def make(**settings: Any) -> "TestClient[Any, Any]":
        if region := settings.get("default_region"):
            await execute(database_url, f"UPDATE setting SET default_region = '{region}'")
        return await aiohttp_client(create_app(Settings(**{"database_url": database_url} | settings)))

    return make


@pytest.fixture
async def client(make_client: MakeClient) -> "TestClient[Any, Any]":
    """A client of recon with its default settings."""
    return await make_client()


@pytest.fixture
def files() -> Iterator[int]:
    """Let this process, the client of all, open as many files as it may; so many."""
    with many_files() as count:
        yield count


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The options for a certificate of this machine."""
    folder = tmp_path_factory.mktemp("tls")
    issued = trustme.CA().issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "key.pem").chmod(0o600)
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return ["--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem")]


@pytest.fixture
def start_recon(tmp_path: Path) -> Iterator[StartRecon]:
    """A function that starts `recon serve` as a process, which is stopped when the test ends."""
    with recon_processes(tmp_path) as start:
        yield start
