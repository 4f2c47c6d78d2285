"""Why two identifiers are one person, in a sentence."""

from datetime import UTC, datetime, timedelta, timezone

from recon.rules.explanations import difference, explanation, stations
from recon.rules.journal import Event, Kind
from recon.rules.links import Identifier, Link, LinkKind

GEORGE, BIFF = Identifier("email", "george@hillvalley.edu"), Identifier("email", "biffsucks@hillvalley.edu")
HOME, WORK = Identifier("phoneNumber", "919191"), Identifier("phoneNumber", "717171")
FORMS = {GEORGE: GEORGE.key, BIFF: BIFF.key, HOME: "91-91-91", WORK: "717171"}
NOON = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def test_a_path_of_contacts_and_merges() -> None:
    """Each link is the request that made it: when, by which API key, what it gave, and what became of it."""
    links = [
        Link(LinkKind.CONTACT, 11, (GEORGE, HOME), NOON, "shop"),
        Link(LinkKind.MERGE, 31, (BIFF, HOME), NOON.astimezone(timezone(timedelta(hours=5))), None),
    ]

    passed = stations(links, GEORGE, BIFF)
    assert explanation((GEORGE.key, BIFF.key), links, passed, FORMS, {}) == (
        "george@hillvalley.edu and biffsucks@hillvalley.edu are one person: "
        "the request of 2026-11-21 12:00 UTC by shop gave george@hillvalley.edu with 91-91-91 (contact 11); "
        "the request of 2026-11-21 12:00 UTC gave biffsucks@hillvalley.edu with 91-91-91 "
        "(event 31, which made two identities one)."
    )


def test_an_unexplained_link() -> None:
    """What nothing recorded explains is said to be so, and nothing is made up."""
    links = [Link(LinkKind.UNEXPLAINED, 27, (GEORGE, BIFF), None, None)]

    assert explanation(("contact 11", "contact 27"), links, [GEORGE, BIFF], FORMS, {}) == (
        "contact 11 and contact 27 are one person: nothing recorded explains why george@hillvalley.edu and "
        "biffsucks@hillvalley.edu are one person (unexplained:27)."
    )


def test_no_link_is_needed_or_there() -> None:
    """The same identifier needs no link; two people are named by their contacts."""
    assert explanation(("contact 11", GEORGE.key), [], stations([], GEORGE, GEORGE), {}, {}) == (
        "contact 11 and george@hillvalley.edu are one person: they stand for the same identifier."
    )
    assert difference((GEORGE.key, "717171"), (11, 27), [], []) == (
        "No link connects george@hillvalley.edu and 717171: they are two people, contact 11 and contact 27."
    )


def test_what_a_steward_put_together() -> None:
    """Of an operator link with many members, the sentence names the two that the path passes, and the reason."""
    both = Link(LinkKind.OPERATOR, 40, (HOME, WORK, BIFF), NOON, "desk")
    links = [Link(LinkKind.CONTACT, 11, (GEORGE, HOME), NOON, None), both]
    passed = stations(links, GEORGE, WORK)

    said = explanation((GEORGE.key, "717171"), links, passed, FORMS, {40: "same household, asked by phone"})

    assert passed == [GEORGE, HOME, WORK]
    assert said.endswith(
        "(contact 11); a steward (desk) put 91-91-91 and 717171 together on 2026-11-21 12:00 UTC (event 40): "
        "same household, asked by phone."
    )


def test_two_people_who_are_kept_apart() -> None:
    """Who decided it, when and why; and the links between them that guards withheld."""
    kept = Event(40, NOON, Kind.KEPT_APART, 11, 27, None, None, None, "desk", "father and son", None, None)
    held = Event(41, NOON, Kind.WITHHELD, 11, 27, "g@x", "71", "71", None, None, {"reason": "kept-apart"}, None)

    assert difference(("g@x", "71"), (11, 27), [kept], [held]) == (
        "g@x and 71 are two people, contact 11 and contact 27: a steward (desk) keeps them apart since "
        "2026-11-21 12:00 UTC (event 40): father and son; recon withheld a link between g@x and 71 on "
        "2026-11-21 12:00 UTC (event 41: kept-apart)."
    )
