"""The commands that explain identities: what they print for people and for programs, and whom they find."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from recon.cli import terminal
from recon.rules.journal import Kind, Record
from recon.rules.links import Identifier, Link, LinkKind
from tests.harness.chronicle import entry
from tests.harness.databases import execute
from tests.harness.processes import MakeClient, recon
from tests.harness.steward import NOTE, split_george_and_biff, withhold

GEORGE, BIFF = "george@hillvalley.edu", "biffsucks@hillvalley.edu"
REQUESTS = [(GEORGE, "919191"), (BIFF, "717171"), (GEORGE, "717171"), ("doc@hillvalley.edu", "2")]


EVENT = 5  # of the split in the story


async def _split_on(url: str) -> None:
    """Split George and Biff, and let a request ask for both: Doc is contact 4 in the story, so he goes first."""
    await execute(url, "DELETE FROM contact WHERE id = 4")
    await split_george_and_biff(url)
    await withhold(url, EVENT + 1, (GEORGE, "717171"), "kept-apart", (1, 2))


@pytest.fixture
async def story(make_client: MakeClient, database_url: str) -> str:
    """A database in which George and Biff are one person, and Doc's phone number is the id of Biff's contact."""
    client = await make_client()
    for email, phone in REQUESTS:
        async with client.post("/identify", json={"email": email, "phoneNumber": phone}) as response:
            assert response.status == 200
    return database_url


def ask(url: str, *arguments: str) -> Any:
    """Run a command and return what it prints."""
    return recon(*arguments, "--database-url", url)


async def answer(make_client: MakeClient, path: str) -> Any:
    """Return what the API answers."""
    client = await make_client()
    async with client.get(path) as response:
        return await response.json()


@pytest.mark.parametrize("who", [GEORGE, " George@HillValley.edu", "71-71-71", "id:1", "id:2", "phone:919191", "1"])
def test_show(who: str, story: str) -> None:
    """Any contact or identifier of the identity leads to it, in any form of it."""
    done = ask(story, "show", who)

    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines == [
        ["primary", "contact", "1"],
        ["emails", GEORGE],
        [BIFF],
        ["phone", "numbers", "919191"],
        ["717171"],
        ["secondary", "contacts", "2"],
    ]


@pytest.mark.parametrize("arguments", [["show", "id:1"], ["history", "id:1"]])
async def test_json_is_what_the_api_answers(arguments: list[str], story: str, make_client: MakeClient) -> None:
    """With --json, a command prints the document of its endpoint."""
    path = "/identities/1" if arguments[0] == "show" else "/identities/1/history"

    done = ask(story, *arguments, "--json")

    assert json.loads(done.stdout) == await answer(make_client, path)


def test_show_as_of_a_position_and_a_time(story: str) -> None:
    """The identity as it was before the merge, and an error before it began."""
    before = ask(story, "show", GEORGE, "--as-of", "2", "--json")
    early = ask(story, "show", GEORGE, "--as-of", "2001-01-01T00:00:00Z")
    now = ask(story, "show", GEORGE, "--as-of", datetime.now(UTC).isoformat(), "--json")

    assert json.loads(before.stdout)["contact"]["emails"] == [GEORGE]
    assert (early.returncode, early.stderr) == (1, "recon: No contact had this id then.\n")
    assert json.loads(now.stdout)["contact"]["emails"] == [GEORGE, BIFF]


@pytest.mark.parametrize("moment", ["yesterday", "2026-01-01T12:00:00", "-1", "9" * 30])
def test_a_moment_that_is_none(moment: str) -> None:
    """The message says what is right, before a database is asked."""
    done = recon("show", GEORGE, f"--as-of={moment}")

    assert done.returncode == 2
    assert "must be a position, such as 31, or a time with a time zone" in done.stderr


def test_history(story: str) -> None:
    """A line for each contact and event, oldest first, none of them cut off."""
    done = ask(story, "history", BIFF)

    assert done.returncode == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert [[row[0], *row[2:5]] for row in rows] == [
        ["1", "contact", GEORGE, "919191"],
        ["2", "contact", BIFF, "717171"],
        ["3", "merged: the identity of contact 2 into that of contact 1", GEORGE, "717171"],
    ]


def test_why(story: str) -> None:
    """The path is a chain of identifiers and links, and a sentence says the same."""
    done = ask(story, "why", "919191", BIFF)

    chain, _, sentence = done.stdout.partition("\n\n")
    lines = [line.strip(" │").partition(" (")[0] for line in chain.splitlines()]
    assert lines == [
        "919191",
        "contact:1: one request had both",
        GEORGE,
        "event:3: one request had both, and made two identities one",
        "717171",
        "contact:2: one request had both",
        BIFF,
    ]
    assert sentence.startswith(f"919191 and {BIFF} are one person: the request of ")


def test_why_not(story: str) -> None:
    """Two people are no error: the sentence says that no link connects them."""
    done = ask(story, "why", GEORGE, "doc@hillvalley.edu")
    document = json.loads(ask(story, "why", GEORGE, "doc@hillvalley.edu", "--json").stdout)

    assert (done.returncode, done.stdout) == (0, document["sentence"] + "\n")
    assert (document["same"], document["path"]) == (False, None)


NOBODY = ["nobody@hillvalley.edu", "555", "id:99", "id:none", "email:", "9" * 400, "\x1b", "phone:" + "1" * 65]


@pytest.mark.parametrize(
    ("command", "who"),
    [*((["show"], who) for who in NOBODY), (["history"], NOBODY[0]), (["why", GEORGE], NOBODY[0])],
)
def test_nobody(command: list[str], who: str, story: str) -> None:
    """Whoever does not exist is one line and exit code 1."""
    done = ask(story, *command, who)

    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"recon: no contact has {who!r} as its email, phone number or id\n"


def test_a_number_that_is_two_things(story: str) -> None:
    """2 is Biff's contact and Doc's phone number: the line says how to tell them apart."""
    done = ask(story, "show", "2")

    assert done.returncode == 1
    assert done.stderr == (
        "recon: '2' is the id of a contact and the phone number of another person: write id: or phone:\n"
    )
    assert "doc@hillvalley.edu" in ask(story, "show", "phone:2").stdout
    assert BIFF in ask(story, "show", "id:2").stdout


async def test_an_identity_that_was_deleted(story: str) -> None:
    """Its history can be read; what it is now cannot."""
    await execute(story, "UPDATE contact SET deleted_at = now() WHERE id = 4")

    shown, told = ask(story, "show", "id:4"), ask(story, "history", "id:4")

    assert (shown.returncode, shown.stderr) == (1, "recon: No live contact of this identity is left.\n")
    assert told.returncode == 0
    assert "contact, deleted" in told.stdout
    assert "deleted: contact 4" in told.stdout


@pytest.mark.parametrize("command", [["show", "1"], ["history", "1"], ["why", "1", "2"]])
def test_a_database_without_a_schema(command: list[str], bare_database_url: str) -> None:
    """A command that only reads creates nothing."""
    done = ask(bare_database_url, *command)

    assert done.returncode == 1
    assert "the database does not have recon's schema" in done.stderr
    assert "the database does not have recon's schema" in ask(bare_database_url, *command).stderr


def test_a_terminal_obeys_nothing_of_a_value() -> None:
    """Rows of other programs can have escape sequences and brackets; the tables show them as text."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    record = Record(1, None, "\x1b[31m[red]a\u202e", None, None, at, None, None)
    writer = terminal.console()

    with writer.capture() as captured:
        writer.print(terminal.history([record, entry(2, Kind.MENDED, 1, 3), entry(3, Kind.EDITED, 1, 1)]))
        writer.print(terminal.sentence("\x07[bold]"))

    assert "\ufffd[31m[red]a\ufffd" in captured.get()
    assert "\ufffd[bold]" in captured.get()
    assert "mended: contact 1 is the primary in the place of contact 3" in captured.get()
    assert "edited: contact 1" in captured.get()


async def test_what_is_kept_apart(story: str) -> None:
    """`recon show` says from whom an identity is kept apart, `recon withheld` lists the review list."""
    await _split_on(story)

    shown, listed = ask(story, "show", GEORGE), ask(story, "withheld")
    document = json.loads(ask(story, "withheld", "--json").stdout)

    assert f"kept apart from contact 2 (event {EVENT}, " in shown.stdout
    assert f"desk: {NOTE})" in shown.stdout
    assert "kept-apart" in shown.stdout
    assert [part in listed.stdout for part in ("kept-apart", GEORGE, "717171")] == [True] * 3
    assert [each["eventId"] for each in document["withheld"]] == [EVENT + 1]
    assert "a steward (desk) keeps them apart since" in ask(story, "why", GEORGE, BIFF).stdout


async def test_the_history_of_a_split(story: str) -> None:
    """It is told in words, with who did it and why."""
    await _split_on(story)

    for who in (GEORGE, BIFF):
        told = ask(story, "history", who).stdout
        assert "split: into contacts 1, 2, which are kept apart" in told
        assert NOTE in told


async def test_an_identity_that_was_erased(story: str) -> None:
    """An id of an erased identity says so, unless the number is a phone number, too."""
    await execute(story, "INSERT INTO erased VALUES (77, 78), (919191, 78)")

    for command in (["show", "77"], ["history", "id:77"], ["why", GEORGE, "77"]):
        done = ask(story, *command)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", "recon: The identity was erased.\n")
    assert GEORGE in ask(story, "show", "919191").stdout


def test_every_kind_of_event_is_told_in_words() -> None:
    """What happened, to which contacts, and whether it was undone."""
    divided = {"parts": [1, 5], "apart": True, "moved": [[2, "email", 5, None]], "deleted": [3]}
    told = {
        (Kind.MERGED, None): "merged: the identity of contact 7 into that of contact 1",
        (Kind.LINKED, None): "linked: the identity of contact 7 into that of contact 1",
        (Kind.SPLIT, "divided"): "split: into contacts 1, 5, which are kept apart",
        (Kind.SPLIT, None): "split: what it was is not recorded any more",
        (Kind.KEPT_APART, None): "kept apart: contact 1 and contact 7",
        (Kind.RELEASED, None): "released: contact 1 and contact 7",
        (Kind.WITHHELD, "limit"): "withheld: a link from contact 1 to contact 7 (limit)",
        (Kind.WITHHELD, "divided"): "withheld: contacts 2, 3 lost an identifier",
        (Kind.DISMISSED, None): "dismissed: the withheld link of event 7",
        (Kind.BLOCKED, "divided"): "blocked: 2 contacts lost the value; what had it is now contacts 1, 5",
        (Kind.UNBLOCKED, None): "unblocked",
        (Kind.DELETED, None): "deleted: contact 7",
    }
    details = {None: None, "divided": divided, "limit": {"reason": "limit"}}
    events = [entry(9, kind, 1, 7, detail=details[detail]) for kind, detail in told]

    with (writer := terminal.console()).capture() as captured:
        for event in events:
            writer.print(terminal.history([replace(event, undone_by=31)]))

    for words in told.values():
        assert words in captured.get()
    assert captured.get().count("(undone by event 31)") == len(events)


def test_a_link_that_nothing_explains() -> None:
    """The chain says so."""
    one, other = Identifier("email", "a"), Identifier("email", "b")
    link = Link(LinkKind.UNEXPLAINED, 7, (one, other), None, None)

    assert terminal.chain([link], [one, other], {one: "a", other: "b"}).plain == (
        "a\n  │  unexplained:7: nothing recorded explains this link\nb"
    )
