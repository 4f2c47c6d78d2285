"""The default region: all processes of a database have the same one, and no stored match key contradicts it."""

import asyncio
import json
import os
import urllib.error
import urllib.request
from pathlib import Path

import asyncpg
import pytest

from recon.database import transactions
from recon.database.definitions import SCHEMA_VERSION
from recon.database.embedded import data_folder
from recon.database.upgrade import apply_schema_to
from recon.errors import SchemaMismatch
from tests.harness.catalog import catalog
from tests.harness.databases import execute, fetch
from tests.harness.old_schemas import MIGRATED, OLD, ROWS, contacts, migrated_from, prepare
from tests.harness.processes import MakeClient, Process, StartRecon, recon

PLAIN = "INSERT INTO contact (phone_number) VALUES ('(201) 555-0123')"
AMERICAN = "INSERT INTO contact (phone_number, phone_key) VALUES ('(201) 555-0123', '12015550123')"
BRITISH = "INSERT INTO contact (phone_number, phone_key) VALUES ('020 7946 0958', '442079460958')"
# As an earlier version stored it, which passed the whole text to the library.
WITHOUT_EXTENSION = "INSERT INTO contact (phone_number, phone_key) VALUES ('201-555-0199 ext. 5', '12015550199')"
SAME_EVERYWHERE = "INSERT INTO contact (phone_number, phone_key) VALUES ('+1 201 555 0123', '12015550123'), ('x', 'x')"
DELETED = BRITISH.replace("phone_key)", "phone_key, deleted_at)").replace("')", "', now())")


async def region_of(url: str) -> str | None:
    """Return the default region that a database has recorded."""
    [row] = await fetch(url, "SELECT default_region FROM setting")
    return row[0]


ACCEPTED = [
    ([], None),
    ([], "US"),
    ([SAME_EVERYWHERE], None),
    ([SAME_EVERYWHERE], "GB"),
    ([PLAIN], None),
    ([AMERICAN], "US"),
    ([AMERICAN, PLAIN.replace("0123", "0199")], "US"),
    ([WITHOUT_EXTENSION, AMERICAN], "US"),
    ([BRITISH], "GB"),
    ([AMERICAN, DELETED], "US"),
]


@pytest.mark.parametrize(("rows", "region"), ACCEPTED)
@pytest.mark.parametrize("schema", OLD)
async def test_a_migration_records_a_region_that_fits(
    schema: str, rows: list[str], region: str | None, bare_database_url: str
) -> None:
    """The migration records the region that the operator gives, or none."""
    await prepare(bare_database_url, schema, *rows)

    done = await apply_schema_to(bare_database_url, region=region)

    assert done == [*migrated_from(schema), *([f"set the default region to {region}"] if region else [])]
    assert await region_of(bare_database_url) == region


REFUSED = [
    ([AMERICAN], None, "1 contact (1) were stored with a default region, which contradicts the default region none"),
    ([WITHOUT_EXTENSION], None, "stored with a default region"),
    ([AMERICAN, BRITISH], "US", "1 contact (2) were stored with another default region, which contradicts"),
    ([AMERICAN] * 6, "GB", "6 contacts (1, 2, 3, 4, 5, …) were stored with another default region"),
    ([PLAIN], "US", "the match key of contact 1 was stored without a default region, which contradicts"),
]


@pytest.mark.parametrize(("rows", "region", "message"), REFUSED)
async def test_a_region_that_the_match_keys_contradict_is_refused(
    rows: list[str], region: str | None, message: str, bare_database_url: str
) -> None:
    """Such a region is refused with one line, which quotes no identifier, and nothing is changed."""
    await prepare(bare_database_url, "1_last", *rows)
    before = await catalog(bare_database_url), await contacts(bare_database_url)

    done = recon(
        "schema", "--apply", "--database-url", bare_database_url, *(["--default-region", region] if region else [])
    )

    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("recon: ")]
    assert line.startswith("recon: nothing was changed: ")
    assert message in line
    assert "555" not in done.stderr
    assert (await catalog(bare_database_url), await contacts(bare_database_url)) == before


async def test_the_region_can_be_changed_while_nothing_contradicts_it(database_url: str) -> None:
    """`schema --apply` changes the region if no match key contradicts it; without the option it keeps the region."""
    assert await apply_schema_to(database_url, region="US") == ["set the default region to US"]
    assert await apply_schema_to(database_url) == []
    assert await apply_schema_to(database_url, region="US") == []
    await execute(database_url, AMERICAN)

    with pytest.raises(SchemaMismatch, match="another default region"):
        await apply_schema_to(database_url, region="GB")

    assert await region_of(database_url) == "US"


async def test_a_new_database_takes_the_region_of_the_process(bare_database_url: str, start_recon: StartRecon) -> None:
    """The process that creates the schema records its region."""
    start_recon("--database-url", bare_database_url, "--default-region", "us")

    assert await region_of(bare_database_url) == "US"


async def test_a_new_database_takes_the_region_of_the_command(bare_database_url: str) -> None:
    """The command that creates the schema records its region."""
    assert await apply_schema_to(bare_database_url, region="US") == ["the schema was applied"]

    assert await region_of(bare_database_url) == "US"


async def test_the_region_is_in_the_printed_schema(bare_database_url: str) -> None:
    """The printed schema records the region, for an operator who runs it with psql."""
    done = recon("schema", "--default-region", "IN")

    await execute(bare_database_url, done.stdout)

    assert await region_of(bare_database_url) == "IN"


def answer(process: Process, path: str, body: object = None) -> tuple[int, str]:
    """Return the status and the problem's detail of a response; with a body, of a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{process.url}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error).get("detail", "")


async def until_status(process: Process, path: str, status: int, body: object = None) -> str:
    """Return the problem's detail once the response has the status."""
    async with asyncio.timeout(30):
        while True:
            try:
                found, detail = await asyncio.to_thread(answer, process, path, body)
            except OSError:
                found, detail = 0, ""
            if found == status:
                return detail
            await asyncio.sleep(0.05)


PERSON = {"email": "a@x.io", "phoneNumber": "(201) 555-0123"}
COMPLAINT = (
    "recon is configured with the default region US, but the database has none: leave --default-region unset, "
    "or run `recon rekey --default-region US`, which computes all match keys anew"
)


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_with_another_region_does_not_serve(
    workers: int, start_recon: StartRecon, database_url: str
) -> None:
    """It answers 503 and logs one line until the regions agree; then it serves without a restart."""
    options = ["--database-url", database_url, "--default-region", "US", "--workers", str(workers)]
    process = start_recon(*options, ready=False)

    assert COMPLAINT in await until_status(process, "/readyz", 503)
    assert answer(process, "/identify", PERSON)[0] == 503
    assert await contacts(database_url) == []
    checked = recon("check", "--database-url", database_url, "--default-region", "US")
    done = recon("schema", "--apply", "--database-url", database_url, "--default-region", "US")
    await until_status(process, "/identify", 200, PERSON)

    assert (checked.returncode, checked.stdout.splitlines()[0]) == (1, f"region: {COMPLAINT}")
    assert done.stdout == "set the default region to US\n"
    assert [row["phone_key"] for row in await contacts(database_url)] == ["12015550123"]
    assert process.log.count(COMPLAINT) == workers


async def test_a_process_without_the_databases_region_does_not_serve(
    start_recon: StartRecon, database_url: str
) -> None:
    """The line names both regions, and how to start the process."""
    await execute(database_url, "UPDATE setting SET default_region = 'IN'")

    process = start_recon("--database-url", database_url, ready=False)

    detail = await until_status(process, "/readyz", 503)
    assert detail == (
        "recon is configured with the default region none, but the database has IN: "
        "set --default-region (RECON_DEFAULT_REGION) to IN"
    )
    assert process.log.count(detail) == 1


async def test_a_change_is_noticed_without_a_readiness_check(
    make_client: MakeClient, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without readiness probes checks the region regularly, and stops serving when it differs."""
    monkeypatch.setattr(transactions, "WATCH_EVERY", 0.05)
    client = await make_client()
    assert (await client.post("/identify", json=PERSON)).status == 200

    await execute(database_url, "UPDATE setting SET default_region = 'US'")

    async with asyncio.timeout(30):
        while (await client.post("/identify", json=PERSON)).status != 503:
            await asyncio.sleep(0.02)


async def test_a_contact_that_is_committed_during_the_check(bare_database_url: str) -> None:
    """A contradicting key is found even if its contact has a low id and is committed during the check."""
    await prepare(bare_database_url, "1_last")
    writer = await asyncpg.connect(bare_database_url)
    async with asyncio.timeout(30):
        transaction = writer.transaction()
        await transaction.start()
        await writer.execute(AMERICAN)
        await execute(bare_database_url, "INSERT INTO contact (email) VALUES ('with-a-higher-id')")
        applying = asyncio.create_task(apply_schema_to(bare_database_url))
        while not await fetch(bare_database_url, "SELECT FROM pg_locks WHERE NOT granted"):
            assert not applying.done()
            await asyncio.sleep(0.02)
        await transaction.commit()

        with pytest.raises(SchemaMismatch, match=r"the match keys of 1 contact \(1\)"):
            await applying
    await writer.close()


async def test_a_region_that_changes_while_a_process_serves(
    make_client: MakeClient, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The next readiness check stops the serving, with one line; it resumes when the regions agree again."""
    client = await make_client()
    assert (await client.post("/identify", json=PERSON)).status == 200
    await execute(database_url, "UPDATE setting SET default_region = 'US'")

    async with asyncio.TaskGroup() as probes:
        answers = [probes.create_task(client.get("/readyz")) for _ in range(5)]
    assert {probe.result().status for probe in answers} == {503}
    assert (await client.post("/identify", json=PERSON)).status == 503
    await execute(database_url, "UPDATE setting SET default_region = NULL")
    async with asyncio.timeout(30):
        while (await client.get("/readyz")).status != 200:
            await asyncio.sleep(0.05)

    assert (await client.post("/identify", json=PERSON)).status == 200
    assert caplog.text.count("but the database has US") == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_process_waits_for_the_migration(workers: int, start_recon: StartRecon, bare_database_url: str) -> None:
    """New processes answer 503 and log one line until the database is migrated; then they serve without a restart."""
    await prepare(bare_database_url, "1_first", *ROWS)
    process = start_recon("--database-url", bare_database_url, "--workers", str(workers), ready=False)
    complaint = (
        f"this recon serves schema {SCHEMA_VERSION}, but the database has schema 1; `recon schema --apply` migrates it"
    )

    assert complaint in await until_status(process, "/readyz", 503)
    assert answer(process, "/identify", PERSON)[0] == 503
    done = recon("schema", "--apply", "--database-url", bare_database_url)

    assert done.stdout.splitlines()[: len(MIGRATED)] == MIGRATED
    await until_status(process, "/identify", 200, PERSON)
    assert process.log.count(complaint) == workers


async def test_the_embedded_database_is_migrated_at_start_up(tmp_path: Path, start_recon: StartRecon) -> None:
    """The new version migrates an old data folder at start, and logs what it did."""
    data = tmp_path / "data"
    with data_folder.running(data) as url:
        await execute(url, OLD["1_first"], *ROWS)

    process = start_recon("--data-dir", str(data), env=os.environ | {"RECON_LOG_FORMAT": "json"})

    assert answer(process, "/identify", {"email": "a@x.io"})[0] == 200
    events = [event["event"] for event in process.events()]
    assert [event for event in events if "migration" in event] == [
        f"the embedded PostgreSQL: {each}" for each in MIGRATED
    ]
    process.stop()
    assert recon("schema", "--apply", "--data-dir", str(data)).stdout == "the schema is there already\n"


def test_the_embedded_database_refuses_another_region(tmp_path: Path) -> None:
    """Match keys without a region are not served with one: a clear error, and the data is not changed."""
    data = tmp_path / "data"
    with data_folder.running(data) as url:
        asyncio.run(execute(url, OLD["1_last"], PLAIN))

    done = recon("serve", "--port", "0", "--data-dir", str(data), "--default-region", "US")

    assert done.returncode == 1
    assert "recon: nothing was changed: the match key of contact 1 was stored without a default region" in done.stderr
    assert "Traceback" not in done.stderr
