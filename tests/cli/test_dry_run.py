"""`recon import --dry-run`: its report, and that it needs no database and stores nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from recon.cli.transfer import import_
from tests.harness.processes import recon

NOWHERE = "postgresql://127.0.0.1:1/nowhere"
SHOP = """email,phone
a@x,1
b@x,0800
c@x,0800
d@x,0800
a@x,0800
null,1
,
"""


def run(folder: Path, *arguments: str | Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a dry run in a folder, where no database can be reached."""
    command = ["import", "--dry-run", "--database-url", NOWHERE, *map(str, arguments)]
    return recon(*command, cwd=folder, **options)


def report(folder: Path, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    """Run a dry run, which succeeds, and return its report."""
    done = run(folder, "--json", *arguments, **options)
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder, with a file of a shop in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.csv").write_text(SHOP)
    return tmp_path


def test_other_guards(shop: Path) -> None:
    """The report has the present guards and the others side by side; no database is needed, and no file is written."""
    found = report(shop, "shop.csv", "--max-emails", "2", "--no-block-common", "--block", "phone:+7", "--block", "A@x")

    assert [each.name for each in shop.iterdir()] == ["shop.csv"]
    assert (found["files"], found["on"]) == (["shop.csv"], None)
    present, other = found["present"], found["other"]
    assert present["guards"] == {
        "maxEmails": 1000, "maxPhones": 1000, "blockCommon": True, "blocked": [], "of": "a new database"
    }  # fmt: skip
    assert other["guards"] == {
        "maxEmails": 2, "maxPhones": 1000, "blockCommon": False, "blocked": [{"email": "a@x"}, {"phoneNumber": "7"}]
    }  # fmt: skip
    figures = "records", "requests", "contacts", "identities", "created", "extended", "merged", "known", "rejected"
    assert [present[each] for each in figures] == [7, 6, 4, 1, 2, 2, 1, 1, 1]
    assert [other[each] for each in figures] == [7, 6, 5, 3, 3, 2, 0, 1, 1]
    assert present["withheld"] == {"blocked": 1, "kept-apart": 0, "limit": 0}
    assert other["withheld"] == {"blocked": 2, "kept-apart": 0, "limit": 1}
    assert present["rejects"] == other["rejects"] == {"has neither an email nor a phone number": 1}
    assert present["joining"][0] == {"phoneNumber": "0800", "joins": 4, "withheld": 0}
    assert other["joining"][0] == {"phoneNumber": "0800", "joins": 2, "withheld": 2}
    assert present["largest"] == {
        "contacts": 4,
        "emails": 4,
        "phoneNumbers": 2,
        "someEmails": ["a@x", "b@x", "c@x", "d@x"],
        "somePhoneNumbers": ["1", "0800"],
    }
    assert other["sizes"] == [{"contacts": 1, "identities": 1}, {"contacts": 2, "identities": 2}]


def test_as_text(shop: Path) -> None:
    """The same as text: a column for each set of guards, the largest identity, and what joins the most."""
    (shop / "export.ndjson").write_text(
        '{"primaryContactId": 5, "emails": ["\\u001b[31m@x"], "phoneNumbers": [], "secondaryContactIds": [6]}\n'
        '{"position": 6}\n'
    )
    (shop / "again.ndjson").write_text('{"email": "a@x"}\n')

    done = run(shop, "shop.csv", "again.ndjson", "--on", "export.ndjson", "--max-emails", "0", "--max-phones", "1")

    assert done.returncode == 0, done.stderr
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[:3] == [
        "export.ndjson: 1 identities of 2 contacts",
        "shop.csv, again.ndjson",
        "present guards other guards",
    ]
    for line in (
        "emails of an identity at most 1,000 no limit",
        "phone numbers at most 1,000 1",
        "contacts 6 6",
        "identities 2 3",
        "records 8 8",
        "withheld (limit) 0 1",
        "rejected: has neither an email nor a phone number 1 1",
        "The largest identity under the present guards: a@x, b@x, c@x, d@x, 1, 0800",
        "What joins the most, other guards",
        "phone number 0800 3 1",
        "Nothing was stored. The present guards are those of a new database.",
    ):
        assert any(each.startswith(line) for each in lines), (line, done.stdout)
    assert "\x1b" not in done.stdout


def test_rejects_and_standard_input(tmp_path: Path) -> None:
    """--rejects writes the records that the import would reject; without it, they are only counted."""
    text = '{"email": "null"}\n{"email": 5}\n{"phoneNumber": 7}\n'

    found = report(tmp_path, "-", "--format", "ndjson", "--rejects", "rejects.ndjson", input=text)

    assert found["present"]["rejected"] == 2
    lines = [json.loads(line) for line in (tmp_path / "rejects.ndjson").read_text().splitlines()]
    assert [line["recon_reason"].partition(":")[0] for line in lines] == [
        "blocked", "email is not a string, a list of strings or null"
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "beginning"), [("sizes.svg", "<?xml"), ("sizes.PNG", "\ufffdPNG")])
def test_the_plot(name: str, beginning: str, shop: Path) -> None:
    """The sizes of identities as a plot."""
    found = CliRunner().invoke(import_, ["--dry-run", "--json", "shop.csv", "--max-emails", "2", "--plot", name])

    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["plot"] == name
    assert (shop / name).read_text(errors="replace").startswith(beginning)


def test_without_what_draws(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, --plot is an error that names it, before the file is read."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    found = CliRunner().invoke(import_, ["--dry-run", "shop.csv", "--plot", "sizes.svg"])

    assert found.exit_code == 1
    assert found.stderr.splitlines()[-1].startswith("recon: --plot needs matplotlib: install recon with its extra")
    assert not (shop / "sizes.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "--resume"], "a dry run has nothing to --resume or --restart"),
        (["--dry-run", "--restart"], "a dry run has nothing to --resume or --restart"),
        (["--dry-run", "--plot", "sizes.pdf"], "--plot writes .svg or .png files: sizes.pdf is neither"),
        (["--dry-run", "--plot", "missing/sizes.svg"], "--plot: missing is no folder that can be written to"),
        (["--dry-run", "--block", "email:"], "a value is an email or a phone number"),
        (["--dry-run", "--max-emails", "-1"], "--max-emails"),
        (["--dry-run", "--on", "missing.ndjson"], "'missing.ndjson' does not exist"),
        (["--dry-run", "--on", "shop.csv"], "line 1 of shop.csv is no identity"),
        (["--max-emails", "5"], "are for --dry-run; `recon guards` and `recon block` change the guards"),
        (["--block", "a@x"], "are for --dry-run"),
        (["--plot", "sizes.svg"], "are for --dry-run"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_what_makes_no_sense(arguments: list[str], message: str) -> None:
    """It is an error that says what is wrong."""
    found = CliRunner().invoke(import_, ["--database-url", NOWHERE, "shop.csv", *arguments])

    assert found.exit_code in {1, 2}
    assert message in " ".join(found.stderr.split())
