"""Addresses and TLS, and the protected mode: without API keys, recon listens on loopback only."""

import errno
import logging
import os
import ssl
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from socket import (
    AF_INET6,
    AI_PASSIVE,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SO_REUSEADDR,
    SOCK_STREAM,
    SOL_SOCKET,
    AddressFamily,
    SocketKind,
    gaierror,
    getaddrinfo,
    socket,
)
from typing import Any, TypeAlias

from recon.errors import Misconfigured
from recon.keys import keys_of
from recon.settings import Settings

log = logging.getLogger(__name__)

_LAST_PORT = 65_535
_AddressInfo: TypeAlias = tuple[AddressFamily, SocketKind, int, str, tuple[Any, ...]]


def check(settings: Settings) -> None:
    """Raise Misconfigured unless recon can listen on the settings' host, and may (protected mode)."""
    addresses = _addresses(settings.host)
    tls(settings)
    if keys_of(settings) or settings.allow_anonymous or all(ip_address(each).is_loopback for each in addresses):
        return
    raise Misconfigured(
        f"refusing to serve {settings.host or 'all addresses'} without API keys: set RECON_API_KEYS_FILE or "
        "RECON_API_KEYS (`recon key` creates a key), listen on 127.0.0.1, or set --allow-anonymous "
        "(RECON_ALLOW_ANONYMOUS=1) behind something that controls access"
    )


def _addresses(host: str) -> set[str]:
    """Return every address that the host name resolves to."""
    return {str(address[0]).partition("%")[0] for *_, address in _resolved(host, 0)}


def _resolved(host: str, port: int) -> list[_AddressInfo]:
    try:
        found = getaddrinfo(host or None, port, type=SOCK_STREAM, flags=AI_PASSIVE)
    except (gaierror, UnicodeError):
        raise Misconfigured(f"--host: {host} is neither an address of this machine nor a name of one") from None
    return list(dict.fromkeys(found))


def sockets(settings: Settings) -> list[socket]:
    """Bind a socket to each address of the settings' host; they do not accept connections yet.

    Raises Misconfigured if the port cannot be listened on, for example because another process listens there.
    """
    bound = []
    for family, kind, protocol, _, address in _resolved(settings.host, settings.port):
        try:
            each = socket(family, kind, protocol)
        except OSError:  # the name has an IPv6 address, and this machine has no IPv6
            continue
        bound.append(each)
        # Connections of a recon that has just stopped do not keep the port in use.
        each.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        if family == AF_INET6:
            each.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, 1)
        with _failing_clearly(settings):
            each.bind(address)
    return bound


def require_free_port(settings: Settings) -> None:
    """Raise Misconfigured if the port cannot be listened on, before a database is started in vain."""
    for each in sockets(settings):
        with each, _failing_clearly(settings):
            each.listen()  # Linux allows two sockets to be bound to a port as long as neither listens


@contextmanager
def _failing_clearly(settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            other = settings.port - 1 if settings.port == _LAST_PORT else settings.port + 1
            raise Misconfigured(
                f"port {settings.port} is in use by another process: stop that process, or choose another port, for "
                f"example with `RECON_PORT={other} make run` or --port {other}"
            ) from None
        where = authority(settings.host, settings.port)
        raise Misconfigured(f"cannot listen on {where}: {os.strerror(error.errno or 0)}") from None


def authority(host: str, port: int) -> str:
    """Host and port as in a URL: an IPv6 address has brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(settings: Settings, host: str, port: int) -> str:
    """The URL of a host and port that recon listens on."""
    return f"http{'s' if settings.tls_cert else ''}://{authority(host, port)}"


def tls(settings: Settings) -> ssl.SSLContext | None:
    """The settings' certificate and key, as a context; None without TLS. Raises Misconfigured if invalid."""
    cert, key = settings.tls_cert, settings.tls_key
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise Misconfigured("--tls-cert and --tls-key belong together: give both or neither")
    for path in (cert, key):
        _require_readable(path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise Misconfigured(f"--tls-key: {key} is not the key of the certificate in {cert}") from None
        raise Misconfigured(
            f"--tls-cert, --tls-key: {cert} and {key} are not a certificate and its key, both in PEM"
        ) from None
    if key.stat().st_mode & stat.S_IROTH:
        log.warning("every user of this machine can read the TLS key %s", key)
    return context


def _no_password() -> str:
    raise Misconfigured("--tls-key: the key is encrypted; recon needs one without a password")


def _require_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read: {error.strerror}") from None
