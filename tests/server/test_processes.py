"""recon as a process: how it starts, what it says, how it ends."""

import asyncio
import json
import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from recon.database.definitions import SCHEMA_VERSION
from tests.harness.databases import execute
from tests.harness.ports import free_port, refuses
from tests.harness.processes import RECON, Process, StartRecon, recon

EXAMPLE = {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"}


async def identify(url: str, said: dict[str, str]) -> dict[str, Any]:
    """The identity that a recon answers with."""
    async with aiohttp.ClientSession() as session, session.post(f"{url}/identify", json=said) as response:
        assert response.status == 200, await response.text()
        return (await response.json())["contact"]


async def until(condition: Any, what: str, seconds: float = 15) -> None:
    """Return once a coroutine function gives true."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"not within {seconds} seconds: {what}"
        await asyncio.sleep(0.02)


async def test_the_embedded_database(start_recon: StartRecon, tmp_path: Path) -> None:
    """Without DATABASE_URL recon brings its own PostgreSQL, says so, keeps the data, and stops it on SIGTERM."""
    data_dir = tmp_path / "data"
    first = start_recon("--data-dir", str(data_dir))
    contact = await identify(first.url, EXAMPLE)
    assert first.stop() == 0
    assert not (data_dir / "postgresql" / "postmaster.pid").exists()

    second = start_recon("--data-dir", str(data_dir))

    assert await identify(second.url, EXAMPLE) == contact
    [line] = [event["event"] for event in second.events() if "embedded" in event["event"]]
    assert str(data_dir) in line
    assert second.stop() == 0
    assert "database system is shut down" in (data_dir / "postgresql" / "log").read_text().splitlines()[-1]


async def test_the_embedded_database_listens_on_no_port(start_recon: StartRecon, tmp_path: Path) -> None:
    """The embedded PostgreSQL is reached by a Unix socket only."""
    start_recon("--data-dir", str(tmp_path / "data"))

    lines = (tmp_path / "data" / "postgresql" / "postmaster.pid").read_text().splitlines()

    assert lines[5].strip() == ""  # the address it listens on
    assert (tmp_path / "data" / "postgresql" / lines[4] / f".s.PGSQL.{lines[3]}").is_socket()


async def test_the_embedded_database_outlives_a_kill(start_recon: StartRecon, tmp_path: Path) -> None:
    """After kill -9 the next recon takes the server over, with all that was answered, and stops it in the end."""
    data_dir = tmp_path / "data"
    first = start_recon("--data-dir", str(data_dir))
    contact = await identify(first.url, EXAMPLE)
    first.stop(signal.SIGKILL)
    assert (data_dir / "postgresql" / "postmaster.pid").exists()

    second = start_recon("--data-dir", str(data_dir))

    assert await identify(second.url, EXAMPLE) == contact
    assert second.stop() == 0
    assert not (data_dir / "postgresql" / "postmaster.pid").exists()


async def test_a_shared_embedded_database(start_recon: StartRecon, tmp_path: Path) -> None:
    """`recon check` works beside a running recon, and does not stop the server under it."""
    process = start_recon("--data-dir", str(tmp_path / "data"), "--workers", "2")
    await identify(process.url, EXAMPLE)

    checked = recon("check", "--data-dir", str(tmp_path / "data"))

    assert checked.returncode == 0
    assert checked.stdout == "1 contact of 1 person: no violations\n"
    assert (await identify(process.url, {"email": "another@hillvalley.edu"}))["primaryContactId"] == 2
    assert process.stop() == 0
    assert not (tmp_path / "data" / "postgresql" / "postmaster.pid").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_an_ordinary_user(tmp_path: Path) -> None:
    """The embedded PostgreSQL works for an ordinary user as well as for root."""
    nobody = pwd.getpwnam("nobody")
    as_nobody: dict[str, Any] = {"user": "nobody", "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    try:
        subprocess.run([RECON, "--version"], capture_output=True, check=True, **as_nobody)
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("the project's folder, or Python's, is closed to other users")
    home = Path("/tmp") / f"recon-nobody-{os.getpid()}"  # noqa: S108 (pytest's own folder is closed to others)
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    try:
        process = Process([], tmp_path / "log", env=os.environ | {"HOME": str(home), "XDG_DATA_HOME": ""}, **as_nobody)
        try:
            process.wait_until_ready()
            assert (await identify(process.url, EXAMPLE))["primaryContactId"] == 1
        finally:
            assert process.stop() == 0
        assert (home / ".local/share/recon/postgresql/PG_VERSION").stat().st_uid == nobody.pw_uid
    finally:
        subprocess.run(["rm", "-rf", str(home)], check=True)


async def test_a_hosting_platforms_variables(database_url: str, tmp_path: Path) -> None:
    """PORT and DATABASE_URL are taken from the environment; recon's own variables win over them."""
    port = free_port()
    process = Process([], tmp_path / "log", env=os.environ | {"PORT": str(port), "DATABASE_URL": database_url})
    # The helper gives --port, which wins over both.
    process.wait_until_ready()
    assert process.stop() == 0

    env = os.environ | {"PORT": "1", "RECON_PORT": str(port), "DATABASE_URL": database_url}
    popen = subprocess.Popen([RECON, "serve"], env=env, stderr=subprocess.DEVNULL)
    try:
        await until(lambda: _accepts(port), "it listens on RECON_PORT")
        assert (await identify(f"http://127.0.0.1:{port}", EXAMPLE))["primaryContactId"] == 1
    finally:
        popen.terminate()
        assert popen.wait(15) == 0


async def _accepts(port: int) -> bool:
    return not await refuses(port)


def test_with_a_database_given_the_embedded_one_is_never_imported(database_url: str) -> None:
    """With DATABASE_URL neither localpg nor the package behind it is loaded."""
    script = (
        "import contextlib, sys; from recon.cli.main import main\n"
        "with contextlib.suppress(SystemExit): main(['check'])\n"
        "print([name for name in sys.modules if 'localpg' in name or 'pgserver' in name])"
    )

    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.splitlines() == ["0 contacts of 0 people: no violations", "[]"]


async def test_two_processes_start_at_once_on_an_empty_database(
    start_recon: StartRecon, bare_database_url: str
) -> None:
    """Both come up, and one serves what the other has learnt."""
    processes = [start_recon("--database-url", bare_database_url, ready=False) for _ in range(2)]
    for process in processes:
        process.wait_until_ready()

    contacts = [await identify(process.url, EXAMPLE) for process in processes]

    assert contacts[0] == contacts[1]


@pytest.mark.parametrize("workers", [1, 2])
async def test_another_schema_is_refused_in_one_line(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """recon does not serve a schema that is not its own; it says so and exits with 1."""
    await execute(database_url, "COMMENT ON TABLE contact IS 'recon schema 99'")

    process = start_recon("--database-url", database_url, "--workers", str(workers), ready=False)

    assert process.popen.wait(30) != 0
    assert process.log.count(f"this recon serves schema {SCHEMA_VERSION}, but the database has schema 99") == 1
    assert "Traceback" not in process.log


def test_a_port_that_is_taken(start_recon: StartRecon, database_url: str) -> None:
    """A port that is in use is a clear line and exit code 1."""
    first = start_recon("--database-url", database_url)

    done = recon("serve", "--port", str(first.port), "--database-url", database_url)

    assert done.returncode == 1
    assert f"port {first.port} is in use" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_starts_no_database(workers: str, start_recon: StartRecon, tmp_path: Path) -> None:
    """The port is checked before PostgreSQL is started; one line names it and shows how to choose another."""
    taken = start_recon("--data-dir", str(tmp_path / "first")).port

    done = recon("serve", "--port", str(taken), "--data-dir", str(tmp_path / "second"), "--workers", workers)

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"recon: port {taken} is in use by another process")
    assert f"`RECON_PORT={taken + 1} make run`" in line
    assert not (tmp_path / "second").exists()


async def test_several_workers_share_a_port_and_their_metrics(start_recon: StartRecon, database_url: str) -> None:
    """With --workers 2 every answer agrees, /metrics sums over both, and a worker that dies is replaced."""
    process = start_recon("--database-url", database_url, "--workers", "2")
    children = [each.pid for each in process.processes(workers=2)[1:]]
    for n in range(40):  # each on a connection of its own, so that both workers get some
        await identify(process.url, {"email": f"{n}@hillvalley.edu"})

    async def counted() -> bool:  # a worker counts a request after its client has the answer
        async with aiohttp.ClientSession() as session, session.get(f"{process.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return 'recon_http_requests_total{route="/identify",status="200"} 40.0' in lines

    await until(counted, "a count of all requests")
    os.kill(children[0], signal.SIGKILL)

    async def replaced() -> bool:
        now = _children(process.popen.pid)
        return len(now) == 2 and children[0] not in now

    await until(replaced, "a new worker")
    process.wait_until_ready()
    for n in range(10):
        assert (await identify(process.url, {"email": f"{n}@hillvalley.edu"}))["primaryContactId"] == n + 1
    assert process.stop() == 0
    assert process.events()  # gunicorn's lines are in the same format


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_nothing_that_customers_gave_is_logged(database_url: str, tmp_path: Path) -> None:
    """However much is logged, and whatever fails: no email, no phone, no password, but the request's id."""
    await execute(database_url, "ALTER TABLE contact ADD CONSTRAINT made_up CHECK (email <> 'unlucky@secret.example')")
    options = ["--log-level", "debug", "--database-url", database_url]
    process = Process(options, tmp_path / "log", env=os.environ | {"PYTHONASYNCIODEBUG": "1"})
    process.wait_until_ready()
    bodies = [
        b'{"email": "doc@secret.example", "phoneNumber": "5550199"}',
        b'{"email": "unlucky@secret.example", "phoneNumber": "5550199"}',
        b'{"email": "doc@secret.example\\u0000"}',
        b"doc@secret.example",
    ]
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        for number, body in enumerate(bodies):
            headers = {"X-Request-ID": f"request-{number}"}
            async with session.post(f"{process.url}/identify", data=body, headers=headers) as response:
                assert response.headers["X-Request-ID"] == f"request-{number}"
        for path in ("/doc@secret.example", "/healthz?email=doc@secret.example", "/metrics"):
            async with session.get(f"{process.url}{path}", headers={"X-Request-ID": "doc@secret.example"}) as response:
                assert "secret" not in response.headers["X-Request-ID"]
                assert "secret" not in await response.text()
    process.stop()

    assert "secret" not in process.log
    assert "5550199" not in process.log
    by_id = {event["request_id"]: event for event in process.events() if "status" in event}
    assert [by_id[f"request-{number}"]["status"] for number in range(4)] == [200, 500, 400, 400]
    [failed] = [event for event in process.events() if event["event"] == "a request failed"]
    assert failed["error"] == "CheckViolationError"
    assert "contacts.py" in failed["where"]


def test_readable_logs(database_url: str, tmp_path: Path) -> None:
    """With --log-format text the log is lines for people."""
    process = Process(["--database-url", database_url, "--log-format", "text"], tmp_path / "log")
    process.wait_until_ready()
    process.stop()

    assert f"serving on http://127.0.0.1:{process.port}" in process.log
    with pytest.raises(json.JSONDecodeError):
        process.events()


def test_the_database_url_is_shown_without_its_secrets(tmp_path: Path) -> None:
    """A password in the URL shows up nowhere: not in the log, not in the process's title or arguments' echo."""
    url = f"postgresql://shop:hunter2@127.0.0.1:{free_port()}/recon?sslpassword=hunter2"
    process = Process([], tmp_path / "log", env=os.environ | {"DATABASE_URL": url})
    deadline = time.monotonic() + 20
    while "tries again every second" not in process.log and time.monotonic() < deadline:
        time.sleep(0.05)
    process.stop()

    assert "tries again every second" in process.log
    assert "database recon, user shop: Connection refused" in process.log
    assert "hunter2" not in process.log


def test_a_stop_while_starting(tmp_path: Path) -> None:
    """SIGTERM at any moment of the start, that of initdb included, ends recon and leaves nothing half done."""
    data_dir = tmp_path / "data"
    for seconds in (0.3, 0.6, 0.9, 1.2):
        process = Process(["--data-dir", str(data_dir)], tmp_path / "log")
        time.sleep(seconds)  # whatever it is doing by then: every moment must do
        assert process.stop() in {0, 143, -signal.SIGTERM}
        assert not (data_dir / "postgresql" / "postmaster.pid").exists()
    last = Process(["--data-dir", str(data_dir)], tmp_path / "log")
    last.wait_until_ready()
    assert last.stop() == 0


@pytest.mark.parametrize(
    "content",
    ["1\n", "", "rubbish\n", f"{os.getpid()}\n/somewhere\n1\n5432\n\n\n\nready\n"],
    ids=["a number", "empty", "rubbish", "of this process"],
)
def test_a_stale_pid_file(content: str, start_recon: StartRecon, tmp_path: Path) -> None:
    """After a crash the pid file of the embedded PostgreSQL may be cut off, or name somebody else's process."""
    data_dir = tmp_path / "data"
    assert start_recon("--data-dir", str(data_dir)).stop() == 0
    (data_dir / "postgresql" / "postmaster.pid").write_text(content)

    process = start_recon("--data-dir", str(data_dir))

    assert process.stop() == 0


def test_a_data_folder_of_another_container(start_recon: StartRecon, tmp_path: Path) -> None:
    """Two servers on the same files would destroy them: the second recon is told to go away."""
    process = start_recon("--data-dir", str(tmp_path / "data"))
    in_use = tmp_path / "data" / "in-use"
    here = in_use.read_text()
    in_use.write_text("elsewhere 4026531836")

    done = recon("check", "--data-dir", str(tmp_path / "data"))

    assert done.returncode == 1
    assert "in use by a recon in another container" in done.stderr
    assert "Traceback" not in done.stderr
    in_use.write_text(here)
    assert recon("check", "--data-dir", str(tmp_path / "data")).returncode == 0
    assert process.stop() == 0
