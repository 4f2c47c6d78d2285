"""Streamed responses: sent in parts for as long as they take, counted, and cut when the process ends."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

from aiohttp import hdrs, web

from recon import metrics
from recon.errors import ShuttingDown
from recon.http.middleware import Handler
from recon.http.unsent import Sender


class Streams:
    """The streamed responses under way. Once `closing` is set, no other begins: its client gets a 503."""

    def __init__(self, closing: asyncio.Event) -> None:
        self._closing = closing
        self._lifetimes: set[asyncio.Timeout] = set()

    def counted(self, route: str, handler: Handler) -> Handler:
        """The handler, counted and timed while it runs, and stopped by `cut`."""

        async def counted(request: web.Request) -> web.StreamResponse:
            if self._closing.is_set():
                raise ShuttingDown
            with metrics.STREAMS.labels(route).track_inprogress(), metrics.STREAM_SECONDS.labels(route).time():
                return await self._until_cut(handler, request)

        return counted

    async def _until_cut(self, handler: Handler, request: web.Request) -> web.StreamResponse:
        lifetime = asyncio.timeout(None)
        try:
            async with lifetime:
                self._lifetimes.add(lifetime)
                if isinstance(request.protocol, Sender):
                    request.protocol.on_lost = partial(self._stop, lifetime)
                return await self._sent(request, await handler(request))
        except TimeoutError:
            if not lifetime.expired():
                raise
            if self._closing.is_set():
                raise ShuttingDown from None
            raise web.HTTPBadRequest(text="The client closed the connection.") from None
        finally:
            self._lifetimes.discard(lifetime)
            if isinstance(request.protocol, Sender):
                request.protocol.on_lost = None

    async def _sent(self, request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
        """Send what the handler has left to aiohttp, such as a body that is an async iterator.

        aiohttp would send it after the handler: not counted, not cut, and an error would be neither logged nor counted.
        """
        if request.writer.output_size > 0 and not response.prepared:
            raise RuntimeError("the handler began a response and returned another")
        if self._closing.is_set():
            response.force_close()
        await response.prepare(request)  # these two do nothing for a response that was sent
        await response.write_eof()
        return response

    def cut(self) -> None:
        """Stop all handlers: a response that has begun is aborted, so that its client sees that the end is missing."""
        for lifetime in list(self._lifetimes):
            self._stop(lifetime)

    def _stop(self, lifetime: asyncio.Timeout) -> None:
        if lifetime in self._lifetimes:  # else it is being stopped
            self._lifetimes.remove(lifetime)
            lifetime.reschedule(0)


async def stream(request: web.Request, parts: AsyncGenerator[bytes, None], content_type: str) -> web.StreamResponse:
    """Send a response in parts, each when the client keeps up with those before it (backpressure).

    The head is sent with the first part, so that an error before it gets its problem document; an empty part sends the
    head alone. A HEAD request gets only the head, and `parts` is not begun. Returns what the handler is to return.
    """
    response = web.StreamResponse(headers={"Content-Type": content_type})
    async with aclosing(parts):
        if request.method != hdrs.METH_HEAD:
            async for part in parts:
                await response.prepare(request)  # does nothing the second time
                await response.write(part)
                if isinstance(request.protocol, Sender):
                    request.protocol.parts += 1
        await response.prepare(request)
        await response.write_eof()
    return response
