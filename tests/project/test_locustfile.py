import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.harness import ROOT
from tests.harness.processes import MakeClient, StartRecon, recon

LOCUST = Path(sys.executable).with_name("locust")
# Locust's options can be variables too; the tests must not depend on the machine's.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
EVERY_KIND = {"returning", "new", "another", "joining"}


class Run:
    """A run of the locustfile in another process, because gevent would patch this one."""

    def __init__(self, *arguments: str, **variables: str) -> None:
        done = subprocess.run(
            [LOCUST, "--headless", "--only-summary", "-u", "10", "-r", "10", *arguments],
            cwd=ROOT,
            env=ENVIRONMENT | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        self.exit_code = done.returncode
        self.output = done.stdout + done.stderr

    @property
    def requests(self) -> dict[str, int]:
        """Return the number of requests by kind."""
        return {
            kind: int(number) for kind, number in re.findall(r"^POST +(\w+) +(\d+) +\d+\(", self.output, re.MULTILINE)
        }

    @property
    def failures(self) -> set[str]:
        """Return all failures."""
        return set(re.findall(r"""POST \w+: WrongAnswer\(['"](.*)['"]\)""", self.output))


def test_recon_answers_everything_right(start_recon: StartRecon, database_url: str) -> None:
    """Under a shop's load, all answers and all stored rows are correct, for all kinds of customers."""
    server = start_recon("--database-url", database_url)
    run = Run("--host", server.url, "-t", "5s")
    check = recon("check", "--database-url", database_url)

    assert run.exit_code == 0, run.output
    assert run.failures == set()
    assert run.requests.keys() == EVERY_KIND
    assert all(run.requests.values())
    assert check.returncode == 0, check.stdout


async def test_a_server_that_answers_wrongly_fails_the_run(aiohttp_server: Any) -> None:
    """A server that takes all customers for one person, and loses phone numbers, makes locust exit with 1."""

    async def identify(request: web.Request) -> web.Response:
        email = (await request.json())["email"] or ""
        emails = [email.strip().lower()] if email.strip() else []
        primary = {"primaryContactId": 1, "primaryContatctId": 1}
        return web.json_response(
            {"contact": primary | {"emails": emails, "phoneNumbers": [], "secondaryContactIds": []}}
        )

    app = web.Application()
    app.router.add_post("/identify", identify)
    server = await aiohttp_server(app)
    only_new = ("--returning", "0", "--another", "0", "--joining", "0")
    run = await asyncio.to_thread(Run, "--host", str(server.make_url("")), "-t", "3s", *only_new)

    assert run.exit_code == 1, run.output
    assert run.failures == {"the request's phone number is missing"}
    assert run.requests.keys() == {"new"}


def _swap_primary(contact: dict[str, Any]) -> None:
    if contact["secondaryContactIds"]:
        first = contact["secondaryContactIds"].pop(0)
        contact["secondaryContactIds"].insert(0, contact["primaryContactId"])
        contact["primaryContactId"] = contact["primaryContatctId"] = first


def _replace_secondaries(contact: dict[str, Any]) -> None:
    contact["secondaryContactIds"] = [10**9 + old for old in contact["secondaryContactIds"]]


def _forget_emails(contact: dict[str, Any]) -> None:
    contact["emails"] = contact["emails"][:1] + [email for email in contact["emails"][1:] if email == contact["own"]]


# Changes of a correct answer, by the failure that locust should report (if the change has an effect: not every
# customer has two emails).
LIES: dict[str, Callable[[dict[str, Any]], object]] = {
    "not of the contract's shape: missing": lambda contact: contact.pop("primaryContatctId"),
    "not of the contract's shape: extra_forbidden": lambda contact: contact.update(email="doc@hillvalley.edu"),
    "not of the contract's shape: string_type": lambda contact: contact["phoneNumbers"].append(None),
    "not of the contract's shape: int_type": lambda contact: contact["secondaryContactIds"].append("7"),
    "the two spellings of the primary's id differ": lambda contact: contact.update(primaryContatctId=0),
    "the primary is among the secondaries": lambda contact: contact["secondaryContactIds"].append(
        contact["primaryContactId"]
    ),
    "a secondary occurs twice": lambda contact: contact["secondaryContactIds"].extend([10**9, 10**9]),
    "an email occurs twice": lambda contact: contact["emails"].extend(contact["emails"]),
    "a phone number occurs twice": lambda contact: contact["phoneNumbers"].extend(contact["phoneNumbers"]),
    "the request's email is missing": lambda contact: contact["emails"].clear(),
    "the request's phone number is missing": lambda contact: contact["phoneNumbers"].clear(),
    "an identifier of an earlier answer is missing": _forget_emails,
    "an identifier of another customer is present": lambda contact: contact["emails"].append("doc@hillvalley.edu"),
    "the emails are in the wrong order": lambda contact: contact["emails"].reverse(),
    "the phone numbers are in the wrong order or form": lambda contact: contact["phoneNumbers"].reverse(),
    "the primary is not the oldest contact": _swap_primary,
    "a contact of an earlier answer is missing": _replace_secondaries,
    "there are too many or too few contacts": lambda contact: contact["secondaryContactIds"].append(10**9),
}


async def test_what_is_wrong_is_named_and_nobody_quoted(make_client: MakeClient, aiohttp_server: Any) -> None:
    """Each kind of wrong answer has its message; the output has no email and no phone number."""
    client = await make_client()
    truths = cycle([True, True, False])
    lies = cycle([*LIES.values(), None])

    async def identify(request: web.Request) -> web.Response:
        sent = await request.json()
        response = await client.post("/identify", json=sent)
        answer = await response.json()
        # Correct answers at first, and later two times of three, so that locust keeps some customers.
        if len(answer["contact"]["secondaryContactIds"]) < 2 or next(truths):
            return web.json_response(answer)
        lie = next(lies)
        if lie is None:
            return web.json_response(answer, status=503)
        answer["contact"]["own"] = (sent["email"] or "").strip().lower()  # which _forget_emails keeps
        lie(answer["contact"])
        del answer["contact"]["own"]
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/identify", identify)
    server = await aiohttp_server(app)
    shares = ("--returning", "40", "--new", "10", "--another", "40", "--joining", "10")
    run = await asyncio.to_thread(Run, "--host", str(server.make_url("")), "-t", "5s", *shares)

    assert run.exit_code == 1
    assert run.failures == {*LIES, "status 503"}
    assert "@" not in run.output.replace("\n", "")
    assert not re.search(r"[0-9]{12}", run.output)


async def test_a_server_that_is_not_there_fails_the_run(unused_tcp_port: int) -> None:
    """Without a server, the run fails, even if locust is told to ignore failures and to reset statistics."""
    host = f"http://127.0.0.1:{unused_tcp_port}"
    run = await asyncio.to_thread(Run, "--host", host, "-t", "3s", "--reset-stats", "--exit-code-on-error", "0")

    assert run.exit_code == 1
    assert "no answer: ConnectionRefusedError" in run.failures


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        (["--new", "-1"], {}),
        (["--new", "nan"], {}),
        ([], {"LOCUST_JOINING": "-0.5"}),
        (["--returning", "0", "--new", "0", "--another", "0", "--joining", "0"], {}),
        (["--returning", "0", "--new", "0"], {"LOCUST_ANOTHER": "0", "LOCUST_JOINING": "0"}),
    ],
)
def test_shares_that_cannot_be_used(arguments: list[str], variables: dict[str, str]) -> None:
    """Negative shares, or only zeros, end locust before the load, with a clear line."""
    run = Run("-t", "1s", *arguments, **variables)

    assert run.exit_code == 1
    assert "locust: error: the shares --returning, --new, --another, --joining must be 0 or more" in run.output
    assert "Traceback" not in run.output


def test_a_share_that_is_no_number() -> None:
    """A share that is not a number is refused like any invalid option."""
    run = Run("-t", "1s", "--new", "many")

    assert run.exit_code == 2
    assert "argument --new: invalid float value: 'many'" in run.output
