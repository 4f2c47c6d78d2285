"""The rate of other clients during a disturbance: a locked row, clients that use a large identity, an import.

.venv/bin/python -m bench.beside

Each disturbance is measured in turn with the same undisturbed load. The ratio of the two rates is printed.
"""

import asyncio
import http.client
import json
import os
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import click

from bench import imports
from bench.load import batches, people, wrk
from bench.load.watch import Meanwhile
from bench.load.workloads import WORKLOADS
from bench.report.tables import table
from bench.systems import postgres
from bench.systems.processes import SYSTEMS, serving
from recon.sql import invariants

CONNECTIONS = 64
WIDTH = 100  # characters of each email of a large identity
RECORDS = 2_000_000  # of a file that is imported beside the load
TIMEOUT = 30  # seconds to wait for an answer
PHONE = "+999999"  # of the identity that the disturbance uses; no other identity has it
PRIMARY = "INSERT INTO contact (email, phone_number) VALUES ('disturbing-1', $1) RETURNING id"
SECONDARIES = """
INSERT INTO contact (email, phone_number, linked_id, link_precedence)
SELECT rpad('disturbing-' || n || '-', $1, 'x'), $2, $3, 'secondary' FROM generate_series(2, $4::int) AS n
"""


class Client(Meanwhile):
    """Posts one request after another, each made by `request` from its number, with a pause after each."""

    def __init__(self, port: int, request: Callable[[int], dict[str, str]], pause: float = 0) -> None:
        super().__init__()
        self._port = port
        self._request = request
        self._pause = pause

    def run(self) -> None:
        """Send requests until the end."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT)
        number = 0
        while not self._over.wait(self._pause):
            number += 1
            body = json.dumps(self._request(number))
            connection.request("POST", "/identify", body, {"Content-Type": "application/json"})
            connection.getresponse().read()
        connection.close()


@contextmanager
def _a_locked_row(port: int, database_url: str) -> Iterator[None]:
    """Another session locks a contact; once a second a client brings a new email for that person."""

    async def locked() -> asyncpg.Connection:
        connection = await asyncpg.connect(database_url)
        await connection.execute("BEGIN; SELECT FROM contact WHERE email = 'disturbing-1' FOR UPDATE")
        return connection

    with asyncio.Runner() as runner, Client(port, lambda n: {"email": f"new-{n}", "phoneNumber": PHONE}, pause=1):
        connection = runner.run(locked())
        try:
            yield
        finally:
            runner.run(connection.close())


@contextmanager
def _two_readers(port: int, _database_url: str) -> Iterator[None]:
    """Two clients request the large identity without pause."""
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(Client(port, lambda _: {"phoneNumber": PHONE}))
        yield


@contextmanager
def _one_writer(port: int, _database_url: str) -> Iterator[None]:
    """A client adds emails to the large identity without pause."""
    with Client(port, lambda n: {"email": f"another-{n}", "phoneNumber": PHONE}):
        yield


def _a_batch_of(requests: str) -> Callable[[int, str], AbstractContextManager[object]]:
    """A batch that does not end."""

    def disturb(port: int, _database_url: str) -> AbstractContextManager[object]:
        return batches.Batch(port, batches.lines(requests, people.WARM_UP, WORKLOADS["known"].people))

    return disturb


@contextmanager
def _an_import(_port: int, database_url: str) -> Iterator[None]:
    """`recon import` of more records than it can import in the time."""
    with tempfile.TemporaryDirectory(prefix="recon-bench-") as folder:
        path = Path(folder, "shop.csv")
        path.write_text("".join(imports.records(RECORDS)))
        environment = os.environ | {"RECON_DATABASE_URL": database_url}
        importing = subprocess.Popen(  # noqa: S603 (our own command)
            [imports.PROGRAM, "import", path], env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        try:
            yield
            if importing.poll() is not None:
                raise wrk.LoadFailed("the import ended before the load")
        finally:
            importing.send_signal(signal.SIGINT)
            importing.wait(TIMEOUT)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A disturbance of the load, and the least share of the rate that other clients must keep (None: no target).

    `most` is the greatest allowed ratio of their p99 beside it and without it.
    """

    title: str
    workload: str
    contacts: int  # of the identity that it uses
    disturb: Callable[[int, str], object]
    target: float | None
    most: float | None = None


DISTURBANCES = (
    Disturbance("a row that another session locks, one request a second needs it", "new", 1, _a_locked_row, 0.5),
    Disturbance("a batch of new customers that does not end", "new", 1, _a_batch_of("new"), 0.5, 5),
    Disturbance("a batch of known customers that does not end", "known", 1, _a_batch_of("known"), 0.5, 5),
    Disturbance("two clients read an identity of 5,000 contacts without pause", "known", 5_000, _two_readers, 0.25),
    Disturbance("two clients read an identity of 10,000 contacts without pause", "known", 10_000, _two_readers, None),
    Disturbance("one client adds to an identity of 5,000 contacts without pause", "new", 5_000, _one_writer, None),
    Disturbance("an import", "new", 1, _an_import, 0.5),
    Disturbance("an import", "known", 1, _an_import, 0.5),
)


async def _seed(url: str, contacts: int) -> None:
    connection = await asyncpg.connect(url)
    try:
        primary = await connection.fetchval(PRIMARY, PHONE)
        await connection.execute(SECONDARIES, WIDTH, PHONE, primary, contacts)
    finally:
        await connection.close()


def _load(
    disturbance: Disturbance, server: postgres.Postgres, folder: Path, seconds: int, *, disturbed: bool
) -> wrk.Load:
    """Measure the requests of the other clients."""
    workload = WORKLOADS[disturbance.workload]
    url = server.fresh(workload.people)
    asyncio.run(_seed(url, disturbance.contacts))
    with serving(SYSTEMS["recon"], url, folder / "system.log") as recon, ExitStack() as stack:
        if disturbed:
            stack.enter_context(disturbance.disturb(recon.port, url))  # type: ignore[arg-type]
        done = wrk.run(
            recon.port,
            workload.requests,
            people.MEASURED,
            first=1,
            known=workload.used,
            connections=CONNECTIONS,
            seconds=seconds,
        )
    violations, _ = asyncio.run(invariants.check(url))
    if done.errors or violations or recon.problem:
        raise wrk.LoadFailed(f"{done.errors} errors, {len(violations)} violations; {recon.problem or 'it ended well'}")
    return done


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--rounds", type=click.IntRange(1, 20), default=5, show_default=True, help="How often each is measured.")
@click.option("--seconds", type=click.IntRange(2, 60), default=5, show_default=True, help="Load of each series.")
@click.option("--only", default="", metavar="TEXT", help="Only the disturbances whose title contains this.")
def main(*, rounds: int, seconds: int, only: str) -> None:
    """Measure how much of their rate and of their p99 other clients keep during a disturbance."""
    rows = []
    with (
        tempfile.TemporaryDirectory(prefix="recon-bench-", ignore_cleanup_errors=True) as name,
        postgres.running(Path(name, "database")) as server,
    ):
        for each in (each for each in DISTURBANCES if only in each.title):
            pairs, tails = [], []
            for _ in range(rounds):
                alone, beside = (
                    _load(each, server, Path(name), seconds, disturbed=disturbed) for disturbed in (False, True)
                )
                pairs.append((alone.requests / alone.seconds, beside.requests / beside.seconds))
                tails.append(beside.p99_ms / alone.p99_ms)
                click.echo(f"{each.title}: {pairs[-1][0]:,.0f} /s alone, {pairs[-1][1]:,.0f} /s beside it")
            kept = [beside / alone for alone, beside in pairs]
            rows.append(
                [
                    each.title,
                    f"{statistics.median(alone for alone, _ in pairs):,.0f}",
                    f"{statistics.median(beside for _, beside in pairs):,.0f}",
                    f"{statistics.median(kept):.2f} ({min(kept):.2f} to {max(kept):.2f})",
                    "" if each.target is None else f"≥ {each.target}",
                    f"{statistics.median(tails):.1f} ({min(tails):.1f} to {max(tails):.1f})",
                    "" if each.most is None else f"≤ {each.most}",
                ]
            )
    click.echo(
        "\n" + table(["beside", "alone, /s", "beside it, /s", "kept", "target", "p99 ÷ p99 alone", "target"], rows)
    )


if __name__ == "__main__":
    main(prog_name="python -m bench.beside")
