"""The layout, beyond what import-linter checks in `make lint` (pyproject.toml has the layers)."""

import re
import subprocess
import sys

import pytest

from tests.harness import ROOT

MODULES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("recon", "bench", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LONGEST = 400  # lines; a longer module is split by noun


# These two start tasks for single batches and connections themselves.
STARTS_TASKS = {"recon/background.py", "recon/server/protocol.py"}  # the latter awaits the task that it starts


def test_tasks_are_started_in_one_place() -> None:
    """No other module starts a task that could fail without a line in the log."""
    starting = re.compile(r"\b(create_task|ensure_future|TaskGroup)\(")

    found = {path for path, text in MODULES.items() if path.startswith("recon/") and starting.search(text)}

    assert found <= STARTS_TASKS


def test_the_rules_load_no_framework() -> None:
    """Importing the rules loads none of the libraries of the other layers."""
    rules = ", ".join(f"recon.rules.{path.stem}" for path in (ROOT / "recon" / "rules").glob("[!_]*.py"))
    script = f"import {rules}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"

    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()

    assert not {"aiohttp", "asyncio", "asyncpg", "pydantic", "pydantic_core"} & set(loaded)


def test_the_published_typo_stays_in_the_api() -> None:
    """Only the layer of the API, and the export in its form, have the misspelt name of the primary's id."""
    knowing = {path for path, text in MODULES.items() if path.startswith("recon/") and "primaryContatctId" in text}

    assert knowing == {"recon/api/identify.py", "recon/api/messages.py", "recon/sql/exports.py"}


@pytest.mark.parametrize("path", MODULES)
def test_no_module_outgrows_its_noun(path: str) -> None:
    """Modules are short."""
    assert len(MODULES[path].splitlines()) <= LONGEST


def test_no_folder_has_a_single_file() -> None:
    """Every folder has several files; for a single file it would only lengthen the name."""
    for folder in {(ROOT / path).parent for path in MODULES}:
        assert len([path for path in folder.iterdir() if not path.name.startswith("__")]) > 1, folder
