"""The database URL: which URLs are refused, which server they name, and that no message quotes them."""

import os

import pytest
from asyncpg.connect_utils import _parse_connect_dsn_and_args
from pydantic import ValidationError

from recon import dsn
from recon.settings import Settings
from tests.harness.processes import recon

ENCODE = "percent-encode special characters of the user name and the password"
REFUSED = [
    "postgresql://recon:pa/ss@host/shop",
    "postgresql://recon:pa#ss@host/shop",
    "postgresql://recon:pa?ss@host/shop",
    "postgresql://recon:pa@ss@host/shop",
    "postgresql://recon:pa[ss@host/sh@op",
    "postgresql://recon:pa\tss@host/shop",
    "postgresql://recon:pa ss@host/shop",
    "postgresql://recon:pass/shop",
    "postgresql://recon:pa/ss",
    "postgresql://recon:pa,ss:x@@host",
    "postgresql://recon:pass@host:shop/shop",
    "postgresql://host/shop?password=pa#ss",
    "postgresql://host/shop?password=pa@ss",
    "postgresql://host/shop?password=pa&ss",
    "postgresql://host/shop?port=pass",
    "postgresql://recon:pa\u2100ss@host/shop@",  # in its error, Python's parser quotes the whole host
    "postgresql://host,/pass",
    "postgres:pass",
    "pass",
    "mysql://recon:pass@host/shop",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    """An ambiguous URL is refused; the message says what to do, and quotes nothing of the URL."""
    with pytest.raises(ValueError, match=f"{ENCODE}|^must start with postgresql://$") as caught:
        dsn.checked(url)

    assert not {"recon", "shop", "pa", "ss"} & set(str(caught.value).replace("/", " ").split())
    with pytest.raises(ValidationError):
        Settings(database_url=url)


@pytest.mark.parametrize("command", ["serve", "check", "schema"])
@pytest.mark.parametrize("mark", "@/?#")
def test_every_command_refuses_it_in_a_line(command: str, mark: str) -> None:
    """Every command refuses such a URL without a traceback, and without any part of the password."""
    url = f"postgresql://recon:hunter{mark}seven@127.0.0.1:1/shop"

    arguments = ["--apply"] if command == "schema" else []
    done = recon(command, *arguments, env=os.environ | {"RECON_DATABASE_URL": url})

    assert done.returncode == 2
    assert done.stderr.startswith("recon: RECON_DATABASE_URL: must be postgresql://user:password@host")
    assert done.stderr.count("\n") == 1
    assert "hunter" not in done.stdout + done.stderr
    assert "seven" not in done.stdout + done.stderr


ACCEPTED = [
    ("postgresql://recon:pa%2Fss%40@db/shop", {}),
    ("postgres://recon@db:6432/shop?sslmode=disable", {}),
    ("POSTGRESQL://db", {"PGUSER": "somebody", "PGDATABASE": "elsewhere"}),
    ("postgresql://db1:1,db2:2/shop", {"PGUSER": "somebody"}),
    ("postgresql://db1,db2/shop", {"PGPORT": "7"}),
    ("postgresql://u@[::1]:6432/shop", {}),
    ("postgresql://u@/shop?host=/run/postgresql&port=6432", {}),
    ("postgresql://postgres:@/postgres?host=/tmp/recon/postgresql", {}),
    ("postgresql://u@%2Frun%2Fpostgresql/shop", {}),
    ("postgresql://u:a:b@db/", {}),
    ("postgresql:///?user=u&dbname=shop&host=db3:8", {}),
    ("postgresql:///shop?user=u", {"PGHOST": "db9", "PGPORT": "9"}),
    ("postgresql://u@db/sh%20op", {}),
    ("  postgresql://u@db/shop\n", {}),
    ("postgresql://db/shop", {}),
]


@pytest.mark.parametrize(("url", "variables"), ACCEPTED)
def test_where_a_url_leads_is_where_the_driver_goes(
    url: str, variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages name the hosts, the database and the user that the driver uses."""
    for name in [name for name in os.environ if name.startswith("PG")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    names = (
        "host port user password passfile database ssl service servicefile direct_tls server_settings "
        "target_session_attrs krbsrvname gsslib"
    )
    unset = dict.fromkeys(names.split())

    server = dsn.server_of(dsn.checked(url))
    addresses, parameters = _parse_connect_dsn_and_args(dsn=dsn.checked(url), **unset)

    hosts = [_shown(each) for each in addresses]
    assert (server.hosts.split(", "), server.user) == (hosts, parameters.user)
    assert server.database == (parameters.database or parameters.user)


def _shown(address: str | tuple[str, int]) -> str:
    if isinstance(address, str):
        return address.partition("/.s.PGSQL.")[0]
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def test_what_has_no_host_is_named() -> None:
    """Without a host, messages name the local socket; with a service, the service."""
    assert dsn.server_of("postgresql://u@/d").hosts == "the local socket"
    assert dsn.server_of("postgresql://?service=shop") == ("that of the service shop",) * 3


def test_a_name_cannot_forge_a_log_line() -> None:
    """Control characters that were percent-encoded are shown escaped."""
    server = dsn.server_of("postgresql://u%0Ax@db%0A/d%1B")

    assert str(server).isprintable()
