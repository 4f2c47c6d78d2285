"""The links of an identity, by hand; tests/rules/test_history.py has their properties."""

from dataclasses import replace
from time import process_time

import pytest

from recon.rules.journal import Event, Kind, Record
from recon.rules.links import Identifier, Link, LinkKind, display_forms, links_of, path
from tests.harness.chronicle import contact, entry, time_of
from tests.harness.parts import parts_without

MANY = 10_000


def email(key: str) -> Identifier:
    """An email."""
    return Identifier("email", key)


def phone(key: str) -> Identifier:
    """A phone number."""
    return Identifier("phoneNumber", key)


def link(link_id: int, *joins: Identifier) -> Link:
    """A link between identifiers."""
    return Link(LinkKind.OPERATOR, link_id, joins, time_of(link_id), None)


def names(links: list[Link] | None) -> list[str]:
    """The names of links that there are."""
    assert links is not None
    return [link.name for link in links]


GEORGE_AND_BIFF = [contact(11, "george", "919191"), contact(27, "biffsucks", "717171", 11)]
THEIR_MERGE = entry(28, Kind.MERGED, 11, 27, ("george", "717171"))


def test_a_merge_links_what_its_request_had() -> None:
    """George and Biff: each contact is a link, and so is the request that made them one."""
    links = links_of(GEORGE_AND_BIFF, [THEIR_MERGE])

    assert links == [
        Link(LinkKind.CONTACT, 11, (email("george"), phone("919191")), time_of(11), "shop"),
        Link(LinkKind.CONTACT, 27, (email("biffsucks"), phone("717171")), time_of(27), "shop"),
        Link(LinkKind.MERGE, 28, (email("george"), phone("717171")), time_of(28), "shop"),
    ]
    assert names(path(links, phone("919191"), email("biffsucks"))) == ["contact:11", "event:28", "contact:27"]


def test_a_contact_with_one_identifier_is_no_link() -> None:
    """It joins nothing: what it shares connects by itself."""
    records = [contact(1, "a", None), contact(2, "a", "1", 1), contact(3, None, "1", 1)]

    assert names(links_of(records, [])) == ["contact:2"]


def test_a_chain_of_five_merges() -> None:
    """The path goes through every contact and every merge, each way."""
    records = [contact(1, "a", "1"), *(contact(n, "abcdef"[n - 1], str(n), 1) for n in range(2, 7))]
    merges = [entry(5 + n, Kind.MERGED, 1, n, ("abcdef"[n - 2], str(n))) for n in range(2, 7)]

    links = links_of(records, merges)

    way = [f"contact:{n // 2}" if n % 2 == 0 else f"event:{6 + n // 2}" for n in range(2, 13)]
    assert names(path(links, phone("1"), email("f"))) == way
    assert names(path(links, email("f"), phone("1"))) == way[::-1]


def test_a_hub_joins_any_two_in_two_links() -> None:
    """Emails that came with one phone number are two links apart."""
    links = links_of([contact(1, "a", "1"), *(contact(n, f"e{n}", "1", 1) for n in range(2, 50))], [])

    assert names(path(links, email("e7"), email("e33"))) == ["contact:7", "contact:33"]


@pytest.mark.parametrize(
    "event",
    [
        entry(3, Kind.MERGED, 1, 2, ("edited", "2")),
        entry(3, Kind.MERGED, 1, 2, ("a", "edited")),
        entry(3, Kind.MERGED, 1, 2, (None, "2")),  # erased
        entry(3, Kind.MERGED, 1, 2, ("a", None)),
        entry(3, Kind.MENDED, 1, 2, ("a", "2")),
        replace(entry(3, Kind.MERGED, 1, 2, ("a", "2")), undone_by=4),
    ],
)
def test_what_is_no_evidence_leaves_the_piece_unexplained(event: Event) -> None:
    """A merge counts while the identity has both identifiers and nothing undid it."""
    links = links_of([contact(1, "a", "1"), contact(2, "b", "2", 1)], [event])

    assert names(links) == ["contact:1", "contact:2", "unexplained:2"]


def test_each_piece_has_one_unexplained_link() -> None:
    """It goes from the piece's oldest contact to the identity's oldest, and has no time and no source."""
    records = [
        contact(3, None, "1"),
        contact(4, "b", "2", 3),
        contact(5, "c", "2", 3),
        contact(6, "d", None, 3),
        contact(7, "e", "1", 3),
    ]

    links = links_of(records, [])

    assert names(links) == ["contact:4", "unexplained:4", "contact:5", "unexplained:6", "contact:7"]
    assert links[1] == Link(LinkKind.UNEXPLAINED, 4, (phone("1"), email("b")), None, None)
    assert names(path(links, email("d"), email("c"))) == ["unexplained:6", "unexplained:4", "contact:4", "contact:5"]


def test_an_identity_without_live_contacts_has_no_links() -> None:
    """Nothing is left to explain."""
    assert links_of([], [THEIR_MERGE]) == []


def test_links_are_in_order_of_time_and_then_id() -> None:
    """Ids alone do not say what is older: other programs date rows back."""
    dated_back = replace(contact(9, "c", "1", 2), created_at=time_of(0))
    merge = entry(5, Kind.MERGED, 2, 4, ("a", "2"))

    links = links_of([dated_back, contact(2, "a", "1"), contact(4, "b", "2", 2)], [merge])

    assert time_of(4) == time_of(5)
    assert names(links) == ["contact:9", "contact:2", "contact:4", "event:5"]


def test_a_shortest_path_is_found() -> None:
    """Rows written by other programs make a shortcut."""
    records = [
        contact(1, "a", "1"),
        contact(2, "b", "1", 1),
        contact(3, "b", "2", 1),
        contact(4, "c", "2", 1),
        contact(5, "c", "1", 1),
    ]

    assert names(path(links_of(records, []), email("a"), email("c"))) == ["contact:1", "contact:5"]


def test_among_shortest_paths_the_first_link_decides_and_then_the_next() -> None:
    """From a to d there are three ways of three links: 1-6-7, 2-3-8 and 1-4-5; 2-3-8 has the newer first link."""
    a, b, c, d, p, q, r, s = (email(key) for key in "abcdpqrs")
    links = [
        link(1, a, p),
        link(2, a, q),
        link(3, q, r),
        link(4, p, s),
        link(5, s, d),
        link(6, p, b),
        link(7, b, d),
        link(8, r, d),
        link(9, c, d),
    ]

    assert names(path(links, a, d)) == ["event:1", "event:4", "event:5"]
    assert names(path(links, d, a)) == ["event:5", "event:4", "event:1"]
    assert names(path(links[1:], a, d)) == ["event:2", "event:3", "event:8"]


def test_a_link_joins_all_its_members() -> None:
    """A link of three identifiers is one step between any two of them, and its cut parts all three."""
    records = [contact(1, "a", None), contact(2, "b", None, 1), contact(3, "c", "3", 1)]
    links = [link(4, email("a"), email("b"), email("c")), link(3, email("c"), phone("3"))]

    assert names(path(links, email("a"), phone("3"))) == ["event:4", "event:3"]
    assert parts_without(records, links, {"event:4"}) == [{email("a")}, {email("b")}, {email("c"), phone("3")}]


def test_no_path_connects_what_no_link_connects() -> None:
    """None stands for no path, and an identifier is connected to itself by no link."""
    links = [link(1, email("a"), phone("1")), link(2, email("b"), phone("2"))]

    assert path(links, email("a"), phone("2")) is None
    assert path(links, email("a"), email("unknown")) is None
    assert path(links, email("a"), email("a")) == []


def test_an_identity_falls_into_what_still_holds_together() -> None:
    """The part of the oldest contact comes first; without a cut there is one part."""
    links = links_of(GEORGE_AND_BIFF, [THEIR_MERGE])
    george, biff = {email("george"), phone("919191")}, {email("biffsucks"), phone("717171")}

    assert parts_without(GEORGE_AND_BIFF, links, ()) == [george | biff]
    assert parts_without(GEORGE_AND_BIFF, links, {"event:28"}) == [george, biff]
    assert parts_without(GEORGE_AND_BIFF, links, ["contact:11", "event:28"]) == [
        {email("george")},
        {phone("919191")},
        biff,
    ]


def test_a_phone_number_is_shown_as_it_was_first_seen() -> None:
    """Its match key is how it is compared, not how it is shown."""
    first = replace(contact(1, "a", "+1 23"), phone_key="123")

    forms = display_forms([first, contact(2, None, "123", 1), contact(3, "123", None, 1)])

    assert forms == {email("a"): "a", phone("123"): "+1 23", email("123"): "123"}


def large_identities() -> dict[str, tuple[list[Record], list[Event]]]:
    """Identities of many contacts: a hub, a chain, and one merge after another."""
    ids = range(2, MANY + 1)
    return {
        "hub": ([contact(1, "e1", "1"), *(contact(n, f"e{n}", "1", 1) for n in ids)], []),
        "chain": ([contact(1, "e0", "1"), *(contact(n, f"e{n // 2}", str((n + 1) // 2), 1) for n in ids)], []),
        "merges": (
            [contact(1, "e1", "1"), *(contact(n, f"e{n}", str(n), 1) for n in ids)],
            [entry(MANY + n, Kind.MERGED, 1, n, (f"e{n - 1}", str(n))) for n in ids],
        ),
    }


@pytest.mark.parametrize("shape", ["hub", "chain", "merges"])
def test_large_identities_take_time_in_proportion(shape: str) -> None:
    """10,000 contacts take about 0.1 s of CPU; an algorithm that compared all pairs would take a minute."""
    records, events = large_identities()[shape]
    started = process_time()

    links = links_of(records, events)
    assert path(links, email(f"e{MANY}" if shape != "chain" else f"e{MANY // 2}"), phone("1")) is not None
    assert len(parts_without(records, links, {links[MANY // 2].name})) == 2

    assert process_time() - started < 3
