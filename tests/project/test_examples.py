"""The examples of corrections in the OpenAPI document work."""

from typing import Any

from aiohttp.test_utils import TestClient
from pydantic import TypeAdapter

from recon.api import decisions
from recon.api.openapi import document
from tests.harness.databases import execute
from tests.project.test_docs import _endpoints, _examples


async def test_the_examples_of_corrections_work(client: "TestClient[Any, Any]", database_url: str) -> None:
    """With two more contacts and a withheld link, each example of a correction has an answer of the documented form."""
    paths = document(_endpoints())["paths"]
    for example in _examples(paths["/identify"]["post"]):
        assert (await client.post("/identify", json=example)).status == 200
    for email in ("third@hillvalley.edu", "fourth@hillvalley.edu"):
        assert (await client.post("/identify", json={"email": email})).status == 200
    await execute(database_url, "INSERT INTO event (id, kind, primary_id) VALUES (5, 'withheld', 1)")
    tried = 0
    for path, methods in paths.items():
        for method, operation in methods.items():
            if operation["tags"] != ["corrections"]:
                continue
            given = {each["name"]: each["example"] for each in operation.get("parameters", []) if each["in"] == "path"}
            form = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            for example in _examples(operation) if "requestBody" in operation else [None]:
                body = example if method == "get" else {**example, "dryRun": True}
                response = await client.request(method, path.format(**given), json=body)

                assert response.status == 200, (path, example, await response.text())
                TypeAdapter(getattr(decisions, form)).validate_json(await response.text(), strict=True)
                tried += 1
    assert tried >= 12
