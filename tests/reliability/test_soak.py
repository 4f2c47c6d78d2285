"""A short soak, and whether docs/reliability.md matches its figures and the tests."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from recon.settings import Settings
from tests.harness.reliability_page import FIGURES, PAGE, ROOT, page
from tests.harness.soak import tried
from tests.reliability.test_fuzz import report

PAGE_TEXT = PAGE.read_text()


def test_a_short_soak() -> None:
    """The soak loads recon, injects a fault, prints the figures, and reports that nothing was lost."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.harness.soak", "--minutes", "0.05", "--recovery", "30"),
            *("--only", "load", "--only", "faults", "--fault", "kill -9 after COMMIT", "--only", "storm"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("lost: nothing\n")
    for shown in (r"\| requests \| [\d,]+ in ", r"\| kill -9 after COMMIT \| 1 \|", r"\| accepted and lost \| 0 \|"):
        assert re.search(shown, done.stdout), done.stdout


def test_what_the_fuzz_has_tried_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    """The soak parses the lines of the fuzzing."""
    report("the socket: inputs tried: 12; answers by status: {}")
    report("the socket: inputs tried: 34; answers by status: {}")

    assert tried(capsys.readouterr().out) == {"the socket": 34}


def test_the_pages_figures() -> None:
    """The page has the figures of the last published run, in which nothing was lost."""
    figures = json.loads(FIGURES.read_text())

    assert figures["wrong"] == 0
    assert page(PAGE_TEXT, figures) == PAGE_TEXT, "run: make soak SOAK_OPTIONS=--publish"


def test_the_pages_tests() -> None:
    """Each test that the page names exists."""
    named = sorted(set(re.findall(r"`(tests/[\w/]+\.py::[^`]+)`", PAGE_TEXT)))
    assert len(named) > 20

    # pytest itself decides whether the names exist.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", *named],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_metrics() -> None:
    """Each metric that the page names exists."""
    known = {
        name for metric in REGISTRY.collect() for name in (metric.name, f"{metric.name}_total", f"{metric.name}_bucket")
    }

    named = set(re.findall(r"\brecon_\w+", PAGE_TEXT))

    assert len(named) > 5
    assert named <= known


def test_the_pages_time_limits() -> None:
    """The page gives the defaults of the settings."""
    defaults = re.findall(r"`--([a-z-]+)`(?: \(| \| )(\d+) s", PAGE_TEXT)

    assert len(defaults) >= 5
    for option, seconds in defaults:
        assert Settings.model_fields[option.replace("-", "_")].default == int(seconds), option


def test_the_page_is_linked() -> None:
    """The README and the operations page link to the page."""
    assert "(docs/reliability.md)" in (ROOT / "README.md").read_text()
    assert "(reliability.md)" in (Path(ROOT) / "docs" / "operations.md").read_text()
