"""The command `recon import`: what it prints, its rejects, and how it goes on after it was interrupted."""

import asyncio
import csv
import fcntl
import json
import os
import random
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from recon.sql import invariants
from tests.harness.databases import execute, fetch
from tests.harness.processes import RECON, recon

KILLS = int(os.environ.get("RECON_TEST_KILLS", "2"))
RECORDS_A_KILL = 20_000  # more than an import commits between two kills
SECONDS_A_CHUNK = 0.15
# Each contact with the place of its primary, whatever the ids are: transactions that were rolled back drew some.
ROWS = """
WITH placed AS (SELECT *, row_number() OVER (ORDER BY id) AS place FROM contact)
SELECT placed.email, placed.phone_number, older.place AS of, placed.source
FROM placed LEFT JOIN placed AS older ON older.id = placed.linked_id ORDER BY placed.place
"""


def run(url: str, *arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `recon import`."""
    return recon("import", "--database-url", url, *map(str, arguments), **options)


def summary(url: str, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    """Run `recon import`, which succeeds, and return its summary."""
    done = run(url, "--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


async def rows(url: str) -> list[tuple[Any, ...]]:
    """Return the contacts, oldest first."""
    return [tuple(row) for row in await fetch(url, ROWS)]


def shop(path: Path, records: int) -> Path:
    """Write a file in which a third of the records repeats, extends or merges."""
    chosen = random.Random(1)  # noqa: S311 (the same again)
    people = [("c0@x", "10")]
    lines = ["email,phone"]
    for number in range(records):
        email, phone = f"c{number}@x", f"1{number}"
        kind = chosen.random()
        if kind < 0.1:
            email, phone = chosen.choice(people)
        elif kind < 0.2:
            email = chosen.choice(people)[0]
        elif kind < 0.25:
            email, phone = chosen.choice(people)[0], chosen.choice(people)[1]
        people = [*people[-200:], (email, phone)]
        lines.append(f"{email},{phone}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_an_import(database_url: str, tmp_path: Path) -> None:
    """The columns are shown first; the summary counts what the records came to; the rejects have line and reason."""
    path = tmp_path / "shop.csv"
    path.write_text('id;Mail;Tel\n1;a@x;1\n2;a@x;2\n3;b@x;3\n4;a@x;3\n5;null;\n6;"c\x01";\n7;;\n8;null;1\n9;d@x;\n')

    done = run(database_url, "--json", path)

    assert done.returncode == 0, done.stderr
    assert f"{path}: csv; emails: Mail; phone numbers: Tel" in done.stderr
    found = json.loads(done.stdout)
    assert {name: found[name] for name in ("records", "requests", "created", "extended", "merged", "known")} == {
        "records": 9, "requests": 7, "created": 3, "extended": 1, "merged": 1, "known": 1
    }  # fmt: skip
    assert found["withheld"] == {"blocked": 2, "kept-apart": 0, "limit": 0}
    assert (found["unlinked"], found["rejected"]) == (2, 3)
    assert Path(found["rejects"]).stat().st_mode & 0o077 == 0
    with Path(found["rejects"]).open(newline="") as file:
        assert list(csv.reader(file, delimiter=";")) == [
            ["id", "Mail", "Tel", "recon_line", "recon_reason"],
            ["5", "null", "", "6", "blocked: it identifies nobody"],
            ["6", "c\x01", "", "7", "email contains control characters"],
            ["7", "", "", "8", "has neither an email nor a phone number"],
        ]
    assert {row[-1] for row in asyncio.run(rows(database_url))} == {"import"}
    assert asyncio.run(invariants.check(database_url))[0] == []
    # The same again: nothing is new.
    again = summary(database_url, "--source", "again", path)
    assert (again["created"], again["extended"], again["merged"], again["known"]) == (0, 0, 0, 6)


async def test_ndjson_and_standard_input(database_url: str, tmp_path: Path) -> None:
    """Standard input has a format, and its rejects are lines of it; it leaves no cursor behind."""
    text = '{"email": "a@x", "phoneNumber": [1, 2]}\n{"email": 5, "id": 7}\n{"email'

    found = summary(database_url, "--format", "ndjson", "-", input=text, cwd=tmp_path)

    assert (found["records"], found["created"], found["extended"], found["rejected"]) == (3, 1, 1, 2)
    lines = [json.loads(line) for line in (tmp_path / "stdin.rejects.ndjson").read_text().splitlines()]
    assert [(line["recon_line"], line.get("id"), line.get("recon_text")) for line in lines] == [
        (2, 7, None), (3, None, '{"email')
    ]  # fmt: skip
    assert await fetch(database_url, "TABLE import") == []
    assert "give --format" in run(database_url, "-", input=text).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "-"], "an import of standard input cannot be resumed"),
        (["--resume", "--restart", "a.csv"], "not both"),
        (["--encoding", "klingon", "a.csv"], "there is no encoding klingon"),
        (["--rejects", "r.csv", "a.csv", "b.csv"], "--rejects is for one FILE"),
        (["a.csv", "a.csv"], "named twice"),
        (["--encoding", "base64", "a.csv"], "there is no encoding base64"),
        (["missing.csv"], "No such file"),
        (["."], "Is a directory"),
        (["empty.csv"], "It has no columns"),
        (["utf-16.csv"], "is UTF-16: give --encoding utf-16"),
        (["a.csv", "--rejects", "a.csv"], "a.csv would be overwritten"),
        (["a.csv", "a.csv.gz"], "a.rejects.csv would be overwritten by the rejects of a.csv.gz"),
        (["a.csv", "--rejects", "missing/r.csv"], "cannot be written to missing/r.csv"),
        (["a.csv", "--rejects", "/dev/full"], "cannot be written to /dev/full"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], message: str, database_url: str, tmp_path: Path) -> None:
    """It is an error before anything is changed, and the file is as it was."""
    files = {"a.csv": b"email\n\x01\n", "empty.csv": b"", "utf-16.csv": "email\n".encode("utf-16")}
    files["a.csv.gz"] = files["a.csv"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    done = run(database_url, *arguments, cwd=tmp_path)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


async def test_two_processes_at_once(database_url: str, tmp_path: Path) -> None:
    """The second one is refused while the first one has the file."""
    path = shop(tmp_path / "shop.csv", 10)
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)

        assert f"another process imports {path}" in run(database_url, path).stderr

    assert await rows(database_url) == []


def test_a_pipe_with_a_name_and_another_encoding(database_url: str, tmp_path: Path) -> None:
    """It is read once, by the process itself; the rejects of several chunks have one byte order mark."""
    path = tmp_path / "shop.csv"
    os.mkfifo(path)
    text = "email,email\n" + "ä@x,\x01\n" * 20_000 + "a@x,b@x\n"
    writer = threading.Thread(target=lambda: path.write_bytes(text.encode("utf-16")))
    writer.start()

    found = summary(database_url, "--encoding", "utf-16", path)

    writer.join()
    assert (found["created"], found["rejected"]) == (2, 20_000)
    rejects = (tmp_path / "shop.rejects.csv").read_bytes().decode("utf-16")
    assert rejects.count("\n") == 20_001
    assert "\ufeff" not in rejects


async def ended(
    signum: int, url: str, chunks: int, seconds: float, path: Path, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    """Start an import, and send it a signal some time after it has committed so many chunks."""
    connection = await asyncpg.connect(url)
    done = "SELECT characters FROM import UNION ALL SELECT 0"
    before = await connection.fetchval(done)
    command = [RECON, "import", "--json", "--database-url", url, *arguments, path]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while chunks and process.poll() is None:
            await asyncio.sleep(0.01)
            after = await connection.fetchval(done)
            chunks, before = chunks - (after != before), after
        await asyncio.sleep(seconds)
    finally:
        process.send_signal(signum)
        _, errors = await asyncio.to_thread(process.communicate)
        await connection.close()
    return subprocess.CompletedProcess(command, process.returncode, stderr=errors)


@pytest.mark.timeout(60 + 20 * KILLS)
async def test_killed_at_random_points(database_url: str, bare_database_url: str, tmp_path: Path) -> None:
    """Killed and resumed again and again, an import leaves what an undisturbed one leaves, and the same rejects."""
    path = shop(tmp_path / "shop.csv", RECORDS_A_KILL * (KILLS + 1))
    with path.open("a") as file:
        file.write("\x01,\n" * 2)
    undisturbed = summary(bare_database_url, "--rejects", tmp_path / "expected.csv", path)
    chosen = random.Random(2)  # noqa: S311 (a choice)
    resume: list[str] = []
    for _ in range(KILLS):
        chunks = chosen.choice((0, 1, 1))
        seconds = chosen.uniform(0, SECONDS_A_CHUNK)
        done = await ended(signal.SIGKILL, database_url, chunks, seconds, path, *resume)
        assert done.returncode == -signal.SIGKILL, done.stderr
        resume = ["--resume"] if await fetch(database_url, "TABLE import") else []

    found = summary(database_url, *resume, path)

    counts = ("records", "requests", "created", "extended", "merged", "known", "withheld", "unlinked", "rejected")
    assert {name: found[name] for name in counts} == {name: undisturbed[name] for name in counts}
    assert await rows(database_url) == await rows(bare_database_url)
    assert (tmp_path / "shop.rejects.csv").read_text() == (tmp_path / "expected.csv").read_text()
    assert (await invariants.check(database_url))[0] == []


async def test_interrupted_by_the_operator(database_url: str, tmp_path: Path) -> None:
    """Ctrl-C ends the import behind a chunk, and names --resume; without it, or with another file, nothing begins."""
    path = shop(tmp_path / "shop.csv", 50_000)
    done = await ended(signal.SIGINT, database_url, 1, 0, path)
    assert done.returncode == 130, done.stderr
    assert f"`recon import --resume {path}` continues" in done.stderr
    (stored,) = await fetch(database_url, "SELECT line, counts->>'records' AS records FROM import")
    assert stored["line"] == int(stored["records"] or 0) + (stored["line"] > 0)

    refused = run(database_url, path)
    assert refused.returncode == 1
    assert "--resume continues it, --restart begins again" in refused.stderr
    assert "other columns or options" in run(database_url, "--resume", "--source", "other", path).stderr

    path.write_text(path.read_text().replace("c0@x", "d0@x", 1))
    await execute(database_url, "UPDATE import SET characters = 100, line = 9")
    different = run(database_url, "--resume", path)
    assert different.returncode == 1
    assert "is not the file" in different.stderr


def test_finished_already(database_url: str, tmp_path: Path) -> None:
    """--resume says that an import is finished, and does nothing; it refuses a file that has grown since."""
    path = shop(tmp_path / "shop.csv", 10)
    first = summary(database_url, path)

    done = run(database_url, "--resume", "--json", path)

    assert done.returncode == 0
    assert "finished already" in done.stderr
    assert json.loads(done.stdout)["records"] == first["records"] == 10
    with path.open("a") as file:
        file.write("new@x,\n")
    assert "is not the file" in run(database_url, "--resume", path).stderr
    assert summary(database_url, path)["created"] == 1


async def test_a_row_that_another_session_holds(database_url: str, tmp_path: Path) -> None:
    """The import waits for the row, as writers do, and goes on when it is free."""
    path = tmp_path / "shop.csv"
    path.write_text("email,phone\na@x,2\n")
    await execute(database_url, "INSERT INTO contact (email, phone_number) VALUES ('a@x', '1')")
    holder = await asyncpg.connect(database_url)
    try:
        await holder.execute("BEGIN; SELECT FROM contact FOR UPDATE")
        importing = asyncio.create_task(asyncio.to_thread(summary, database_url, path))
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        async with asyncio.timeout(30):
            while not await fetch(database_url, waiting) and not importing.done():
                await asyncio.sleep(0.05)
        assert not importing.done()

        await holder.execute("COMMIT")

        assert (await importing)["extended"] == 1
    finally:
        await holder.close()
