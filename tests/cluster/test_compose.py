"""The stack of docker-compose.yml, tested from outside: the image, the task's examples, races, restart, shutdown.

It builds the image, which takes a minute and needs the package registry, so it runs only with RECON_TEST_COMPOSE=1. The
stack has its own project name, port and volumes, and is removed completely.
"""

import asyncio
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp
import pytest

from tests.harness import ROOT

pytestmark = [
    pytest.mark.skipif("RECON_TEST_COMPOSE" not in os.environ, reason="builds the image: set RECON_TEST_COMPOSE=1"),
    pytest.mark.timeout(600),
]

COMPOSE = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]

AT_ONCE = 50  # requests in a race
ROUNDS = 5  # of each race, so that a race that is lost rarely is probably lost here
HEALTHY_WITHIN = 60.0  # seconds; the first health check is 10 s after the start
STOP_WITHIN = 15  # seconds from SIGTERM to SIGKILL
BASE = "python:3.13-slim"
SLIM = 150_000_000  # bytes that the image may add to its base

Body = dict[str, str]
Identity = dict[str, Any]


def test_the_stack() -> None:
    """The stack starts, answers correctly under races, keeps its data, and shuts down gracefully."""
    with stack() as url:
        slim_image()
        asyncio.run(docs_page(url))
        known = asyncio.run(examples(url)) + asyncio.run(races(url))
        compose("exec", "-T", "recon", "recon", "check")

        compose("down")
        up()
        asyncio.run(expect_all(url, known))

        container = container_of("recon")
        started = time.monotonic()
        compose("stop", "-t", str(STOP_WITHIN), "recon")
        assert time.monotonic() - started < STOP_WITHIN
        assert docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"


# The stack


@contextmanager
def stack() -> Iterator[str]:
    """Start a separate stack, yield recon's URL, and remove everything of the stack afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    os.environ |= {
        "COMPOSE_PROJECT_NAME": f"recon-ci-{secrets.token_hex(4)}",
        "RECON_PORT": str(port),
        "POSTGRES_PASSWORD": "all/that:a@URL?would#need%41escaping",
    }
    try:
        up("--build")
        yield f"http://127.0.0.1:{port}"
    except BaseException:
        compose("logs", "--tail=100", check=False)
        raise
    finally:
        compose("down", "--volumes", "--rmi", "local", "--remove-orphans", check=False)


def up(*options: str) -> None:
    """Start the stack and wait until the image's health check succeeds."""
    compose("up", "-d", *options)
    container = container_of("recon")
    deadline = time.monotonic() + HEALTHY_WITHIN
    while (state := docker("inspect", "--format", "{{.State.Status}}, {{.State.Health.Status}}", container)) != (
        "running, healthy"
    ):
        assert time.monotonic() < deadline, f"recon is {state} after {HEALTHY_WITHIN:.0f} s"
        time.sleep(0.5)


def compose(*arguments: str, check: bool = True) -> None:
    """Run docker-compose with this file only, without an override file beside it."""
    subprocess.run([*COMPOSE, "--file", str(ROOT / "docker-compose.yml"), *arguments], check=check)


def container_of(service: str) -> str:
    """Return the id of a service's container."""
    command = [*COMPOSE, "--file", str(ROOT / "docker-compose.yml"), "ps", "-q", service]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def docker(*arguments: str) -> str:
    """Run docker and return its output."""
    # The name instead of a path: PATH determines which Docker.
    return subprocess.run(["docker", *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


# The image


def slim_image() -> None:
    """The stack's image is small, and its error says what to do where the embedded PostgreSQL would be needed."""
    image = docker("inspect", "--format", "{{.Image}}", container_of("recon"))
    added = int(docker("image", "inspect", "--format", "{{.Size}}", image)) - int(
        docker("image", "inspect", "--format", "{{.Size}}", BASE)
    )
    assert added < SLIM, f"the image adds {added / 1e6:.0f} MB to {BASE}"
    labels = docker("image", "inspect", "--format", "{{json .Config.Labels}}", image)
    for label in ("version", "revision", "source"):
        assert f"org.opencontainers.image.{label}" in labels, f"no label for the {label}"

    command = ["docker", "run", "--rm", "--env", "RECON_ALLOW_ANONYMOUS=1", image]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stdout
    assert "set DATABASE_URL" in lines[-1], done.stdout


async def docs_page(url: str) -> None:
    """The image has all files of the docs page."""
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/docs") as response:
            page = await response.text()
        for path in re.findall(r'(?:src|href)="([^"]+)"', page):
            async with http.get(f"/{path}") as response:
                assert response.status == HTTPStatus.OK, f"/{path}: {response.status}"


# Its requests


async def examples(url: str) -> list[tuple[Body, Identity]]:
    """Run the original task's examples; return the requests that can be repeated, with their answers."""
    async with aiohttp.ClientSession(url) as http:
        async with http.get("/readyz") as response:
            assert response.status == HTTPStatus.OK, f"/readyz: {response.status}"

        lorraine = await identify(http, {"email": "lorraine@hillvalley.edu", "phoneNumber": "123456"})
        expect_identity(lorraine, ["lorraine@hillvalley.edu"], ["123456"], 1)
        mcfly = await identify(http, {"email": "mcfly@hillvalley.edu", "phoneNumber": "123456"})
        expect_identity(mcfly, ["lorraine@hillvalley.edu", "mcfly@hillvalley.edu"], ["123456"], 2)
        assert mcfly["primaryContactId"] == lorraine["primaryContactId"], "mcfly is not lorraine"

        george = await identify(http, {"email": "george@hillvalley.edu", "phoneNumber": "919191"})
        biff = await identify(http, {"email": "biffsucks@hillvalley.edu", "phoneNumber": "717171"})
        merged = await identify(http, {"email": "george@hillvalley.edu", "phoneNumber": "717171"})
        expect_identity(merged, ["george@hillvalley.edu", "biffsucks@hillvalley.edu"], ["919191", "717171"], 2)
        assert merged["primaryContactId"] == george["primaryContactId"], "the older primary did not stay"
        assert merged["secondaryContactIds"] == [biff["primaryContactId"]], "the younger primary is no secondary"
    known = [(body, answer) for answer in (mcfly, merged) for body in alone(answer)]
    await expect_all(url, known)
    return known


@dataclass
class Race:
    """Requests one after another, then concurrent requests; at the end they are one person of so many contacts.

    The answers on the way may name at most so many primaries.
    """

    name: str
    before: list[Body]
    at_once: list[Body]
    contacts: int
    primaries: int = 1


def races_of(number: int) -> list[Race]:
    """Return the six races, on identifiers that no other race has."""
    fresh = iter(range(number * 6, number * 6 + 6))

    def race(name: str, before: list[tuple[int, int]], at_once: list[tuple[int, int]], *counts: int) -> Race:
        key = next(fresh)

        def body(email: int, phone: int) -> Body:
            return {"email": f"{email}@race{key}.example", "phoneNumber": f"555{key:03}{phone:03}"}

        return Race(name, [body(*pair) for pair in before], [body(*pair) for pair in at_once], *counts)

    links = [(n, n + 1) for n in range(19)]
    return [
        race("the same new customer", [], [(0, 0)] * AT_ONCE, 1),
        race("a link between two primaries", [(0, 0), (1, 1)], [(0, 1)] * AT_ONCE, 2),
        race("the same new secondary", [(0, 0)], [(1, 0)] * AT_ONCE, 2),
        race("a cross bridge", [(0, 0), (1, 1)], [(0, 1), (1, 0)] * (AT_ONCE // 2), 2),
        race("one email with 50 phones", [], [(0, n) for n in range(AT_ONCE)], AT_ONCE),
        race("a chain over 20 clusters", [(n, n) for n in range(20)], (links * 3)[:AT_ONCE], 20, len(links)),
    ]


async def races(url: str) -> list[tuple[Body, Identity]]:
    """Run the races; return the requests that can be repeated, with their answers."""
    known = []
    # A connection per request, so that no request waits for another one in the client.
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=AT_ONCE)) as http:
        for number in range(ROUNDS):
            for race in races_of(number):
                before = [await identify(http, body) for body in race.before]
                answers = await asyncio.gather(*(identify(http, body) for body in race.at_once))
                for body, answer in zip(race.at_once, answers, strict=True):
                    mine = body["email"] in answer["emails"] and body["phoneNumber"] in answer["phoneNumbers"]
                    assert mine, f"{race.name}: an answer lacks an identifier of its request"
                primaries = {answer["primaryContactId"] for answer in answers}
                assert len(primaries) <= race.primaries, f"{race.name}: answers with {len(primaries)} primaries"

                final = await identify(http, race.at_once[0])
                bodies = race.before + race.at_once
                emails, phones = ({body[field] for body in bodies} for field in ("email", "phoneNumber"))
                expect_identity(final, emails, phones, race.contacts)
                ids = [final["primaryContactId"], *final["secondaryContactIds"]]
                oldest = before[0]["primaryContactId"] if before else min(ids)
                assert ids[0] == oldest, f"{race.name}: the primary is not the oldest"
                known += [(body, final) for body in alone(final)]
    await expect_all(url, known)
    return known


async def identify(http: aiohttp.ClientSession, body: Body) -> Identity:
    """Send a request and return the identity in the answer."""
    async with http.post("/identify", json=body) as response:
        assert response.status == HTTPStatus.OK, f"{body}: {response.status} {await response.text()}"
        identity: Identity = (await response.json())["contact"]
        return identity


def alone(identity: Identity) -> list[Body]:
    """Return a request for each identifier alone; none of them adds a contact."""
    return [{"email": email} for email in identity["emails"]] + [
        {"phoneNumber": phone} for phone in identity["phoneNumbers"]
    ]


async def expect_all(url: str, known: list[tuple[Body, Identity]]) -> None:
    """Check that each request still has the same answer."""
    async with aiohttp.ClientSession(url) as http:
        answers = await asyncio.gather(*(identify(http, body) for body, _ in known))
    for (body, expected), answer in zip(known, answers, strict=True):
        assert answer == expected, f"{body}: {answer}, not {expected}"


def expect_identity(
    answer: Identity, emails: list[str] | set[str], phones: list[str] | set[str], contacts: int
) -> None:
    """Check that the answer has these values and so many contacts; lists are in order, sets in any order."""
    ids = {answer["primaryContactId"], *answer["secondaryContactIds"]}
    right = (
        answer["primaryContatctId"] == answer["primaryContactId"]
        and len(ids) == 1 + len(answer["secondaryContactIds"]) == contacts
        and _same(answer["emails"], emails)
        and _same(answer["phoneNumbers"], phones)
    )
    assert right, f"{answer}: not {contacts} contacts with {emails} and {phones}"


def _same(found: list[str], expected: list[str] | set[str]) -> bool:
    return found == expected if isinstance(expected, list) else sorted(found) == sorted(expected)
