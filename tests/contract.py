"""What schemathesis does not know of recon; it reads this module before it tries `/openapi.json`."""

from typing import Any

import schemathesis

from recon.identifiers import normal_email, normal_phone, plain_key


@schemathesis.hook
def filter_body(_: schemathesis.HookContext, body: Any) -> bool:
    """Leave out whole numbers that are written as fractions.

    To JSON Schema 1.0 is an integer, and no schema can say otherwise; recon refuses such a phone number, because what
    writes it so has already had it in a float, and perhaps rounded it.
    """
    return not (isinstance(body, dict) and isinstance(body.get("phoneNumber"), float))


@schemathesis.check
def the_answer_has_what_was_said(
    _: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> None:
    """An identity holds the identifiers that it was asked for by, and each contact once."""
    if case.path != "/identify" or response.status_code != 200:
        return
    said, contact = case.body, response.json()["contact"]
    email, phone = normal_email(said.get("email") or ""), said.get("phoneNumber")
    phone = None if phone is None else normal_phone(phone)

    assert email is None or email in contact["emails"]
    assert phone is None or plain_key(phone) in map(plain_key, contact["phoneNumbers"])
    ids = [contact["primaryContactId"], *contact["secondaryContactIds"]]
    assert len(ids) == len(set(ids))
    assert contact["primaryContatctId"] == ids[0]
