"""Digests of suppressed identifiers: they tell whether a request has one, and tell nobody which it is."""

import hashlib
import hmac
from typing import NamedTuple

# What a digest is called in the table `blocked`, by the kind of the identifier that it stands for.
DIGEST_OF = {"email": "emailDigest", "phoneNumber": "phoneNumberDigest"}
CHECK = "digestCheck"  # what the one is called that `check_of` gives
_NOTHING = ("", "")  # no identifier


class Digested(NamedTuple):
    """A digest, and what it stands for: one of DIGEST_OF, or CHECK."""

    kind: str
    key: str


def digest(key: bytes, value: tuple[str, str]) -> str:
    """The HMAC-SHA-256 under a key of an identifier, given as its kind and match key, in hexadecimal digits.

    Without the key, trying out all phone numbers would find those that a plain hash stands for.
    """
    return hmac.new(key, "\0".join(value).encode(), hashlib.sha256).hexdigest()


def check_of(key: bytes) -> str:
    """The digest that is stored beside the others, and tells whether a process has the key that made them."""
    return digest(key, _NOTHING)
