"""The database URL: whether it is unambiguous, which server it names, and whether it contains a password."""

import getpass
import os
import re
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

# `@`, `/`, `?` and `#` separate the parts of a URL. Part of a password that contains one of them could be parsed as a
# host, a port or a database, which are logged. So none of them is allowed where the URL would be ambiguous.
_URL = re.compile(
    r"(?i:postgres(?:ql)?)://"
    r"(?:(?P<user>[^:@/?#]*)(?::(?P<password>[^@/?#]*))?@)?"
    r"(?P<hosts>[^@/?#]*)"
    r"(?:/(?P<database>[^@?#]*))?"
    r"(?:\?(?P<parameters>[^@#]*))?"
)
_HOST = re.compile(r"(?P<name>\[[^\[\]]+\]|[^\[\]:]*)(?::(?P<port>\d{0,5}))?")
_PARAMETER = re.compile(r"(?!port=)[^=]+=.*|port=\d{1,5}(,\d{1,5})*")
_BLANK = re.compile(r"[\x00-\x20\x7f]")  # some parsers remove these from the middle of a URL
_UNREADABLE = (
    "must be postgresql://user:password@host:port/database?parameter=value; "
    "percent-encode special characters of the user name and the password (@ is %40, / is %2F, ? is %3F, # is %23)"
)
_DEFAULT_PORT = "5432"


class Server(NamedTuple):
    """The server that a URL names, for messages. `hosts` has all hosts of the URL, each with its port."""

    hosts: str
    database: str
    user: str

    def __str__(self) -> str:
        return f"PostgreSQL at {self.hosts}, database {self.database}, user {self.user}"


def checked(url: str) -> str:
    """Return the URL without surrounding blanks. Raises ValueError, which quotes nothing of it, if it is invalid."""
    url = url.strip()
    if not re.match(r"(?i:postgres(ql)?)://", url):
        raise ValueError("must start with postgresql://")
    parts = _URL.fullmatch(url)
    if parts is None or _BLANK.search(url):
        raise ValueError(_UNREADABLE)
    hosts = parts["hosts"].split(",") if parts["hosts"] else []
    parameters = parts["parameters"].split("&") if parts["parameters"] else []
    if not all(host and _HOST.fullmatch(host) for host in hosts) or not all(map(_PARAMETER.fullmatch, parameters)):
        raise ValueError(_UNREADABLE)
    return url


def has_password(url: str) -> bool:
    """Whether the URL contains a password."""
    parts = _URL.fullmatch(url)
    return parts is None or bool(parts["password"]) or has_password_parameter(url)


def has_password_parameter(url: str) -> bool:
    """Whether the URL has the parameter `password`. PostgreSQL's errors quote parameters, perhaps a part of it."""
    parts = _URL.fullmatch(url)
    return parts is None or "password=" in (parts["parameters"] or "")


def server_of(url: str) -> Server:
    """Return the server that a checked URL names. Missing parts come from the environment, as the driver takes them."""
    parts = _URL.fullmatch(url)
    if parts is None:
        return Server("an unreadable URL", "unknown", "unknown")
    given = {name: values[-1] for name, values in parse_qs(parts["parameters"] or "").items()}
    service = f"that of the service {given['service']}" if "service" in given else None
    user = unquote(parts["user"] or "") or given.get("user") or service or os.environ.get("PGUSER") or _own_name()
    if parts["database"] is not None:  # the driver then ignores the parameters, even if this is empty
        database = unquote(parts["database"]) or user
    else:
        database = given.get("dbname") or given.get("database") or service or os.environ.get("PGDATABASE") or user
    return Server(
        _shown(_hosts(parts["hosts"], given) or service or "the local socket"),
        _shown(database),
        _shown(user),
    )


def _hosts(in_url: str, given: dict[str, str]) -> str:
    hosts = in_url or given.get("host") or ("" if "service" in given else os.environ.get("PGHOST", ""))
    ports = (given.get("port") or os.environ.get("PGPORT") or _DEFAULT_PORT).split(",")
    found = []
    for index, host in enumerate(hosts.split(",") if hosts else []):
        name, port = unquote(host), ports[min(index, len(ports) - 1)]
        has_port = name.startswith("/") or (match := _HOST.fullmatch(host)) is None or match["port"]
        found.append(name if has_port else f"{name}:{port}")
    return ", ".join(found)


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # the user of this process has no name
        return "unknown"


def _shown(text: str) -> str:
    return text if text.isprintable() else repr(text)  # characters that could forge a log line are escaped
