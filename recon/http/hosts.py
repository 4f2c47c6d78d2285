"""The hosts that a request may name. Without this check, a web page could reach recon by DNS rebinding."""

from ipaddress import ip_address

from aiohttp import hdrs, web

from recon import metrics
from recon.errors import ForeignHost

_MAX_KNOWN = 1000  # values of the Host header that are remembered: each client uses one or two
_MAX_KNOWN_LENGTH = 300  # characters: a name has at most 253, an address fewer


class Hosts:
    """The hosts that recon serves: this machine under its loopback names and addresses, and the names given.

    Attributes
    ----------
    known : values of the Host header that passed the check, as they were sent: a cache that each request looks up.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self.known: set[str | None] = set()

    def check(self, request: web.Request) -> None:
        """Raise ForeignHost unless the request names a host that is allowed.

        A request in absolute form also names a host in its target. A request of HTTP/1.0 may name no host: no browser
        sends HTTP/1.0.
        """
        host = request.headers.get(hdrs.HOST)
        if not (host is None or self._is_allowed(_name(host))) or (
            not request.raw_path.startswith("/") and not self._is_allowed(_canonical(request.host))
        ):
            metrics.count_refusal("host")
            raise ForeignHost
        if len(self.known) < _MAX_KNOWN and len(host or "") <= _MAX_KNOWN_LENGTH:
            self.known.add(host)

    def _is_allowed(self, name: str) -> bool:
        return name in self._names or _is_loopback(name)


def _name(host: str) -> str:
    """Return the host name of a Host header, without the port; the empty string if the header is malformed."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return _canonical(name) if bracket and _is_port(port) else ""
    name, colon, port = host.partition(":")
    return _canonical(name) if _is_port(colon + port) else ""


def _is_port(text: str) -> bool:
    return not text or (text[0] == ":" and text[1:].isdecimal() and text.isascii())


def _canonical(name: str) -> str:
    return name.lower().removesuffix(".")


def _is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761: these are never looked up
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
