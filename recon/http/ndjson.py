"""Bodies of lines (NDJSON), read as they arrive: memory holds what the socket had, and one incomplete line."""

import asyncio
from contextlib import suppress
from typing import NamedTuple

from aiohttp import hdrs, web

from recon.http.responses import ENCODINGS, UTF_8, unsupported_encoding
from recon.http.unsent import Sender

NDJSON = "application/x-ndjson"
_MOST = 65_536  # bytes that are split at a time: lines of one byte take 10 ms
_TYPES = {NDJSON, "application/ndjson", "application/jsonl"}  # none of them is registered, and all are in use


def require_ndjson(request: web.Request) -> None:
    """Raise the error for a body that is not declared as NDJSON in UTF-8, or has an encoding unknown to recon."""
    encoding = request.headers.get(hdrs.CONTENT_ENCODING)
    if encoding is not None and encoding.lower() not in ENCODINGS:
        raise unsupported_encoding()
    if request.content_type not in _TYPES or (request.charset or "utf-8").lower() not in UTF_8:
        raise web.HTTPUnsupportedMediaType(
            text=f"The body must be JSON in UTF-8, one request a line, with Content-Type: {NDJSON}."
        )


class Line(NamedTuple):
    """A line of the body.

    Attributes
    ----------
    number : its place in the body, from 1. Blank lines count, and are skipped.
    text : without its end; None if it is longer than a line may be.
    """

    number: int
    text: bytes | None


class Lines:
    """The lines of a request's body.

    Parameters
    ----------
    longest : maximum bytes of a line. The rest of a longer one is dropped as it arrives.

    Attributes
    ----------
    number : how many lines have arrived, blank ones included.
    longest : as given.
    """

    def __init__(self, request: web.Request, longest: int) -> None:
        self._content = request.content
        self._protocol = request.protocol if isinstance(request.protocol, Sender) else None
        self.longest = longest
        self._arrived: list[Line] = []  # the next one last
        self._incomplete = b""
        self._at_end = False
        self.number = 0

    async def take(self, most: int) -> list[Line]:
        """Return the next lines that are not blank: those that have arrived, or the first that does; none at the end.

        Raises HTTPBadRequest if the body is malformed or ends early, HTTPRequestTimeout if nothing more arrives.
        """
        while not self._arrived and not self._at_end:
            self._split(await self._receive())
        await asyncio.sleep(0)  # other requests get their turn: there may be no more to wait for
        lines = self._arrived[: -most - 1 : -1]
        del self._arrived[-most:]
        return lines

    def _split(self, data: bytes) -> None:
        self._at_end = not data
        first, *others = data.split(b"\n")
        self._incomplete += first[: self.longest + 1 - len(self._incomplete)]
        if others:
            *whole, last = others
            self._add([self._incomplete, *whole])
            self._incomplete = last[: self.longest + 1]
        elif self._at_end and self._incomplete:  # the last line needs no end
            self._add([self._incomplete])

    def _add(self, texts: list[bytes]) -> None:
        """Add lines, without the blank ones: compressed, there can be millions of them in a small body."""
        self._arrived = [
            Line(number, text if len(text) <= self.longest else None)
            for number, text in enumerate(texts, self.number + 1)
            if text and (len(text) > self.longest or not text.isspace())
        ]
        self._arrived.reverse()
        self.number += len(texts)

    async def discard(self, seconds: float) -> None:
        """Read and drop the rest of the body, but not for longer than this.

        If a connection is closed while data of the client arrives, TCP resets it, and the client loses what it has not
        read yet of the answer.
        """
        with suppress(TimeoutError, web.HTTPException):
            async with asyncio.timeout(seconds):
                while await self._receive():
                    pass

    async def _receive(self) -> bytes:
        """What has arrived of the body; nothing at its end. Meanwhile the client's time to send runs."""
        if self._protocol is not None:
            self._protocol.busy = False
        try:
            # Other requests get their turn: of a compressed body, there may be more for a long time without waiting.
            await asyncio.sleep(0)
            return await self._content.read(_MOST)
        except (web.RequestPayloadError, ConnectionError):
            raise web.HTTPBadRequest(text="The body does not match its headers.") from None
        finally:
            if self._protocol is not None:
                self._protocol.busy = True
                self._protocol.parts += 1
