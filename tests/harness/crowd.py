"""Many clients that add to one large identity, or look at it, at the same moment, and read the responses or never do.

    python tests/harness/crowd.py PORT COUNT read|ignore|ignore-show

It is a separate process, so that the load does not delay the process that measures. With `read` it prints the number of
responses by status ("closed" if there was none) and the longest time in seconds. With `ignore` it prints "connected"
and keeps the connections open until its standard input ends. `ignore-show` does the same, but adds nothing: it requests
the identity as it is.
"""

import asyncio
import json
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable

PHONE = "99999999"  # of the large identity, whose oldest contact has the id 1
SHOW = b"GET /identities/1 HTTP/1.1\r\nHost: localhost\r\n\r\n"


def request(number: int) -> bytes:
    """Make a request that adds a new email of 300 characters to the large identity."""
    body = json.dumps({"email": f"{number:0>300}@crowd.example", "phoneNumber": PHONE}).encode()
    head = b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


async def _read(port: int, number: int) -> tuple[str, float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    started = time.monotonic()
    writer.write(request(number))
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.partition(b"Content-Length: ")[2].split(b"\r\n", 1)[0]))
    except (asyncio.IncompleteReadError, ConnectionError):
        return "closed", time.monotonic() - started
    finally:
        writer.close()
    return head.split(b" ", 2)[1].decode(), time.monotonic() - started


async def _all_read(port: int, count: int) -> None:
    answers = await asyncio.gather(*(_read(port, number) for number in range(count)))
    json.dump([Counter(status for status, _ in answers), max(seconds for _, seconds in answers)], sys.stdout)


def _ignore(port: int, requests: Iterable[bytes]) -> None:
    connections = []
    for each in requests:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel must not buffer the response
        connection.connect(("127.0.0.1", port))
        connection.sendall(each)
        connections.append(connection)
    sys.stdout.write("connected\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    port, count = int(sys.argv[1]), int(sys.argv[2])
    if sys.argv[3] == "read":
        asyncio.run(_all_read(port, count))
    else:
        _ignore(port, map(request, range(count)) if sys.argv[3] == "ignore" else [SHOW] * count)
