"""Listening: the protected mode, and TLS."""

import asyncio
import os
import socket
import ssl
import time
import urllib.request
import warnings
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from recon.dsn import has_password
from recon.errors import Misconfigured
from recon.keys import new_key
from recon.server.listening import check, tls
from recon.settings import Settings
from tests.harness.processes import Process, StartRecon, recon

KEYS = {"api_keys": new_key("shop", ["identify"])[1]}
CLOSED = ["127.0.0.1", "127.0.0.2", "127.1", "localhost", "::1", "0:0:0:0:0:0:0:1"]
OPEN = ["", "0.0.0.0", "0", "::", "192.0.2.1", "2001:db8::1", "::ffff:0.0.0.0", "::ffff:192.0.2.1", "fe80::1"]  # noqa: S104


@pytest.mark.parametrize("host", CLOSED)
def test_loopback_needs_no_keys(host: str) -> None:
    """recon serves loopback addresses without API keys."""
    check(Settings(host=host))


@pytest.mark.parametrize("host", OPEN)
def test_beyond_loopback_needs_keys(host: str) -> None:
    """Other addresses need API keys or --allow-anonymous."""
    with pytest.raises(Misconfigured, match="^refusing to serve .* without API keys: set RECON_API_KEYS"):
        check(Settings(host=host))

    check(Settings(host=host, **KEYS))
    check(Settings(host=host, allow_anonymous=True))


def test_the_name_of_this_machine() -> None:
    """A host name stands for all of its addresses."""
    name = socket.gethostname()
    try:
        addresses = {str(address[0]) for *_, address in socket.getaddrinfo(name, 0)}
    except OSError:
        pytest.skip("this machine's name stands for nothing")
    if all(address.startswith("127.") or address == "::1" for address in addresses):
        check(Settings(host=name))
    else:
        with pytest.raises(Misconfigured):
            check(Settings(host=name))


@pytest.mark.parametrize("host", ["unix:/run/recon", "fd://3", "tcp://127.0.0.1", "/run/recon", "no.such.invalid", " "])
def test_what_is_no_address(host: str) -> None:
    """An invalid address or unknown name is a clear error, also with keys."""
    with pytest.raises(Misconfigured, match="is neither an address of this machine nor a name of one"):
        check(Settings(host=host, **KEYS))


def test_protected_mode() -> None:
    """Without keys, `recon serve` refuses to listen beyond loopback, and one line says what to do."""
    done = recon("serve", "--host", "0.0.0.0", "--database-url", "postgresql://127.0.0.1:1/none")  # noqa: S104

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    for word in ("0.0.0.0", "RECON_API_KEYS_FILE", "`recon key`", "127.0.0.1", "--allow-anonymous"):  # noqa: S104
        assert word in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_anonymous_on_purpose(workers: str, start_recon: StartRecon, database_url: str) -> None:
    """With --allow-anonymous, recon serves on every address, IPv6 included."""
    host = "::" if socket.has_ipv6 and _has_ipv6() else "0.0.0.0"  # noqa: S104
    process = start_recon(
        "--host", host, "--allow-anonymous", "--workers", workers, "--database-url", database_url, ready=host != "::"
    )
    if host == "::":
        process.url = f"http://[::1]:{process.port}"
        process.wait_until_ready()
        assert f"serving on http://[::]:{process.port}" in process.log


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """A certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="module")
def pem(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The files of a certificate for this machine and of its key."""
    return _written(authority, tmp_path_factory.mktemp("tls"))


def _written(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(cert), append=True)
    issued.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    return cert, key


def _client(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_tls(
    workers: str, start_recon: StartRecon, database_url: str, authority: trustme.CA, pem: tuple[Path, Path]
) -> None:
    """With a certificate, recon serves https only, with TLS 1.2 or newer."""
    process: Process = start_recon(
        *("--workers", workers, "--database-url", database_url, "--log-level", "debug", "--log-format", "json"),
        *("--tls-cert", str(pem[0]), "--tls-key", str(pem[1])),
        ready=False,
    )
    context = _client(authority)
    await _until_accepting(process)

    def get(client: ssl.SSLContext) -> tuple[int, str]:
        with urllib.request.urlopen(f"https://127.0.0.1:{process.port}/docs", context=client) as answer:
            return answer.status, answer.headers["Server"]

    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context.minimum_version = context.maximum_version = version
        assert await asyncio.to_thread(get, context) == (200, "recon")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncio.to_thread(get, ssl.create_default_context())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old versions on purpose
        old = _client(authority)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(OSError, match="EOF|ALERT_PROTOCOL_VERSION"):  # it closes the connection
        await asyncio.to_thread(get, old)
    for plain in (b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01" + b"\x00" * 50, b"rubbish" * 100):
        async with asyncio.timeout(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
            writer.write(plain)
            with suppress(ConnectionError):
                assert b"HTTP" not in await reader.read()
            writer.close()
    assert await asyncio.to_thread(get, context) == (200, "recon")
    assert process.stop() == 0
    assert "Traceback" not in process.log
    [line] = [event["event"] for event in process.events() if event["event"].startswith("serving on ")]
    assert line.startswith(f"serving on https://127.0.0.1:{process.port}")


async def _until_accepting(process: Process) -> None:
    async with asyncio.timeout(20):
        while "serving on" not in process.log:
            assert process.popen.poll() is None, process.log
            await asyncio.sleep(0.02)


def test_a_certificate_that_cannot_be(authority: trustme.CA, pem: tuple[Path, Path], tmp_path: Path) -> None:
    """A missing, unreadable, invalid, mismatched or encrypted certificate or key is a clear error."""
    cert, key = pem
    rubbish, away = tmp_path / "rubbish", tmp_path / "away"
    rubbish.write_text("rubbish")
    (tmp_path / "other").mkdir()
    _, other = _written(authority, tmp_path / "other")
    locked = tmp_path / "locked"
    secret = serialization.load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(
        secret.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    together = "--tls-cert and --tls-key belong together: give both or neither"
    cases: list[tuple[Path | None, Path | None, str]] = [
        (cert, None, together),
        (None, key, together),
        (away, key, f"{away}: cannot be read: No such file or directory"),
        (cert, away, f"{away}: cannot be read: No such file or directory"),
        (cert, tmp_path, f"{tmp_path}: cannot be read: Is a directory"),
        (cert, other, f"--tls-key: {other} is not the key of the certificate in {cert}"),
        (rubbish, key, f"--tls-cert, --tls-key: {rubbish} and {key} are not a certificate and its key, both in PEM"),
        (cert, rubbish, f"--tls-cert, --tls-key: {cert} and {rubbish} are not a certificate and its key, both in PEM"),
        (cert, locked, "--tls-key: the key is encrypted; recon needs one without a password"),
    ]
    for given_cert, given_key, message in cases:
        with pytest.raises(Misconfigured) as caught:
            tls(Settings(tls_cert=given_cert, tls_key=given_key))

        assert str(caught.value) == message


def test_a_wrong_certificate_ends_recon(pem: tuple[Path, Path]) -> None:
    """An invalid certificate ends recon with one line, before it starts a database."""
    done = recon("serve", "--tls-cert", str(pem[0]))

    assert done.returncode == 1
    assert done.stderr == "recon: --tls-cert and --tls-key belong together: give both or neither\n"


def test_a_key_that_everybody_may_read(authority: trustme.CA, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """recon warns if every user of the machine can read the TLS key."""
    cert, key = _written(authority, tmp_path)
    key.chmod(0o644)

    tls(Settings(tls_cert=cert, tls_key=key))

    assert f"every user of this machine can read the TLS key {key}" in caplog.text


def test_a_password_that_everybody_sees(start_recon: StartRecon) -> None:
    """recon warns about a password in an option, which `ps` shows, but not about one in a variable."""
    url = "postgresql://shop:hunter2@127.0.0.1:1/x"
    in_option = start_recon("--database-url", url, ready=False)
    in_variable = start_recon(env=os.environ | {"DATABASE_URL": url}, ready=False)

    for process, expected in ((in_option, 1), (in_variable, 0)):
        _wait_until_waiting(process)
        assert process.log.count("can see the password in --database-url") == expected
        assert "hunter2" not in process.log
    assert has_password("postgresql://127.0.0.1/x?sslpassword=hunter2")
    assert not has_password("postgresql://shop@127.0.0.1/x?host=/run")


def _wait_until_waiting(process: Process) -> None:
    deadline = time.monotonic() + 20
    while "tries again every second" not in process.log:
        assert time.monotonic() < deadline, process.log
        time.sleep(0.02)
