"""New match keys for what is stored: which key a phone number gets, and what the detail of an event becomes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from recon.rules.identifiers import normal_phone
from recon.rules.journal import Kind

Key: TypeAlias = Callable[[str], str]
Keys: TypeAlias = Mapping[str, Sequence[str]]  # by an old key, the new keys of the contacts that had it
Stated: TypeAlias = Mapping[str, str]  # an identifier: {"email": key} or {"phoneNumber": key}

_EDITS = (Kind.EDITED, Kind.DELETED)


def new_key(phone: str, key: Key) -> str | None:
    """The match key of a stored phone number; None if no request can have this number.

    `key` derives match keys, as `identifiers.phone_key_for` gives it. Another program may have stored any text.
    """
    try:
        normal = normal_phone(phone)
    except ValueError:
        return None
    return None if normal is None else key(normal)


def old_keys(detail: Mapping[str, Any]) -> set[str]:
    """The match keys of phone numbers that the detail of an event has."""
    stated = [*detail.get("joins", ()), *(member for members in detail.get("links", ()) for member in members)]
    stated += [member for _, member in detail.get("left", ())]
    found = {member["phoneNumber"] for member in stated if "phoneNumber" in member}
    return found if detail.get("phoneKey") is None else {*found, detail["phoneKey"]}


def rekeyed(kind: Kind, detail: Mapping[str, Any], keys: Keys, key: Key) -> dict[str, Any]:
    """The detail of an event with new match keys.

    An old key that contacts with different texts had may have become several keys. Then each member of an operator
    link that has this key becomes several members. A key that no contact had stays.
    """
    after = dict(detail)
    if kind in _EDITS:
        if detail.get("phoneKey") is not None:
            after["phoneKey"] = _key_before_edit(detail, keys, key)
        return after
    if "joins" in detail:
        after["joins"] = _members(detail["joins"], keys)
    if "links" in detail:
        after["links"] = [_members(members, keys) for members in detail["links"]]
    if "left" in detail:
        after["left"] = [[event, member] for event, old in detail["left"] for member in _members([old], keys)]
    return after


def _members(members: Iterable[Stated], keys: Keys) -> list[Stated]:
    after: list[Stated] = []
    for member in members:
        old = member.get("phoneNumber")
        for each in [member] if old is None else [{"phoneNumber": new} for new in keys.get(old) or [old]]:
            if each not in after:
                after.append(each)
    return after


def _key_before_edit(detail: Mapping[str, Any], keys: Keys, key: Key) -> str:
    """The match key that a contact had before another program changed it."""
    old: str = detail["phoneKey"]
    if detail.get("phoneNumber") is not None:
        return new_key(detail["phoneNumber"], key) or old
    # The text was not changed, so it is that of a contact; which one, is only sure if all agree.
    found = keys.get(old) or [old]
    return found[0] if len(found) == 1 else old
