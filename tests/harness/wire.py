"""Malformed input for the socket: mutated requests of every kind, as hypothesis strategies.

Merely random bytes already fail at the first line. So a case is one or more whole requests, most of them valid, with
a few mutations: it reaches the code that parses the later parts.
"""

import gzip
import json
import zlib
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from hypothesis import strategies as st

# Part of identifiers, paths, headers and all other text. No response and no log line may quote it.
MARK = "m4rk"
# Replaced in each request by a unique number, so that each row can be assigned to its request.
NUMBER = b"@0000000@"


# The beginning of identifiers in a body that looks like a request (request smuggling): recon must not execute it.
HIDDEN = "hidden"


@dataclass
class Case:
    """The bytes that one connection sends, and where to cut them; `good` is the number of requests if all are valid."""

    wire: bytes
    cuts: list[int]
    good: int = 0

    def pieces(self, wire: bytes) -> list[bytes]:
        """Cut the bytes that are really sent into pieces."""
        return [wire[start:end] for start, end in pairwise(sorted({0, len(wire), *self.cuts}))]


# Bodies


def _whole(value: object) -> bytes:
    return json.dumps(value).encode()


_WORDS = [
    *[
        *["", " ", "\t", "a"],
        MARK,
        *["\0", "\x1b[31m", "\x85", "\ufeff", "\u2028", "İ", "ß", "🦄", "a" * 320, "a" * 321, "9" * 64, "1" * 65],
    ],
    *["' OR 1=1 --", "$1", "{}", "%s%n", "../..", "+1 (987) 654-3210", "\r\nX: y"],
]
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**70), 10**70)
    | st.floats(allow_nan=False)
    | st.sampled_from(_WORDS)
    | st.text(max_size=20)
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
_FIELDS = st.dictionaries(st.sampled_from(["email", "phoneNumber", "email ", "Email", "", MARK]), _JSON, max_size=4)

GOOD = b'{"email": "%s-%s", "phoneNumber": null}' % (MARK.encode(), NUMBER)
_ODD_BODIES = [
    *[b"", b" ", b"null", b"[]"],
    b'"' + MARK.encode() + b'"',
    b"{" + MARK.encode() + b"}",
    b'{"email": "a", "email": "%s", "email": 1}' % NUMBER,
    *[b'{"email": "a\xff\xfe"}', b'{"email": "\xc0\x80"}', b'{"email": "\xed\xa0\x80"}', b'{"email": "\\ud800"}'],
    *[b'{"email": "\\udc00\\ud800", "phoneNumber": "1"}', b'{"email": "a", "\\udfff": 1}', b'{"email": "\\u0000"}'],
    *[b'{"phoneNumber": NaN}'],
    b'{"email": "%s", "other": -Infinity}' % NUMBER,
    b'{"phoneNumber": 1e400}',
    b'{"phoneNumber": -0}',
    b'{"phoneNumber": 1E5}',
    b'{"phoneNumber": ' + b"9" * 5000 + b"}",
    b'{"phoneNumber": 0.' + b"1" * 5000 + b"}",
    b'{"email": "%s", "other": ' % NUMBER + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b'{"email": ' * 6_000,
    b"[" * 60_000,
    b'{"email": "' + b"a" * 60_000 + b'"}',
    b'{"email": "' + MARK.encode() * 15_000 + b'"}',
    b'\xef\xbb\xbf{"email": "a"}',
    '{"email": "a"}'.encode("utf-16"),
    '{"email": "a"}'.encode("utf-32"),
    GOOD + GOOD,
    GOOD + b"\x00",
    b"email=%s" % NUMBER,
]
_BODIES = (
    st.just(GOOD) | st.sampled_from(_ODD_BODIES) | _FIELDS.map(_whole) | _JSON.map(_whole) | st.binary(max_size=60)
)


@cache
def _bomb(kind: str) -> bytes:
    much = b" " * 20 * 2**20
    return gzip.compress(much) if kind == "gzip" else zlib.compress(much)


# The framing of a body: the body as sent, with headers that give its length, correctly or not.


def _chunks(body: bytes, sizes: list[int], extension: bytes, trailer: bytes) -> bytes:
    cuts = sorted({0, len(body), *(size for size in sizes if size < len(body))})
    parts = [body[start:end] for start, end in pairwise(cuts)]
    return b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


_LENGTHS = st.sampled_from(
    [
        *[b"", b"-1", b"+5", b"0", b"1", b"0x10", b"1e3", b" 7", b"7 ", b"7,7", b"7, 8", b"99999", b"9" * 30],
        *[b"\xd9\xa7", b"00000000000000000007", b"7\x00"],
    ]
)
_CODINGS = st.sampled_from(
    [
        *[b"chunked", b"Chunked", b"chunked, chunked", b"gzip, chunked", b"chunked, gzip", b"identity"],
        *[b"xchunked", b" chunked", b"chunked;a=b", b"\x0bchunked", b"chunked\r\nTransfer-Encoding: identity", b""],
    ]
)
_BAD_CHUNKS = st.sampled_from(
    [
        b"zz\r\n",
        b"-1\r\na\r\n",
        b"ffffffffffffffffff\r\na",
        b"1;" + b"x" * 20_000 + b"\r\na\r\n0\r\n\r\n",
        b"1\na\n0\n\n",
        b"1\r\nabc\r\n0\r\n\r\n",
        b"0\r\n" + b"T: t\r\n" * 3_000 + b"\r\n",
        *[b"5\r\nab", b"\r\n", b"0\r\n", b"1 \r\na\r\n0\r\n\r\n", b"0x1\r\na\r\n0\r\n\r\n"],
    ]
)


@st.composite
def _framed(draw: st.DrawFn, body: bytes) -> tuple[list[bytes], bytes]:  # noqa: PLR0911 (a kind, a return)
    length, chunked = b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked"
    kind = draw(
        st.sampled_from(
            [
                *["length", "length", "length", "length", "chunks", "chunks", "lengths", "codings", "bad chunks"],
                *["both", "packed", "bomb"],
            ]
        )
    )
    if kind == "length":
        return [length], body
    if kind == "chunks":
        sizes = draw(st.lists(st.integers(1, 100), max_size=5))
        extension, trailer = (
            draw(st.sampled_from([b"", b";a=b", b" ;a"])),
            draw(st.sampled_from([b"", b"T: t\r\n", b"Content-Length: 5\r\n"])),
        )
        return [chunked], _chunks(body, sizes, extension, trailer)
    if kind == "lengths":
        return [
            b"Content-Length: " + value for value in draw(st.lists(_LENGTHS | st.just(length[16:]), max_size=3))
        ], body
    if kind == "codings":
        return [b"Transfer-Encoding: " + draw(_CODINGS)], _chunks(body, [], b"", b"")
    if kind == "bad chunks":
        return [chunked], draw(_BAD_CHUNKS)
    if kind == "both":
        return draw(st.permutations([length, chunked])), draw(st.sampled_from([body, _chunks(body, [], b"", b"")]))
    coding = draw(st.sampled_from(["gzip", "deflate", "br", "zstd", "identity", MARK, "gzip, gzip"]))
    if kind == "bomb":
        packed = _bomb(coding)
    else:
        packed = draw(st.sampled_from([gzip.compress(body), zlib.compress(body), gzip.compress(body)[:-5], body]))
    return [b"Content-Encoding: " + coding.encode(), b"Content-Length: %d" % len(packed)], packed


# Requests

_METHODS = st.sampled_from(
    [b"POST"] * 30
    + [
        *[b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"CONNECT", b"PUT", b"PRI", b"post", b"M-SEARCH"],
        MARK.encode(),
        b"P\x00ST",
        b"",
    ]
)
_TARGETS = st.sampled_from(
    [b"/identify"] * 40
    + [
        *[b"/", b"*", b"/healthz", b"/readyz", b"/metrics", b"/openapi.json", b"/docs", b"/identify?a=b"],
        *[b"/identify#a", b"//identify"],
    ]
    + [
        b"/" + MARK.encode(),
        *[b"http://x/identify", b"http://[::1", b"x:443", b"/%00", b"/%zz", b"/\xff", b"/\xc3\xa9"],
        *[b"/../identify", b"/docs/..%2f.."],
        b"/" + b"a" * 9_000,
        b"",
        b"/identify%20",
        b"/ident ify",
    ]
)
_VERSIONS = st.sampled_from(
    [b"HTTP/1.1"] * 8
    + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9", b"HTTP/1.10", b"HTTP/9.9", b"http/1.1", b"", MARK.encode()]
)
_TYPES = st.sampled_from(
    [b"application/json"] * 30
    + [
        *[b"application/json; charset=utf-16", b"text/plain", b"application/x+json"],
        *[b"multipart/form-data; boundary=x", b"", b";", b'application/json; charset="'],
        MARK.encode(),
    ]
)
_FREE_HEADERS = [b"Expect: 100-continue", b"Expect: x", b"Connection: keep-alive", b"Accept: x"]
_HEADERS = st.sampled_from(
    [
        *[
            b"Expect: 100-continue",
            b"Expect: " + MARK.encode(),
            b"Connection: close",
            b"Connection: Upgrade\r\nUpgrade: websocket",
            b"Upgrade: h2c",
        ],
        *[
            b"Connection: Transfer-Encoding",
            b"Connection: keep-alive",
            b"Host: y",
            b"Host: " + MARK.encode() + b"@x:99999",
            b"Host: \xff",
        ],
        *[
            b"X-Request-ID: " + MARK.encode() + b"!",
            *[b"X-Request-ID: a\tb", b"X: \x00", b"X: \xff\xfe", b"X : y", b" X: y", b"X", b": y", b"X:"],
            *[b"X\x00: y"],
        ],
        *[
            b"X: a\r\n b",
            b"X: a\nY: b",
            b"X: a\rY: b",
            b"X: " + b"x" * 9_000,
            b"Cookie: " + MARK.encode(),
            b"Range: bytes=0-1",
            b"If-None-Match: *",
        ],
        *[
            b"Authorization: Bearer " + MARK.encode(),
            b"Accept: " + MARK.encode(),
            b"Accept-Encoding: gzip",
            b"Content-Type: text/plain",
        ],
        *[
            b"If-Modified-Since: \xd9\xa1",
            b"Forwarded: for=" + MARK.encode(),
            b"Sec-WebSocket-Key1: x",
            b"HTTP2-Settings: AA",
        ],
    ]
)


@st.composite
def _request(draw: st.DrawFn) -> bytes:
    headers, body = draw(_framed(draw(_BODIES)))
    lines = [b"Host: localhost", b"Content-Type: " + draw(_TYPES), *headers]
    for header in draw(st.lists(_HEADERS, max_size=1)):
        lines.insert(draw(st.integers(0, len(lines))), header)
    first = b" ".join([draw(_METHODS), draw(_TARGETS), draw(_VERSIONS)])
    return b"\r\n".join([first, *lines, b"", body])


def post(body: bytes) -> bytes:
    """A valid request with a body."""
    head = b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


GOOD_REQUEST = post(GOOD)
_READS = [
    b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % path
    for path in [b"/", b"/healthz", b"/readyz", b"/metrics", b"/openapi.json", b"/docs", b"/docs/start.js", b"/x"]
]
_HIDDEN_REQUEST = post(b'{"email": "%s-%s"}' % (HIDDEN.encode(), NUMBER))


@st.composite
def _hiding(draw: st.DrawFn) -> bytes:
    """A request whose body is a valid request, and whose headers give its length correctly or ambiguously."""
    length, chunked = b"Content-Length: %d" % len(_HIDDEN_REQUEST), b"Transfer-Encoding: chunked"
    lengths = draw(
        st.sampled_from(
            [[length], [chunked], [length, length], [length, b"Content-Length: 0"], [b"Content-Length: 0", length]]
        )
        | st.permutations([length, chunked])
        | st.permutations([b"Content-Length: 0", chunked])
        | st.permutations([length, b"Transfer-Encoding: identity"])
        | st.permutations([chunked, b"Transfer-Encoding: identity"])
    )
    body = _chunks(_HIDDEN_REQUEST, [], b"", b"") if lengths == [chunked] else _HIDDEN_REQUEST
    method, target = draw(st.sampled_from([b"POST", b"GET", b"PUT", b"OPTIONS"])), draw(_TARGETS)
    others = [
        b"Host: localhost",
        b"Content-Type: " + draw(_TYPES),
        *draw(st.lists(st.sampled_from(_FREE_HEADERS), max_size=1)),
    ]
    return b"\r\n".join([b"%s %s HTTP/1.1" % (method, target), *others, *lengths, b"", body])


# Mutations

_PIECES = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [
        *[b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b"\xff", b" ", b"\t", b":", b"0", b"%", b"\x16\x03\x01\x02\x00"],
        *[b"\r\nContent-Length: 3", b"\r\nTransfer-Encoding: chunked", b"\r\nExpect: x"],
        *[GOOD_REQUEST, b"A" * 70_000, b"\r\n" * 2_000],
    ]
)


@st.composite
def _mutated(draw: st.DrawFn, wire: bytes) -> bytes:
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 3]))):
        # The head is short and the body may be long: mutate both equally often.
        within = draw(st.sampled_from([40, 250, len(wire)]))
        start = draw(st.integers(0, min(within, len(wire))))
        end = start + draw(st.sampled_from([0, 0, 1, 2, 10]))
        kind = draw(st.sampled_from(["put", "put", "repeat", "cut off"]))
        if kind == "put":
            wire = wire[:start] + draw(_PIECES | st.just(b"")) + wire[end:]
        elif kind == "repeat":
            wire = wire[:end] + wire[start:]
        else:
            wire = wire[:start]
    return wire


# Cases


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from(["good", "random", "hidden", *["mutated"] * 12]))
    good = draw(st.integers(1, 3)) if kind == "good" else 0
    if kind == "good":
        wire = GOOD_REQUEST * good
    elif kind == "random":
        wire = draw(st.binary(max_size=300))
    elif kind == "hidden":
        wire = draw(_hiding())
    else:
        some = _request() | _request() | st.just(GOOD_REQUEST) | st.sampled_from(_READS)
        wire = draw(_mutated(b"".join(draw(st.lists(some, min_size=1, max_size=3)))))
    return Case(wire, draw(st.lists(st.integers(0, len(wire)), max_size=2)), good)


cases = st.lists(_cases(), min_size=6, max_size=20)
