"""recon through a real pgbouncer in transaction mode, configured as docs/operations.md says, with few connections."""

import asyncio
import configparser
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qs, urlsplit, urlunsplit

import aiohttp
import asyncpg
import pytest

from recon.database.transactions import SESSION, Connection, Database
from recon.errors import Unavailable
from recon.settings import DatabaseSettings
from tests.api.test_conformance import FORMS, SCENARIOS, expect_scenario
from tests.database.test_roles import PASSWORD, blocks, serving_role
from tests.harness.databases import execute
from tests.harness.old_schemas import MIGRATED
from tests.harness.ports import free_port
from tests.harness.processes import MakeClient, StartRecon, recon
from tests.harness.races import RACES
from tests.identities.test_concurrency import expect_race

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs pgbouncer")

SMALL_POOL = "4"  # fewer than the batches and checks of the processes, so that sessions change hands


@contextmanager
def pgbouncer(role_url: str, **changes: str) -> Iterator[str]:
    """Run a pgbouncer with the page's configuration and the given changes; yield the URL through it."""
    role = urlsplit(role_url)
    port = str(free_port())
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(blocks("ini")[0])
    with tempfile.TemporaryDirectory(prefix="recon-pgbouncer-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "users").write_text(f'"{role.username}" "{PASSWORD}"\n')
        host = role.hostname or parse_qs(role.query)["host"][0]
        config["databases"] = {"*": f"host={host} port={role.port or 5432}"}
        config["pgbouncer"].update(
            {
                "listen_port": port,
                "auth_file": str(folder / "users"),
                "default_pool_size": SMALL_POOL,
                "unix_socket_dir": "",
            }
            | changes
        )
        with (folder / "ini").open("w") as file:
            config.write(file)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([str(PGBOUNCER), str(folder / "ini")], stderr=log, user=_user(host))
        try:
            _wait_for(int(port), process, folder / "log")
            yield urlunsplit(role._replace(netloc=f"{role.username}:{PASSWORD}@127.0.0.1:{port}", query=""))
        finally:
            process.kill()
            process.wait(10)


def _user(host: str) -> str | None:
    """Return the user that runs pgbouncer: not root, and one that can open the socket's folder."""
    if os.getuid() != 0:
        return None
    return Path(host).owner() if host.startswith("/") else "nobody"


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.01)
    raise AssertionError(f"pgbouncer does not listen:\n{log.read_text()}")


@pytest.fixture(scope="module")
def role_url(shared_database_url: str) -> Iterator[str]:
    """The module's database, for the page's role that owns nothing."""
    with serving_role(shared_database_url) as url:
        yield url


@pytest.fixture(scope="module")
def pooled_url(role_url: str) -> Iterator[str]:
    """The same database and role, through pgbouncer."""
    with pgbouncer(role_url) as url:
        yield url


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """An HTTP client without a limit of connections."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


@pytest.mark.parametrize("form", FORMS)
async def test_every_scenario(form: str, pooled_url: str, shared_database_url: str, make_client: MakeClient) -> None:
    """Every scenario of the contract passes."""
    client = await make_client(database_url=pooled_url, pgbouncer=True, **FORMS[form])
    assert (await client.get("/readyz")).status == 200

    for scenario in SCENARIOS:
        await execute(shared_database_url, "TRUNCATE contact RESTART IDENTITY")
        await expect_scenario(scenario, client, shared_database_url)


@pytest.mark.parametrize("form", [[], ["--no-coalesce", "--no-writer-lane"]], ids=["default", "plain"])
async def test_every_race(
    form: list[str], pooled_url: str, shared_database_url: str, start_recon: StartRecon, session: aiohttp.ClientSession
) -> None:
    """With two processes and 50 concurrent requests, the rows are those of a serial run, and all get an answer."""
    urls = [start_recon("--database-url", pooled_url, "--pgbouncer", *form).url for _ in range(2)]
    for name in RACES:
        await expect_race(name, 50, urls, shared_database_url, session, rounds=1)

    # Several times, because state that one process leaves in a session could disturb the next process.
    for _ in range(2):
        done = recon("check", "--database-url", pooled_url)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_schema_is_applied_through_it(bare_database_url: str, role_url: str) -> None:
    """`recon schema --apply` works through pgbouncer, for a role that owns the database."""
    role, database = urlsplit(role_url), urlsplit(bare_database_url).path
    asyncio.run(execute(bare_database_url, f"ALTER DATABASE {database[1:]} OWNER TO {role.username}"))
    asyncio.run(execute(bare_database_url, f"GRANT CREATE ON SCHEMA public TO {role.username}"))
    with pgbouncer(urlunsplit(role._replace(path=database))) as url:
        for expected in ("the schema was applied\n", "the schema is there already\n"):
            assert recon("schema", "--apply", "--database-url", url).stdout == expected
        older = "DROP TABLE setting, event, event_contact, blocked, erased, correction, import;"
        older += "ALTER TABLE contact DROP COLUMN source, DROP COLUMN apart"
        asyncio.run(execute(bare_database_url, older, "COMMENT ON TABLE contact IS 'recon schema 1'"))
        done = recon("schema", "--apply", "--default-region", "US", "--database-url", url)
        assert done.stdout.splitlines() == [*MIGRATED, "set the default region to US"]
    asyncio.run(execute(bare_database_url, f"REASSIGN OWNED BY {role.username} TO CURRENT_USER"))


async def test_each_transaction_brings_its_settings(pooled_url: str) -> None:
    """In every session, a transaction is serializable, bounded in time, and planned with indexes."""
    names = [*SESSION, "transaction_isolation", "statement_timeout", "idle_in_transaction_session_timeout"]

    async def settings_of(connection: Connection) -> dict[str, str]:
        columns = ", ".join(f"current_setting('{name}') AS {name}" for name in names)
        row = await connection.fetchrow(f"SELECT {columns}")
        return dict(row or {})

    expected = SESSION | {
        "transaction_isolation": "serializable",
        "statement_timeout": "7s",
        "idle_in_transaction_session_timeout": "7s",
    }
    async with Database(pooled_url, DatabaseSettings(pgbouncer=True, statement_timeout=7)).opened() as database:
        read = await asyncio.gather(*([database.snapshot("test", settings_of) for _ in range(8)]))
        written = await asyncio.gather(*([database.serializable("test", settings_of) for _ in range(8)]))
        snapshots = await asyncio.gather(*([database.reading("test", settings_of) for _ in range(8)]))

    assert read == [expected] * 8
    assert written == [expected | {"lock_timeout": "5ms"}] * 8  # once they have the lane
    assert snapshots == [expected | {"transaction_isolation": "repeatable read"}] * 8
    # And no setting remains in the sessions that others use.
    assert (await _settings(pooled_url, "default_transaction_isolation", "enable_seqscan")) == ["read committed", "on"]


async def test_waiting_in_the_lane_is_bounded(pooled_url: str, shared_database_url: str) -> None:
    """The lock is in the same message as its time-out, and the time-out applies to it."""
    holder = await asyncpg.connect(shared_database_url)
    async with (
        holder.transaction(),
        Database(pooled_url, DatabaseSettings(pgbouncer=True, statement_timeout=0.2)).opened() as database,
    ):
        await holder.execute("LOCK TABLE writer_lane IN EXCLUSIVE MODE")

        with pytest.raises(Unavailable) as caught:
            await database.serializable("test", lambda connection: connection.execute("SELECT"))

        assert isinstance(caught.value.__cause__, asyncpg.QueryCanceledError)
    await holder.close()


async def test_after_the_sessions_were_ended(
    pooled_url: str, shared_database_url: str, make_client: MakeClient
) -> None:
    """When the database ends all sessions, recon soon serves again."""
    client = await make_client(database_url=pooled_url, pgbouncer=True)
    body = {"email": "lorraine@hillvalley.edu"}
    assert (await client.post("/identify", json=body)).status == 200
    await execute(
        shared_database_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )

    async with asyncio.timeout(5):
        while (status := (await client.post("/identify", json=body)).status) != 200:
            assert status == 503


async def test_session_mode_works_too(role_url: str, make_client: MakeClient) -> None:
    """The same setting works with pgbouncer's session mode."""
    with pgbouncer(role_url, pool_mode="session", default_pool_size="20") as url:
        client = await make_client(database_url=url, pgbouncer=True)

        assert (await client.post("/identify", json={"email": "a"})).status == 200
        assert (await client.get("/readyz")).status == 200
        await client.close()


IGNORING = ", ".join(
    [*SESSION, "default_transaction_isolation", "statement_timeout", "idle_in_transaction_session_timeout"]
)


async def test_settings_are_lost_without_a_word(role_url: str) -> None:
    """The reason for the setting: pgbouncer can ignore the settings of a session silently."""
    with pgbouncer(role_url, ignore_startup_parameters=IGNORING) as url:
        connection = await asyncpg.connect(url, server_settings={"default_transaction_isolation": "serializable"})
        isolation = await (await connection.prepare("SHOW transaction_isolation", name="")).fetchval()
        await connection.close()

    assert isolation == "read committed"


@pytest.mark.parametrize("changes", [{}, {"ignore_startup_parameters": IGNORING}], ids=["refusing", "ignoring"])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_without_the_setting_it_is_refused(changes: dict[str, str], workers: str, role_url: str) -> None:
    """Without --pgbouncer, recon always ends with one line that names the setting."""
    with pgbouncer(role_url, **changes) as url:
        for _ in range(2):
            done = recon("serve", "--port", str(free_port()), "--workers", workers, "--database-url", url)

            assert done.returncode == 1
            assert re.match(r"recon: a connection pooler is between.*`--pgbouncer`", done.stderr.splitlines()[-1])
            assert "Traceback" not in done.stderr


async def test_right_settings_of_the_role_are_not_enough(role_url: str, shared_database_url: str) -> None:
    """A role can have the right settings, but prepared statements do not survive: recon refuses it."""
    role = urlsplit(role_url).username
    await execute(shared_database_url, f"ALTER ROLE {role} SET default_transaction_isolation = serializable")
    try:
        with pgbouncer(role_url, ignore_startup_parameters=IGNORING) as url:
            done = await asyncio.to_thread(recon, "serve", "--port", str(free_port()), "--database-url", url)
    finally:
        await execute(shared_database_url, f"ALTER ROLE {role} RESET ALL")

    assert done.returncode == 1
    assert "`--pgbouncer`" in done.stderr.splitlines()[-1]


async def test_a_pooler_put_between_later_is_noticed(role_url: str) -> None:
    """If a reconnection leads to a pooler, requests get a 503 instead of a wrong answer."""
    async with Database(role_url).opened() as database:
        with pgbouncer(role_url, ignore_startup_parameters=IGNORING) as url:
            database._url = database._pool._url = url  # as a change of DNS does

            with pytest.raises(Unavailable, match="a connection pooler is between"):
                await database.snapshot("test", lambda connection: connection.fetchval("SELECT 1"))


async def _settings(url: str, *names: str) -> list[str]:
    connection = await asyncpg.connect(url, statement_cache_size=0)
    try:
        return [await connection.fetchval(f"SHOW {name}") for name in names]
    finally:
        await connection.close()
