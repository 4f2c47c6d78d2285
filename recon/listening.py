"""Where recon listens, and how: addresses, TLS, and that it is not open to everybody by mistake."""

import asyncio
import logging
import os
import ssl
import stat
from ipaddress import ip_address
from pathlib import Path
from socket import AI_PASSIVE, SOCK_STREAM, gaierror, getaddrinfo, socket

from recon.errors import Misconfigured
from recon.keys import keys_of
from recon.settings import Settings

log = logging.getLogger(__name__)


def check(settings: Settings) -> None:
    """Raise Misconfigured unless recon can listen as it is told to, and should."""
    addresses = _addresses(settings.host)
    tls(settings)
    if keys_of(settings) or settings.allow_anonymous or all(ip_address(each).is_loopback for each in addresses):
        return
    raise Misconfigured(
        f"refusing to let everybody who reaches {settings.host or 'this machine'} ask: set RECON_API_KEYS_FILE or "
        "RECON_API_KEYS (`recon key` makes one), listen on 127.0.0.1, or say --allow-anonymous "
        "(RECON_ALLOW_ANONYMOUS=1)"
    )


def _addresses(host: str) -> set[str]:
    """Every address that listening on this host means."""
    try:
        found = getaddrinfo(host or None, 0, type=SOCK_STREAM, flags=AI_PASSIVE)
    except (gaierror, UnicodeError):
        raise Misconfigured(f"--host: {host} is neither an address of this machine nor a name of one") from None
    return {str(address[0]).partition("%")[0] for *_, address in found}


async def sockets(settings: Settings) -> list[socket]:
    """Bind a socket to each address of the settings' host; nothing is accepted yet."""
    bound = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, settings.host, settings.port, start_serving=False
    )
    try:
        return [socket(fileno=os.dup(each.fileno())) for each in bound.sockets]
    finally:
        bound.close()


def at(host: str, port: int) -> str:
    """Host and port as URLs have them: an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url(settings: Settings, host: str, port: int) -> str:
    """The URL of a host and port that recon listens on."""
    return f"http{'s' if settings.tls_cert else ''}://{at(host, port)}"


def tls(settings: Settings) -> ssl.SSLContext | None:
    """The settings' certificate and key, ready to serve, or None; raises Misconfigured for what is wrong with them."""
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
        log.warning("everybody on this machine may read the TLS key %s", key)
    return context


def _no_password() -> str:
    raise Misconfigured("--tls-key: the key is encrypted; recon has nobody to ask for its password")


def _require_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise Misconfigured(f"{path}: cannot be read: {error.strerror}") from None
