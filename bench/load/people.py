"""The customers: each number of a space is a person with an email and a phone number.

`identify.lua` computes the same for the load, and pgbench's function in `rawdb` for the raw database.
Successive numbers have identifiers that are far apart in the indexes, as those of real customers are.
No two numbers have the same identifiers.
"""

# The cubes modulo a prime that is 2 modulo 3 are all different, and nearly random in order. Below
# 2^26.5, so that Lua's doubles hold each product exactly.
PRIME = 29_999_999
EMAIL_START, PHONE_START = 7_000_000, 19_000_000  # so that a person's email and phone are unrelated

# The spaces of the numbers, two digits each. Two sources of load never share one.
SEEDED = "00"  # stored before the series
WARM_UP, MEASURED = "1", "2"  # followed by 0: people; followed by 1: new identifiers of known people
PROBE = "30"
RAW_SEEDED, RAW_WARM_UP, RAW_MEASURED = "40", "41", "42"


def scattered(number: int, start: int) -> int:
    """Map each number below PRIME to a different one of up to eight digits."""
    value = (number + start) % PRIME
    return value * value % PRIME * value % PRIME


def email(space: str, number: int) -> str:
    """The email of a person."""
    return f"c{scattered(number, EMAIL_START):08d}-{space}@shop.example"


def phone(space: str, number: int) -> str:
    """The phone number of a person, as sent."""
    return f"+1{scattered(number, PHONE_START):08d}{space}"
