"""Who the customers are: each number of a space is a person with an email and a phone.

`identify.lua` says the same for the load, and pgbench's function in `rawdb` for the raw database.
Numbers that follow one another land far apart in the indexes, as the identifiers of real customers
do, and no two on the same spot.
"""

# The cubes modulo a prime that is 2 modulo 3 are all different, and in no order to speak of. Below
# 2^26.5, so that Lua's doubles hold each product exactly.
PRIME = 29_999_999
EMAIL_START, PHONE_START = 7_000_000, 19_000_000  # so that a person's email and phone are unrelated

# The spaces that numbers are taken from, two digits each, so that no two sources ever say the same.
SEEDED = "00"  # there before the series
WARM_UP, MEASURED = "1", "2"  # with 0 behind it people, with 1 behind it new identifiers of known people
PROBE = "30"
RAW_SEEDED, RAW_WARM_UP, RAW_MEASURED = "40", "41", "42"


def scattered(number: int, start: int) -> int:
    """One of eight digits for each number below PRIME."""
    value = (number + start) % PRIME
    return value * value % PRIME * value % PRIME


def email(space: str, number: int) -> str:
    """The email of a person."""
    return f"c{scattered(number, EMAIL_START):08d}-{space}@shop.example"


def phone(space: str, number: int) -> str:
    """The phone of a person, as they write it."""
    return f"+1{scattered(number, PHONE_START):08d}{space}"
