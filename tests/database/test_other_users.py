"""The embedded PostgreSQL and other users of the machine: access control, and the start by root."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recon.database.embedded.account import own_name
from tests.harness.ports import free_port
from tests.harness.processes import RECON, StartRecon
from tests.server.test_processes import EXAMPLE, identify

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

# Tries to become superuser at each socket below the folders. It needs no package, because the packages of the tests may
# be closed to other users.
INTRUDER = r"""
import os, socket, struct, sys

def tries(path):
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
        except OSError as error:
            return f"no way in: {type(error).__name__}"
        said = struct.pack("!i", 3 << 16) + b"user\0postgres\0database\0postgres\0\0"
        connection.sendall(struct.pack("!i", len(said) + 4) + said)
        answer = connection.recv(65536)
        if answer[:1] == b"E":
            return "refused: " + answer.partition(b"\0M")[2].partition(b"\0")[0].decode()
        return f"in: {answer[:9]!r}"

for root in sys.argv[1:]:
    for folder, _, files in os.walk(root):
        if ".s.PGSQL.5432" in files:
            os.chdir(folder)
            print(tries(".s.PGSQL.5432"))
"""
PYTHON = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can reach; pytest's own folder is closed to them."""
    with tempfile.TemporaryDirectory(prefix="recon-users-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def intrude(*roots: Path) -> list[str]:
    """Return what another user finds at the sockets below the folders."""
    nobody = pwd.getpwnam("nobody")
    as_nobody: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    command = [PYTHON, "-c", INTRUDER, *map(str, roots)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **as_nobody)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["data", "x" * 120], ids=["short", "long"])
def test_another_user_is_refused(name: str, folder: Path, start_recon: StartRecon) -> None:
    """Another user finds no socket; with every folder and socket open, PostgreSQL still refuses that user by name."""
    temporary = folder / "tmp"
    temporary.mkdir(mode=0o1777)
    temporary.chmod(0o1777)
    start_recon("--data-dir", str(folder / name), env=os.environ | {"TMPDIR": str(temporary)})

    assert intrude(folder) == []

    (folder / name / "postgresql").chmod(0o755)
    (folder / "link").symlink_to(folder / name / "postgresql")
    assert intrude(folder / "link/.") == ["no way in: PermissionError"]

    (folder / name / "postgresql" / ".s.PGSQL.5432").chmod(0o777)
    assert intrude(folder / "link/.") == ['refused: Peer authentication failed for user "postgres"']


def test_a_user_without_a_name() -> None:
    """Peer authentication needs a name: recon refuses a user id without one, in a clear line."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setuid(23456)
        try:
            own_name()
        except OSError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    assert os.read(reading, 4096).startswith(b"the user id 23456 has no name")
    os.close(reading)


# Run recon without a user `pgserver`: for this process and its children, /etc is a copy without that user.
NEW_MACHINE = """
mount --bind "$1" /etc && shift && exec "$@"
"""


async def test_what_root_changes_is_logged(folder: Path) -> None:
    """recon logs the user that it creates, and each folder that it opens, when it does so."""
    etc = folder / "etc"
    shutil.copytree("/etc", etc, symlinks=True, ignore_dangling_symlinks=True)
    for name in ("passwd", "group", "shadow", "gshadow"):
        lines = (etc / name).read_text().splitlines(keepends=True)
        (etc / name).write_text("".join(line for line in lines if not line.startswith("pgserver:")))
    isolated = ["unshare", "--mount", "sh", "-c", NEW_MACHINE, "sh", str(etc)]
    if subprocess.run([*isolated, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this root may not mount")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    log = folder / "log"
    port = free_port()
    with log.open("wb") as stderr:
        command = [*isolated, RECON, "serve", "--port", str(port), "--data-dir", str(closed / "data")]
        process = subprocess.Popen([*command, "--log-format", "text"], stderr=stderr)
    try:
        while "serving on" not in log.read_text():
            assert process.poll() is None, log.read_text()
        assert (await identify(f"http://127.0.0.1:{port}", EXAMPLE))["primaryContactId"] == 1
    finally:
        process.terminate()
        process.wait(15)

    created, opened, *_ = log.read_text().splitlines()
    assert "created the user pgserver, because PostgreSQL refuses to run as root" in created
    assert f"opened {closed} (mode 0700, now 0701), so that the user pgserver gets to its files" in opened
    assert "pgserver:" in (etc / "passwd").read_text()
    assert closed.stat().st_mode & 0o777 == 0o701
