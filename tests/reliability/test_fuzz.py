"""Fuzzing: for any input, recon sends a valid response or closes the connection, and stores only valid requests.

`make test` tries the same inputs each time, for half a minute; `make fuzz` tries other inputs each time, for minutes.
"""

import asyncio
import itertools
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import TypeAdapter

from recon.api.messages import IdentifyResponse
from recon.http.problems import Problem
from tests.harness import ROOT
from tests.harness.databases import fetch
from tests.harness.processes import Process, StartRecon, everything, recon
from tests.harness.wire import HIDDEN, MARK, NUMBER, Case, cases, post

# Seconds for each of the two tests; 0: a fixed number of inputs, the same each time.
SECONDS = int(os.environ.get("RECON_TEST_FUZZ_SECONDS", "0"))
ROUND = 250  # examples, each of several inputs, between two lines of progress

BOUND = 20  # seconds within which everything must be answered or closed, even on a busy machine

pytestmark = pytest.mark.timeout(300 + 2 * SECONDS)


def report(what: str) -> None:
    """Print a line of progress, which `make fuzz` shows."""
    print(f"fuzz: {what}", flush=True)  # noqa: T201 (pytest keeps it, unless it is told not to)


def assert_untroubled(process: Process, database_url: str) -> None:
    """Check that the process runs, has logged nothing worse than refusals, and that the database is correct."""
    assert process.popen.poll() is None
    assert {event["level"] for event in process.events()} <= {"info"}
    assert MARK not in process.log.lower()
    checked = recon("check", "--database-url", database_url)
    assert checked.returncode == 0, checked.stdout


# The API, as its document describes it

# What a valid request may be answered with, besides success: the identity is gone (410); the request has only blocked
# values, or an Idempotency-Key that came before with another request (422).
_EXPECTED = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "410", "422", "429", "5xx"]
"""


def test_the_api(start_recon: StartRecon, database_url: str, tmp_path: Path) -> None:
    """recon accepts what /openapi.json allows, refuses what it forbids, and every response is documented."""
    process = start_recon(env=os.environ | {"DATABASE_URL": database_url})  # an option would be warned of
    results = tmp_path / "report.json"
    (tmp_path / "schemathesis.toml").write_text(_EXPECTED)
    bounds = (
        ["--max-time", str(SECONDS), "--generation-database", "none"]
        if SECONDS
        else ["--max-examples", "60", "--generation-deterministic"]
    )

    done = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            *["run", f"{process.url}/openapi.json", "--checks", "all", "--continue-on-failure", "--no-color"],
            *["--request-timeout", str(BOUND), "--report-json-path", results, *bounds],
        ],
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.harness.contract", "PYTHONPATH": str(ROOT)},
        stdout=None if SECONDS else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    tried = json.loads(results.read_text())
    assert {name: phase["status"] for name, phase in tried["phases"].items()} == dict.fromkeys(
        ["examples", "coverage", "fuzzing", "stateful"], "success"
    )
    assert tried["operations"]["tested"] == tried["operations"]["total"]
    assert_untroubled(process, database_url)
    report(f"/openapi.json: inputs tried: {tried['test_cases']['generated']}")


# The socket


@dataclass
class Answer:
    """An HTTP response, taken apart."""

    status: int
    headers: dict[str, str]
    body: bytes


# aiohttp answers with the version of the request, even if that version does not exist.
_HEAD = re.compile(rb"HTTP/\d\.\d (\d{3}) [A-Za-z -]+\r\n((?:[A-Za-z-]+: [\x20-\x7e]+\r\n)*)\r\n")
_JSON = "application/json"
_PAGE = {"text/html; charset=utf-8", "text/javascript; charset=utf-8"}
_KINDS = {_JSON, f"{_JSON}; charset=utf-8", CONTENT_TYPE_LATEST, *_PAGE}


def answers(received: bytes, heads: bool) -> list[Answer]:
    """Parse everything that was received as well-formed responses; those to HEAD have no body."""
    found = []
    while received:
        head = _HEAD.match(received)
        assert head, received[:500]
        status, lines = int(head[1]), head[2].decode().splitlines()
        headers = dict(line.split(": ", 1) for line in lines)
        assert len(headers) == len(lines), "a header twice"
        received = received[head.end() :]
        if status == 100:
            assert not headers
            continue
        length = int(headers["Content-Length"])
        if heads and (not received or received.startswith(b"HTTP/1.")):
            length = 0
        body, received = received[:length], received[length:]
        assert len(body) == length, "an answer is cut off"
        found.append(Answer(status, headers, body))
    return found


_identity = TypeAdapter(IdentifyResponse)
_problem = TypeAdapter(Problem)


@dataclass
class Attack:
    """Connections to a recon that send malformed input, and their results."""

    port: int
    tried: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    ids: set[int] = field(default_factory=set)  # all contacts of all answers
    _numbers: Any = field(default_factory=itertools.count)

    async def run(self, batch: list[Case]) -> None:
        """Send some cases beside each other; each must be answered or closed, and rightly."""
        self.tried += len(batch)
        async with asyncio.timeout(BOUND):
            good = Connection(*await asyncio.open_connection("127.0.0.1", self.port))
            connections = [Connection(*await asyncio.open_connection("127.0.0.1", self.port)) for _ in batch]
            for connection in connections:  # so that recon has accepted them
                connection.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                await connection.answer()
            wires = [re.sub(NUMBER, self._number, case.wire) for case in batch]
            for pieces in itertools.zip_longest(*map(Case.pieces, batch, wires), fillvalue=b""):
                for connection, piece in zip(connections, pieces, strict=True):
                    connection.send(piece)
                await self._ask(good)
            # When as many valid requests as the longest case has have been answered one after another, recon has
            # also answered all that it can of each case: only what waits for more is left.
            for _ in range(max(wire.count(b"HTTP/1") for wire in wires)):
                await self._ask(good)
            received = await asyncio.gather(*(connection.rest() for connection in connections))
            await good.rest()
        for case, wire, got in zip(batch, wires, received, strict=True):
            try:
                self._judge(case, wire, answers(got, b"HEAD" in wire))
            except (AssertionError, LookupError, ValueError) as error:
                error.add_note(f"sent: {wire[:3000]!r}\nreceived: {got[:3000]!r}")
                raise

    def _number(self, _: re.Match[bytes]) -> bytes:
        return b"%09d" % next(self._numbers)

    async def _ask(self, good: "Connection") -> None:
        email = f"good-{next(self._numbers)}"
        good.send(post(json.dumps({"email": email}).encode()))
        [answer] = answers(await good.answer(), heads=False)
        assert answer.status == 200
        self._take(answer, [email])

    def _judge(self, case: Case, wire: bytes, found: list[Answer]) -> None:
        for answer in found:
            self.statuses[answer.status] += 1
            assert answer.status < 500, wire
            assert answer.headers["Server"] == "recon"
            if answer.status >= 400:
                self._judge_refusal(answer)
            elif answer.status == 302:
                assert answer.headers["Location"] == "/docs"
            else:
                assert answer.status == 200, wire
                assert answer.headers["Content-Type"] in _KINDS
                if answer.body.startswith(b'{"contact"'):
                    self._take(answer)
        if case.good:
            assert [answer.status for answer in found] == [200] * case.good
            emails = re.findall(rb'"email": "([^"]+)"', wire)
            for answer, email in zip(found, emails, strict=True):
                self._take(answer, [email.decode()])

    @staticmethod
    def _judge_refusal(answer: Answer) -> None:
        assert answer.headers["Content-Type"] == "application/problem+json"
        if answer.body:  # not to HEAD
            assert _problem.validate_json(answer.body, strict=True)["status"] == answer.status
        quotable = [value for name, value in answer.headers.items() if name != "X-Request-ID"]
        assert MARK not in (answer.body.decode() + " ".join(quotable)).lower()

    def _take(self, answer: Answer, emails: list[str] | None = None) -> None:
        contact = _identity.validate_json(answer.body, strict=True)["contact"]
        ids = [contact["primaryContactId"], *contact["secondaryContactIds"]]
        assert len(set(ids)) == len(ids)
        assert contact["primaryContatctId"] == ids[0]
        assert emails is None or contact["emails"] == emails
        self.ids |= set(ids)


class Connection:
    """A connection that is always read."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, piece: bytes) -> None:
        """Send bytes, unless recon has closed the connection."""
        if not self._writer.is_closing():
            self._writer.write(piece)

    async def answer(self) -> bytes:
        """Return one complete response."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        assert length
        return head + await self._reader.readexactly(int(length[1]))

    async def rest(self) -> bytes:
        """Close the sending side, and return what arrives until recon closes the connection."""
        with suppress(OSError):
            self._writer.write_eof()
        received = await everything(self._reader)
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()
        return received


def test_the_socket(start_recon: StartRecon, database_url: str) -> None:
    """Mutated requests are answered or the connection is closed; rows come only from requests answered with 200."""
    process = start_recon(env=os.environ | {"DATABASE_URL": database_url})  # an option would be warned of
    attack = Attack(process.port)
    until = time.monotonic() + SECONDS

    with asyncio.Runner() as runner:

        def one_round(number: int) -> None:
            @seed(secrets.randbits(64) if SECONDS else number)
            @settings(
                max_examples=ROUND,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),  # some inputs are large, on purpose
                print_blob=True,
            )
            @given(cases)
            def try_(batch: list[Case]) -> None:
                runner.run(attack.run(batch))

            try_()
            statuses = dict(sorted(attack.statuses.items()))
            report(f"the socket: inputs tried: {attack.tried}; answers by status: {statuses}")

        for number in itertools.count():
            one_round(number)
            if time.monotonic() >= until:
                break

    assert attack.tried > 2_000
    # The fixed inputs reach all statuses; random inputs may take long to do so.
    assert SECONDS or {200, 302, 400, 404, 405, 415} <= set(attack.statuses)
    rows = asyncio.run(fetch(database_url, "SELECT id, email FROM contact"))
    assert {row["id"] for row in rows} == attack.ids
    assert not [row for row in rows if row["email"] and row["email"].startswith(HIDDEN)]
    assert_untroubled(process, database_url)
