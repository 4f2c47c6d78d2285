"""Connections, bounded in number and time: the slow, the silent and the idle are closed, so that others are served.

aiohttp ends a kept-alive connection that is silent; everything else here it would wait for without end.
No request pays for it: once a second recon looks at what all connections are doing.
"""

import asyncio
import heapq
import logging
import math
import os
import resource
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from http import HTTPStatus
from typing import cast

from aiohttp import web

from recon import background, metrics
from recon.app import CLOSING, UNSENT
from recon.middleware import RETRY_AFTER, problem
from recon.protocol import MAX_FIELDS, Connection, Limits
from recon.quantities import quantity
from recon.response import SERVER
from recon.settings import Settings
from recon.unsent import Unsent

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted while the event loop is busy
_LEAVE = 1.0  # seconds that clients have, when recon stops, to get an answer that says so
_LOOK = 1.0  # seconds between looks at all connections
# Times that a listening socket is served. The event loop accepts one connection of each in a turn, and a turn takes
# long under load: 100 clients that came to 500 busy ones waited for 4.3 s (median) with one, for 0.6 s with eight.
_TIMES_SERVED = 8
# Files that are no connections of clients: the database's come on top.
_OTHER_FILES = 128
# With more than the first share of all connections open, idle ones are closed until the second is left: a client
# that holds many connections and does nothing with them keeps no other client out.
_CROWDED, _ROOMY = 0.9, 0.75


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


class Server(web.Server):
    """Makes the protocol of each connection that is accepted, and knows all that are open."""

    def __init__(self, made: web.Server, settings: Settings, unsent: Unsent, tls: ssl.SSLContext | None) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory)
        self.open: set[Connection] = set()
        self.unsent = unsent
        self._limit = settings.max_connections
        # `watch` closes a connection whose handshake takes too long; this is only not to be before it.
        handshake = settings.head_timeout + 2 * _LOOK
        self._limits = Limits(tls, handshake, settings.max_head, self._admit, self.open.discard)
        self._keepalive_timeout = settings.keepalive_timeout
        self._body_timeout = settings.body_timeout

    def __call__(self) -> Connection:
        """Make the protocol of a connection."""
        return Connection(
            self,
            self.unsent,
            self._limits,
            loop=asyncio.get_running_loop(),
            access_log=None,  # middleware writes it
            keepalive_timeout=self._keepalive_timeout,
            lingering_time=self._body_timeout,  # for a body that nobody wants: it is read so that the answer is
            max_line_size=self._limits.max_head,  # Connection refuses a larger head before
            max_field_size=self._limits.max_head,
            max_headers=MAX_FIELDS,
        )

    def _admit(self, connection: Connection) -> bool:
        """Count a connection; if it is too many, tell its client and close it."""
        self.open.add(connection)
        if len(self.open) <= self._limit:
            return True
        metrics.CONNECTIONS_CLOSED.labels("too many").inc()
        transport = cast("asyncio.Transport", connection.socket_transport)
        if self._limits.tls is None:
            transport.write(_REFUSAL)
        transport.close()
        return False


class Runner(web.AppRunner):
    """Serves an application at sockets that are bound, within the settings' limits for connections."""

    def __init__(
        self,
        app: web.Application,
        settings: Settings,
        sockets: Sequence[socket.socket],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(app, shutdown_timeout=settings.shutdown_timeout)
        self._settings = settings
        self._sockets = sockets
        self._tls = tls
        self._watch: asyncio.Task[None] | None = None

    async def _make_server(self) -> Server:
        return Server(await super()._make_server(), self._settings, self.app[UNSENT], self._tls)

    async def setup(self) -> None:
        """Serve the sockets, and begin to watch over the connections."""
        await super().setup()
        server = cast("Server", self.server)  # setup has made it
        self._watch = background.keep_running("watch over connections", partial(watch, server, self._settings))
        for each in self._sockets:
            for _ in range(_TIMES_SERVED):
                copy = socket.socket(fileno=os.dup(each.fileno()))
                await web.SockSite(self, copy, backlog=BACKLOG).start()
            each.close()

    async def cleanup(self) -> None:
        """Accept no more connections, let those that are open finish, and tell them that they end; then stop."""
        self.app[CLOSING].set()
        for site in self.sites:
            await site.stop()
        await self._wait_until_left()
        try:
            await super().cleanup()
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _wait_until_left(self) -> None:
        # A connection that is closed without a word may have a request under way to it. Each answer says now
        # that it is the last; a client that asks nothing in this time is not likely to ask just when it is over.
        server = cast("Server | None", self.server)
        for _ in range(50):
            if server is None or not server.open:
                return
            await asyncio.sleep(_LEAVE / 50)
        for connection in server.open if server else ():
            if connection.transport is None:  # aiohttp does not know those in their TLS handshake
                connection.end()


async def watch(server: Server, settings: Settings) -> None:
    """Look at the connections once a second, for ever."""
    while True:
        await asyncio.sleep(_LOOK)
        look(server, settings, asyncio.get_running_loop().time())


def look(server: Server, settings: Settings, now: float) -> None:
    """Close the connections that have been doing the same for too long, and those for which there is no room."""
    seconds = {"head": settings.head_timeout, "body": settings.body_timeout, "answer": settings.send_timeout}
    server.unsent.refresh()
    idle = []
    for connection in list(server.open):
        doing, since = connection.look(now)
        if now - since > seconds.get(doing, math.inf):
            _close(connection, doing)
        elif doing in {"head", "idle"}:
            idle.append((since, id(connection), connection))
    metrics.CONNECTIONS.set(len(server.open))
    if len(server.open) > _CROWDED * settings.max_connections:
        for _, _, connection in heapq.nsmallest(len(server.open) - int(_ROOMY * settings.max_connections), idle):
            _close(connection, "crowded")


def _close(connection: Connection, why: str) -> None:
    metrics.CONNECTIONS_CLOSED.labels(why).inc()
    if why == "body":
        connection.end_body(web.HTTPRequestTimeout(text="The body did not arrive in time."))
    elif why == "answer":
        connection.abort()
    else:
        connection.end()


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
