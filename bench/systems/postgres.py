"""The benchmark's own PostgreSQL: one server for the whole run, a database of known content for each series."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from bench.load import people
from bench.load.watch import cpu_seconds
from recon.database.embedded import data_folder
from recon.database.schema import apply_schema
from recon.rules.identifiers import plain_key

DATABASE = "bench"
CONNECTIONS = 300  # 256 clients of pgbench, and some others; the server's default is 100
# Files of the write-ahead log (16 MB each) that exist before the run and are recycled, as in a server that has been
# running for a while. Creating one takes 50 ms, in which no COMMIT returns, and a series needs several.
WAL_FILES = 32
SEED_TIMEOUT = 600  # seconds; maximum time to insert a million rows
SHOWN = (  # the settings that the result page shows
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_connections",
    "min_wal_size",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "data_checksums",
)
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")

# A line of the server's log with the duration of a message, and the beginning of a continuation line.
DURATION = re.compile(r"\[(\d+)\] LOG:  duration: ([\d.]+) ms  (?:(parse|bind|execute) [^:]*|statement): (.*)")
CONTINUED = "\t"


class NotDurable(Exception):
    """The server does not commit durably, so its figures would mean nothing."""


class Postgres:
    """The running server at `url`, as its superuser."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._templates: set[str] = set()
        self.settings = asyncio.run(self._settings())
        off = [name for name in DURABLE if self.settings[name] != "on"]
        if off:
            raise NotDurable(f"PostgreSQL runs with {', '.join(off)} off")
        postmaster = Path(self.settings["data_directory"], "postmaster.pid")
        self._pid = int(postmaster.read_text().splitlines()[0])

    def url(self, database: str = DATABASE) -> str:
        """Return the URL of one of its databases."""
        return urlsplit(self._url)._replace(path=f"/{database}").geturl()

    def cpu_seconds(self) -> float:
        """CPU seconds that the server has used since it started, all its processes together."""
        return cpu_seconds(self._pid)

    def fresh(self, count: int, space: str = people.SEEDED) -> str:
        """Create the database again, with the schema and the first `count` people of `space`; return its URL.

        It is a copy of a template, so each series starts with identical files. The copy includes a checkpoint, so a
        series does not pay for earlier writes.
        """
        return asyncio.run(self._fresh(count, space))

    async def _fresh(self, count: int, space: str) -> str:
        template = f"seed_{space}_{count}"
        connection = await asyncpg.connect(self._url)
        try:
            if template not in self._templates:
                await connection.execute(f"CREATE DATABASE {template}")
                await self._seed(template, count, space)
                self._templates.add(template)
            await connection.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            await connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE {template} STRATEGY file_copy")
        finally:
            await connection.close()
        return self.url()

    async def _seed(self, template: str, count: int, space: str) -> None:
        connection = await asyncpg.connect(self.url(template))
        try:
            await apply_schema(connection)
            if not count:
                return  # never analysed, like the table of a new shop
            # In the order of their numbers, so that a person's number is the contact's id.
            await connection.copy_records_to_table(
                "contact",
                columns=("email", "phone_number", "phone_key"),
                records=(
                    # With recon's match key: if it were wrong, "known" would add contacts, and the series would fail.
                    (people.email(space, number), phone := people.phone(space, number), plain_key(phone))
                    for number in range(1, count + 1)
                ),
                timeout=SEED_TIMEOUT,
            )
            # Autovacuum would do this within a minute, in the middle of a series.
            await connection.execute("VACUUM ANALYZE", timeout=SEED_TIMEOUT)
        finally:
            await connection.close()

    def counts(self) -> tuple[int, int]:
        """Count contacts and primaries in the database, once all other sessions have ended."""
        return asyncio.run(self._counts())

    async def _counts(self) -> tuple[int, int]:
        connection = await asyncpg.connect(self.url())
        try:
            for _ in range(100):
                others = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'"
                if await connection.fetchval(others, DATABASE) == 1:
                    break
                await asyncio.sleep(0.1)
            row = await connection.fetchrow(
                "SELECT count(*), count(*) FILTER (WHERE link_precedence = 'primary') FROM contact"
            )
        finally:
            await connection.close()
        assert row is not None  # noqa: S101 (an aggregate is always one row)
        return row[0], row[1]

    @contextmanager
    def logging_durations(self) -> Iterator[list[tuple[str, float]]]:
        """Let the server log each statement meanwhile; afterwards the list has each one and its milliseconds."""
        log = Path(self.settings["data_directory"], "log")
        asyncio.run(self._set(log_min_duration_statement="0", log_parameter_max_length="0"))
        before = log.stat().st_size
        statements: list[tuple[str, float]] = []
        try:
            yield statements
        finally:
            asyncio.run(self._set(log_min_duration_statement="-1", log_parameter_max_length="-1"))
        with log.open("rb") as file:
            file.seek(before)
            statements += _durations(file.read().decode(errors="replace"))

    async def _set(self, **settings: str) -> None:
        connection = await asyncpg.connect(self._url)
        try:
            for name, value in settings.items():
                await connection.execute(f"ALTER SYSTEM SET {name} = {value}")
            await connection.execute("SELECT pg_reload_conf()")
        finally:
            await connection.close()

    async def _settings(self) -> dict[str, str]:
        connection = await asyncpg.connect(self._url)
        try:
            names = (*SHOWN, "data_directory", "server_version")
            return {name: await connection.fetchval(f"SHOW {name}") for name in names}
        finally:
            await connection.close()


@contextmanager
def running(data_dir: Path) -> Iterator[Postgres]:
    """Run a server with its data in `data_dir`, and default settings except for connections and WAL files."""
    with data_folder.running(data_dir):
        pass  # this has created the data folder; the server reads its configuration at the next start
    with (data_dir / "postgresql" / "postgresql.conf").open("a") as configuration:
        configuration.write(f"max_connections = {CONNECTIONS}\nmin_wal_size = {WAL_FILES * 16}MB\n")
    with data_folder.running(data_dir) as url:
        asyncio.run(_use_wal_files(url))
        yield Postgres(url)


async def _use_wal_files(url: str) -> None:
    """Use each file of the write-ahead log once; then the checkpoint marks them as files to recycle."""
    connection = await asyncpg.connect(url)
    try:
        for _ in range(WAL_FILES):
            await connection.execute("SELECT pg_logical_emit_message(false, 'bench', 'x'); SELECT pg_switch_wal()")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()


def _durations(log: str) -> Iterator[tuple[str, float]]:
    """Yield each statement in a log with its milliseconds: the sum of parsing, binding and executing it."""
    bound: defaultdict[str, float] = defaultdict(float)  # by session: for the statement that it executes next
    statement: list[str] = []
    taken = 0.0
    for line in log.splitlines():
        if line.startswith(CONTINUED):
            if statement:
                statement.append(line)
            continue
        if statement:
            yield "\n".join(statement), taken
            statement = []
        if found := DURATION.search(line):
            session, milliseconds, phase, text = found.groups()
            if phase in {"parse", "bind"}:
                bound[session] += float(milliseconds)
            else:
                statement, taken = [text], float(milliseconds) + bound.pop(session, 0)
    if statement:
        yield "\n".join(statement), taken
