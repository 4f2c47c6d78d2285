"""Secrets and identifiers are only where they belong: requests of all kinds, then a search of all output."""

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import aiohttp
import pytest

from recon.keys import new_key
from tests.harness.databases import execute
from tests.harness.processes import Process

JSON = {"Content-Type": "application/json"}
# Where a 200 has identifiers in its body, and must have.
ANSWERING = ("/identify", "/lookup", "/why", "/identities/")


class Hidden:
    """The values that no output may contain: random, so that no output contains them by chance."""

    def __init__(self) -> None:
        self.emails = [f"{secrets.token_hex(8)}@{secrets.token_hex(4)}.example" for _ in range(12)]
        self.phones = [str(secrets.randbelow(9 * 10**11) + 10**11) for _ in range(12)]
        made = [new_key(name, [scope]) for name, scope in (("shop", "identify"), ("watch", "read"), ("gone", "admin"))]
        (self.shop, self.watch, self.unknown), lines = [secret for secret, _ in made], [line for _, line in made]
        self.lines = lines[:2]
        self.password = secrets.token_hex(12)

    def leaks(self, text: str) -> list[str]:
        """Return the secrets in a text, complete or as their distinctive half, in any case, and percent-encoded."""
        keys = [self.shop, self.watch, self.unknown]
        hashes = [line.rpartition(":")[2] for line in self.lines]
        words = [*self.emails, *self.phones, *keys, *hashes, self.password]
        parts = [*(email.partition("@")[0] for email in self.emails), *(key[6:26] for key in keys)]
        forms = {form.lower() for word in [*words, *parts] for form in (word, quote(word, safe=""))}
        return sorted(form for form in forms if form in text.lower())


@contextmanager
def _role(url: str, password: str) -> Iterator[str]:
    """A role of the server with a password, dropped afterwards."""
    name = f"recon_{secrets.token_hex(6)}"
    asyncio.run(execute(url, f"CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{password}'"))
    yield name
    asyncio.run(execute(url, f"DROP ROLE {name}"))


def _as(url: str, user: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}"))


@pytest.mark.parametrize(("workers", "by_file"), [("1", False), ("2", True)], ids=["one process", "two workers"])
def test_nothing_leaks(workers: str, by_file: bool, database_url: str, server_url: str, tmp_path: Path) -> None:
    """No identifier, API key or password is in a log, a metric, an error or a process's title, whatever happens.

    With the keys in a variable and the password in the URL, and with the keys in a file and the password in
    PGPASSWORD; the log level is the lowest.
    """
    hidden = Hidden()
    env = os.environ | {"PYTHONASYNCIODEBUG": "1", "RECON_LOG_LEVEL": "debug", "RECON_WORKERS": workers}
    with _role(server_url, hidden.password) as user:
        if by_file:
            keys = tmp_path / "keys"
            keys.write_text("\n".join(hidden.lines))
            env |= {"RECON_API_KEYS_FILE": str(keys), "PGPASSWORD": hidden.password}
            env |= {"RECON_DATABASE_URL": _as(database_url, user)}
        else:
            variable = f"shop:identify:{hidden.shop}, watch:read:{hidden.watch}"
            env |= {"RECON_API_KEYS": variable, "RECON_DATABASE_URL": _as(database_url, f"{user}:{hidden.password}")}
        with (tmp_path / "stdout").open("wb") as stdout:
            process = Process([], tmp_path / "log", env=env, stdout=stdout)
        try:
            process.wait_until_ready()
            seen, answered = asyncio.run(_everything(process, hidden, database_url, server_url))
            titles = "".join(_titles(process.popen.pid))
        finally:
            process.stop()

    # Check that the search finds secrets that are there, and that every status occurred.
    assert len(hidden.leaks(answered)) >= 4
    assert {200, 400, 401, 403, 404, 405, 413, 415, 417, 500, 503} <= set(seen)
    assert "recon" in titles
    assert '"key": "shop"' in process.log
    assert "CheckViolationError" in process.log
    for status, texts in seen.items():
        for text in texts:
            assert hidden.leaks(text) == [], status
    for text in (process.log, (tmp_path / "stdout").read_text(), titles):
        assert hidden.leaks(text) == []


async def _everything(process: Process, hidden: Hidden, url: str, server_url: str) -> tuple[dict[int, list[str]], str]:
    """Send requests of every kind; return the outputs that must have no secrets, by status, and the valid answers."""
    seen: dict[int, list[str]] = {}
    good = ""
    await execute(url, f"ALTER TABLE contact ADD CONSTRAINT made_up CHECK (email <> '{hidden.emails[11]}')")
    shop = {"Authorization": f"Bearer {hidden.shop}"}
    async with aiohttp.ClientSession(process.url, connector=aiohttp.TCPConnector(force_close=True)) as http:

        async def ask(method: str, path: str, **how: Any) -> int:
            nonlocal good
            async with http.request(method, path, allow_redirects=False, **how) as response:
                body = await response.text()
                is_answer = response.status == 200 and path.startswith(ANSWERING)
                head = f"{response.reason} {dict(response.headers)} "
                seen.setdefault(response.status, []).append(head if is_answer else head + body)
                good += body if is_answer else ""
                return response.status

        for how in _requests(hidden):
            await ask(**({"method": "POST", "path": "/identify"} | how))
        for expected, question in _questions(hidden):
            assert await ask(**question) == expected, question
        for rubbish in _rubbish(hidden):
            for answer in await _raw(process.port, rubbish):
                seen.setdefault(400, []).append(answer)

        name = urlsplit(url).path[1:]
        gone = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
        await execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", gone)
        for body in ({"email": hidden.emails[9]}, {"email": hidden.emails[0], "phoneNumber": hidden.phones[9]}):
            assert await ask("POST", "/identify", json=body, headers=shop) == 503
        await ask("GET", "/readyz")
        await execute(server_url, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        assert await ask("POST", "/identify", json={"email": hidden.emails[0]}, headers=shop) == 200
        assert await ask("GET", "/metrics", headers={"Authorization": f"Bearer {hidden.watch}"}) == 200
    return seen, good


def _requests(hidden: Hidden) -> Iterable[dict[str, Any]]:
    email, phone = iter(hidden.emails), iter(hidden.phones)
    shop = {"Authorization": f"Bearer {hidden.shop}"}
    one, number = next(email), next(phone)
    good = {"email": one, "phoneNumber": number}
    # Valid requests, a merge too.
    yield {"json": good, "headers": shop}
    yield {"json": {"email": next(email), "phoneNumber": int(next(phone))}, "headers": shop}
    yield {"json": {"email": one.upper(), "phoneNumber": hidden.phones[1]}, "headers": shop}
    # Invalid requests.
    for body in (
        f'{{"email": "{next(email)}\\u0000"}}',
        f'{{"email": ["{next(email)}"], "phoneNumber": {{"{next(phone)}": 1}}}}',
        f'{{"phoneNumber": -{next(phone)}}}',
        f'{{"{next(email)}": "{next(phone)}"}}',
        f'{{"email": {next(email)}, NaN}}',
        f"{next(email)} {hidden.shop}",
        f'{{"email": "{one * 20}"}}',
        f'{{"email": "{one}", "other": "{"x" * 100_000}"}}',
    ):
        yield {"data": body, "headers": shop | JSON}
    yield {"data": f"email={one}", "headers": shop | {"Content-Type": "application/x-www-form-urlencoded"}}
    yield {"data": one, "headers": shop | {"Content-Type": f"text/{hidden.emails[7].partition('@')[0]}"}}
    yield {"data": one, "headers": shop | JSON | {"Content-Encoding": "gzip"}}
    # A request whose statement fails; PostgreSQL's error quotes the whole row.
    yield {"json": {"email": hidden.emails[11], "phoneNumber": hidden.phones[11]}, "headers": shop}
    # Requests without access.
    bearers = [f"Bearer {each}" for each in (hidden.unknown, hidden.watch, one)]
    for value in (*bearers, f"Basic {hidden.shop}", hidden.shop):
        yield {"json": good, "headers": {"Authorization": value}}
    yield {"json": good, "headers": {"X-API-Key": hidden.shop, "Cookie": f"key={hidden.shop}"}}
    yield {"method": "GET", "path": "/metrics", "headers": shop}
    # The secrets in every place other than the body or the header in which they belong.
    for word in (one, number, f"+{number}", hidden.shop, hidden.unknown):
        yield {"method": "GET", "path": f"/{word}"}
        yield {"method": "GET", "path": f"/docs/{quote(word)}/"}
        yield {"method": "GET", "path": f"/healthz?x={word}&{word}"}
        yield {"path": f"/identify?email={word}", "headers": {"X-Request-ID": word}}
        yield {"method": "GET", "path": "/nothing", "headers": {"X-Request-ID": word, "User-Agent": word}}
        yield {"method": "GET", "path": "/readyz", "headers": {"Referer": word, "Origin": word, "Forwarded": word}}
        yield {"json": good, "headers": shop | {"X-Request-ID": word}}
        yield {"json": good, "headers": {"Expect": word}}
        yield {"method": "GET", "path": "/healthz", "headers": {"Expect": word}}
    yield {"method": f"X{number}", "path": "/identify"}
    yield {"method": "DELETE", "path": f"/identify?phoneNumber={number}", "headers": shop}


def _questions(hidden: Hidden) -> Iterable[tuple[int, dict[str, Any]]]:
    """What a steward asks, well and badly, with the status of each answer."""
    desk, email, phone = {"Authorization": f"Bearer {hidden.watch}"}, hidden.emails[0], hidden.phones[0]
    post: dict[str, Any] = {"method": "POST", "headers": desk}
    get: dict[str, Any] = {"method": "GET", "headers": desk}
    both = {"from": {"email": email}, "to": {"phoneNumber": hidden.phones[1]}}
    yield 200, post | {"path": "/lookup", "json": {"email": email, "phoneNumber": phone}}
    yield 200, post | {"path": "/why", "json": both}
    for path in ("/identities/1", "/identities/1/links", "/identities/1/history", "/identities/1?asOf=1"):
        yield 200, get | {"path": path}
        yield 403, {"method": "GET", "path": path, "headers": {"Authorization": f"Bearer {hidden.shop}"}}
    yield 404, post | {"path": "/why", "json": both | {"to": {"email": hidden.emails[8]}}}
    yield 400, post | {"path": "/why", "json": both | {"to": {"email": email, "phoneNumber": phone}}}
    yield 400, post | {"path": "/why", "json": {email: phone}}
    for path in ("/lookup", "/why"):
        yield 400, post | {"path": f"{path}?email={email}", "json": both}
        yield 400, post | {"path": path, "data": email, "headers": desk | JSON}
    for word in (email, hidden.shop):
        yield 400, get | {"path": f"/identities/{word}"}
        yield 400, get | {"path": f"/identities/{word}/links"}
        yield 400, get | {"path": f"/identities/1?asOf={word}"}
        yield 400, get | {"path": f"/identities/1/history?after={word}&{word}=1"}
    yield 404, get | {"path": f"/identities/{phone}/history"}


def _rubbish(hidden: Hidden) -> Iterable[bytes]:
    one, number = hidden.emails[10].encode(), hidden.phones[10].encode()
    key = hidden.shop.encode()
    yield one + b"\r\n\r\n"
    yield b"GET /" + one + b" HTTP/9.9.9\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization Bearer " + key + b"\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + key + b"\x00\r\n\r\n"
    yield b"GET / HTTP/1.1\r\nHost: localhost\r\n" + number + b": " + one + b"\x01\r\n: \r\n\r\n"
    yield b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Length: " + number + b"x\r\n\r\n"
    yield (
        b"POST /identify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer "
        + key
        + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        + number
        + b"\r\n"
        + one
    )


async def _raw(port: int, sent: bytes) -> list[str]:
    """Return the response to bytes on the socket, and then close the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sent)
    found = []
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(0.5):  # one of them is a request without its body
            found = [(await reader.read()).decode("latin-1")]
    # A reset instead of an orderly end, because it is logged in another way.
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return found


def _titles(pid: int) -> Iterator[str]:
    """Return what `ps` shows of a process and its children."""
    for name in ("cmdline", "comm", "status"):
        yield Path(f"/proc/{pid}/{name}").read_text()
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from _titles(int(child))
