"""A JSON response that is sent with one write, in a fraction of the time that aiohttp's own response takes."""

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time

from recon.http.unsent import Sender

REQUEST_ID = "X-Request-ID"
# The headers that every response to the request gets: its id and, with CORS, those for the page's origin.
HEADERS = web.RequestKey("headers", dict[str, str])
SERVER = "recon"  # instead of the libraries' names and versions
# A body of at least so many bytes is written separately, not copied behind its head. For a smaller body, the second
# system call would take longer than the copy.
LARGE = 65_536


# What recon decodes of bodies.
ENCODINGS = {"gzip", "deflate", "identity"}
UTF_8 = {"utf-8", "utf8", "us-ascii"}


def unsupported_encoding() -> web.HTTPUnsupportedMediaType:
    """Make the error for a Content-Encoding that recon does not decode, even if a library could."""
    return web.HTTPUnsupportedMediaType(
        text="Compress the body with gzip or deflate, or send it uncompressed.",
        headers={"Accept-Encoding": "gzip, deflate"},
    )


class JsonResponse(web.StreamResponse):
    """A 200 response whose body is already JSON; `headers` is for headers other than type, length, date and HEADERS.

    aiohttp's Response would check each response for features that none of these has: compression, ranges, cookies,
    chunks, listeners (`on_response_prepare`).
    """

    _common: dict[str, str]
    _protocol: object
    _writer: AbstractStreamWriter

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._json = body

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Prepare to write to the connection; `write_eof` sends the head together with the body."""
        if self._keep_alive is None:
            self._keep_alive = request.keep_alive
        if not self._keep_alive:
            self.headers["Connection"] = "close"
        elif request.version.minor == 0:
            self.headers["Connection"] = "keep-alive"
        self._common = request[HEADERS]
        self._protocol = request.protocol
        self._writer = request.writer
        return self._writer

    async def write_eof(self, data: bytes = b"") -> None:
        """Send the head and the body."""
        more = ""
        for name, value in self._common.items():
            more += f"{name}: {value}\r\n"
        if self.headers:  # rare
            more += "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()])
        head = (
            f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(self._json)}\r\n"
            f"Date: {rfc822_formatted_time()}\r\nServer: {SERVER}\r\n{more}\r\n"
        )
        if len(self._json) < LARGE:
            await self._writer.write_eof(head.encode() + self._json + data)
        else:
            await self._write_large(head.encode())

    async def _write_large(self, head: bytes) -> None:
        if isinstance(self._protocol, Sender):
            await self._protocol.unsent.room()
            await self._writer.write(head)
            await self._protocol.send_large(self._json, self._write_part)
        else:  # a server that is not recon's, in a test
            await self._writer.write(head + self._json)
        await self._writer.write_eof()

    async def _write_part(self, part: bytes) -> None:
        await self._writer.write(part)
        await self._writer.drain()
