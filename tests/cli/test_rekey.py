"""`recon rekey`: all that is stored gets the match keys of another default region, or of this version."""

import json
from typing import Any

from tests.cli.test_identities import ask
from tests.harness.databases import execute, fetch
from tests.harness.processes import MakeClient, recon

SHARING = (
    "The next request that has a shared match key makes its identities one, "
    "unless they are kept apart or the value is blocked."
)
US, E164 = "(201) 555-0123", "12015550123"
PLAIN = "2015550123"


async def everything(url: str) -> list[list[tuple[Any, ...]]]:
    """All rows of the tables that a rekey changes."""
    tables = ("contact", "event", "blocked", "setting")
    return [[tuple(row) for row in await fetch(url, f"SELECT * FROM {table} ORDER BY 1, 2")] for table in tables]


async def keys(url: str, table: str = "contact", column: str = "phone_key", order: str = "id") -> list[Any]:
    """The match keys in a table."""
    return [row[0] for row in await fetch(url, f"SELECT {column} FROM {table} ORDER BY {order}")]


async def rekeyed(url: str) -> list[tuple[dict[str, Any], str | None]]:
    """The details and notes of the events of rekeys."""
    rows = await fetch(url, "SELECT detail, note FROM event WHERE kind = 'rekeyed' ORDER BY id")
    return [(json.loads(row["detail"]), row["note"]) for row in rows]


def rekey(url: str, *arguments: str) -> dict[str, Any]:
    """Run the command, and return its answer."""
    done = ask(url, "rekey", "--json", "--yes", *arguments)
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


async def said(make_client: MakeClient, *requests: tuple[str | None, str | None], **settings: Any) -> list[Any]:
    """The answers of requests."""
    client = await make_client(**settings)
    answers = []
    for email, phone in requests:
        async with client.post("/identify", json={"email": email, "phoneNumber": phone}) as response:
            assert response.status == 200, await response.text()
            answers.append((await response.json())["contact"])
    return answers


async def test_a_new_region(make_client: MakeClient, database_url: str) -> None:
    """Contacts, soft-deleted ones too, get the keys of the region; then requests make the identities that share one."""
    await said(make_client, ("a", US), ("b", f"+{E164}"), ("c", "201-555-0199 ext. 5"), ("d", "201.555.0199"))
    await execute(database_url, "UPDATE contact SET deleted_at = now() WHERE id = 4")

    answer = rekey(database_url, "--default-region", "US", "--note", "we sell in the US")

    counts = {"contacts": 2, "emails": 0, "events": 0, "blocked": 0, "suppressed": 0}
    assert answer == {"from": None, "to": "US", **counts, "eventId": 6}
    assert await rekeyed(database_url) == [({"from": None, "to": "US", "counts": counts}, "we sell in the US")]
    assert await keys(database_url) == [E164, E164, "201-555-0199 ext. 5", "12015550199"]
    assert (await keys(database_url, "event", "kind")) == ["deleted", "rekeyed"]  # and none for the contacts
    checked = ask(database_url, "check", "--default-region", "US")
    assert checked.stdout.splitlines()[0] == "I3: one phone is in the clusters 1, 2 (contacts 1, 2)"
    [contact] = await said(make_client, (None, "201 555 0123"), default_region="US")
    assert contact["emails"] == ["a", "b"]
    assert "no violations" in ask(database_url, "check", "--default-region", "US").stdout


async def test_without_a_region(make_client: MakeClient, database_url: str) -> None:
    """Numbers that only the region made one number fall apart; identities stay as they are."""
    await said(make_client, ("a", US), ("b", f"+{E164}"), ("a", "020 7946 0958"), default_region="US")
    assert await keys(database_url) == [E164, E164, "02079460958"]

    preview = ask(database_url, "rekey", "--dry-run", "--json")
    rekey(database_url)

    found = json.loads(preview.stdout)
    assert (found["dividedKeys"], found["sharedKeys"]) == (1, 0)
    assert found["divided"] == [{"phoneNumber": E164, "becomes": [E164, PLAIN]}]
    assert await keys(database_url) == [PLAIN, E164, "02079460958"]
    [contact] = await said(make_client, (None, PLAIN))
    assert contact["emails"] == ["a", "b"]


async def test_from_one_region_to_another(make_client: MakeClient, database_url: str) -> None:
    """Each number is read in the new region, whatever the old one made of it."""
    await said(make_client, ("a", US), ("b", "020 7946 0958"), default_region="US")

    answer = rekey(database_url, "--default-region", "GB")

    assert (answer["from"], answer["to"]) == ("US", "GB")
    assert await keys(database_url) == ["442015550123", "442079460958"]
    assert await keys(database_url, "setting", "default_region", "1") == ["GB"]


async def test_a_second_run_changes_nothing(make_client: MakeClient, database_url: str) -> None:
    """With the region that the database has, nothing is to do, and no event is added."""
    await said(make_client, ("a", US), ("b", f"+{E164}"))
    rekey(database_url, "--default-region", "US")
    before = await everything(database_url)

    again = ask(database_url, "rekey", "--default-region", "US", "--yes")

    assert again.stdout.splitlines()[-1] == "Nothing to do: it is in effect already."
    assert await everything(database_url) == before


async def test_keys_of_an_older_version(database_url: str) -> None:
    """With the region that the database has, keys that other programs stored are computed anew, and emails composed."""
    await execute(
        database_url,
        "INSERT INTO contact (email) VALUES (U&'ren\\00e9@x.io'), (U&'rene\\0301@x.io')",
        "INSERT INTO contact (phone_number, phone_key) VALUES ('5-5', '5-5'), (E'5\\n5', 'x')",
    )

    preview = ask(database_url, "rekey", "--dry-run", "--json")
    answer = rekey(database_url)

    found = json.loads(preview.stdout)
    assert (found["identitiesThatShare"], found["shared"]) == (
        2,
        [{"email": "ren\u00e9@x.io", "primaryContactIds": [1, 2]}],
    )
    assert (answer["contacts"], answer["emails"]) == (2, 1)
    assert await keys(database_url, column="email") == ["ren\u00e9@x.io"] * 2 + [None] * 2
    assert await keys(database_url) == [None, None, "55", "x"]  # no request can have the last number


async def test_the_preview(make_client: MakeClient, database_url: str) -> None:
    """The preview says what comes to share a key and what falls apart; it is exact, and changes nothing."""
    await said(make_client, ("a", US), ("b", f"+{E164}"), ("c", "201.555.0123"), ("d", "+2015550123"))
    await said(make_client, ("e", "5"), ("f", "6"))
    await execute(
        database_url,
        "INSERT INTO contact (email, phone_number) VALUES ('g', '6')",  # which shares a key with f already
    )
    before = await everything(database_url)

    done = ask(database_url, "rekey", "--default-region", "US", "--dry-run")

    assert await everything(database_url) == before
    assert (done.returncode, done.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines == [
        "default region none → US",
        "contacts with another match key 2",
        "identities that come to share a match key 2",
        "match keys that they share 1",
        "match keys that become several 1",
        "the identities of contacts 1 and 2 come to share 12015550123",
        "2015550123 becomes 12015550123 and 2015550123",
        SHARING,
        "Identities that had one match key stay as they are.",
        "Nothing was changed yet.",
    ]


async def test_it_asks(make_client: MakeClient, database_url: str) -> None:
    """Only a yes, or --yes, changes anything."""
    await said(make_client, ("a", US))
    before = await everything(database_url)
    command = ("rekey", "--default-region", "US", "--database-url", database_url)

    none, no = recon(*command, input=""), recon(*command, input="n\n")

    assert (none.returncode, no.returncode) == (1, 1)
    assert no.stderr.endswith("recon: nothing was changed\n")
    assert "Nothing was changed yet." in no.stderr
    assert await everything(database_url) == before
    yes = recon(*command, input="y\n")
    assert (yes.returncode, yes.stdout.splitlines()[-1]) == (
        0,
        "Start all processes with the default region US; until then they answer 503.",
    )
    assert await keys(database_url) == [E164]
