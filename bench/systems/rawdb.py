"""The raw database, without HTTP: pgbench with one function call per transaction, and a single SELECT."""

import os
import random
import re
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import uvloop

from bench.load import people
from bench.load.wrk import GRACE, LoadFailed, cpu_of_children
from recon.database.embedded.postmaster import programs
from recon.database.transactions import SESSION, Connection

ROWS = 200_000  # stored before, so that conflicts are as rare as in the large table of a shop
MAX_TRIES = 200  # as recon's retry_limit
OPTIONS = "-c default_transaction_isolation=serializable -c plan_cache_mode=force_generic_plan"  # as recon's sessions
SAMPLED = 0.1  # share of the transactions whose latency is logged

# Match or insert: the README's rules 1 and 3, and the look-ups of the others. A request of the workload
# "new" needs exactly this from the database. The phone is "+" and its match key, so no key is derived here.
FUNCTION = f"""
CREATE FUNCTION identify(space text, person bigint) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    by_email CONSTANT bigint := (person + {people.EMAIL_START}) % {people.PRIME};
    by_phone CONSTANT bigint := (person + {people.PHONE_START}) % {people.PRIME};
    said_email CONSTANT text := 'c' || lpad(
        (by_email * by_email % {people.PRIME} * by_email % {people.PRIME})::text, 8, '0'
    ) || '-' || space || '@shop.example';
    said_phone CONSTANT text := '1' || lpad(
        (by_phone * by_phone % {people.PRIME} * by_phone % {people.PRIME})::text, 8, '0'
    ) || space;
    found bigint;
BEGIN
    SELECT coalesce(linked_id, id) INTO found FROM contact WHERE email = said_email AND deleted_at IS NULL LIMIT 1;
    IF found IS NULL THEN
        SELECT coalesce(linked_id, id) INTO found
        FROM contact WHERE phone_key = said_phone AND deleted_at IS NULL LIMIT 1;
    END IF;
    IF found IS NULL THEN
        INSERT INTO contact (email, phone_number, phone_key) VALUES (said_email, '+' || said_phone, said_phone)
        RETURNING id INTO found;
    END IF;
    RETURN found;
END
$$
"""  # noqa: S608 (built from constants)
# Each client counts in its own range.
SCRIPT = """
\\set person :person + 1
SELECT identify(:space::text, :client_id * 100000 + :person);
"""
SPAN = 100_000  # maximum requests of one client, as in SCRIPT; 256 clients' ranges stay below people.PRIME


@dataclass(frozen=True, slots=True)
class RawLoad:
    """The figures of one run of pgbench or of SELECTs; `cpu` is the CPU time of the client, in seconds."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    retries: int
    cpu: float


def program() -> Path:
    """The pgbench of the embedded PostgreSQL."""
    return programs() / "pgbench"


def create_function(url: str) -> None:
    """Create the function that pgbench calls."""

    async def create() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(FUNCTION)
        finally:
            await connection.close()

    uvloop.run(create())


def run_pgbench(url: str, space: str, *, clients: int, seconds: int, folder: Path) -> RawLoad:
    """Add new customers from `clients` clients, each customer in a transaction of its own; logs go to `folder`."""
    script = folder / "pgbench.sql"
    script.write_text(SCRIPT)
    for old in folder.glob("latency*"):
        old.unlink()
    command = [str(program()), "--no-vacuum", "--protocol=prepared", f"--file={script}", f"--time={seconds}"]
    command += [f"--client={clients}", "--jobs=1", f"--max-tries={MAX_TRIES}"]
    command += ["--define=person=0", f"--define=space={space}"]
    command += ["--log", f"--log-prefix={folder / 'latency'}", f"--sampling-rate={SAMPLED}", url]
    environment = os.environ | {"PGOPTIONS": OPTIONS}
    before = cpu_of_children()
    try:
        done = subprocess.run(  # noqa: S603 (our own command)
            command, env=environment, capture_output=True, text=True, check=False, timeout=seconds + GRACE
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"pgbench did not end {GRACE} seconds after its time") from None
    if done.returncode:
        raise LoadFailed(f"pgbench failed: {done.stderr.strip()}")
    requests = int(_figure(r"transactions actually processed: (\d+)", done.stdout))
    latencies = _latencies(folder)
    return RawLoad(
        requests=requests,
        seconds=requests / _figure(r"tps = ([\d.]+)", done.stdout),
        p50_ms=latencies[len(latencies) // 2],
        p99_ms=latencies[len(latencies) * 99 // 100],
        errors=int(_figure(r"failed transactions: (\d+)", done.stdout)),
        retries=int(_figure(r"total number of retries: (\d+)", done.stdout)),
        cpu=cpu_of_children() - before,
    )


def _figure(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise LoadFailed(f"pgbench did not print {pattern!r}: {text}")
    return float(found[1])


def _latencies(folder: Path) -> list[float]:
    """Return the sorted latencies in milliseconds, retries included; the third column is in microseconds."""
    lines = (line.split() for log in folder.glob("latency.*") for line in log.read_text().splitlines())
    latencies = sorted(int(columns[2]) / 1000 for columns in lines if columns[2].isdigit())
    if not latencies:
        raise LoadFailed("pgbench logged no latencies")
    return latencies


SELECT = "SELECT id FROM contact WHERE email = $1 AND deleted_at IS NULL"


def run_select(url: str, count: int, *, seconds: int) -> RawLoad:
    """Run a prepared SELECT by a random one of the `count` seeded emails again and again, in a session like recon's.

    A session of recon's pool would end by its time-out, long before the series.
    """
    latencies: list[float] = []

    async def select(connection: Connection) -> None:
        statement = await connection.prepare(SELECT)
        until = time.perf_counter() + seconds
        ended = 0.0
        while ended < until:
            email = people.email(people.SEEDED, random.randint(1, count))  # noqa: S311 (a choice, not a secret)
            started = time.perf_counter()
            found = await statement.fetchval(email)
            ended = time.perf_counter()
            latencies.append((ended - started) * 1000)
            if found is None:
                raise LoadFailed("a seeded customer is missing")

    async def run() -> None:
        session = SESSION | {"default_transaction_isolation": "serializable"}
        connection = await asyncpg.connect(url, server_settings=session)
        try:
            await select(connection)
        finally:
            await connection.close()

    uvloop.run(run())
    cuts = statistics.quantiles(latencies, n=100)
    return RawLoad(len(latencies), sum(latencies) / 1000, cuts[49], cuts[98], errors=0, retries=0, cpu=0.0)
