"""Every setting of recon: its name, its default and what it is for.

Each has a variable `RECON_<NAME>`; `recon serve --help` and docs/settings.md show the same list.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import AfterValidator, AliasChoices, Field, JsonValue, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from recon import dsn

# Of a setting that is a secret: every user of a machine can see its command lines.
VARIABLE_ONLY: dict[str, JsonValue] = {"variable_only": True}


# The groups of options in help: the title of each, by its first setting. A group ends where the next one begins.
GROUPS = {
    "host": "Address and processes",
    "database_url": "Database",
    "api_keys": "Access",
    "default_region": "Identifiers",
    "pool_size": "Transactions and overload",
    "max_connections": "Limits for clients",
    "shutdown_timeout": "Shutdown and log",
}

# A duration. PostgreSQL counts milliseconds, and takes 0 for no limit. More than a day is a mistake, and PostgreSQL
# takes no more than 24 days.
_SHORTEST, _LONGEST = 0.001, 86_400  # seconds
Seconds = Annotated[float, Field(ge=_SHORTEST, le=_LONGEST)]
_MOST_CONNECTIONS = 1_000_000  # Linux lets a process open 1,048,576 files by default
_SHORTEST_KEY = 32  # characters: 128 random bits as hexadecimal digits
_LARGEST_HEAD = 2**20  # bytes; aiohttp's parser counts in a C integer, and a larger number stops every connection


def _database_url(url: SecretStr) -> SecretStr:
    return SecretStr(dsn.checked(url.get_secret_value()))


def _suppress_key(key: SecretStr) -> SecretStr:
    if len(key.get_secret_value()) < _SHORTEST_KEY:
        raise ValueError(f"must have at least {_SHORTEST_KEY} characters")
    return key


def _region(region: str) -> str:
    from phonenumbers import SUPPORTED_REGIONS  # only when it is needed: its metadata costs 40 MB

    if region.upper() not in SUPPORTED_REGIONS:
        raise ValueError("must be a two-letter country code, such as US")
    return region.upper()


def _origins(origins: str) -> str:
    for origin in origins.replace(",", " ").split():
        # As a browser writes it, so that a comparison is enough. `*` is refused: origins are named.
        if not re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", origin):
            raise ValueError("must be origins such as https://shop.example, without a path")
    return origins


def _hosts(hosts: str) -> str:
    for host in hosts.replace(",", " ").split():
        if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", host):
            raise ValueError("must be host names such as shop.example, without a port or a path")
    return hosts


@dataclass(frozen=True)
class DatabaseSettings:
    """How a process uses its database, with the defaults.

    Attributes
    ----------
    pool_size : maximum number of connections.
    retry_limit : maximum attempts of a transaction on serialization conflict.
    statement_timeout : seconds a statement may take, waiting for locks included.
    transaction_timeout : seconds a transaction may take before its connection is given up.
    writer_lane : whether writing transactions run one after another (for speed alone).
    pgbouncer : whether consecutive transactions of a connection may run in different server sessions.
    default_region : the region of the match keys that the process stores; the database's must be the same.
    isolation : the isolation level; a process always has SERIALIZABLE, and a test may show what less does.
    suppress_check : what a database with suppressed identifiers must have (`digests.check_of`), None if the process has
        no key for them; empty for a process that does not need to know them.
    """

    pool_size: int = 16
    retry_limit: int = 200
    statement_timeout: float = 4
    transaction_timeout: float = 5
    writer_lane: bool = True
    pgbouncer: bool = False
    default_region: str | None = None
    isolation: str = "SERIALIZABLE"
    suppress_check: str | None = ""


class Settings(BaseSettings):
    """How recon runs. Options of the command win over variables, and variables over defaults."""

    model_config = SettingsConfigDict(env_prefix="RECON_", env_ignore_empty=True, populate_by_name=True, extra="ignore")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(
        8000, ge=0, le=65535, validation_alias=AliasChoices("RECON_PORT", "PORT"), description="Port to listen on."
    )
    workers: int = Field(1, ge=1, le=64, description="Processes that serve the port.")
    database_url: Annotated[SecretStr, AfterValidator(_database_url)] | None = Field(
        None,
        validation_alias=AliasChoices("RECON_DATABASE_URL", "DATABASE_URL"),
        description="URL of the PostgreSQL (15 or newer) to use; without it, recon starts an embedded one. Give a "
        "password by the variable, not by the option: every user of a machine can see its command lines.",
    )
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("recon"), description="Folder for the data of the embedded PostgreSQL."
    )

    api_keys: SecretStr | None = Field(
        None,
        description="API keys, each `name:scope:secret`, separated by commas or spaces.",
        json_schema_extra=VARIABLE_ONLY,
    )
    api_keys_file: Path | None = Field(
        None,
        description="File of hashed API keys, one per line; `recon key` writes it. Reloaded when it changes.",
    )
    allow_anonymous: bool = Field(
        False,
        description="Serve beyond loopback without API keys. Use it only behind something that controls access.",
    )
    allowed_hosts: Annotated[str, AfterValidator(_hosts)] | None = Field(
        None,
        description="Hosts (shop.example, …) that requests may name besides loopback, separated by commas or spaces; "
        "others get a 421. Without this list, a recon without keys serves loopback hosts only, any other recon all.",
    )
    tls_cert: Path | None = Field(None, description="File of the TLS certificate with its chain (PEM); turns https on.")
    tls_key: Path | None = Field(None, description="File of the certificate's private key (PEM, not encrypted).")
    cors_origins: Annotated[str, AfterValidator(_origins)] | None = Field(
        None,
        description="Origins (https://shop.example, …) whose pages may send requests, separated by commas or spaces.",
    )

    default_region: Annotated[str, AfterValidator(_region)] | None = Field(
        None,
        description="Country (US, IN, …) of phone numbers without a country code. Choose it before the first request: "
        "it decides the match keys that are stored.",
    )
    strict: bool = Field(
        False, description="Refuse invalid emails and phone numbers, and fields other than `email` and `phoneNumber`."
    )
    suppress_key: Annotated[SecretStr, AfterValidator(_suppress_key)] | None = Field(
        None,
        description="Key of the digests that keep suppressed identifiers from returning, at least 32 characters. "
        "Without it, `suppress` is refused, and a database with suppressed identifiers is not served.",
        json_schema_extra=VARIABLE_ONLY,
    )

    pool_size: int = Field(
        DatabaseSettings.pool_size, ge=2, le=1000, description="Maximum database connections of a process."
    )
    pgbouncer: bool = Field(
        DatabaseSettings.pgbouncer,
        description="Keep no state in a database session between transactions; needed behind pgbouncer.",
    )
    queue_limit: int = Field(
        2000,
        ge=1,
        description="Maximum requests that wait in a process; further ones get a 503 at once (load shedding).",
    )
    request_timeout: Seconds = Field(
        DatabaseSettings.transaction_timeout,
        description="Seconds until a request that the database has not answered gets a 503.",
    )
    retry_limit: int = Field(
        DatabaseSettings.retry_limit,
        ge=1,
        description="Maximum attempts on serialization conflict before a 503.",
    )
    statement_timeout: Seconds = Field(
        DatabaseSettings.statement_timeout,
        description="Seconds that a statement may take, with its wait for locks.",
    )
    correction_timeout: Seconds = Field(
        30,
        description="Seconds until a steward's correction that the database has not made gets a 503.",
    )
    coalesce: bool = Field(True, description="Let concurrent requests share transactions (micro-batching).")
    writer_lane: bool = Field(DatabaseSettings.writer_lane, description="Run writing transactions one after another.")

    max_connections: int = Field(
        16_384,
        ge=1,
        le=_MOST_CONNECTIONS,
        description="Maximum connections of a process. Idle ones are closed first; further ones get a 503.",
    )
    head_timeout: Seconds = Field(
        10,
        description="Seconds for a client to send a request's head, from its first byte (on a new connection, "
        "from its accept), and for the TLS handshake.",
    )
    body_timeout: Seconds = Field(10, description="Seconds for a client to send a request's body; then it gets a 408.")
    send_timeout: Seconds = Field(
        30,
        description="Seconds for a client to read its answer or, if that is streamed, the next part of it; then recon "
        "closes the connection.",
    )
    keepalive_timeout: Seconds = Field(
        75,
        description="Seconds that an idle connection stays open; set it above your proxy's.",
    )
    max_head: int = Field(
        32_768,
        ge=1024,
        le=_LARGEST_HEAD,
        description="Maximum size of a request's head (target and fields), in bytes. A head may have 128 fields.",
    )
    max_body: int = Field(65_536, ge=1024, description="Maximum size of a request's body, in bytes.")
    max_unsent: int = Field(
        134_217_728,
        ge=1_048_576,
        description="Maximum bytes of answers that wait in a process's memory for clients to read them; beyond that, "
        "recon closes the connections of the slowest readers.",
    )
    shutdown_timeout: float = Field(
        8,
        ge=0,
        le=_LONGEST,
        description="Seconds that requests in progress have to finish after SIGTERM and a second of connection "
        "draining; streamed responses are aborted after that second. Container engines kill after ten.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level to log: debug logs every request, info those that failed."
    )
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Format of the log; auto is text on a terminal and json elsewhere."
    )


def database_url(settings: Settings) -> str:
    """The URL of the settings' database, which must be given."""
    if settings.database_url is None:
        raise ValueError("a database_url is needed; recon.database.embedded.data_folder.running() gives one")
    return settings.database_url.get_secret_value()


def database_settings(settings: Settings) -> DatabaseSettings:
    """The settings of the database, for a process with these settings."""
    return DatabaseSettings(
        pool_size=settings.pool_size,
        retry_limit=settings.retry_limit,
        statement_timeout=settings.statement_timeout,
        transaction_timeout=settings.request_timeout,  # then no request waits for it any more
        writer_lane=settings.writer_lane,
        pgbouncer=settings.pgbouncer,
        default_region=settings.default_region,
    )


def origins(settings: Settings) -> frozenset[str]:
    """The settings' origins, one by one."""
    return frozenset((settings.cors_origins or "").replace(",", " ").split())


def allowed_hosts(settings: Settings) -> frozenset[str]:
    """The settings' hosts besides loopback, one by one."""
    return frozenset((settings.allowed_hosts or "").lower().replace(",", " ").split())


def suppress_key(settings: Settings) -> bytes | None:
    """The key of the digests of suppressed identifiers; None without one."""
    return None if settings.suppress_key is None else settings.suppress_key.get_secret_value().encode()
