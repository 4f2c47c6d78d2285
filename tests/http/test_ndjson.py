"""Bodies of lines: what is a line, how much is kept in memory, and how long recon waits for more."""

import asyncio
from typing import Any

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from recon.http.ndjson import Line, Lines


class Request:
    """A request with this body, as far as it is read."""

    protocol = None

    def __init__(self, *pieces: bytes) -> None:
        loop = asyncio.get_running_loop()
        protocol = BaseProtocol(loop)
        protocol.transport = asyncio.Transport()  # else the connection counts as closed
        self.content = StreamReader(protocol, 2**21, loop=loop)
        self.pieces = list(pieces)

    def feed(self) -> None:
        """Let the next piece arrive, or the end."""
        if self.pieces:
            self.content.feed_data(self.pieces.pop(0))
        else:
            self.content.feed_eof()


async def _taken(most: int, longest: int, *pieces: bytes) -> list[list[tuple[int, bytes | None]]]:
    """What is taken of a body that arrives in these pieces."""
    request: Any = Request(*pieces)
    lines = Lines(request, longest)
    found = []
    while True:
        taking = asyncio.ensure_future(lines.take(most))
        await asyncio.sleep(0)
        while not taking.done():
            request.feed()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if not taking.result():
            assert await lines.take(most) == []
            return found
        found.append([tuple(each) for each in taking.result()])


@pytest.mark.parametrize("cut", range(12))
async def test_lines_arrive_in_any_pieces(cut: int) -> None:
    """A line may arrive in several pieces; what has arrived is taken without waiting for more."""
    body = b"aa\n\nb\r\n  \nccc"

    found = await _taken(9, 9, body[:cut], body[cut:])

    assert [each for some in found for each in some] == [(1, b"aa"), (3, b"b\r"), (5, b"ccc")]


async def test_no_more_than_asked_for() -> None:
    """Lines that have arrived and were not asked for come next."""
    assert await _taken(2, 9, b"a\nb\nc\nd", b"\n") == [[(1, b"a"), (2, b"b")], [(3, b"c")], [(4, b"d")]]
    assert await _taken(2, 9) == []
    assert await _taken(2, 9, b"\n\n") == []


async def test_a_line_that_is_too_long() -> None:
    """It fails alone, and is not kept: neither whole nor in pieces."""
    piece = b"x" * 1000
    request: Any = Request(*[piece] * 50, b"\nshort\n" + b"y" * 11, b"y\n", b"z" * 10)
    lines = Lines(request, 10)
    while request.pieces:
        request.feed()
    request.feed()
    assert await lines.take(9) == [Line(1, None), Line(2, b"short"), Line(3, None)]
    assert await lines.take(9) == [Line(4, b"z" * 10)]

    for _ in range(50):
        lines._split(piece)
        assert len(lines._incomplete) == 11


async def test_a_body_that_fails() -> None:
    """A malformed body is a 400, a client that sends nothing more a 408; the rest can be dropped, for a while."""
    for error, status in [
        (web.RequestPayloadError("x"), 400),
        (ConnectionError(), 400),
        (web.HTTPRequestTimeout(), 408),
    ]:
        request: Any = Request()
        request.content.set_exception(error)
        with pytest.raises(web.HTTPException) as raised:
            await Lines(request, 9).take(9)
        assert raised.value.status == status
        await Lines(request, 9).discard(10)
    request = Request(b"a", b"b")
    request.feed()
    await Lines(request, 9).discard(0.01)
    request.feed()
    request.feed()
    lines = Lines(request, 9)
    await lines.discard(10)
    assert await lines.take(9) == []


@pytest.mark.parametrize("line", [b"\n", b" \n", b"1\n"])
async def test_others_get_their_turn(line: bytes) -> None:
    """Other requests go on while recon takes lines that are all there, as those of a small compressed body are."""
    request: Any = Request(line * (2**20 // len(line)))
    request.feed()
    request.feed()
    lines = Lines(request, 9)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    taken = 0
    while found := await lines.take(512):
        taken += 1
        assert len(found) <= 512
    beside.cancel()

    assert turns >= 2**20 // 2**16 + taken
    assert lines.number == 2**20 // len(line)
