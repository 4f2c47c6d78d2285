"""What recon cannot carry, it refuses: too many requests, slow clients, silent ones, a database that stands still."""

import asyncio
import json
import resource
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil
import pytest

from tests.harness.databases import fetch
from tests.harness.processes import StartRecon, everything, recon
from tests.harness.storm import idle_connections, probe, storm

pytestmark = pytest.mark.usefixtures("files")
MB = 1024 * 1024
POST = b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_storm(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """2,000 connections at once lose nothing that was accepted; the rest is refused, and then all is as before."""
    process = start_recon("--database-url", database_url, "--workers", str(workers), "--queue-limit", "100")

    figures = await storm(process.port, process.popen.pid, connections=2000, seconds=1)

    assert figures.connections == 2000
    assert not figures.others
    # How many, and how fast, is the machine's business; here it goes on serving, and nobody waits for ever.
    assert figures.accepted > 100
    assert figures.refused > 100
    assert max(figures.longest, figures.refused_p99, figures.newcomer, figures.until_normal) < 10
    assert figures.highest_memory < workers * 250 * MB
    filed = {row["email"] for row in await fetch(database_url, "SELECT email FROM contact")}
    assert set(figures.emails) <= filed
    assert recon("check", "--database-url", database_url).returncode == 0
    assert len(process.events()) < 1000  # not a line for each that was refused


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """Stop processes, and let them go on in the end."""
    with ExitStack() as stack:
        for each in processes:
            each.send_signal(signal.SIGSTOP)
            stack.callback(each.send_signal, signal.SIGCONT)
        yield


def _family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


@pytest.mark.parametrize("options", [[], ["--no-coalesce"]], ids=["coalesced", "plain"])
async def test_a_database_that_stands_still(
    options: list[str], start_recon: StartRecon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Each request is told within its deadline; what was told that nothing changed was not done; then all is well."""
    folder = tmp_path_factory.mktemp("data")  # asyncpg takes short paths of sockets alone
    process = start_recon("--data-dir", str(folder), "--request-timeout", "1", "--statement-timeout", "0.8", *options)
    await _said(process.port, "before")
    postmaster = int((folder / "postgresql" / "postmaster.pid").read_text().split("\n")[0])

    with stopped(_family(postmaster)):
        # Some make up the batch under way; the others wait, and come at different times.
        answers = await asyncio.gather(*(_said(process.port, f"{n}", after=n / 30) for n in range(30)))
    recovered = time.monotonic()
    while (await _said(process.port, "after"))[0] != 200:
        assert time.monotonic() < recovered + 5

    for status, seconds, head, _ in answers:
        assert status == 503
        assert "Retry-After: " in head
        assert seconds < 3
    kinds = [problem["type"] for _, _, _, problem in answers]
    assert "urn:recon:deadline-exceeded" in kinds
    url = f"postgresql://postgres:@/postgres?host={folder}/postgresql"
    filed = {row["email"] for row in await fetch(url, "SELECT email FROM contact")}
    unknown = {f"{n}@still.example" for n, kind in enumerate(kinds) if kind == "urn:recon:outcome-unknown"}
    assert filed - unknown == {"before@still.example", "after@still.example"}
    assert recon("check", "--data-dir", str(folder)).returncode == 0


async def _said(port: int, email: str, *, after: float = 0) -> tuple[int, float, str, dict[str, Any]]:
    await asyncio.sleep(after)
    started = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"email": f"{email}@still.example"}).encode()
    writer.write(POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
    head, _, answer = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), time.monotonic() - started, head, json.loads(answer)


async def _drip(port: int, first: bytes, drop: bytes) -> bytes:
    """What a client gets who sends drop by drop, until it is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    answer = asyncio.create_task(everything(reader))
    with suppress(ConnectionError):
        while not answer.done():
            await asyncio.sleep(0.1)
            writer.write(drop)
            await writer.drain()
    writer.close()
    return await answer


async def _never_reads(port: int) -> None:
    """Ask for much on one connection, read nothing, and return once it is closed."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
        closed = lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # noqa: E731
        while not closed():
            await asyncio.sleep(0.05)


async def _idles(port: int) -> bytes:
    """What comes after an answer on a connection that asks for nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    rest = await reader.read()
    writer.close()
    return rest


@pytest.mark.parametrize("workers", [1, 2])
async def test_slow_clients(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """Who sends a byte at a time, or nothing, or never reads, is closed in time, and others are served meanwhile."""
    limits = [f"--{name}-timeout=1" for name in ("head", "body", "send", "keepalive")]
    process = start_recon("--database-url", database_url, "--workers", str(workers), *limits)
    before = sum(each.memory_info().rss for each in _family(process.popen.pid))
    port = process.port
    slow = {
        "nothing": _drip(port, b"", b""),
        "a head": _drip(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: ", b"x"),
        "a body": _drip(port, POST + b"Content-Length: 1000\r\n\r\n", b" "),
        "a body in chunks": _drip(port, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        "a body that nobody wants": _drip(
            port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", b" "
        ),
        "a body without end": _drip(
            port, POST + b"Transfer-Encoding: chunked\r\n\r\n", b"8000\r\n%s\r\n" % (b" " * 32768)
        ),
        "a head without end": _drip(port, b"GET /", b"x" * 65536),
        "pipelined rubbish": _drip(
            port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000 + b"\0", b"\0" * 65536
        ),
        "idle": _idles(port),
        "never reads": _never_reads(port),
    }

    async with asyncio.timeout(15):
        answers = asyncio.gather(*slow.values())
        while not answers.done():
            status, seconds = await probe(port)
            assert status == 200
            assert seconds < 3
            await asyncio.sleep(0.1)
    got = dict(zip(slow, await answers, strict=True))

    assert got["nothing"] == got["a head"] == b""
    assert got["a body"].startswith(b"HTTP/1.1 408 ")
    assert got["a body in chunks"].startswith(b"HTTP/1.1 408 ")
    assert got["a body that nobody wants"].startswith(b"HTTP/1.1 200 ")
    # Who goes on sending may lose the answer with the connection.
    assert got["a body without end"].startswith(b"HTTP/1.1 413 ") or not got["a body without end"]
    assert got["a head without end"].startswith(b"HTTP/1.0 414 ") or not got["a head without end"]
    assert got["pipelined rubbish"].startswith(b"HTTP/1.1 200 ") or not got["pipelined rubbish"]
    assert sum(each.memory_info().rss for each in _family(process.popen.pid)) < before + 100 * MB
    assert not [event for event in process.events() if event["level"] == "error"]


async def test_workers_share_the_connections(start_recon: StartRecon, database_url: str) -> None:
    """Sixty-four that come at once are not all let in by the worker that is awake first."""
    process = start_recon("--database-url", database_url, "--workers", "2")
    for _ in range(5):  # chance has a part in it
        connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", process.port) for _ in range(64)))
        for _, writer in connections:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for reader, _ in connections:
            await reader.readuntil(b"\r\n\r\n")
        shares = [len(worker.net_connections("tcp")) for worker in process.processes(workers=2)[1:]]
        for _, writer in connections:
            writer.close()
        if min(shares) > 8:
            return
    raise AssertionError(shares)


async def test_ten_thousand_idle_connections(start_recon: StartRecon, database_url: str, files: int) -> None:
    """10,000 connections that do nothing cost some memory, and others are served as ever."""
    count = min(10_000, files - 500)
    process = start_recon("--database-url", database_url)
    before = psutil.Process(process.popen.pid).memory_info().rss

    with idle_connections(process.port, count):
        for _ in range(5):
            status, seconds = await probe(process.port)
            assert status == 200
            assert seconds < 3
        assert psutil.Process(process.popen.pid).memory_info().rss - before < count * 40_000
    assert (await probe(process.port))[0] == 200


async def test_more_connections_than_allowed(start_recon: StartRecon, database_url: str) -> None:
    """Past the limit a connection gets a 503 at once; then those make room that have been idle longest."""
    process = start_recon("--database-url", database_url, "--max-connections", "50")

    with idle_connections(process.port, 60) as connections:
        refused = await asyncio.to_thread(connections[-1].recv, 10_000)
        deadline = time.monotonic() + 5
        while True:
            with suppress(OSError, IndexError):
                if (await probe(process.port))[0] == 200:
                    break
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)

    head, _, body = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"Retry-After: 1" in head
    assert json.loads(body)["type"] == "urn:recon:overloaded"


async def test_the_log_has_so_many_failures_a_second(start_recon: StartRecon, database_url: str) -> None:
    """Refusals and rubbish have fifty lines a second together, and the next line says how many had none."""
    process = start_recon("--database-url", database_url)
    started = time.monotonic()
    sent = 0

    async def fail(wrong: bytes) -> None:
        nonlocal sent
        sent += 1
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(wrong)
        assert b" 400 " in await everything(reader)
        writer.close()

    for _ in range(100):
        await fail(POST + b"Connection: close\r\nContent-Length: 1\r\n\r\n{")
        await fail(b"hello\r\n\r\n")
    while not any("failures_not_logged_before" in event for event in process.events()):
        assert time.monotonic() - started < 10
        await fail(b"hello\r\n\r\n")
    seconds = time.monotonic() - started

    lines = [each for each in process.events() if each["event"] in {"POST /identify", "not answered as a request"}]
    assert len({line["event"] for line in lines}) == 2
    assert len(lines) <= 25 + 25 * (seconds + 1)  # the bucket, and what comes back
    spared = sum(line.get("failures_not_logged_before", 0) for line in lines)
    assert 0 < spared <= sent - len(lines)


async def test_more_connections_than_files(start_recon: StartRecon, database_url: str) -> None:
    """recon makes do with the files that it may open: it says so, neither dies nor spins, and serves again."""
    process = start_recon(
        "--database-url", database_url, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 250))
    )
    [line] = [event["event"] for event in process.events() if "files may be open" in event["event"]]
    assert line == "only 250 files may be open, so at most 106 connections"
    # Fewer than recon reckoned with: as if libraries had opened some.
    psutil.Process(process.popen.pid).rlimit(psutil.RLIMIT_NOFILE, (100, 250))

    # The kernel may reset a connection that recon cannot accept for want of files.
    with ExitStack() as stack:
        for _ in range(300):
            with suppress(ConnectionError):
                stack.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=5))
        await asyncio.sleep(0.5)
        cpu = sum(psutil.Process(process.popen.pid).cpu_times()[:2])
        await asyncio.sleep(1)
        assert sum(psutil.Process(process.popen.pid).cpu_times()[:2]) - cpu < 0.5
    deadline = time.monotonic() + 10
    while not await _is_served(process.port):
        assert time.monotonic() < deadline


async def _is_served(port: int) -> bool:
    """Whether a request gets a 200; its connection may be reset or closed while others are being closed."""
    with suppress(ConnectionError, IndexError):
        return (await probe(port))[0] == 200
    return False


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_burst_of_new_connections(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """While recon is busy, a thousand newcomers wait at the door instead of being turned away by the kernel."""
    process = start_recon("--database-url", database_url, "--workers", str(workers))

    with stopped(_family(process.popen.pid)):
        started = time.monotonic()
        with idle_connections(process.port, 1000):
            assert time.monotonic() - started < 3
