"""Normal forms and keys."""

import sys
import unicodedata
from collections.abc import Callable

import asyncpg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from recon.database.schema import SCHEMA
from recon.rules.identifiers import (
    MAX_EMAIL,
    MAX_PHONE,
    check_email_syntax,
    check_phone_syntax,
    e164_digits,
    normal_email,
    normal_phone,
    plain_key,
    regional_key,
)
from recon.sql.invariants import check
from tests.harness.databases import at_database, execute, fetch
from tests.harness.processes import MakeClient, recon


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("doc@hillvalley.edu", "doc@hillvalley.edu"),
        ("  Doc@HillValley.EDU\n", "doc@hillvalley.edu"),
        ("\u00a0doc@hillvalley.edu\u3000", "doc@hillvalley.edu"),
        ("not an email at all", "not an email at all"),
        ("ÄÖÜ@EXAMPLE.ORG", "äöü@example.org"),
        ("Bu\u0308ro@example.org", "büro@example.org"),
        ("\u212a@example.org", "k@example.org"),  # the Kelvin sign is a K to NFC
        ("\u0130@example.org", "i\u0307@example.org"),
        ("H\u0331", "\u1e96"),  # only the small h has a composed form with this mark
        ("\uff41@example.org", "\uff41@example.org"),  # a full-width letter is another letter to NFC
        ("\ufeffdoc@hillvalley.edu", "\ufeffdoc@hillvalley.edu"),  # no space: part of the email
        ("a\u200b", "a\u200b"),
        ("", None),
        (" \t\r\n", None),
        ("\u2000\u2028\u1680", None),
    ],
)
def test_an_email_is_trimmed_composed_and_lower_cased(sent: str, stored: str | None) -> None:
    """An email is stored trimmed, in NFC and in lower case; blank means absent."""
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


# Every character that normalization or another case changes, with marks that compose or sort differently behind it,
# and letters before it; besides, text of any characters.
CHANGING = [
    char
    for char in map(chr, range(sys.maxunicode + 1))
    if len({char, char.lower(), char.upper(), *(unicodedata.normalize(form, char) for form in ("NFD", "NFKD"))}) > 1
]
CONTEXTS = ["{}", "a{}b", "Σ{}", "1{}1", "{}\u0301", "{}\u030c", "{}\u0323\u0307", "{}\u0345"]
TEXTS = st.text(max_size=20) | st.text(st.sampled_from([*CHANGING, *"aA1 .-+", "\u0301", "\u0323"]), max_size=20)


def canonical(normal: Callable[[str], str | None], text: str) -> str | None:
    """The canonical form of a text, or None if it is blank or refused."""
    try:
        return normal(text)
    except ValueError:
        return None


def phone_key(phone: str) -> str | None:
    """The match key of a phone as it is sent."""
    stored = canonical(normal_phone, phone)
    return None if stored is None else plain_key(stored)


def expect_canonical(text: str) -> None:
    """The canonical form of `text` is its own, and that of each text that Unicode calls equivalent."""
    email, key = canonical(normal_email, text), phone_key(text)
    if email is not None:
        assert normal_email(email) == email
        assert {canonical(normal_email, unicodedata.normalize(form, text)) for form in ("NFC", "NFD")} <= {email, None}
    if key is not None:
        assert plain_key(key) == key
        assert len(key) <= MAX_PHONE
        forms = (unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD"))
        assert {phone_key(form) for form in forms} <= {key, None}


@pytest.mark.parametrize("context", CONTEXTS)
def test_canonical_forms_of_all_characters(context: str) -> None:
    """Each character that normalization changes has one canonical form, which normalization does not change again."""
    for char in CHANGING:
        expect_canonical(context.format(char))


@given(TEXTS)
@example("H\u0331")
@example("\u03a3\u0345")
@example("\u00a8")  # in NFKC a space and a mark
@example("\ufdfa" * MAX_PHONE)
def test_canonical_forms_of_any_text(text: str) -> None:
    """The same holds for any text."""
    expect_canonical(text)


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
    with pytest.raises(ValueError, match="longer than 320 characters in the Unicode form NFC"):
        normal_email("\u0130" * MAX_EMAIL)  # each of these becomes two characters in lower case
    with pytest.raises(ValueError, match="longer than 320 characters"):
        normal_email("a\u0301" * (MAX_EMAIL - 1))  # as sent, too: the bound comes before the work
    assert normal_phone("\ufdfa" * 3)
    with pytest.raises(ValueError, match="longer than 64 characters in the Unicode form NFKC"):
        normal_phone("\ufdfa" * 4)  # each of these becomes 18 characters in NFKC


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
    ("12345 EXT. 6", "12345 ext. 6"),
    ("12\u00a034", "1234"),
    ("\uff0b\uff11 \uff08\uff12\uff09\uff0d\uff13", "123"),  # full-width marks and digits
    ("\uff11 \uff45\uff58\uff54 \uff12", "1 ext 2"),
    ("\u0661\u0662\u0663", "\u0661\u0662\u0663"),  # digits of another script are no ASCII digits, nor in NFKC
    ("²", "2"),
    ("1\u201034", "1\u201034"),  # a hyphen that is not ASCII is no mark
    ("12\u168034", "12\u168034"),  # nor is a space that is not ASCII in NFKC
    ("1\u200b2", "1\u200b2"),
    ("Bu\u0308ro 5", "büro 5"),
    ("BÜRO 5", "büro 5"),
    ("\u00a8", "\u0308"),
    ("ΟΔΟΣ 5 \u0130", "οδος 5 i\u0307"),
    ("H\u0331", "\u1e96"),
    ("IDI", "idi"),
]


@pytest.mark.parametrize(("phone", "key"), KEYS)
def test_the_key_of_a_phone_is_its_digits(phone: str, key: str) -> None:
    """Digits and marks are matched by the digits; anything else by itself, in lower case."""
    assert plain_key(phone) == key


async def test_the_database_gives_foreign_rows_the_same_key(database_url: str) -> None:
    """A row that was inserted without a phone_key gets the one that recon matches by, even if it is not trimmed."""
    phones = [phone for phone, _ in KEYS] + [" Ext 5\u3000", "\t\u1680 1 2\u2028\r\n", " ", "1\n2"]
    # Characters that are older than any Unicode version that Python or PostgreSQL may have here.
    old = [char for char in CHANGING if unicodedata.ucd_3_2_0.category(char) not in {"Cn", "Cs"}]
    phones += [context.format(char) for char in old for context in CONTEXTS]

    assert await keys_in_database(database_url, phones) == [(phone, plain_key(phone)) for phone in phones]


LOCALES = {"c": "LOCALE_PROVIDER libc LOCALE 'C'", "turkish": "LOCALE_PROVIDER icu ICU_LOCALE 'tr' LOCALE 'C'"}


@pytest.mark.parametrize("locale", LOCALES)
async def test_the_locale_of_the_database_changes_no_key(locale: str, server_url: str, bare_database_url: str) -> None:
    """The key does not depend on the database's rules for lower case."""
    name = f"{bare_database_url.rpartition('/')[2]}_{locale}"
    try:
        await execute(server_url, f"CREATE DATABASE {name} TEMPLATE template0 ENCODING UTF8 {LOCALES[locale]}")
    except asyncpg.FeatureNotSupportedError:
        pytest.skip("this server was built without ICU")
    try:
        url = at_database(server_url, name)
        await execute(url, SCHEMA)
        phones = ["IDI 5", "BÜRO I", "\u0130", "ΟΔΟΣ"]

        assert await keys_in_database(url, phones) == [(phone, plain_key(phone)) for phone in phones]
    finally:
        await execute(server_url, f"DROP DATABASE {name}")


async def test_rows_under_older_match_keys(database_url: str) -> None:
    """`recon rekey` gives such rows the match keys of today."""
    await execute(
        database_url,
        "UPDATE setting SET default_region = 'US'",
        "INSERT INTO contact (email, phone_number, phone_key) VALUES"
        " (normalize('büro@x', NFD), '\uff11\uff12', '\uff11'),"
        " ('a', '201-555-0199 ext. 5', '12015550199'), ('b', '(201) 555-0123', '12015550123'), ('c', NULL, NULL)",
    )
    before, _ = await check(database_url, "US")

    assert recon("rekey", "--yes", "--default-region", "US", "--database-url", database_url).returncode == 0

    after, _ = await check(database_url, "US")
    assert (len(before), after) == (3, [])


async def keys_in_database(url: str, phones: list[str]) -> list[tuple[str, str]]:
    """Rows without a phone_key, as another program inserts them, and the keys that they get."""
    await fetch(url, "INSERT INTO contact (phone_number) SELECT * FROM unnest($1::text[])", phones)
    return [tuple(row) for row in await fetch(url, "SELECT phone_number, phone_key FROM contact ORDER BY id")]


def test_a_region_reads_numbers_without_country_code() -> None:
    """With a default region a national number and its international form have one key."""
    key = regional_key("US")

    assert key("(201) 555-0123") == key("+1 201 555 0123") == key("12015550123") == "12015550123"
    assert key("+44 20 7946 0958") == "442079460958"
    assert key("\uff08201\uff09555\uff0d0123") == "12015550123"  # full-width
    assert key("123456") == "123456"  # valid nowhere: its digits
    assert key("7") == "7"  # the library cannot read it
    assert key("invalid-phone") == "invalid-phone"


def test_the_e164_digits_of_stored_keys() -> None:
    """Older match keys are recognized: the digits that the library reads, valid or not, and past an extension."""
    assert e164_digits("(201) 555-0123", "US") == e164_digits("+1 201-555-0123 ext. 5", "US") == "12015550123"
    assert e164_digits("123456", "US") == "1123456"
    assert e164_digits("Alice", "US") is None


STRANGERS = [
    ("201-555-0199 ext. 5", "201-555-0199 ext. 6"),
    ("Alice 2015550129", "Bob 2015550129"),
    ("order-2015550128", "invoice 2015550128"),
    ("1-800-FLOWERS", "1-800-356-9377"),
    ("201-555-0199;ext=5", "201-555-0199;ext=6"),
    ("201-555-0199 x5", "201-555-0199 / x6"),
    ("201-555-0199#5", "201-555-0199#6"),
    ("201-555-0199,5", "201-555-0199,,6"),
    ("tel:201-555-0199;phone-context=+1", "201-555-0199"),
    ("\u0662\u0660\u0661\u0665\u0665\u0665\u0660\u0661\u0662\u0669", "2015550129"),
    ("2015550129\u200b", "2015550129"),
]


@pytest.mark.parametrize("phones", STRANGERS)
def test_a_region_reads_only_digits_and_marks(phones: tuple[str, str]) -> None:
    """A phone with more than digits and marks keeps a key of its own, also when a region is set."""
    key = regional_key("US")

    assert key(phones[0]) != key(phones[1])
    assert key(phones[0]) == plain_key(phones[0])


SAME = {
    "emails": [{"email": "B\u00dcRO@example.org"}, {"email": " bu\u0308ro@example.org"}],
    "phones": [{"phoneNumber": "\uff0b\uff11 \uff12\uff10\uff11"}, {"phoneNumber": 1201}],
    "regional phones": [{"phoneNumber": "\uff08201\uff09555\u30000123"}, {"phoneNumber": "+1 201 555 0123"}],
}


@pytest.mark.parametrize("requests", SAME.values(), ids=SAME)
async def test_equivalent_identifiers_are_one(requests: list[dict[str, str | int]], make_client: MakeClient) -> None:
    """Two requests whose identifiers differ only in Unicode's form of them are about one contact."""
    client = await make_client(default_region="US")

    answers = [await (await client.post("/identify", json=request)).json() for request in requests]

    assert answers[0] == answers[1]
    assert answers[0]["contact"]["secondaryContactIds"] == []


@pytest.mark.parametrize("phones", STRANGERS)
async def test_strangers_stay_strangers(phones: tuple[str, str], make_client: MakeClient) -> None:
    """Two customers whose phones differ beyond digits and marks stay two with a default region."""
    client = await make_client(default_region="US")

    ids = [
        (await (await client.post("/identify", json={"phoneNumber": phone})).json())["contact"]["primaryContactId"]
        for phone in phones
    ]

    assert ids == [1, 2]


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
    check_phone_syntax("\uff0b1 201 555 0123", None)
    for phone in ("123456", "201-555-0199 ext. 5", "Alice 2015550129", "1-800-FLOWERS"):
        with pytest.raises(ValueError, match="^is not a valid phone number$"):
            check_phone_syntax(phone, "US")
