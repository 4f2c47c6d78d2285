"""Limits for client connections, in number and time (protection against slowloris).

aiohttp closes an idle kept-alive connection; for everything else it would wait without a limit. No request pays for the
limits: once a second recon checks what each connection is doing.
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
from recon.app import CLOSING, STREAMS, UNSENT
from recon.http.problems import RETRY_AFTER, problem
from recon.http.responses import SERVER
from recon.http.unsent import Unsent
from recon.quantities import quantity
from recon.server.protocol import MAX_FIELDS, Connection, Limits
from recon.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 2048  # connections that may wait to be accepted while the event loop is busy
_DRAIN = 1.0  # seconds for which recon goes on answering at shutdown, with `Connection: close` in each answer
_CHECK_EVERY = 1.0  # seconds between checks of all connections
# Copies of each listening socket. The event loop accepts one connection from each copy in a turn, and a turn takes long
# under load: beside 500 busy clients, 100 new ones waited for 4.3 s (median) with one copy, for 0.6 s with eight.
_SOCKET_COPIES = 8
# Open files other than connections of clients and of the database's pool.
_OTHER_FILES = 128
# When more than the first share of --max-connections is open, idle connections are closed until the second share is
# left. So a client that holds many idle connections does not keep other clients out.
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
    """Creates the protocol object of each accepted connection, and keeps the set of open ones."""

    def __init__(self, original: web.Server, settings: Settings, unsent: Unsent, tls: ssl.SSLContext | None) -> None:
        super().__init__(original.request_handler, request_factory=original.request_factory)
        self.open: set[Connection] = set()
        self.unsent = unsent
        self._limit = settings.max_connections
        # `watch` closes a connection whose handshake takes too long; this limit must only be longer.
        handshake = settings.head_timeout + 2 * _CHECK_EVERY
        self._limits = Limits(tls, handshake, settings.max_head, self._admit, self.open.discard)
        self._keepalive_timeout = settings.keepalive_timeout
        self._body_timeout = settings.body_timeout

    def __call__(self) -> Connection:
        """Create the protocol object of a connection."""
        return Connection(
            self,
            self.unsent,
            self._limits,
            loop=asyncio.get_running_loop(),
            access_log=None,  # the middleware writes it
            keepalive_timeout=self._keepalive_timeout,
            lingering_time=self._body_timeout,  # drains an unread body, so that the client gets the answer
            max_line_size=self._limits.max_head,  # Connection refuses a larger head first
            max_field_size=self._limits.max_head,
            max_headers=MAX_FIELDS,
        )

    def _admit(self, connection: Connection) -> bool:
        """Count a connection; if there are too many, answer 503 and close it."""
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
    """Serves an application on bound sockets, within the settings' limits for connections."""

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
        """Serve the sockets, and start the watch over their connections."""
        await super().setup()
        server = cast("Server", self.server)  # created by setup()
        self._watch = background.keep_running("watch over connections", partial(watch, server, self._settings))
        for each in self._sockets:
            for _ in range(_SOCKET_COPIES):
                copy = socket.socket(fileno=os.dup(each.fileno()))
                await web.SockSite(self, copy, backlog=BACKLOG).start()
            each.close()

    async def cleanup(self) -> None:
        """Shut down gracefully: stop accepting connections, drain the open ones, finish the requests in progress.

        Streamed responses may have no end, so they are cut when the drain ends.
        """
        self.app[CLOSING].set()
        for site in self.sites:
            await site.stop()
        await self._drain()
        self.app[STREAMS].cut()
        try:
            await super().cleanup()
        finally:
            if self._watch is not None:
                self._watch.cancel()

    async def _drain(self) -> None:
        # A request may be on its way to an idle connection. Until the drain ends, each answer says `Connection:
        # close`. A client that sends nothing meanwhile is unlikely to send just when it ends.
        server = cast("Server | None", self.server)
        for _ in range(50):
            if server is None or not server.open:
                return
            await asyncio.sleep(_DRAIN / 50)
        for connection in server.open if server else ():
            if connection.transport is None:  # in its TLS handshake: aiohttp does not know it
                connection.end()


async def watch(server: Server, settings: Settings) -> None:
    """Check the connections once a second, for ever."""
    while True:
        await asyncio.sleep(_CHECK_EVERY)
        close_overdue(server, settings, asyncio.get_running_loop().time())


def close_overdue(server: Server, settings: Settings, now: float) -> None:
    """Close the connections that are over a time limit and, when too many are open, idle ones."""
    seconds = {"head": settings.head_timeout, "body": settings.body_timeout, "answer": settings.send_timeout}
    server.unsent.refresh()
    idle = []
    for connection in list(server.open):
        doing, since = connection.activity(now)
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
    """Raise the limit of open files as far as the settings need; return the settings with the connections that fit."""
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
