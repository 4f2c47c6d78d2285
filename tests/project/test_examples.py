"""The examples work: those of corrections in the OpenAPI document, and the commands of pages, with their answers."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from pydantic import TypeAdapter

from recon.api import decisions
from recon.api.openapi import document
from tests.harness.databases import execute
from tests.harness.processes import RECON, Process, recon_processes
from tests.project.test_docs import PAGES, _blocks, _endpoints, _examples


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


@pytest.fixture
def served(tmp_path: Path, database_url: str) -> Iterator[Process]:
    """A recon on an empty database."""
    with recon_processes(tmp_path) as start:
        yield start("--database-url", database_url)


@pytest.mark.parametrize(("page", "least"), [("README.md", 8), ("docs/identities.md", 36)])
def test_the_commands_of_a_page_have_its_answers(page: str, least: int, served: Process, database_url: str) -> None:
    """Run one after another on an empty database, curl and recon answer as the page says, times and spaces aside."""
    environment = os.environ | {"RECON_DATABASE_URL": database_url}
    tried = 0
    for block in _blocks("console", PAGES[page]):
        for example in re.split(r"^\$ ", block.replace("\\\n", " "), flags=re.MULTILINE)[1:]:
            command, answer = example.split("\n", 1)
            program, *arguments = shlex.split(command.replace("127.0.0.1:8000", f"127.0.0.1:{served.port}"))
            called = [str(RECON) if program == "recon" else program, *arguments]

            done = subprocess.run(called, capture_output=True, text=True, timeout=20, check=True, env=environment)

            assert _compared(done.stdout) == _compared(answer), command
            tried += 1
    assert tried >= least


def _compared(answer: str) -> object:
    """What an answer says: JSON, or a text without its spaces; without its times."""
    timeless = re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d[:\d.]*(Z|\+00:00| UTC)", "TIME", answer)
    return json.loads(timeless) if timeless.startswith("{") else timeless.split()
