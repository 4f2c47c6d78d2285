"""API keys: their holders and scopes, without HTTP.

A key is a line `name:scope[+scope]:secret`, in a file `name:scope[+scope]:sha256:digest`. Secrets are long and random
(256 bits from `recon key`; other secrets have 32 characters or more), so a fast hash protects them: no attacker can try
enough of them. A slow hash, as for passwords, would cost each request time for nothing.

A key is found by one look-up of the presented secret's SHA-256 in a dictionary. The time of that look-up can depend on
the digest, and so tells a client at most something about the digest of the secret that it presented itself. To come
closer to a stored digest step by step, the client would have to choose digests, that is to invert SHA-256; and a stored
digest leads to no secret.

No error quotes a line, or even its name: an operator who mixes up the order puts the secret there.
"""

import asyncio
import hashlib
import logging
import re
import secrets
import stat
import string
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from recon.errors import Misconfigured
from recon.quantities import quantity
from recon.settings import Settings

log = logging.getLogger(__name__)

SCOPES = ("identify", "read", "steward", "erase", "admin")
_IMPLIED = {"steward": {"read"}, "admin": set(SCOPES)}  # what a scope includes besides itself

PREFIX = "recon_"  # scanners for leaked secrets recognize it
_ALPHABET = string.ascii_letters + string.digits  # a double click selects the whole key
_RANDOM = 43  # characters of it: 256 bits

_SHORTEST = 32  # characters of a secret: 128 random bits as hexadecimal digits
_FEWEST_STEPS = 12  # distinct differences between neighbouring characters; random secrets of that length have about 20
_SECRET = re.compile(r"[A-Za-z0-9._~+/=-]+")  # characters of a Bearer token (RFC 6750)
_PLACEHOLDER = re.compile(r"change.?me|secret|passw|example|api.?key", re.IGNORECASE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # nothing that could forge a log line
_HASH = re.compile(r"sha256:([0-9a-f]{64})")

CHECK_EVERY = 0.5  # seconds between checks of the file; a change is in force after two or three


class Key(NamedTuple):
    """A holder of a key, and the scopes that the key allows."""

    name: str
    scopes: frozenset[str]


class Keys:
    """The keys of a variable and of a file, which is reloaded when it changes.

    A file without a key is valid, so that emptying it revokes every key that it had. Raises Misconfigured for an
    invalid or missing file, and for a variable that is invalid or has no key.
    """

    def __init__(self, variable: str | None, file: Path | None) -> None:
        self._variable, self._file = variable, file
        self._loaded = self._seen = self._version()
        self._by_digest = self._read()

    def holder(self, secret: str) -> Key | None:
        """Return the holder of this secret, or None if it is no key."""
        return self._by_digest.get(hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest())

    async def follow(self) -> None:
        """Reload the key file whenever it changes, for ever."""
        while self._file:
            await asyncio.sleep(CHECK_EVERY)
            self.reload_if_changed()

    def reload_if_changed(self) -> None:
        """Reload the file if it has changed. An invalid or missing file is logged, and the current keys stay in force.

        A change counts once two checks in a row saw it, because most programs empty a file before they write to it.
        """
        before, self._seen = self._seen, self._version()
        if self._seen == self._loaded or self._seen != before:
            return
        self._loaded = self._seen
        try:
            self._by_digest = self._read()
        except Misconfigured as error:
            log.error("the current API keys stay in force: %s", error)  # noqa: TRY400 (an operator's mistake: no traceback)
        else:
            log.info("%s was reloaded: %s", self._file, quantity(len(self._by_digest), "API key"))

    def _read(self) -> dict[bytes, Key]:
        found = []
        if self._variable is not None:
            found += _parsed("RECON_API_KEYS: entry", _entries(self._variable), secrets_too=True)
        if self._file is not None:
            found += file_entries(self._file)
        by_digest = _indexed(found)
        if not by_digest and self._file is None:
            raise Misconfigured("RECON_API_KEYS has no API key")
        if not by_digest:
            log.warning("%s has no API key: every request that needs one gets a 401", self._file)
        return by_digest

    def _version(self) -> tuple[int, ...] | None:
        """A fingerprint of the file, or None if there is none.

        ctime is among it because an edit in place can keep the size and the modification time.
        """
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def keys_of(settings: Settings) -> Keys | None:
    """The settings' keys, or None if no keys are configured."""
    if settings.api_keys is None and settings.api_keys_file is None:
        return None
    return Keys(settings.api_keys.get_secret_value() if settings.api_keys else None, settings.api_keys_file)


async def wait_until_valid(settings: Settings) -> None:
    """Return once the settings' keys are valid.

    A process that starts while the file is invalid does not have the old keys; processes that still serve do.
    """
    waiting = False
    while True:
        try:
            keys_of(settings)
        except Misconfigured as error:
            if not waiting:
                log.error("waiting for valid API keys: %s", error)  # noqa: TRY400 (an operator's mistake: no traceback)
            waiting = True
            await asyncio.sleep(CHECK_EVERY)
        else:
            return


def new_key(name: str, scopes: Iterable[str]) -> tuple[str, str]:
    """Create a secret, and its line for the key file, which has only its hash."""
    secret = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM))
    line = f"{name}:{'+'.join(dict.fromkeys(scopes))}:sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    try:
        _key(line, secrets_too=False)
    except ValueError as error:
        raise Misconfigured(f"the key {error}") from None
    return secret, line


def append(file: Path, line: str) -> None:
    """Append a line to the key file. A new file is readable by its owner only."""
    file.touch(mode=0o600, exist_ok=True)
    existing = file_entries(file)
    _indexed([*existing, ("the new key", *_key(line, secrets_too=False))])
    text = file.read_text("utf-8")
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{'' if not text or text.endswith(chr(10)) else chr(10)}{line}\n")


Found = tuple[str, Key, bytes]  # place in the source, holder, digest of the secret


def file_entries(path: Path) -> list[Found]:
    """Parse a key file: lines of hashed keys, blank lines and comments."""
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            log.warning("users other than its owner can write to %s, and so add keys", path)
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise Misconfigured(f"{path}: the API keys cannot be read: {why}") from None
    entries = ((number, line.partition("#")[0].strip()) for number, line in enumerate(lines, 1))
    return _parsed(f"{path}: line", ((number, line) for number, line in entries if line), secrets_too=False)


def _indexed(found: Iterable[Found]) -> dict[bytes, Key]:
    by_digest: dict[bytes, Key] = {}
    names: set[str] = set()
    for where, key, digest in found:
        if key.name in names:
            raise Misconfigured(f"{where} has a name that another key has")
        if digest in by_digest:
            raise Misconfigured(f"{where} has a secret that another key has")
        names.add(key.name)
        by_digest[digest] = key
    return by_digest


def _entries(variable: str) -> Iterator[tuple[int, str]]:
    return enumerate((entry for entry in re.split(r"[\s,]+", variable) if entry), 1)


def _parsed(where: str, entries: Iterable[tuple[int, str]], *, secrets_too: bool) -> list[Found]:
    found = []
    for number, entry in entries:
        try:
            key, digest = _key(entry, secrets_too=secrets_too)
        except ValueError as error:
            raise Misconfigured(f"{where} {number} {error}") from None
        found.append((f"{where} {number}", key, digest))
    return found


def _key(entry: str, *, secrets_too: bool) -> tuple[Key, bytes]:
    """Parse a line into its holder and the digest of its secret. Raises ValueError, which quotes nothing."""
    parts = entry.split(":", 2)
    if len(parts) != 3:  # noqa: PLR2004 (name, scopes, secret)
        raise ValueError("is not of the form name:scope:secret")
    name, scopes, secret = parts
    if not _NAME.fullmatch(name) or name.startswith(PREFIX):
        raise ValueError("has a name that is not 1 to 64 letters, digits, dots, dashes and underscores")
    if not set(scopes.split("+")) <= set(SCOPES):
        raise ValueError(f"has a scope other than {', '.join(SCOPES)}")
    given = scopes.split("+")
    known = frozenset(given).union(*(_IMPLIED.get(scope, set()) for scope in given))
    if hashed := _HASH.fullmatch(secret):
        return Key(name, known), bytes.fromhex(hashed[1])
    if not secrets_too:
        raise ValueError("has no sha256:… of 64 small hexadecimal digits; `recon key` writes such lines")
    _require_random(secret)
    return Key(name, known), hashlib.sha256(secret.encode()).digest()


def _require_random(secret: str) -> None:
    """Raise ValueError if the secret is short or guessable."""
    steps = {ord(after) - ord(before) for before, after in pairwise(secret)}
    if not _SECRET.fullmatch(secret):
        raise ValueError("has a secret with characters that a Bearer token cannot have")
    if len(secret) < _SHORTEST:
        raise ValueError(f"has a secret of less than {_SHORTEST} characters; `recon key` creates one")
    if len(steps) < _FEWEST_STEPS or _PLACEHOLDER.search(secret):
        raise ValueError("has a guessable secret; `recon key` creates a random one")
