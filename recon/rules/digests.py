"""Digests of suppressed identifiers: they tell whether a request has one, and tell nobody which it is."""

import hashlib
import hmac

from recon.rules.links import Identifier


def digest(key: bytes, identifier: Identifier) -> str:
    """The HMAC-SHA-256 of an identifier under a key, in hexadecimal digits.

    Without the key, trying out all phone numbers would find those that a plain hash stands for.
    """
    return hmac.new(key, f"{identifier.kind}\0{identifier.key}".encode(), hashlib.sha256).hexdigest()
