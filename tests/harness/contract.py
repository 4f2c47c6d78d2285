"""Hooks and checks for schemathesis, which loads this module before it tests `/openapi.json`."""

import unicodedata
from collections.abc import Iterator
from typing import Any, Literal

import schemathesis

from recon.rules.identifiers import MAX_EMAIL, MAX_PHONE, normal_email, normal_phone, plain_key


@schemathesis.hook
def filter_body(_: schemathesis.HookContext, body: Any) -> bool:
    """Filter out invalid bodies that a JSON Schema cannot forbid.

    - Whole numbers that are written as fractions. In JSON Schema, 1.0 is an integer. recon refuses such a phone number,
      id or limit, because the client had it in a float and perhaps rounded it.
    - Identifiers that are short enough as sent, but not in their canonical form.
    """
    return all(map(_is_as_the_schema_says, _objects(body)))


def _objects(body: Any) -> Iterator[dict[str, Any]]:
    """A body and all objects in it."""
    if isinstance(body, dict):
        yield body
    if isinstance(body, dict | list):
        for part in body.values() if isinstance(body, dict) else body:
            yield from _objects(part)


def _is_as_the_schema_says(said: dict[str, Any]) -> bool:
    email, phone = said.get("email"), said.get("phoneNumber")
    is_fraction = any(isinstance(value, float) for value in said.values())
    return not (is_fraction or _grows("NFC", email, MAX_EMAIL) or _grows("NFKC", phone, MAX_PHONE))


def _grows(form: Literal["NFC", "NFKC"], value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit < len(unicodedata.normalize(form, value).lower())


@schemathesis.serializer("application/x-ndjson")
def lines(_: schemathesis.SerializationContext, value: Any) -> dict[str, Any]:
    """Send a body of lines as it is. Any text is one: its lines fail alone."""
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


@schemathesis.check
def the_answer_has_the_identifiers(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """An identity contains the identifiers of the request but for those that were withheld, and each contact once."""
    if case.path != "/identify" or response.status_code != 200:
        return
    body, answer = case.body, response.json()
    contact, withheld = answer["contact"], {each["identifier"] for each in answer.get("withheld", ())}
    email = None if "email" in withheld else normal_email(body.get("email") or "")
    phone = None if "phoneNumber" in withheld else body.get("phoneNumber")
    phone = None if phone is None else normal_phone(phone)

    assert email is None or email in contact["emails"]
    assert phone is None or plain_key(phone) in map(plain_key, contact["phoneNumbers"])
    ids = [contact["primaryContactId"], *contact["secondaryContactIds"]]
    assert len(ids) == len(set(ids))
    assert contact["primaryContatctId"] == ids[0]
