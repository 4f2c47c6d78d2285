"""The scenarios of the API's contract, step by step, in each configuration of recon."""

import json
from typing import Any

import pytest
from aiohttp.test_utils import TestClient

from tests.harness import ROOT
from tests.harness.databases import fetch
from tests.harness.processes import MakeClient

SCENARIOS = json.loads((ROOT / "tests" / "conformance.json").read_text())["scenarios"]
FORMS = {"default": {}, "plain": {"coalesce": False, "writer_lane": False}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
async def test_scenario(scenario: dict[str, Any], form: str, make_client: MakeClient, database_url: str) -> None:
    """Each step is answered, and the table ends, as the scenario says."""
    await expect_scenario(scenario, await make_client(**FORMS[form]), database_url)


async def expect_scenario(scenario: dict[str, Any], client: "TestClient[Any, Any]", database_url: str) -> None:
    """On an empty table, each step is answered as the scenario says, and the table ends as it says."""
    ids: list[int] = []
    for step in scenario["steps"]:
        request = step["request"]
        body = request if isinstance(request, str) else json.dumps(request)
        response = await client.post("/identify", data=body, headers={"Content-Type": "application/json"})

        assert response.status == step["expect"]["status"]
        if "contact" in step["expect"]:
            assert _named((await response.json())["contact"], ids) == step["expect"]["contact"]
    if "final" in scenario:
        [row] = await fetch(
            database_url,
            "SELECT count(*) AS rows, count(*) FILTER (WHERE link_precedence = 'primary') AS primaries FROM contact",
        )
        assert dict(row) == scenario["final"]


def _named(contact: dict[str, Any], ids: list[int]) -> dict[str, Any]:
    """Replace the id of the n-th row in an answer by "$n", as the scenarios write it."""
    assert contact["primaryContactId"] == contact.pop("primaryContatctId")
    seen = [contact["primaryContactId"], *contact["secondaryContactIds"]]
    ids += sorted(new for new in seen if new not in ids)
    name = {contact_id: f"${place}" for place, contact_id in enumerate(ids, start=1)}
    return {
        "primaryContatctId": name[contact["primaryContactId"]],
        "emails": contact["emails"],
        "phoneNumbers": contact["phoneNumbers"],
        "secondaryContactIds": [name[contact_id] for contact_id in contact["secondaryContactIds"]],
    }
