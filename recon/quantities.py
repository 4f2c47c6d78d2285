"""Numbers with their nouns, as messages show them."""


def quantity(number: int, noun: str, plural: str | None = None) -> str:
    """The number and its noun: "1 contact", "2 contacts"; `plural` is for a noun that takes no s."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
