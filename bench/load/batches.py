"""The load as lines of one POST /identify/batch, whose answers are read as they come."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count, islice

from bench.load import people
from bench.load.watch import Meanwhile
from bench.load.wrk import Load, LoadFailed

HEAD = (
    b"POST /identify/batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
AT_ONCE = 1000  # lines that are sent together
AHEAD = 8192  # lines that may wait for their answers: else the sockets' buffers hold those of many seconds
READ = 2**18  # bytes that are read together
PAUSE = 0.001  # seconds between two looks at what was answered
TAIL = 4096  # bytes of the answer that are kept: the summary is in its last ones
TIMEOUT = 30  # seconds to wait for an answer


def run(port: int, requests: str, space: str, *, known: int, seconds: int) -> Load:
    """Send lines for `seconds`, and read all answers; `requests` is `new` or `known`, as for wrk.

    The latencies are 0: a line has none.
    """
    started, cpu = time.monotonic(), time.process_time()
    until = started + seconds
    with Batch(port, lines(requests, space, known), lambda: time.monotonic() > until) as batch:
        batch.join()
    took = time.monotonic() - started
    if batch.summary is None:
        raise LoadFailed("the batch was cut off")
    is_new = requests == "new"
    answered = batch.summary["lines"]
    return Load(
        connections=1,
        requests=answered,
        seconds=took,
        p50_ms=0,
        p99_ms=0,
        statuses=batch.summary["failed"],
        sockets=0,
        known=0 if is_new else answered,
        new=answered if is_new else 0,
        extended=0,
        joined=0,
        cpu=time.process_time() - cpu,
    )


def lines(requests: str, space: str, known: int) -> Iterator[bytes]:
    """The lines of new customers, or of the stored ones over and over."""
    for number in count():
        who = (f"{space}0", number + 1) if requests == "new" else (people.SEEDED, 1 + number % known)
        yield b'{"email":"%b","phoneNumber":"%b"}\n' % (people.email(*who).encode(), people.phone(*who).encode())


class Batch(Meanwhile):
    """A batch that goes on until its context ends, or `is_over` says so.

    Attributes
    ----------
    summary : the counts at its end; None if it was cut off.
    """

    def __init__(self, port: int, body: Iterator[bytes], is_over: Callable[[], bool] | None = None) -> None:
        super().__init__()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        self._body = body
        self._is_over = is_over or self._over.is_set
        self._answered = 0  # about: the framing has line breaks, too
        self.summary: dict[str, int] | None = None

    def run(self) -> None:
        """Send lines until the end, and read the answers meanwhile."""
        sending = threading.Thread(target=self._send, daemon=True)
        sending.start()
        last = b""
        while not last.endswith(b"\r\n0\r\n\r\n") and (data := self._socket.recv(READ)):
            last = (last + data)[-TAIL:]
            self._answered += data.count(b"\n")
        sending.join()
        self._socket.close()
        if found := re.search(rb'\{"summary":(\{.*?\})\}', last):
            self.summary = json.loads(found[1])

    def _send(self) -> None:
        with suppress(OSError):  # recon has closed the connection: then the summary is missing
            self._socket.sendall(HEAD)
            sent = 0
            while not self._is_over():
                if sent > self._answered + AHEAD:
                    time.sleep(PAUSE)
                    continue
                sent += AT_ONCE
                some = b"".join(islice(self._body, AT_ONCE))
                self._socket.sendall(b"%x\r\n%b\r\n" % (len(some), some))
            self._socket.sendall(b"0\r\n\r\n")
