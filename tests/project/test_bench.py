"""The benchmark, without its load: its command line, page and plot, the client that checks answers, and the profile."""

import asyncio
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.text import Text

from bench.load import people
from bench.load.probe import Probe
from bench.load.workloads import WORKLOADS
from bench.profile import samples, timed
from bench.report import page, plot
from bench.systems.processes import SYSTEMS, serving
from tests.harness import ROOT
from tests.harness.databases import execute, fetch
from tests.harness.processes import StartRecon

BENCH = ROOT / "bench"
RESULTS = BENCH / "results"
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
COMMANDS = re.findall(r"^\.venv/bin/python (-m bench[^#\n]*)", PERFORMANCE, flags=re.MULTILINE)


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `python` with these arguments."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def test_no_file_outgrows_its_noun_and_no_folder_has_one_file_only() -> None:
    """Files are short, and each folder has several files."""
    files = [path for path in BENCH.rglob("*") if path.suffix in {".py", ".lua"}]

    assert [path for path in files if len(path.read_text().splitlines()) > 400] == []
    assert [folder for folder, count in Counter(path.parent for path in files).items() if count < 2] == []


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once a condition holds."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_list_of_series() -> None:
    """--list names each series of a run once: its round, its workload, its system and its connections."""
    lines = bench("-m", "bench", "--list", "--rounds", "2").stdout.splitlines()

    assert all(re.fullmatch(r"[12] [\w-]+/[\w-]+/(1|64|256)", line) for line in lines)
    names = [line.split()[1].split("/") for line in lines]
    assert {workload for workload, _, _ in names} == set(WORKLOADS)
    assert {system for _, system, _ in names} == set(SYSTEMS) - {"timed", "sampled"}
    assert len(set(lines)) == len(lines)


def test_some_series() -> None:
    """--only selects series by pattern; without a match it is an error."""
    new = bench("-m", "bench", "--list", "--rounds", "1", "--only", "new/*/64")
    nothing = bench("-m", "bench", "--list", "--only", "nothing")

    assert set(new.stdout.splitlines()) == {f"1 new/{system}/64" for system in plot.COLOURS}
    assert nothing.returncode == 2
    assert "no series matches" in nothing.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_docs(command: str) -> None:
    """The options that docs/performance.md names exist (an unknown option fails before --help is printed)."""
    assert bench(*shlex.split(command), "--help").returncode == 0


def test_the_published_page() -> None:
    """The published page is what the program writes from the published figures (otherwise run `--redraw`)."""
    assert page.page(page.read(RESULTS)) == (RESULTS / "README.md").read_text()


def test_the_conclusions_are_of_the_published_run() -> None:
    """docs/performance.md names the runs of its conclusions, and they are the published ones."""
    results = page.read(RESULTS)

    assert results.profile is not None
    for run in (results, results.profile):
        assert f"{run.started:%Y-%m-%d %H:%M} UTC" in PERFORMANCE


def test_every_label_of_the_plot_can_be_read() -> None:
    """No text of the plot overlaps another or leaves the picture, and each workload is explained."""
    figure = plot.draw(page.read(RESULTS))
    figure.draw_without_rendering()

    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]

    overlapping = [(text, other) for (text, box), (other, box_2) in combinations(boxes, 2) if box.overlaps(box_2)]
    assert overlapping == []
    drawn, picture = figure.get_tightbbox(), figure.bbox_inches
    assert drawn.x0 >= 0 <= drawn.y0
    assert drawn.x1 <= picture.x1
    assert drawn.y1 <= picture.y1
    shown = {" ".join(text.split()) for text, _ in boxes}
    assert {f"{name} {WORKLOADS[name].title}" for name in ("new", "known", "known-1m", "any-1m", "hot", "mix")} <= shown


def test_right_answers_pass_the_probe(start_recon: StartRecon, database_url: str) -> None:
    """The probe accepts correct answers, and predicts the rows that its requests add."""
    process = start_recon("--database-url", database_url)
    with Probe(process.port, WORKLOADS["mix"]) as probe:
        wait_for(lambda: probe.answers >= 9)

    assert (probe.errors, probe.wrong, probe.examples) == (0, 0, [])
    [counts] = asyncio.run(
        fetch(database_url, "SELECT count(*), count(*) FILTER (WHERE linked_id IS NULL) AS primaries FROM contact")
    )
    assert counts["count"] in probe.growth.contacts
    assert counts["primaries"] in probe.growth.primaries


@pytest.mark.parametrize(
    "change",
    [
        "SET email = 'another'",
        "SET phone_number = '+1'",
        "SET deleted_at = now() WHERE link_precedence = 'secondary'",
    ],
)
def test_wrong_answers_fail_the_probe(start_recon: StartRecon, database_url: str, change: str) -> None:
    """The probe finds wrong answers, which another program causes here by changing rows."""
    process = start_recon("--database-url", database_url)
    with Probe(process.port, WORKLOADS["mix"]) as probe:

        def wrong() -> bool:
            asyncio.run(execute(database_url, f"UPDATE contact {change}"))
            return bool(probe.wrong)

        wait_for(wrong)

    assert probe.examples[0].startswith("wrong answer: ")


@pytest.mark.parametrize(("shift", "wrong"), [(0, False), (1, True)])
def test_the_probe_knows_the_stored_customers(
    start_recon: StartRecon, database_url: str, shift: int, *, wrong: bool
) -> None:
    """With a workload that only reads, each customer is the contact whose id is the customer's number."""
    for number in range(1, WORKLOADS["hot"].people + 1):
        email, phone = people.email(people.SEEDED, number), people.phone(people.SEEDED, number + shift)
        insert = f"INSERT INTO contact (email, phone_number) VALUES ('{email}', '{phone}')"
        asyncio.run(execute(database_url, insert))
    process = start_recon("--database-url", database_url)
    with Probe(process.port, WORKLOADS["hot"]) as probe:
        wait_for(lambda: probe.answers >= 3)

    assert probe.errors == 0
    assert bool(probe.wrong) == wrong


def test_what_the_profile_names_exists() -> None:
    """The functions that the profile replaces, and the functions and packages by which it sorts samples, exist."""
    for owner, name, _ in timed.Clocks().patches():
        assert callable(getattr(owner, name, None)), name
    module, (kind, method) = import_module("aiohttp.http_writer"), samples.SENDS.split(".")
    assert callable(getattr(getattr(module, kind), method))
    for package in (*samples.PARTS, "asyncio.runners", "uvloop"):
        assert find_spec(package) is not None, package


def test_every_step_is_timed(database_url: str, tmp_path: Path) -> None:
    """A recon with clocks measures each step for a new and for a known customer."""
    log = tmp_path / "log"
    with serving(SYSTEMS["timed"], database_url, log) as server, Probe(server.port, WORKLOADS["mix"]) as probe:
        wait_for(lambda: probe.answers >= 2)

    shown = timed.shown(log)
    assert (server.problem, probe.errors, probe.wrong) == (None, 0, 0)
    assert set(timed.STEPS) - {timed.COLLECTION} <= set(shown)
    assert all(0 <= took < 30 for step in shown.values() for _, took in step)
