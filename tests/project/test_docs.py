"""The documentation is correct: the OpenAPI document, its page, and the settings and commands of its pages."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient
from openapi_spec_validator import validate
from pydantic import SecretStr, TypeAdapter

from recon import __version__
from recon.api.messages import IdentifyRequest, IdentifyResponse, LookupResponse
from recon.api.openapi import document
from recon.api.questions import HistoryResponse, LinksResponse, WhyResponse
from recon.app import ENDPOINTS, create_app
from recon.cli.options import is_option, shown_default, variables
from recon.http.endpoints import Endpoint
from recon.http.problems import Problem
from recon.keys import new_key
from recon.settings import Settings
from tests.harness import ROOT
from tests.harness.processes import Process, StartRecon, recon

README = (ROOT / "README.md").read_text()
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "bench/results/README.md")
}
SETTINGS = (ROOT / "docs" / "settings.md").read_text()


def _endpoints() -> list[Endpoint]:
    """Return the records of all endpoints, without connecting to a database."""
    return create_app(Settings(database_url=SecretStr("postgresql://localhost/nothing")))[ENDPOINTS]


@pytest.mark.parametrize("strict", [False, True])
def test_the_document_is_valid(strict: bool) -> None:
    """The OpenAPI document is valid."""
    validate(document(_endpoints(), strict=strict))


async def test_the_document_names_every_route(client: "TestClient[Any, Any]") -> None:
    """Every route is documented, and every documented route exists, except the page's own files."""
    served = {
        (route.resource.canonical, route.method.lower())
        for route in client.server.app.router.routes()  # type: ignore[attr-defined]
        if route.resource and route.method not in {"HEAD", "*"} and not route.resource.canonical.startswith("/docs")
    } - {("/", "get"), ("/openapi.json", "get")}

    published = await (await client.get("/openapi.json")).json()

    assert {(path, method) for path, methods in published["paths"].items() for method in methods} == served
    assert published["info"]["version"] == __version__


async def test_the_documents_examples_work(client: "TestClient[Any, Any]") -> None:
    """Each example request gets a 200 with a body of the documented form, which the example answer has too."""
    operation = document(_endpoints())["paths"]["/identify"]["post"]
    answers = TypeAdapter(IdentifyResponse)
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        response = await client.post("/identify", json=example["value"])

        assert response.status == 200
        answers.validate_python(await response.json(), strict=True)
    for example in IdentifyRequest.model_json_schema()["examples"]:
        assert (await client.post("/identify", json=example)).status == 200
    answers.validate_python(operation["responses"]["200"]["content"]["application/json"]["example"], strict=True)
    problem = await client.post("/identify", json={})
    TypeAdapter(Problem).validate_python(await problem.json(content_type=None), strict=True)


async def test_the_examples_of_questions_work(client: "TestClient[Any, Any]") -> None:
    """After the examples of /identify, each example of a question has an answer of the documented form."""
    paths = document(_endpoints())["paths"]
    for example in _examples(paths["/identify"]["post"]):
        assert (await client.post("/identify", json=example)).status == 200
    answers = {
        ("/lookup", "post"): LookupResponse,
        ("/why", "post"): WhyResponse,
        ("/identities/{contactId}", "get"): IdentifyResponse,
        ("/identities/{contactId}/links", "get"): LinksResponse,
        ("/identities/{contactId}/history", "get"): HistoryResponse,
    }
    for (path, method), form in answers.items():
        operation = paths[path][method]
        for example in _examples(operation) if method == "post" else [None]:
            given = {each["name"]: each["example"] for each in operation["parameters"] if each["in"] == "path"}
            response = await client.request(method, path.format(**given), json=example)

            assert response.status == 200, (path, example)
            TypeAdapter(form).validate_json(await response.text(), strict=True)


def _examples(operation: dict[str, Any]) -> list[Any]:
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    return [example["value"] for example in examples.values()]


async def test_the_root_leads_to_the_docs(client: "TestClient[Any, Any]") -> None:
    """/ redirects to the docs page, which loads nothing from other hosts."""
    response = await client.get("/", allow_redirects=False)
    page = await (await client.get("/docs")).text()

    assert (response.status, response.headers["Location"]) == (302, "/docs")
    assert "//" not in re.sub(r"<!doctype html>", "", page)
    for path in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert (await client.get(f"/{path}")).status == 200


CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@pytest.fixture
def browser() -> Iterator[Any]:
    """Debian's Chromium, headless."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--window-size=1200,2400",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(CHROMEDRIVER)))
    yield driver
    driver.quit()


@pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromium-driver")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_the_page_in_a_browser(browser: Any, start_recon: StartRecon, database_url: str, tmp_path: Path) -> None:
    """The page renders without an error, and its examples can be executed there, with an API key."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    secret, entry = new_key("page", ["admin"])
    process = start_recon("--database-url", database_url, env=os.environ | {"RECON_API_KEYS": entry})
    wait = WebDriverWait(browser, 20)
    browser.get(f"{process.url}/")
    wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".btn.authorize"))[0].click()
    wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".auth-container input"))[0].send_keys(secret)
    browser.find_element(By.CSS_SELECTOR, ".auth-btn-wrapper .authorize").click()
    browser.find_element(By.CSS_SELECTOR, ".auth-btn-wrapper .btn-done").click()
    wait.until(lambda driver: driver.find_elements(By.ID, "operations-identity-identify"))
    browser.find_element(By.CSS_SELECTOR, "#operations-identity-identify .opblock-summary-control").click()
    wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, "#operations-identity-identify .execute"))
    examples = wait.until(
        lambda driver: driver.find_element(By.CSS_SELECTOR, "#operations-identity-identify .examples-select select")
    )
    values = [option.get_attribute("value") for option in Select(examples).options]
    assert values == list(
        document(_endpoints())["paths"]["/identify"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    )

    seen = []
    for value in values:
        Select(
            browser.find_element(By.CSS_SELECTOR, "#operations-identity-identify .examples-select select")
        ).select_by_value(value)
        browser.find_element(By.CSS_SELECTOR, "#operations-identity-identify .execute").click()
        wanted = len(seen) + 1
        wait.until(lambda _, wanted=wanted: _answered(process, secret) >= wanted)
        wait.until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".live-responses-table .response-col_status"))
        status = browser.find_element(By.CSS_SELECTOR, ".live-responses-table .response .response-col_status").text
        seen.append(status.split()[0])

    browser.save_screenshot(str(tmp_path / "docs.png"))
    assert seen == ["200"] * len(values)
    assert [entry for entry in browser.get_log("browser") if entry["level"] in {"SEVERE", "WARNING"}] == []
    assert browser.find_elements(By.CSS_SELECTOR, ".errors-wrapper") == []


def _answered(process: Process, secret: str) -> float:
    import urllib.request

    asked = urllib.request.Request(f"{process.url}/metrics", headers={"Authorization": f"Bearer {secret}"})
    with urllib.request.urlopen(asked) as response:
        found = re.search(
            r'recon_http_requests_total\{route="/identify",status="200"\} (\S+)', response.read().decode()
        )
    return float(found[1]) if found else 0


def _blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)


def test_the_settings_page() -> None:
    """docs/settings.md has every setting, with its variable, default and meaning, in order."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "the platform's user data folder" if name == "data_dir" else shown_default(field)
        shown = ", ".join(f"`{variable}`" for variable in variables(name))
        option = f"`--{name.replace('_', '-')}`" if is_option(name) else "no option"
        rows.append(f"| {option} | {shown} | {default} | {field.description} |")

    table = "\n".join(rows)

    assert table in SETTINGS, f"The table in docs/settings.md should be:\n{table}"


_HEAD = "| endpoint | scope | |\n|---|---|---|\n"


def _rows() -> list[str]:
    """Return the rows of the table of endpoints, for those that have a summary, in order."""
    return [
        f"| `{each.method} {each.path}` | {f'`{each.scope}`' if each.scope else 'open'} | {each.summary} |"
        for each in _endpoints()
        if each.summary
    ]


def test_the_table_of_endpoints() -> None:
    """docs/api.md has every endpoint that has a summary, with its scope, in order."""
    table = _HEAD + "\n".join(_rows()) + "\n"

    assert len(_rows()) >= 7
    assert f"\n{table}\n" in PAGES["docs/api.md"], f"The table in docs/api.md should be:\n{table}"


def test_the_readmes_endpoints() -> None:
    """The README has the rows of a few endpoints, as docs/api.md has them, and in its order."""
    _, _, after = README.partition(_HEAD)
    shown = after.partition("\n\n")[0].splitlines()

    assert 5 <= len(shown) <= 7
    assert shown == [row for row in _rows() if row in shown]


def test_the_commands() -> None:
    """docs/settings.md has each command."""
    offered = set(re.findall(r"^  (\w[\w-]*) {2,}", recon("--help").stdout, flags=re.MULTILINE))

    assert set(re.findall(r"^\| `recon ([\w-]+)[ A-Z]*` \|", SETTINGS, flags=re.MULTILINE)) == offered


def test_the_options() -> None:
    """Every option of `recon serve` that a page names exists."""
    offered = set(re.findall(r"--[a-z][a-z-]+", recon("serve", "--help").stdout))
    others = set(
        re.findall(r"--[a-z][a-z-]+", "".join(recon(name, "--help").stdout for name in ("schema", "key", "reset")))
    )
    for name in ("security", "overload", "design"):
        named = set(re.findall(r"`(--[a-z][a-z-]+)", (ROOT / "docs" / f"{name}.md").read_text()))

        assert named, name
        assert named <= offered | others, name


def test_the_readme_is_a_front_page() -> None:
    """The README has at most 150 lines, and links to every page of docs/."""
    assert len(README.splitlines()) <= 150
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in README


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page(page: str) -> None:
    """Every recon command and make target in a page exists."""
    commands = set(re.findall(r"^  (\w[\w-]*) {2,}", recon("--help").stdout, flags=re.MULTILINE))
    targets = set(re.findall(r"^(\w+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

    assert set(re.findall(r"`recon ([a-z-]+)", PAGES[page])) <= commands
    assert set(re.findall(r"`make ([a-z]+)", PAGES[page])) <= targets


def _anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_the_links_of_a_page(page: str) -> None:
    """Every relative link and image of a page leads to a file of the repository, and to its heading."""
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        if re.match(r"https?://", link):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page

        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def test_the_readmes_first_lines_are_the_two_commands() -> None:
    """The README begins with how to run recon and how to test it."""
    first = _blocks("sh")[0]

    assert first.split("\n")[0].startswith("make run")
    assert first.split("\n")[1].startswith("make test")


def test_why_each_dependency_is_there() -> None:
    """CONTRIBUTING has a line with the reason for each dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    names = {re.split(r"[>=<\[]", item)[0] for group in [project["dependencies"], *extras] for item in group}

    _, section = (ROOT / "CONTRIBUTING.md").read_text().split("## Dependencies")
    explained = set(re.findall(r"^\| `([\w.-]+)` \|", section, flags=re.MULTILINE))

    assert explained == names


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_the_lock_files_pin_by_hash_alone(name: str) -> None:
    """Every line is a version or a hash: no registry's address, and nothing unpinned."""
    lines = (ROOT / name).read_text().splitlines()

    for line in lines:
        assert re.fullmatch(r"[\w.\[\]-]+==\S+( ; .+)? \\|    --hash=sha256:[0-9a-f]{64}( \\)?", line), line


def test_the_changelog_has_this_version() -> None:
    """The changelog has the installed version."""
    assert (
        f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()
        or "## Unreleased" in (ROOT / "CHANGELOG.md").read_text()
    )


def test_the_wheel_has_the_schema(tmp_path: Path) -> None:
    """The wheel contains schema.sql and the migrations as files."""
    import sys
    import zipfile

    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    [wheel] = tmp_path.glob("*.whl")

    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("recon/schema.sql") == (ROOT / "schema.sql").read_bytes()
        assert {"recon/py.typed", "recon/pages/docs.html", "recon/pages/docs.js"} <= set(archive.namelist())
        for migration in (ROOT / "recon/database/migrations").iterdir():
            assert archive.read(f"recon/database/migrations/{migration.name}") == migration.read_bytes()


def test_the_help_names_the_settings_that_are_no_options() -> None:
    """Secrets have no option, but the help names their variables."""
    help_ = recon("serve", "--help").stdout

    assert [name for name in Settings.model_fields if not is_option(name)] == ["api_keys", "suppress_key"]
    assert "RECON_API_KEYS (" in help_
    assert "RECON_SUPPRESS_KEY (" in help_
    assert not re.search(r"--api-keys\b(?!-)", help_)
