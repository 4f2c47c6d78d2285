"""Normal forms and keys."""

import asyncpg
import pytest

from recon.identifiers import (
    MAX_EMAIL,
    MAX_PHONE,
    check_email_syntax,
    check_phone_syntax,
    normal_email,
    normal_phone,
    plain_key,
    regional_key,
)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("doc@hillvalley.edu", "doc@hillvalley.edu"),
        ("  Doc@HillValley.EDU\n", "doc@hillvalley.edu"),
        ("\u00a0doc@hillvalley.edu\u3000", "doc@hillvalley.edu"),
        ("not an email at all", "not an email at all"),
        ("ÄÖÜ@EXAMPLE.ORG", "äöü@example.org"),
        ("", None),
        (" \t\r\n", None),
    ],
)
def test_an_email_is_trimmed_and_lower_cased(sent: str, stored: str | None) -> None:
    """An email is stored trimmed and in lower case; blank means absent."""
    assert normal_email(sent) == stored


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("  9999  ", "9999"),
        ("555-0100", "555-0100"),
        (123456, "123456"),
        (0, "0"),
        ("0987", "0987"),
        ("Invalid-Phone", "Invalid-Phone"),
        ("", None),
        ("   ", None),
    ],
)
def test_a_phone_is_stored_as_sent(sent: str | int, stored: str | None) -> None:
    """A phone is trimmed and otherwise stored as it was sent; an integer is its digits."""
    assert normal_phone(sent) == stored


@pytest.mark.parametrize("bad", ["\x00", "a\x00b", "a\nb", "\x1f", "a\x7f", "\x85", "\x9f"])
def test_control_characters_are_refused(bad: str) -> None:
    """A control character makes an identifier invalid, and the message does not quote it."""
    for normal in (normal_email, normal_phone):
        with pytest.raises(ValueError, match="^contains control characters$"):
            normal(bad)


def test_lengths_are_bounded() -> None:
    """The longest email has 320 characters and the longest phone 64."""
    assert normal_email("e" * MAX_EMAIL)
    assert normal_phone("1" * MAX_PHONE)
    with pytest.raises(ValueError, match="longer than 320 characters"):
        normal_email("e" * (MAX_EMAIL + 1))
    with pytest.raises(ValueError, match="longer than 64 characters"):
        normal_phone("1" * (MAX_PHONE + 1))
    with pytest.raises(ValueError, match="longer than 320 characters"):
        normal_email("\u0130" * MAX_EMAIL)  # each of these becomes two characters in lower case


KEYS = [
    ("123456", "123456"),
    ("+1 (987) 654-3210", "19876543210"),
    ("1.987.654/3210", "19876543210"),
    ("19876543210", "19876543210"),
    ("555-0100", "5550100"),
    ("0987654321", "0987654321"),
    ("+", "+"),
    ("( )", "( )"),
    ("Invalid-Phone", "invalid-phone"),
    ("12345 ext 6", "12345 ext 6"),
    ("12\u00a034", "12\u00a034"),
    ("\u0661\u0662\u0663", "\u0661\u0662\u0663"),  # digits of another script are no ASCII digits
    ("²", "²"),
]


@pytest.mark.parametrize(("phone", "key"), KEYS)
def test_the_key_of_a_phone_is_its_digits(phone: str, key: str) -> None:
    """Digits and marks are matched by the digits; anything else by itself, in lower case."""
    assert plain_key(phone) == key


async def test_the_database_gives_foreign_rows_the_same_key(database_url: str) -> None:
    """A row that was inserted without a phone_key gets the one that recon matches by."""
    connection = await asyncpg.connect(database_url)
    phones = [phone for phone, _ in KEYS]
    await connection.execute("INSERT INTO contact (phone_number) SELECT unnest($1::text[])", phones)

    rows = await connection.fetch("SELECT phone_number, phone_key FROM contact ORDER BY id")

    await connection.close()
    assert [(row["phone_number"], row["phone_key"]) for row in rows] == KEYS


def test_a_region_reads_numbers_without_country_code() -> None:
    """With a default region a national number and its international form have one key."""
    key = regional_key("US")

    assert key("(201) 555-0123") == key("+1 201 555 0123") == key("12015550123") == "12015550123"
    assert key("+44 20 7946 0958") == "442079460958"
    assert key("123456") == "123456"  # valid nowhere: its digits
    assert key("invalid-phone") == "invalid-phone"


def test_strict_email_syntax() -> None:
    """Strict checking takes addresses that could exist and quotes none that cannot."""
    check_email_syntax("doc@hillvalley.edu")
    with pytest.raises(ValueError, match="^is not a valid email address$"):
        check_email_syntax("doc at hillvalley")


def test_strict_phone_syntax() -> None:
    """Strict checking takes numbers that could be dialled, with the region's help where there is one."""
    check_phone_syntax("+1 201 555 0123", None)
    check_phone_syntax("(201) 555-0123", "US")
    with pytest.raises(ValueError, match="with its country code"):
        check_phone_syntax("(201) 555-0123", None)
    with pytest.raises(ValueError, match="^is not a valid phone number$"):
        check_phone_syntax("123456", "US")
