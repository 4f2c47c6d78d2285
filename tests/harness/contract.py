"""Hooks and checks for schemathesis, which loads this module before it tests `/openapi.json`."""

import unicodedata
from typing import Any, Literal

import schemathesis

from recon.rules.identifiers import MAX_EMAIL, MAX_PHONE, normal_email, normal_phone, plain_key


@schemathesis.hook
def filter_body(_: schemathesis.HookContext, body: Any) -> bool:
    """Filter out invalid bodies that a JSON Schema cannot forbid.

    - Whole numbers that are written as fractions. In JSON Schema, 1.0 is an integer. recon refuses such a phone number
      or contact id, because the client had it in a float and perhaps rounded it.
    - Identifiers that are short enough as sent, but not in their canonical form.
    """
    ends = [body.get("from"), body.get("to")] if isinstance(body, dict) else []
    return all(_is_as_the_schema_says(part) for part in (body, *ends) if isinstance(part, dict))


def _is_as_the_schema_says(said: dict[str, Any]) -> bool:
    email, phone, contact_id = said.get("email"), said.get("phoneNumber"), said.get("contactId")
    is_fraction = isinstance(phone, float) or isinstance(contact_id, float)
    return not (is_fraction or _grows("NFC", email, MAX_EMAIL) or _grows("NFKC", phone, MAX_PHONE))


def _grows(form: Literal["NFC", "NFKC"], value: object, limit: int) -> bool:
    return isinstance(value, str) and len(value) <= limit < len(unicodedata.normalize(form, value).lower())


@schemathesis.check
def the_answer_has_the_identifiers(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """An identity contains the identifiers of the request, and each contact once."""
    if case.path != "/identify" or response.status_code != 200:
        return
    body, contact = case.body, response.json()["contact"]
    email, phone = normal_email(body.get("email") or ""), body.get("phoneNumber")
    phone = None if phone is None else normal_phone(phone)

    assert email is None or email in contact["emails"]
    assert phone is None or plain_key(phone) in map(plain_key, contact["phoneNumbers"])
    ids = [contact["primaryContactId"], *contact["secondaryContactIds"]]
    assert len(ids) == len(set(ids))
    assert contact["primaryContatctId"] == ids[0]
