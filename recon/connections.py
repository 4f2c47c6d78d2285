"""Connections, bounded in number and time: who is slow, silent or never reads is closed, so that others are served.

aiohttp ends a kept-alive connection that is silent; everything else here it would wait for without end.
No request pays for it: once a second somebody looks at what all connections are doing.
"""

import asyncio
import heapq
import logging
import math
import os
import resource
import socket
import struct
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import cast

from aiohttp import web

from recon import background, metrics
from recon.app import CLOSING
from recon.middleware import RETRY_AFTER, problem
from recon.quantities import quantity
from recon.response import SERVER
from recon.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted while the event loop is busy
_LEAVE = 1.0  # seconds that clients have, when recon stops, to get an answer that says so
_LOOK = 1.0  # seconds between looks at all connections
# How many connections are let in together: one for each so many that are open, as a turn of the event loop takes long
# when many are. Not more, since other workers want some too.
_OPEN_FOR_ONE = 32
# Files that are no connections of clients: the database's come on top.
_OTHER_FILES = 128
# With more than the first share of all connections open, idle ones are closed until the second is left: who
# holds many connections and does nothing with them keeps nobody out.
_CROWDED, _ROOMY = 0.9, 0.75
_NO_LINGERING = struct.pack("ii", 1, 0)


def _refusal() -> bytes:
    refusal = problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "Too many connections are open. Nothing was changed; try again.",
        code="overloaded",
    )
    body = cast("bytes", refusal.body)
    head = (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {RETRY_AFTER}\r\nServer: {SERVER}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


_REFUSAL = _refusal()


class Runner(web.AppRunner):
    """Runs an application within the settings' limits for connections."""

    def __init__(self, app: web.Application, settings: Settings) -> None:
        super().__init__(
            app,
            access_log=None,  # middleware writes it
            shutdown_timeout=settings.shutdown_timeout,
            keepalive_timeout=settings.keepalive_timeout,
            lingering_time=settings.body_timeout,  # for a body that nobody wants: it is read so that the answer is
            max_line_size=settings.max_header,
            max_field_size=settings.max_header,
        )
        self._settings = settings
        self._watch: asyncio.Task[None] | None = None
        self._doors: list[Door] = []

    async def setup(self) -> None:
        """Make the server, and begin to watch over its connections."""
        await super().setup()
        server = cast("web.Server", self.server)  # setup has made it
        connections = Connections(server, self._settings)
        self._watch = background.keep_running("watch over connections", partial(self._watch_over, connections))

    async def cleanup(self) -> None:
        """Let nobody new in, and those inside finish and know that they are to go; then end."""
        self.app[CLOSING].set()
        for door in self._doors:
            door.close()
        for site in list(self.sites):
            await site.stop()
        await self._wait_until_left()
        try:
            await super().cleanup()
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _wait_until_left(self) -> None:
        # A connection that is closed without a word may have a request under way to it. Each answer says now
        # that it is the last; who asks nothing in this time is not likely to ask just when it is over.
        for _ in range(50):
            if self.server is None or not self.server.connections:
                return
            await asyncio.sleep(_LEAVE / 50)

    async def _watch_over(self, connections: "Connections") -> None:
        while True:
            await asyncio.sleep(_LOOK)
            connections.look(asyncio.get_running_loop().time())
            # Here, since a site is known before it listens, and gunicorn's worker brings its own after setup.
            for site in list(self.sites)[len(self._doors) :]:
                if self.server is not None and site._server is not None:  # noqa: SLF001 (it listens)
                    self._doors.append(Door(self.server, site, self._settings.head_timeout))

    def _reg_site(self, site: web.BaseSite) -> None:
        site._backlog = BACKLOG  # noqa: SLF001 (gunicorn's worker leaves it at 128 and has no option for it)
        super()._reg_site(site)


class Door:
    """Lets in who waits at a site's sockets, many at a time.

    uvloop itself lets one in for each turn of the event loop, and a turn takes long under load: who came with a
    new connection, as health checks do, waited for seconds while those inside were served in milliseconds.
    """

    def __init__(self, server: web.Server, site: web.BaseSite, handshake_timeout: float) -> None:
        self._server = server
        self._tls = site._ssl_context  # noqa: SLF001
        self._handshake_timeout = handshake_timeout if self._tls else None
        self._entering: set[asyncio.Task[None]] = set()
        # uvloop's socket cannot accept; a second descriptor of the same one can.
        listening = site._server.sockets  # type: ignore[union-attr]  # noqa: SLF001
        self._sockets = [socket.socket(fileno=os.dup(each.fileno())) for each in listening]
        for each in self._sockets:
            asyncio.get_running_loop().add_reader(each, self._let_in, each)

    def _let_in(self, listening: socket.socket) -> None:
        for _ in range(1 + len(self._server._connections) // _OPEN_FOR_ONE):  # noqa: SLF001 (`connections` is a copy)
            try:
                accepted, _ = listening.accept()
            except OSError:  # nobody waits any more; or there is no file left, and uvloop turns them away
                return
            accepted.setblocking(False)
            task = asyncio.create_task(self._enter(accepted))
            self._entering.add(task)
            task.add_done_callback(self._entering.discard)

    async def _enter(self, accepted: socket.socket) -> None:
        with suppress(OSError):
            await asyncio.get_running_loop().connect_accepted_socket(
                self._server, accepted, ssl=self._tls, ssl_handshake_timeout=self._handshake_timeout
            )

    def close(self) -> None:
        """Let nobody in any more."""
        for each in self._sockets:
            asyncio.get_running_loop().remove_reader(each)
            each.close()


class Connections:
    """The open connections of a server, and since when each has been doing what it does."""

    def __init__(self, server: web.Server, settings: Settings) -> None:
        self._open = server._connections  # noqa: SLF001 (`connections` is a copy, too dear for each that comes)
        self._limit = settings.max_connections
        self._seconds = {"head": settings.head_timeout, "body": settings.body_timeout, "answer": settings.send_timeout}
        self._since: dict[web.RequestHandler, tuple[tuple[str, int], float]] = {}
        self._admit = server.connection_made
        server.connection_made = self._made  # type: ignore[assignment,method-assign] # there is no other hook

    def _made(self, connection: web.RequestHandler, transport: asyncio.Transport) -> None:
        self._admit(connection, transport)
        if len(self._open) > self._limit:
            metrics.CONNECTIONS_CLOSED.labels("too many").inc()
            transport.write(_REFUSAL)
            connection.force_close()

    def look(self, now: float) -> None:
        """Close what has been doing the same for too long, and what there is no room for."""
        before, self._since = self._since, {}
        idle = []
        for connection in list(self._open):
            doing = _doing(connection)
            was, since = before.get(connection, (None, now))
            if was != doing:
                since = now
            elif now - since + _LOOK > self._seconds.get(doing[0], math.inf):  # it may have begun a look before
                _close(connection, doing[0])
            elif doing[0] in {"head", "idle"}:
                idle.append((since, id(connection), connection))
            self._since[connection] = (doing, since)
        metrics.CONNECTIONS.set(len(self._open))
        if len(self._open) > _CROWDED * self._limit:
            for _, _, connection in heapq.nsmallest(len(self._open) - int(_ROOMY * self._limit), idle):
                _close(connection, "crowded")


def _doing(connection: web.RequestHandler) -> tuple[str, int]:
    """What a connection is doing, and for which of its requests."""
    count = connection._request_count  # noqa: SLF001
    request = connection._current_request  # noqa: SLF001
    if connection.writing_paused:
        return "answer", count  # that the client does not take
    if request is not None:
        return "working" if request.content.is_eof() else "body", count
    return "idle" if count else "head", count  # a later head has the keep-alive's time, from the answer before


def _close(connection: web.RequestHandler, why: str) -> None:
    metrics.CONNECTIONS_CLOSED.labels(why).inc()
    request = connection._current_request  # noqa: SLF001
    if why == "body" and request is not None:
        request.content.set_exception(web.HTTPRequestTimeout(text="The body did not arrive in time."))
    elif why == "answer" and connection.transport is not None:
        # What was to be sent is not waited for, by the kernel neither: it would keep it for a client that never reads.
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
        connection.transport.abort()
    else:
        connection.force_close()


def allow_files(settings: Settings) -> Settings:
    """Raise the limit of open files as far as the settings need; the settings with the connections that it allows."""
    others = _OTHER_FILES + settings.pool_size
    wanted = settings.max_connections + others
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return settings
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    connections = max(1, allowed - others)
    if connections < settings.max_connections:
        log.warning("only %d files may be open, so at most %s", allowed, quantity(connections, "connection"))
    return settings.model_copy(update={"max_connections": connections})
