"""Corrections by a process whose database role owns nothing: with the grants of a steward, and without."""

import os
from collections.abc import Iterator

import pytest

from tests.api.test_corrections import BIFF, CORRECTIONS, GEORGE, WITHHELD, contents, made, method_of
from tests.database.test_roles import role_of_the_page, serving_role
from tests.database.test_stewards import COMMAND
from tests.harness.databases import execute
from tests.harness.processes import MakeClient


@pytest.fixture
def steward_url(database_url: str) -> Iterator[str]:
    """The test's database, for a role that makes corrections."""
    with role_of_the_page(database_url, f"recon_test_correcting_{os.getpid()}", COMMAND) as url:
        yield url


@pytest.fixture
def serving_url(database_url: str) -> Iterator[str]:
    """The test's database, for a role that serves and makes none."""
    with serving_role(database_url) as url:
        yield url


async def _prepare(client_url: str, owner_url: str, make_client: MakeClient) -> None:
    client = await make_client(database_url=client_url)
    for said in (GEORGE, BIFF, {"email": "marty"}):
        assert (await client.post("/identify", json=said)).status == 200
    await execute(owner_url, WITHHELD.format("limit"))


async def test_a_steward_makes_every_correction(steward_url: str, database_url: str, make_client: MakeClient) -> None:
    """The grants are enough for each correction, with an Idempotency-Key too."""
    await _prepare(steward_url, database_url, make_client)
    client = await make_client(database_url=steward_url, suppress_key="k" * 32)
    await made(client, "/identities/1/keep-apart", {"contactId": 3})
    await made(client, "/blocked", {"phoneNumber": "555"})

    for number, name in enumerate(["release", "keep-apart", "split", "dismiss", "guards", "block", "unblock"]):
        path, body = CORRECTIONS[name]
        await made(client, path, body, f"k-{number}", method_of(path))
    await made(client, "/identities/1/link", {"contactId": 2, "release": True}, "link")
    await made(client, "/identities/2/erase", {"suppress": True}, "erase")


async def test_another_role_says_what_it_lacks(serving_url: str, database_url: str, make_client: MakeClient) -> None:
    """Without the grants, a correction is a 503 that names them and what grants them. It changes nothing."""
    await _prepare(serving_url, database_url, make_client)
    client = await make_client(database_url=serving_url)
    before = await contents(database_url)

    for name in ("keep-apart", "split", "dismiss", "guards", "block", "erase"):
        path, body = CORRECTIONS[name]
        response = await client.request(method_of(path), path, json=body, headers={"Idempotency-Key": "k"})
        problem = await response.json(content_type=None)
        assert (response.status, problem["type"]) == (503, "urn:recon:unavailable"), name
        assert "DELETE on contact" in problem["detail"]
        assert "recon schema --apply --grant-steward ROLE" in problem["detail"]
        assert (await client.request(method_of(path), path, json=body)).status == 503, name
        if name != "erase":  # its preview reads the records of corrections, too
            assert (await client.request(method_of(path), path, json=body | {"dryRun": True})).status == 200

    assert await contents(database_url) == before
    assert (await client.get("/identities/1")).status == 200
