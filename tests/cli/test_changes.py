"""The command that prints the change feed: what it prints, and how it follows."""

import json
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recon.database.definitions import SCHEMA
from tests.harness.databases import execute
from tests.harness.postgres import Postgres, postgres
from tests.harness.processes import RECON, MakeClient, recon

GEORGE, BIFF = "george@hillvalley.edu", "biffsucks@hillvalley.edu"
INSERT = "INSERT INTO contact (email) VALUES ('{}')"


@pytest.fixture
async def story(make_client: MakeClient, database_url: str) -> str:
    """A database in which George (contact 1) and Biff (contact 2) were merged, and Doc (contact 4) was erased."""
    client = await make_client()
    for email, phone in ((GEORGE, "919191"), (BIFF, "717171"), (GEORGE, "717171"), ("doc@hillvalley.edu", "1955")):
        assert (await client.post("/identify", json={"email": email, "phoneNumber": phone})).status == 200
    assert (await client.post("/identities/4/erase", json={})).status == 200
    return database_url


def test_text(story: str) -> None:
    """A line for each contact and event, and below them what is gone, and the identities."""
    done = recon("changes", "--database-url", story)

    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    assert [(words[0], *words[2:]) for words in lines[:4]] == [
        ("1", "contact", GEORGE, "919191"),
        ("2", "contact", BIFF, "717171"),
        ("3", "merged: the identity of contact 2 into that of contact 1", GEORGE, "717171"),
        ("5", "erased"),
    ]
    assert done.stdout.splitlines()[4:] == [
        "  contact 2 is part of contact 1",
        "  contact 4 is gone",
        f"  contact 1: {GEORGE}, {BIFF}, 919191, 717171, with contact 2",
    ]


async def test_json_is_what_the_api_answers(story: str, make_client: MakeClient) -> None:
    """With --json, a line is a page, as the API answers."""
    client = await make_client()
    answer = await (await client.get("/changes?after=2")).json()

    done = recon("changes", "--after", "2", "--json", "--database-url", story)

    assert [json.loads(line) for line in done.stdout.splitlines()] == [answer]


def test_no_database() -> None:
    """Without the database, the command says so."""
    done = recon("changes", "--database-url", "postgresql://127.0.0.1:1/nothing")

    assert (done.returncode, done.stdout) == (1, "")
    assert "Connection refused" in done.stderr


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A PostgreSQL of these tests."""
    # Not in pytest's folder, which pytest closes to other users: the server may run as another user.
    with tempfile.TemporaryDirectory(prefix="recon-changes-") as folder, postgres(Path(folder)) as server:
        yield server


@contextmanager
def _following(url: str) -> Iterator["subprocess.Popen[str]"]:
    command = [RECON, "changes", "--follow", "--database-url", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().split("  ", 2)[-1].strip()


async def test_follow(server: Postgres) -> None:
    """It goes on with what happens, also after a crash of the database and after an outage, until Ctrl-C ends it."""
    url = server.url()
    await execute(url, SCHEMA, INSERT.format("before"))
    with _following(url) as process:
        lines = [_line(process) for _ in range(2)]
        await execute(url, INSERT.format("after"))
        lines += [_line(process) for _ in range(2)]
        server.crash()
        await execute(url, INSERT.format("crashed"))
        lines += [_line(process) for _ in range(2)]
        server.vanish()
        assert process.stderr is not None
        assert "recon cannot use the database" in process.stderr.readline()
        server.start()
        await execute(url, INSERT.format("back"))
        lines += [_line(process) for _ in range(2)]
        process.send_signal(signal.SIGINT)
        code = process.wait(30)
        errors = process.stderr.read()

    emails = ["before", "after", "crashed", "back"]
    assert lines[::2] == [f"contact  {email}" for email in emails]
    assert [line.split(": ")[1] for line in lines[1::2]] == emails
    assert code == 130
    assert "Traceback" not in errors
