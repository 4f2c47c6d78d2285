"""The data that waits to be sent to clients: its total is bounded, and the slowest readers are closed beyond it."""

import array
import asyncio
import fcntl
import socket
import struct
import termios
from collections import OrderedDict
from contextlib import suppress
from typing import Any, NamedTuple

from aiohttp import web

from recon import metrics

# With SO_LINGER at zero seconds the kernel drops what it has not sent, instead of keeping it for a client that
# never reads.
_NO_LINGERING = struct.pack("ii", 1, 0)


class Sender(web.RequestHandler):
    """The sending half of a connection: it reports to `unsent` whenever an answer waits for its client.

    Attributes
    ----------
    socket_transport : the TCP transport; under TLS, `transport` is the one above it.
    unsent : where it reports.
    shared : the body that is being sent, if other connections may be sending the same object.
    """

    __slots__ = ("shared", "socket_transport", "unsent")

    def __init__(self, manager: web.Server, unsent: "Unsent", **options: Any) -> None:
        super().__init__(manager, **options)
        self.unsent = unsent
        self.socket_transport: asyncio.Transport | None = None
        self.shared: bytes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve; the transport reports the first byte that the socket's buffer does not take."""
        if self.socket_transport is transport:
            self.socket_transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Stop answering: the client does not keep up."""
        super().pause_writing()
        self.unsent.add(self)

    def resume_writing(self) -> None:
        """Go on answering: the client has taken everything, or under TLS the TCP transport has."""
        if not self.unsent_bytes():
            self.unsent.discard(self)
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self.unsent.discard(self)
        super().connection_lost(exc)
        self.socket_transport = None  # which holds what was not sent

    def count_unsent(self) -> None:
        """Report a large answer that was just written.

        Under TLS nothing else does: the TLS transport hands everything to the TCP transport, however much waits there.
        """
        if self.transport is not self.socket_transport and self.unsent_bytes():
            self.unsent.add(self)

    def unsent_bytes(self) -> int:
        """Count the bytes of answers in this process's memory."""
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
            with suppress(OSError):  # not every operating system tells; then the process's own buffer has to do
                fcntl.ioctl(self.socket_transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.unsent_bytes() + queued[0]

    def memory(self) -> tuple[int, int]:
        """What holds the unsent bytes in memory, and its size: a shared body counts once, however many send it."""
        if self.shared is not None and self.transport is self.socket_transport:  # TLS encrypts it for each
            return id(self.shared), len(self.shared)
        return id(self), self.bytes_to_take()  # what is sent in part is held whole

    def abort(self) -> None:
        """Close the connection now, and drop what waits to be sent, the kernel's part included."""
        if self.socket_transport is not None:
            with suppress(OSError):
                self.socket_transport.get_extra_info("socket").setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING
                )
            self.socket_transport.abort()


class _Waiting(NamedTuple):
    holder: int
    to_take: int


class Unsent:
    """The connections with unsent data, and the memory that this takes in total.

    When the memory exceeds `limit` bytes, the connections are closed whose clients have taken nothing for longest. One
    is always left, so that any single answer can be sent.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._total = 0
        self._waiting: OrderedDict[Sender, _Waiting] = OrderedDict()  # the longest without progress comes first
        self._holders: dict[int, tuple[int, int]] = {}  # of each: how many connections send it, and its bytes

    def __contains__(self, sender: Sender) -> bool:
        return sender in self._waiting

    def add(self, sender: Sender) -> None:
        """Count a connection's unsent data, and close the slowest readers if the total is too much now."""
        self.discard(sender)
        holder, size = sender.memory()
        count, known = self._holders.get(holder, (0, size))
        self._holders[holder] = count + 1, known
        if count == 0:
            self._total += size
        self._waiting[sender] = _Waiting(holder, sender.bytes_to_take())
        if self._total > self._limit:
            self._make_room()

    def discard(self, sender: Sender) -> None:
        """Count a connection's data no longer."""
        waiting = self._waiting.pop(sender, None)
        if waiting is None:
            return
        count, size = self._holders.pop(waiting.holder)
        if count > 1:
            self._holders[waiting.holder] = count - 1, size
        else:
            self._total -= size

    def refresh(self) -> None:
        """Notice which clients have taken something, and which everything."""
        for sender, waiting in list(self._waiting.items()):
            self._has_progressed(sender, waiting)

    def _has_progressed(self, sender: Sender, waiting: _Waiting) -> bool:
        """Whether the client took something since the last look. If so, its connection becomes the last in line."""
        if not sender.unsent_bytes():
            self.discard(sender)
        elif (to_take := sender.bytes_to_take()) < waiting.to_take:
            self._waiting[sender] = _Waiting(waiting.holder, to_take)
            self._waiting.move_to_end(sender)
        else:
            return False
        return True

    def _make_room(self) -> None:
        for _ in range(len(self._waiting) - 1):  # all but the newest, whose client had no time yet
            if self._total <= self._limit:
                return
            sender, waiting = next(iter(self._waiting.items()))
            if not self._has_progressed(sender, waiting):
                self._close(sender)
        # What is left is too much although its clients read: now those that took something longest ago have to go.
        self._waiting.move_to_end(next(iter(self._waiting)))
        while self._total > self._limit and len(self._waiting) > 1:
            self._close(next(iter(self._waiting)))

    def _close(self, sender: Sender) -> None:
        self.discard(sender)
        metrics.CONNECTIONS_CLOSED.labels("unsent").inc()
        sender.abort()
