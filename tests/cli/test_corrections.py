"""The commands that correct identities: what they show, that they ask, and what they do."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_identities import BIFF, GEORGE, ask
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient, recon


@pytest.fixture
async def story(make_client: MakeClient, database_url: str) -> str:
    """A database in which a request made George (contact 1) and Biff (contact 2) one person."""
    client = await make_client()
    for email, phone in ((GEORGE, "919191"), (BIFF, "717171"), (GEORGE, "717171")):
        async with client.post("/identify", json={"email": email, "phoneNumber": phone}) as response:
            assert response.status == 200
    return database_url


async def kinds(url: str) -> list[tuple[Any, ...]]:
    """The kinds, sources and notes of all events but the merge."""
    rows = await fetch(url, "SELECT kind, source, note FROM event WHERE kind <> 'merged' ORDER BY id")
    return [tuple(row) for row in rows]


async def test_it_asks_before_it_acts(story: str) -> None:
    """The preview is shown, and only a yes makes the correction."""
    command = ("split", GEORGE, "--link", "event:3", "--note", "two people", "--database-url", story)

    no = recon(*command, input="n\n")
    none = recon(*command, input="")
    nothing = await kinds(story)
    yes = recon(*command, input="y\n")

    assert (no.returncode, none.returncode, yes.returncode) == (1, 1, 0)
    assert nothing == []
    assert "Nothing was changed yet." in no.stderr
    assert "Make this correction? [y/N]" in no.stderr
    assert no.stderr.endswith("recon: nothing was changed\n")
    assert no.stdout == none.stdout == ""
    assert [line.split() for line in yes.stdout.splitlines()] == [
        ["primary", "contact", "1"],
        ["emails", GEORGE],
        ["phone", "numbers", "919191"],
        ["secondary", "contacts", "none"],
        [],
        ["primary", "contact", "2"],
        ["emails", BIFF],
        ["phone", "numbers", "717171"],
        ["secondary", "contacts", "none"],
        [],
        ["links", "cut", "event:3"],
        ["event", "4"],
    ]
    assert await kinds(story) == [("split", "terminal", "two people")]


async def test_a_story_in_the_terminal(story: str) -> None:
    """Split by values, link again, keep apart, release, erase: each by email, phone number or id, as JSON."""

    def made(*command: str) -> Any:
        done = ask(story, *command, "--yes", "--json")
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return json.loads(done.stdout)

    split = made("split", "1", "--part", f"{BIFF},717171", "--no-keep-apart")
    apart = made("keep-apart", GEORGE, "71-71-71")
    refused = ask(story, "link", GEORGE, BIFF, "--yes")
    released = made("release", GEORGE, BIFF)
    linked = made("link", "id:1", "2")
    erased = made("erase", "2")

    assert [contact["primaryContactId"] for contact in split["contacts"]] == [1, 2]
    assert apart["eventId"] == 5
    assert (refused.returncode, refused.stderr) == (
        1,
        "recon: These identities are kept apart. `release` lifts the constraints in `keptApart` and links them.\n",
    )
    assert released["released"] == [[1, 2]]
    assert linked["contact"]["emails"] == [GEORGE, BIFF]
    assert erased["contactIds"] == [1, 2]
    assert [kind for kind, _, _ in await kinds(story)] == ["split", "kept_apart", "released", "linked", "erased"]


async def test_dry_run(story: str) -> None:
    """It shows what the correction would come to, asks nothing, and changes nothing."""
    for command in (
        ("split", GEORGE, "--link", "event:3"),
        ("erase", GEORGE),
        ("block", "919191"),
        ("guards", "--max-emails", "7"),
    ):
        done = ask(story, *command, "--dry-run")
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "Nothing was changed yet." in done.stdout, command
    assert await kinds(story) == []


async def test_block_from_a_file(story: str, tmp_path: Path) -> None:
    """Each value of the file is blocked; nothing is if one line has no value; what is blocked can be allowed again."""
    file = tmp_path / "values.txt"
    file.write_text("# junk\ntest@test.com   # a placeholder\n\n1234567890\n")
    blocked = ask(story, "block", "--from", str(file), "--yes", "--note", "junk")
    file.write_text("a@test.com\na\tb@test.com\n")
    wrong = ask(story, "block", "--from", str(file), "--yes")
    again = ask(story, "block", "1234567890", "--yes")
    allowed = ask(story, "unblock", "1234567890", "--yes")

    assert (blocked.returncode, wrong.returncode, again.returncode, allowed.returncode) == (0, 1, 0, 0)
    assert "a value is an email or a phone number" in wrong.stderr
    assert again.stdout.split() == ["event", "5"]
    assert await kinds(story) == [("blocked", "terminal", "junk")] * 2 + [("unblocked", "terminal", None)]
    assert [row["key"] for row in await fetch(story, "SELECT key FROM blocked")] == ["test@test.com"]


async def test_guards(story: str) -> None:
    """The settings are shown and changed; values that identify nobody, but are in identities, are shown and blocked."""
    await execute(
        story,
        "INSERT INTO contact (email, phone_number) VALUES ('null', '5')",
        "INSERT INTO contact (email, phone_number) VALUES ('x@y.zz', '000000')",
    )
    before = ask(story, "guards", "--json")
    changed = ask(story, "guards", "--max-emails", "5", "--no-block-common", "--yes")
    off = ask(story, "guards", "--preview", "--json")
    ask(story, "guards", "--block-common", "--yes")
    preview = ask(story, "guards", "--preview", "--json")
    applied = ask(story, "guards", "--apply", "--yes")

    assert json.loads(before.stdout) == {"maxEmails": 1000, "maxPhones": 1000, "blockCommon": True}
    assert [line.split() for line in changed.stdout.splitlines()][:3] == [
        ["most", "emails", "5"],
        ["most", "phone", "numbers", "1000"],
        ["recon's", "own", "list", "off"],
    ]
    assert json.loads(off.stdout) == {"values": []}
    assert json.loads(preview.stdout) == {"values": [{"email": "null"}, {"phoneNumber": "000000"}]}
    assert applied.returncode == 0
    assert json.loads(ask(story, "guards", "--preview", "--json").stdout) == {"values": []}
    assert "no violations" in ask(story, "check").stdout


async def test_dismiss(story: str) -> None:
    """A withheld link is taken off the review list."""
    await execute(story, "INSERT INTO event (id, kind, primary_id, detail) VALUES (40, 'withheld', 1, '{}')")

    done = ask(story, "dismiss", "40", "--yes")

    assert done.returncode == 0
    assert (await fetch(story, "SELECT undone_by IS NOT NULL FROM event WHERE id = 40"))[0][0]
    assert ask(story, "dismiss", "41", "--yes").stderr == "recon: No link was withheld under this id.\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("split", "1"), "give either --link or --part"),
        (("split", "1", "--link", "event:3", "--part", "a"), "give either --link or --part"),
        (("release", "1"), "give either a second WHO or --event"),
        (("block",), "give either a value or --from"),
        (("guards", "--preview", "--apply"), "change the settings, or give --preview, or --apply"),
    ],
)
def test_wrong_use(command: tuple[str, ...], message: str) -> None:
    """The command says how it is used."""
    done = recon(*command)

    assert done.returncode == 2
    assert message in done.stderr


def test_what_is_not_utf_8(story: str, tmp_path: Path) -> None:
    """A file, a note or a value that is not UTF-8 is refused clearly. A byte order mark is no part of a value."""
    file = tmp_path / "values.txt"
    file.write_bytes(b"Gr\xfc\xdfe@hillvalley.edu\n")
    wrong = ask(story, "block", "--from", str(file), "--yes")
    file.write_text("test@test.com\n", "utf-8-sig")
    marked = ask(story, "block", "--from", str(file), "--yes", "--json")
    note = ask(story, "block", "1234567890", "--yes", "--note", "Gr\udcfc\udcdfe")
    value = ask(story, "show", "Gr\udcfc\udcdfe@hillvalley.edu")

    assert (wrong.returncode, note.returncode, value.returncode, marked.returncode) == (2, 2, 1, 0)
    assert "the file must be text in UTF-8" in wrong.stderr
    assert "Invalid value for '--note': is not valid UTF-8" in note.stderr
    assert value.stderr.startswith("recon: no contact has 'Gr\\udcfc")
    assert ask(story, "unblock", "test@test.com", "--yes").stdout.split() == ["event", "5"]


def test_what_does_not_divide(story: str) -> None:
    """The links that still connect the identity are named; so is whom nobody knows."""
    done = ask(story, "split", GEORGE, "--link", "contact:9", "--yes")
    nobody = ask(story, "erase", "nobody@hillvalley.edu", "--yes")

    assert (done.returncode, nobody.returncode) == (1, 1)
    assert done.stderr == "recon: /links/0 names a link that the identity does not have.\n"
    assert nobody.stderr.startswith("recon: no contact has 'nobody@hillvalley.edu'")


def test_suppress(story: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the digests is a variable alone."""
    without = ask(story, "erase", GEORGE, "--suppress", "--yes")
    monkeypatch.setenv("RECON_SUPPRESS_KEY", "k" * 32)
    with_key = ask(story, "erase", GEORGE, "--suppress", "--yes")

    assert "RECON_SUPPRESS_KEY" in without.stderr
    assert with_key.returncode == 0
