"""The command `recon export`: its files, messages and role; and `recon import` of a full export."""

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from recon.database.definitions import SCHEMA
from recon.database.grants import reader_grants
from tests.database.test_roles import PASSWORD, logged_in
from tests.harness.databases import execute, fetch
from tests.harness.feed import identities_of
from tests.harness.processes import recon

ROWS = """
INSERT INTO contact (email, phone_number, linked_id, link_precedence) VALUES
    ('george@hillvalley.edu', '919191', NULL, 'primary'), ('biffsucks@hillvalley.edu', '919191', 1, 'secondary'),
    ('doc@hillvalley.edu', '121', NULL, 'primary')
"""
GEORGE = (
    '{"primaryContactId":1,"primaryContatctId":1,"emails":["george@hillvalley.edu","biffsucks@hillvalley.edu"],'
    '"phoneNumbers":["919191"],"secondaryContactIds":[2]}\n'
)
DOC = (
    '{"primaryContactId":3,"primaryContatctId":3,"emails":["doc@hillvalley.edu"],'
    '"phoneNumbers":["121"],"secondaryContactIds":[]}\n'
)
PLAIN = GEORGE + DOC + '{"position":3}\n'
CSV = (
    "primary_contact_id,email,phone_number\n1,george@hillvalley.edu,919191\n1,biffsucks@hillvalley.edu,919191\n"
    "3,doc@hillvalley.edu,121\n"
)


def run(url: str, *arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run `recon export`."""
    return recon("export", "--database-url", url, *map(str, arguments), **options)


@pytest.fixture
async def story(database_url: str) -> str:
    """A database with two identities."""
    await execute(database_url, ROWS)
    return database_url


def test_standard_output(story: str) -> None:
    """Identities go to standard output, and the position and their number to standard error."""
    plain, csv = run(story), run(story, "--format", "csv")

    assert (plain.returncode, plain.stdout) == (0, PLAIN)
    assert plain.stderr.startswith("exported 2 identities, ")
    assert plain.stderr.endswith("; position 3\n")
    assert (csv.returncode, csv.stdout) == (0, CSV)
    assert csv.stderr.endswith("; position 3\n")


def test_files(story: str, tmp_path: Path) -> None:
    """A file appears when it is complete, and only its owner can read it; one that exists needs --force."""
    plain, packed = tmp_path / "plain.ndjson", tmp_path / "packed.csv.gz"

    for path, options in ((plain, []), (packed, ["--format", "csv"])):
        done = run(story, "--output", path, *options)
        assert (done.returncode, done.stdout) == (0, "")
    assert plain.read_text() == PLAIN
    assert gzip.decompress(packed.read_bytes()).decode() == CSV
    assert plain.stat().st_mode & 0o077 == 0

    again = run(story, "--output", plain, "--format", "csv")
    assert (again.returncode, again.stderr) == (1, f"recon: {plain} exists; --force replaces it\n")
    assert run(story, "--output", plain, "--format", "csv", "--force").returncode == 0
    assert plain.read_text() == CSV
    assert "is not a file" in run(story, "--output", "/dev/null", "--force").stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed.csv.gz", "plain.ndjson"]


def test_nothing_is_left_after_a_failure(tmp_path: Path) -> None:
    """Without the database, the command says so, and there is no file."""
    done = run("postgresql://127.0.0.1:1/nothing", "--output", tmp_path / "out")

    assert done.returncode == 1
    assert "Connection refused" in done.stderr
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("options", "expected"),
    [(["--full", "--format", "csv"], "--full is NDJSON"), (["--force"], "--force is for --output")],
)
def test_options_that_make_no_sense(options: list[str], expected: str) -> None:
    """They are refused."""
    done = run("postgresql://127.0.0.1:1/nothing", *options)

    assert done.returncode == 2
    assert expected in done.stderr


async def test_a_role_that_reads(story: str) -> None:
    """SELECT is enough for every export; without it, the command names the grant."""
    role = f"recon_test_exports_{os.getpid()}"
    await execute(story, f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'")
    url = logged_in(story, role)
    try:
        refused = run(url)
        await execute(story, reader_grants(role))
        allowed, full = run(url), run(url, "--full")
    finally:
        await execute(story, f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    assert refused.returncode == 1
    assert "run `recon schema --apply --grant-reader ROLE`" in refused.stderr
    assert (allowed.stdout, full.returncode) == (PLAIN, 0)
    assert allowed.stderr.endswith("; position 3\n")
    assert recon("schema", "--grant-reader", role).stdout.endswith(reader_grants(role) + "\nCOMMIT;\n")


async def test_a_full_export_is_restored(story: str, bare_database_url: str, tmp_path: Path) -> None:
    """`recon import` recognizes it, restores it in an empty database, and refuses it in another one."""
    path = tmp_path / "full.gz"
    exported = run(story, "--full", "--output", path)
    assert exported.returncode == 0
    assert exported.stderr.startswith("exported 3 rows, ")
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [line["type"] for line in lines] == ["recon", "contact", "contact", "contact", "end"]
    assert lines[-1]["counts"] == {"contact": 3, "event": 0, "event_contact": 0, "blocked": 0, "erased": 0}
    await execute(bare_database_url, SCHEMA)

    done = recon("import", "--database-url", bare_database_url, "--json", str(path))
    again = recon("import", "--database-url", bare_database_url, str(path))

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["restored"] == {"contact": 3}
    assert await identities_of(bare_database_url) == await identities_of(story)
    assert again.returncode == 1
    assert "the database must be empty" in again.stderr
    assert run(bare_database_url, "--full").stdout == gzip.decompress(path.read_bytes()).decode()


async def test_a_full_export_from_standard_input(story: str, bare_database_url: str) -> None:
    """It may come through a pipe, and goes to a database without a schema; options for other files are refused."""
    full = run(story, "--full").stdout

    refused = recon("import", "--database-url", bare_database_url, "--email", "x", "-", input=full)
    region = recon("import", "--database-url", bare_database_url, "--default-region", "US", "-", input=full)
    assert (refused.returncode, region.returncode) == (1, 1)
    assert "is a full export, which is restored as a whole: it takes no --email" in refused.stderr
    assert "the default region none, and recon is configured with US" in region.stderr
    assert await fetch(bare_database_url, "SELECT to_regclass('contact')") == [(None,)]

    done = recon("import", "--database-url", bare_database_url, "-", input=full)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("-: restored 3 rows, ")


@pytest.mark.parametrize("options", [["--format", "csv"], ["--email", "emails", "--phone", "phoneNumbers"]])
async def test_plain_exports_are_imported(
    options: list[str], story: str, bare_database_url: str, tmp_path: Path
) -> None:
    """An import of an export makes the same identities, with ids of their own."""
    name = "csv" if "csv" in options else "ndjson"
    path = tmp_path / f"out.{name}"
    path.write_text(run(story, "--format", name).stdout)

    done = recon("import", "--database-url", bare_database_url, str(path), *(options if name == "ndjson" else []))

    before, after = [[each[:2] for each in (await identities_of(url)).values()] for url in (story, bare_database_url)]
    assert before == after, done.stderr
