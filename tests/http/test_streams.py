"""Streamed responses of made-up endpoints on real connections: heads, errors in the middle, slow clients, shutdown."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import ROOT
from tests.harness.made_up import ERRORS, LINE
from tests.harness.processes import Process, StartRecon, everything, recon_processes

SHOP = "https://shop.example"
COMMAND = (sys.executable, str(ROOT / "tests" / "harness" / "made_up.py"))
CHUNK = b"%x\r\n%s\r\n" % (len(LINE), LINE)
LAST_CHUNK = b"0\r\n\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

RATE = 6 * 2**20  # bytes per second that a slow client reads

Samples = dict[tuple[str, ...], float]


@pytest.fixture(scope="module")
def process(shared_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A recon with the made-up endpoints and a --send-timeout of one second."""
    options = ["--cors-origins", SHOP, "--send-timeout", "1", "--log-level", "debug"]
    with recon_processes(tmp_path_factory.mktemp("recon")) as start:
        yield start("--database-url", shared_database_url, *options, command=COMMAND)


@asynccontextmanager
async def _asked(
    process: Process, target: str, *fields: str, method: str = "GET", version: str = "1.1"
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Open a connection and send a request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", process.port, limit=65_536)
    lines = [f"{method} {target} HTTP/{version}", "Host: localhost", *fields, "", ""]
    writer.write("\r\n".join(lines).encode())
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


async def _head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    headers = dict(line.split(": ", 1) for line in lines)
    assert len(headers) == len(lines), "a header twice"
    return int(status.split()[1]), headers


async def _metrics(process: Process) -> Samples:
    async with _asked(process, "/metrics", "Connection: close") as (reader, _):
        _, _, text = (await reader.read()).partition(b"\r\n\r\n")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def _until(process: Process, condition: Callable[[Samples], bool]) -> Samples:
    """Return the metrics, once the condition holds for them."""
    async with asyncio.timeout(20):
        while not condition(samples := await _metrics(process)):
            await asyncio.sleep(0.02)
    return samples


def _under_way(route: str, count: int) -> Callable[[Samples], bool]:
    return lambda samples: samples.get(("recon_http_streams", route)) == count


async def test_the_head_of_a_stream(process: Process) -> None:
    """The head has the request's id, CORS and recon's name; the body has its last chunk; the connection stays open."""
    async with _asked(process, "/lines", "X-Request-ID: abc-123", f"Origin: {SHOP}") as (reader, writer):
        status, headers = await _head(reader)
        body = await reader.readexactly(len(3 * CHUNK + LAST_CHUNK))
        writer.write(GET)
        again = await _head(reader)

    assert (status, body) == (200, 3 * CHUNK + LAST_CHUNK)
    assert headers.pop("Date")
    assert headers == {
        "Content-Type": "application/x-ndjson",
        "Transfer-Encoding": "chunked",
        "X-Request-ID": "abc-123",
        "Server": "recon",
        "Vary": "Origin",
        "Access-Control-Allow-Origin": SHOP,
        "Access-Control-Expose-Headers": "X-Request-ID, Retry-After",
    }
    assert again[0] == 200


async def test_a_stream_with_aiohttps_means_alone(process: Process) -> None:
    """A handler that streams with aiohttp only gets the same headers."""
    async with _asked(process, "/by-hand", "X-Request-ID: abc-123", "Origin: https://evil.example") as (reader, _):
        _, headers = await _head(reader)
        body = await reader.readexactly(len(CHUNK + LAST_CHUNK))

    assert (headers["X-Request-ID"], headers["Server"], headers["Vary"]) == ("abc-123", "recon", "Origin")
    assert "Access-Control-Allow-Origin" not in headers
    assert body == CHUNK + LAST_CHUNK


@pytest.mark.parametrize("path", ["/healthz", "/docs", "/nothing", "/identify"])
async def test_the_headers_of_other_responses(path: str, process: Process) -> None:
    """Responses of aiohttp's classes get the headers too, each once."""
    async with _asked(process, path, "X-Request-ID: abc-123", f"Origin: {SHOP}") as (reader, _):
        _, headers = await _head(reader)

    assert (headers["X-Request-ID"], headers["Server"], headers["Vary"]) == ("abc-123", "recon", "Origin")
    assert headers["Access-Control-Allow-Origin"] == SHOP


@pytest.mark.parametrize("path", ["/lines", "/body"])
@pytest.mark.parametrize("error", ERRORS)
async def test_an_error_in_the_middle(error: str, path: str, process: Process) -> None:
    """The response ends without its last chunk and without a second status line; it is logged and counted.

    So it is also if the handler has returned its response, whose body aiohttp would send.
    """
    key = ("recon_http_responses_aborted_total", "error", path)
    request_id = f"middle-{error}-{path[1:]}"
    before = (await _metrics(process)).get(key, 0)

    async with _asked(process, f"{path}?then={error}", f"X-Request-ID: {request_id}") as (reader, _):
        received = await reader.read()

    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == 3 * CHUNK
    after = await _until(process, lambda samples: samples.get(key, 0) > before)
    assert after[key] == before + 1
    assert after["recon_http_streams", path] == 0
    [event] = [event for event in process.events() if event.get("request_id") == request_id]
    assert (event["event"], event["reason"]) == (f"GET {path} was aborted", "error")
    assert event["level"] == ("warning" if error == "unavailable" else "error")
    assert "made_up.py" in event["where"]
    assert "5550199" not in process.log


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_an_error_in_a_body_of_no_stream(version: str, process: Process) -> None:
    """An endpoint that streams without `stream=True` fails after its handler: that is logged and counted, too."""
    key = ("recon_http_responses_aborted_total", "error", "unknown")
    before = (await _metrics(process)).get(key, 0)
    logged = len(process.events())

    async with _asked(process, "/body-of-no-stream?pause=0.1&then=bug", version=version) as (reader, _):
        await _head(reader)
        with pytest.raises(ConnectionResetError):
            await reader.read()

    assert (await _until(process, lambda samples: samples.get(key, 0) > before))[key] == before + 1
    [event] = [event for event in process.events()[logged:] if event["level"] == "error"]
    assert (event["event"], event["error"]) == ("a response was aborted", "ValueError")
    assert "made_up.py" in event["where"]
    assert "5550199" not in process.log


@pytest.mark.parametrize(("error", "status"), [("bug", 500), ("unavailable", 503), ("problem", 404)])
async def test_an_error_before_the_first_part(error: str, status: int, process: Process) -> None:
    """An error before the head is sent is a problem document, and the connection stays open."""
    async with _asked(process, f"/lines?count=0&then={error}") as (reader, writer):
        answered = await _head(reader)
        await reader.readexactly(int(answered[1]["Content-Length"]))
        writer.write(GET)
        again = await _head(reader)

    assert (answered[0], answered[1]["Content-Type"]) == (status, "application/problem+json")
    assert again[0] == 200


async def test_no_second_response(process: Process) -> None:
    """If a handler begins a response and returns another, the connection is closed without a second head."""
    async with _asked(process, "/twice") as (reader, _):
        received = await reader.read()

    assert received.count(b"HTTP/1.1") == 1
    assert received.endswith(CHUNK)


async def test_http_1_0(process: Process) -> None:
    """In HTTP/1.0, the end of the connection ends the body, also if the client sent keep-alive."""
    for fields in ([], ["Connection: keep-alive"]):
        async with _asked(process, "/lines", *fields, version="1.0") as (reader, _):
            _, headers = await _head(reader)
            body = await reader.read()

        assert body == 3 * LINE
        assert not {"Transfer-Encoding", "Connection"} & set(headers)


async def test_an_error_in_the_middle_of_http_1_0(process: Process) -> None:
    """The connection is reset, because its orderly end would look like the end of the body."""
    async with _asked(process, "/lines?count=1&pause=0.2&then=bug", version="1.0") as (reader, _):
        await _head(reader)
        assert await reader.readexactly(len(LINE)) == LINE
        with pytest.raises(ConnectionResetError):
            await reader.read()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("path", ["/lines?then=hang", "/by-hand"])
async def test_head(path: str, version: str, process: Process) -> None:
    """HEAD gets the head of GET and no body, however long the stream is, and the connection stays open."""
    fields = ["Connection: keep-alive"] if version == "1.0" else []
    async with _asked(process, path, *fields, method="HEAD", version=version) as (reader, writer):
        status, headers = await _head(reader)
        writer.write(GET)
        again = await _head(reader)

    assert (status, again[0]) == (200, 200)
    assert headers["X-Request-ID"]


async def test_the_metrics_of_a_stream(process: Process) -> None:
    """A stream is counted while it is in progress, with its duration at its end, and not as latency."""
    before = await _metrics(process)
    async with _asked(process, "/lines?count=2&pause=0.3", method="POST") as (reader, _):
        await _head(reader)
        during = await _metrics(process)
        await reader.readuntil(LAST_CHUNK)
    after = await _until(process, _under_way("/lines", 0))

    assert during["recon_http_streams", "/lines"] == 1
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["recon_http_stream_seconds_count", "/lines"] == 1
    assert grown["recon_http_stream_seconds_sum", "/lines"] > 0.55  # two pauses, by a clock of milliseconds
    assert grown["recon_http_requests_total", "/lines", "200"] == 1
    assert ("recon_http_request_seconds_count", "/lines") not in after


@pytest.mark.parametrize("count", [0, 1], ids=["before the head", "after the head"])
async def test_a_client_that_leaves(count: int, process: Process) -> None:
    """A stream ends when its client disconnects, also while it has nothing to send; that is no error."""
    logged = len(process.events())
    async with _asked(process, f"/lines?count={count}&then=hang") as (reader, _):
        if count:
            await reader.readuntil(CHUNK)
        before = await _until(process, _under_way("/lines", 1))
    after = await _until(process, _under_way("/lines", 0))

    key = ("recon_http_responses_aborted_total", "client", "/lines")
    assert after.get(key, 0) - before.get(key, 0) == count
    assert {event["level"] for event in process.events()[logged:]} <= {"debug", "info"}


async def test_a_client_that_takes_its_time(process: Process) -> None:
    """A client that reads some of a stream within each --send-timeout gets all of it."""
    started = time.monotonic()
    received = 0
    part = b""
    async with _asked(process, "/much?megabytes=24") as (reader, _):
        await _head(reader)
        while not part.endswith(LAST_CHUNK):
            part = await reader.read(2**20)
            assert part, "the stream was cut"
            received += len(part)
            await asyncio.sleep(max(0, started + received / RATE - time.monotonic()))

    assert received > 24 * 2**20
    assert time.monotonic() - started > 3  # several times --send-timeout


async def test_a_client_that_takes_nothing(process: Process) -> None:
    """If a client reads nothing for --send-timeout, its connection is closed, and the stream ends."""
    async with _asked(process, "/much?megabytes=64") as (reader, _):
        await _until(process, _under_way("/much", 1))
        await _until(process, _under_way("/much", 0))
        received = await everything(reader)

    assert LAST_CHUNK not in received


@pytest.mark.parametrize("workers", [1, 2])
async def test_shutdown(workers: int, start_recon: StartRecon, database_url: str) -> None:
    """At shutdown, streams that end soon are completed, and the others are cut, which their clients can see."""
    options = ["--database-url", database_url, "--shutdown-timeout", "20", "--workers", str(workers)]
    process = start_recon(*options, command=COMMAND)
    async with (
        _asked(process, "/lines?count=1&pause=0.7") as (ending, _),
        _asked(process, "/lines?count=1&then=hang") as (endless, _),
        _asked(process, "/body?count=1&then=hang") as (body, _),
        _asked(process, "/lines?count=1&then=hang", version="1.0") as (old, _),
        _asked(process, "/lines?count=0&then=hang") as (silent, _),
    ):
        for reader in (endless, body, ending):
            await reader.readuntil(CHUNK)
        await old.readuntil(LINE)
        process.popen.send_signal(signal.SIGTERM)
        started = time.monotonic()

        assert await ending.read() == LAST_CHUNK
        assert await endless.read() == await body.read() == b""
        with pytest.raises(ConnectionResetError):
            await old.read()
        status, headers = await _head(silent)
        assert (status, headers["Retry-After"], headers["Connection"]) == (503, "1", "close")

    assert await asyncio.to_thread(process.popen.wait, 15) == 0
    assert time.monotonic() - started < 10
    aborted = [event for event in process.events() if event["event"].endswith(" was aborted")]
    assert [(event["reason"], event["level"]) for event in aborted] == [("shutdown", "info")] * 3
    assert process.failures() == []


async def test_no_stream_begins_during_shutdown(start_recon: StartRecon, database_url: str) -> None:
    """During shutdown, a request for a stream gets a 503 with `Connection: close`."""
    process = start_recon("--database-url", database_url, command=COMMAND)
    async with _asked(process, "/healthz") as (reader, writer):
        _, headers = await _head(reader)
        await reader.readexactly(int(headers["Content-Length"]))
        process.popen.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            while "stopping" not in process.log:
                await asyncio.sleep(0.01)
        writer.write(b"GET /lines HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, headers = await _head(reader)

    assert (status, headers["Connection"]) == (503, "close")
