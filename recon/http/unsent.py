"""Data that waits to be sent to clients. Its total is bounded: beyond it, the slowest readers are disconnected."""

import array
import asyncio
import fcntl
import socket
import struct
import termios
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from aiohttp import web

from recon import metrics

# With SO_LINGER at zero seconds the kernel drops what it has not sent, instead of keeping it for a client that
# never reads.
_NO_LINGERING = struct.pack("ii", 1, 0)

# While responses wait for room, a client that reads less than so many bytes in so many seconds is disconnected. A busy
# event loop reads again within half a second, and 400 clients that never read 3 MB each are disconnected after 5 s.
LEAST_TAKEN, PATIENCE = 65_536, 0.5
_CHECKS = 5  # of all connections with unsent data, in PATIENCE seconds

# Maximum bytes of a large response that a transport holds, or twice that under TLS. Each part takes a turn of the event
# loop if the client is slow.
PART = 65_536


class Sender(web.RequestHandler):
    """The sending half of a connection. It adds itself to `unsent` while data waits for its client.

    Attributes
    ----------
    socket_transport : the TCP transport; under TLS, `transport` is the one above it.
    unsent : all connections with unsent data, and their total.
    shared : the large body that is being sent, if any; other connections may be sending the same object.
    left : the number of its bytes that were not yet written to the transport.
    parts : the number of parts of streamed responses that were written, and of streamed requests that were read; while
        it grows, the client keeps up.
    held : the bytes of a streamed response that its handler has and has not written yet.
    busy : whether the handler works on what it has read, so that nobody waits for the rest of the request's body.
    on_lost : called when the connection is lost. A streamed response may have nothing to write for a long time, and
        would not notice it.
    """

    __slots__ = ("busy", "held", "left", "on_lost", "parts", "shared", "socket_transport", "unsent")

    def __init__(self, manager: web.Server, unsent: "Unsent", **options: Any) -> None:
        super().__init__(manager, **options)
        self.unsent = unsent
        self.socket_transport: asyncio.Transport | None = None
        self.shared: bytes | None = None
        self.left = 0
        self.parts = 0
        self.held = 0
        self.busy = False
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving. The transport calls `pause_writing` whenever the socket's buffer cannot hold everything."""
        for each in {transport, self.socket_transport}:
            each.set_write_buffer_limits(high=1)  # type: ignore[union-attr] # they are asyncio.Transport
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Stop writing: the client reads too slowly (backpressure)."""
        super().pause_writing()
        self.unsent.add(self)

    def resume_writing(self) -> None:
        """Continue writing: the transport's buffer is empty. Under TLS, the TCP transport may still hold data."""
        self._discard_if_taken()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self.unsent.discard(self)
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)
        self.socket_transport = None  # it holds the unsent data

    async def send_large(self, body: bytes, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Send a body in parts, each after the client has read the part before.

        So the transport holds only a part of it, and TLS makes no encrypted copy of the whole body. Such a copy would
        keep as much memory as the largest response needed until the connection closes.
        """
        self.shared, self.left = body, len(body)
        self.unsent.add(self)
        try:
            for start in range(0, len(body), PART):
                part = body[start : start + PART]
                self.left -= len(part)
                await write(part)
        finally:
            self.shared, self.left = None, 0
            self._discard_if_taken()

    def _discard_if_taken(self) -> None:
        if not self.has_unsent():
            self.unsent.discard(self)

    def has_unsent(self) -> bool:
        """Whether the memory of this process holds data that waits for the client."""
        return self.shared is not None or self.unsent_bytes() > 0

    def unsent_bytes(self) -> int:
        """Count the bytes that the transports hold."""
        if self.socket_transport is None or self.socket_transport.is_closing():
            return 0
        count = self.socket_transport.get_write_buffer_size()
        if self.transport is not None and self.transport is not self.socket_transport:
            count += self.transport.get_write_buffer_size()
        return count

    def bytes_to_take(self) -> int:
        """Count the bytes that the client has not acknowledged, those in the kernel's buffer included."""
        queued = array.array("i", [0])
        if self.socket_transport is not None:
            with suppress(OSError):  # not every operating system can tell; then only the process's buffers count
                fcntl.ioctl(self.socket_transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.left + self.held + self.unsent_bytes() + queued[0]

    def memory(self) -> tuple[int, int]:
        """Return the id of the object that holds the unsent bytes, and its size.

        A shared body counts once, however many connections send it.
        """
        if self.shared is not None:
            return id(self.shared), len(self.shared)
        return id(self), self.held + self.unsent_bytes()

    def abort(self) -> None:
        """Close the connection now, and drop its unsent data, also in the kernel's buffer."""
        if self.socket_transport is not None:
            with suppress(OSError):
                self.socket_transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING
                )
            self.socket_transport.abort()


class _Waiting(NamedTuple):
    holder: int
    to_take: int
    since: float


class Unsent:
    """The connections with unsent data, and the total memory of this data.

    While the memory is `limit` bytes or more, large responses wait for room (backpressure), and the connections of the
    slowest readers are closed: each client has `patience` seconds for each LEAST_TAKEN bytes. A response is always
    sent if it is the only one.
    """

    def __init__(self, limit: int, patience: float = PATIENCE) -> None:
        self._limit = limit
        self._patience = patience
        self._total = 0
        self._waiting: OrderedDict[Sender, _Waiting] = OrderedDict()  # the one without progress for longest comes first
        self._holders: dict[int, tuple[int, int]] = {}  # by id: the number of its connections, and its bytes
        self._queue: deque[asyncio.Future[None]] = deque()  # of the responses that wait for room
        self._admission: asyncio.Handle | None = None
        self._next_check: asyncio.Handle | None = None

    def __contains__(self, sender: Sender) -> bool:
        return sender in self._waiting

    async def room(self) -> None:
        """Wait, first come first served, until there is room for another large response."""
        if self._total < self._limit and not self._queue:
            return
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        self._admit_soon()
        self._check_soon()
        await turn

    def add(self, sender: Sender) -> None:
        """Count a connection's unsent data."""
        self.discard(sender)
        holder, size = sender.memory()
        count, known = self._holders.get(holder, (0, size))
        self._holders[holder] = count + 1, known
        if count == 0:
            self._total += size
        self._waiting[sender] = _Waiting(holder, sender.bytes_to_take(), asyncio.get_running_loop().time())
        if self._total >= self._limit:
            self._check_soon()

    def discard(self, sender: Sender) -> None:
        """Stop counting a connection's data."""
        waiting = self._waiting.pop(sender, None)
        if waiting is None:
            return
        count, size = self._holders.pop(waiting.holder)
        if count > 1:
            self._holders[waiting.holder] = count - 1, size
        else:
            self._total -= size
        if self._queue:
            self._admit_soon()

    def refresh(self) -> None:
        """Discard the connections whose clients have read everything; give those that read enough new time."""
        for sender, waiting in list(self._waiting.items()):
            self._has_progressed(sender, waiting)

    def _has_progressed(self, sender: Sender, waiting: _Waiting) -> bool:
        """Whether the client has read enough. If so, its connection becomes the last in the order."""
        if not sender.has_unsent():
            self.discard(sender)
        elif (to_take := sender.bytes_to_take()) <= waiting.to_take - LEAST_TAKEN:
            self._waiting[sender] = _Waiting(waiting.holder, to_take, asyncio.get_running_loop().time())
            self._waiting.move_to_end(sender)
        else:
            return False
        return True

    def _check_soon(self) -> None:
        if self._next_check is None:
            self._next_check = asyncio.get_running_loop().call_later(self._patience / _CHECKS, self._check)

    def _check(self) -> None:
        self._next_check = None
        self.refresh()
        self._make_room()
        if self._queue:
            self._admit_soon()
        if self._queue or self._total >= self._limit:
            self._check_soon()

    def _admit_soon(self) -> None:
        if self._admission is None:
            self._admission = asyncio.get_running_loop().call_soon(self._admit)

    def _admit(self) -> None:
        """Admit the next response that waits for room. It counts its bytes before another one is admitted."""
        self._admission = None
        self._make_room()
        if self._queue and self._total < self._limit:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
            if self._queue:
                self._admit_soon()

    def _make_room(self) -> None:
        """Close the connections of the slowest readers until there is room."""
        latest = asyncio.get_running_loop().time() - self._patience
        while self._total >= self._limit and (self._queue or len(self._waiting) > 1):
            sender, waiting = next(iter(self._waiting.items()))
            if waiting.since > latest:
                return
            if not self._has_progressed(sender, waiting):
                self.discard(sender)
                metrics.CONNECTIONS_CLOSED.labels("unsent").inc()
                sender.abort()
