"""API keys: what is taken as one, what is refused, and how a file of them is followed."""

import asyncio
import hashlib
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from recon.errors import Misconfigured
from recon.keys import SCOPES, Keys, new_key
from tests.harness.processes import recon

GOOD = "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MGFi"  # 32 characters that look random


def made(*scopes: str, name: str = "shop") -> tuple[str, str]:
    """A new secret, and its entry for RECON_API_KEYS."""
    secret, _ = new_key(name, scopes or ("identify",))
    return secret, f"{name}:{'+'.join(scopes or ('identify',))}:{secret}"


def bearer(secret: str) -> dict[str, str]:
    """The header that presents a key."""
    return {"Authorization": f"Bearer {secret}"}


def test_a_new_key() -> None:
    """A key is known by its prefix, has 256 random bits, and its line has its hash alone."""
    secret, line = new_key("shop", ["identify", "read"])

    assert re.fullmatch(r"recon_[A-Za-z0-9]{43}", secret)
    assert line == f"shop:identify+read:sha256:{hashlib.sha256(secret.encode()).hexdigest()}"
    assert new_key("shop", ["identify"])[0] != secret


@pytest.mark.parametrize("between", [",", "\n", " ", ", \n"])
def test_several_keys_in_the_variable(between: str) -> None:
    """Keys stand between commas, blanks or line breaks; each is found by its own secret and no other."""
    (first, one), (second, two) = made("identify"), made("read", "identify", name="till")

    keys = Keys(between.join([one, two]), None)

    assert keys.holder(first) == ("shop", {"identify"})
    assert keys.holder(second) == ("till", {"identify", "read"})
    for wrong in ("", first[:-1], first + "x", first.upper(), second[::-1], hashlib.sha256(first.encode()).hexdigest()):
        assert keys.holder(wrong) is None


def test_admin_is_every_scope() -> None:
    """Who has the scope admin may do everything."""
    secret, entry = made("admin")

    holder = Keys(entry, None).holder(secret)

    assert holder == ("shop", set(SCOPES))


@pytest.mark.parametrize(
    ("scope", "known"), [("steward", {"steward", "read"}), ("erase", {"erase"}), ("read", {"read"})]
)
def test_what_a_scope_implies(scope: str, known: set[str]) -> None:
    """A steward may read; erasing is a scope of its own, and implies none."""
    secret, entry = made(scope)

    assert Keys(entry, None).holder(secret) == ("shop", known)


def test_a_hash_in_the_variable() -> None:
    """The variable takes hashed keys too, as a file has them."""
    secret, line = new_key("shop", ["identify"])

    assert Keys(line, None).holder(secret) == ("shop", {"identify"})


FORM = "is not of the form name:scope:secret"
NAME = "has a name that is not 1 to 64 letters, digits, dots, dashes and underscores"
GUESSED = "has a guessable secret; `recon key` creates a random one"
BAD_ENTRIES = {
    "only a secret": (GOOD, FORM),
    "no scope": (f"shop:{GOOD}", FORM),
    "no name": (f":identify:{GOOD}", NAME),
    "a name that breaks lines": (f"shop\x1b:identify:{GOOD}", NAME),
    "a key as its name": (f"recon_{GOOD}:identify:shop", NAME),
    "a long name": (f"{'x' * 65}:identify:{GOOD}", NAME),
    "another scope": (f"shop:write:{GOOD}", "has a scope other than identify, read, steward, erase, admin"),
    "an empty scope": (f"shop::{GOOD}", "has a scope other than identify, read, steward, erase, admin"),
    "short": (f"shop:identify:{GOOD[:31]}", "has a secret of less than 32 characters; `recon key` creates one"),
    "one character": (f"shop:identify:{'a' * 43}", GUESSED),
    "the alphabet": ("shop:identify:abcdefghijklmnopqrstuvwxyz0123456789", GUESSED),
    "a word again and again": ("shop:identify:" + "hunter2" * 6, GUESSED),
    "a placeholder": ("shop:identify:please-change-me-before-you-go-live-2026", GUESSED),
    "signs that no token has": (
        f"shop:identify:{GOOD}ü",
        "has a secret with characters that a Bearer token cannot have",
    ),
}


@pytest.mark.parametrize(("entry", "message"), BAD_ENTRIES.values(), ids=BAD_ENTRIES)
def test_a_bad_key(entry: str, message: str) -> None:
    """What is no key, or one that could be guessed, is refused by a message that says where and quotes nothing."""
    with pytest.raises(Misconfigured) as caught:
        Keys(f"{made(name='first')[1]},{entry}", None)

    assert str(caught.value) == f"RECON_API_KEYS: entry 2 {message}"


def test_a_bad_key_ends_recon() -> None:
    """With a bad key recon does not start; it says why in one line."""
    env = os.environ | {"RECON_API_KEYS": "shop:identify:hunter2"}

    done = recon("serve", "--database-url", "postgresql://127.0.0.1:1/none", env=env)

    assert done.returncode == 1
    assert done.stderr == (
        "recon: RECON_API_KEYS: entry 1 has a secret of less than 32 characters; `recon key` creates one\n"
    )


def test_random_secrets_are_taken() -> None:
    """What is made at random is never taken for guessable: 2,000 secrets of 32 hexadecimal digits."""
    entries = [f"k{n}:identify:{os.urandom(16).hex()}" for n in range(2000)]

    assert Keys(",".join(entries), None).holder(entries[7].split(":")[2])


def test_duplicates() -> None:
    """Two keys of one name or one secret are a mistake."""
    secret, entry = made()

    with pytest.raises(Misconfigured, match="entry 2 has a name that another key has"):
        Keys(f"{entry} {made()[1]}", None)
    with pytest.raises(Misconfigured, match="entry 2 has a secret that another key has"):
        Keys(f"{entry} till:read:{secret}", None)
    with pytest.raises(Misconfigured, match="RECON_API_KEYS has no API key"):
        Keys(" , ", None)


def test_a_file(tmp_path: Path) -> None:
    """A file has a line a key, comments and blank lines; it and the variable hold together."""
    secret, line = new_key("shop", ["read"])
    other, entry = made(name="till")
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\n{line}  # since May\n")

    keys = Keys(entry, file)

    assert keys.holder(secret) == ("shop", {"read"})
    assert keys.holder(other) == ("till", {"identify"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n# x\nshop:read\n", f"line 3 {FORM}"),
        (f"shop:read:{GOOD}\n".encode(), "line 1 has no sha256:… of 64 small hexadecimal digits"),
        (b"shop:read:sha256:" + b"0" * 63, "line 1 has no sha256:… of 64 small hexadecimal digits"),
        (b"shop:read:sha256:%b\nshop:read:sha256:%b" % (b"0" * 64, b"1" * 64), "line 2 has a name that another key"),
        (b"\xff\xfe", "the API keys cannot be read: it is not text in UTF-8"),
        (None, "the API keys cannot be read: No such file or directory"),
    ],
)
def test_a_bad_file(content: bytes | None, message: str, tmp_path: Path) -> None:
    """What is wrong in a file is told by its line; a secret that is not hashed is."""
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(Misconfigured) as caught:
        Keys(None, file)

    assert str(caught.value).startswith(f"{file}: {message}")
    assert GOOD not in str(caught.value)


@pytest.mark.parametrize("content", ["", "# nobody\n\n"])
def test_a_file_without_keys(content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file without a key lets nobody in, and the log says so; a key of the variable is valid in any case."""
    file = tmp_path / "keys"
    file.write_text(content)
    secret, entry = made()

    keys = Keys(None, file)

    assert keys.holder(secret) is None
    assert f"{file} has no API key: every request that needs one gets a 401" in caplog.text
    assert Keys(entry, file).holder(secret) == ("shop", {"identify"})


def test_one_look_up_for_any_number_of_keys() -> None:
    """Finding a key's holder takes the same calls among one key and among a thousand."""
    [secret, *_], entries = zip(*(made(name=f"k{number}") for number in range(1000)), strict=True)

    def calls(keys: Keys) -> list[str]:
        """The functions that are called to find a holder, C's included."""
        seen: list[str] = []

        def note(_: object, event: str, called: object) -> None:
            if event == "c_call":
                seen.append(getattr(called, "__name__", ""))

        sys.setprofile(note)
        keys.holder(secret)
        sys.setprofile(None)
        return seen

    assert calls(Keys(entries[0], None)) == calls(Keys(",".join(entries), None))


def in_place(file: Path, content: str) -> None:
    """Write to the file that is there, and set its modification time back."""
    before = file.stat()
    with file.open("r+") as out:
        out.write(content)
        out.truncate()
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def follows(keys: Keys, secret: str, *, valid: bool) -> None:
    """Return once the secret is valid, or is not any more."""
    async with asyncio.timeout(20):
        while (keys.holder(secret) is not None) is not valid:
            await asyncio.sleep(0.01)


@pytest.fixture
def followed_file(tmp_path: Path) -> tuple[Path, str]:
    """A file with one key, and its secret."""
    file = tmp_path / "keys"
    secret, line = new_key("shop", ["identify"])
    file.write_text(line)
    return file, secret


@pytest.fixture
async def followed(followed_file: tuple[Path, str]) -> AsyncIterator[tuple[Keys, Path, str]]:
    """Keys that follow a file, the file, and the secret of its only key."""
    file, secret = followed_file
    keys = Keys(None, file)
    following = asyncio.create_task(keys.follow())
    yield keys, file, secret
    following.cancel()


async def test_an_edit_that_keeps_size_and_time(followed: tuple[Keys, Path, str]) -> None:
    """An edit in place that keeps the file's inode, size and modification time is noticed."""
    keys, file, old = followed
    new, line = new_key("shop", ["identify"])

    in_place(file, line)

    await follows(keys, new, valid=True)
    assert keys.holder(old) is None


async def test_an_emptied_file_revokes_every_key(
    followed: tuple[Keys, Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Once the file is empty no key is valid; the next key that is appended is."""
    keys, file, old = followed
    new, line = new_key("till", ["identify"])

    in_place(file, "")
    await follows(keys, old, valid=False)
    in_place(file, line)
    await follows(keys, new, valid=True)

    assert f"{file} has no API key: every request that needs one gets a 401" in caplog.text


def test_a_file_that_is_being_written(followed_file: tuple[Path, str]) -> None:
    """A file that is empty only between two looks, because a program is writing it, revokes nothing."""
    file, secret = followed_file
    line = file.read_text()
    keys = Keys(None, file)

    for content in ("", line, "", line):
        in_place(file, content)
        keys.reload_if_changed()

        assert keys.holder(secret) is not None


@pytest.mark.parametrize("mistake", ["missing", "malformed", "a folder", "not text"])
async def test_a_mistake_keeps_the_keys(
    mistake: str, followed: tuple[Keys, Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    """While the file is missing or malformed the keys stay valid, which is logged once; then it is read again."""
    keys, file, old = followed
    new, line = new_key("till", ["identify"])
    if mistake == "malformed":
        in_place(file, "shop:identify:s3cret")
    elif mistake == "not text":
        file.write_bytes(b"\xff\xfe")
    else:
        file.unlink()
    if mistake == "a folder":
        file.mkdir()
    async with asyncio.timeout(20):
        while "the current API keys stay in force" not in caplog.text:
            await asyncio.sleep(0.01)

    assert keys.holder(old) is not None

    if mistake == "a folder":
        file.rmdir()
    file.write_text(line)
    await follows(keys, new, valid=True)
    assert keys.holder(old) is None
    assert caplog.text.count("the current API keys stay in force") == 1
    assert "s3cret" not in caplog.text


def test_a_file_that_others_may_write_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who may write to the file lets whom they like in, so that is told."""
    file = tmp_path / "keys"
    file.write_text(new_key("shop", ["read"])[1])
    file.chmod(0o622)

    Keys(None, file)

    assert f"users other than its owner can write to {file}" in caplog.text


def test_the_command(tmp_path: Path) -> None:
    """`recon key` prints a secret and its line, or appends the line to a file that is its owner's alone."""
    file = tmp_path / "keys"

    printed = recon("key", "--name", "shop", "--scope", "identify", "--scope", "read").stdout.splitlines()
    appended = [recon("key", "--name", name, "--append", str(file)).stdout.strip() for name in ("till", "web")]
    again = recon("key", "--name", "web", "--append", str(file))
    bad = recon("key", "--name", "a shop")

    assert Keys(printed[1], None).holder(printed[0]) == ("shop", {"identify", "read"})
    assert [Keys(None, file).holder(secret) for secret in appended] == [("till", {"identify"}), ("web", {"identify"})]
    assert not any(secret in file.read_text() for secret in appended)
    assert file.stat().st_mode & 0o777 == 0o600
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "recon: the new key has a name that another key has\n"
    assert (bad.returncode, bad.stderr) == (1, f"recon: the key {NAME}\n")
