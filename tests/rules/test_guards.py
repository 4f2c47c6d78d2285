"""The guards: blocked values, keep-apart constraints and limits, in the one place that decides what is united."""

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from recon.rules.clusters import Clusters, Contact
from recon.rules.guards import COMMON, Cause, Guards, Mark, freed_pairs, is_common, marks_of, opposed
from recon.rules.identifiers import Identifiers, normal_email, normal_phone, plain_key
from recon.rules.journal import Kind
from recon.rules.reconcile import Plan, Reason, decide, partly_known

APART_0, APART_1 = [[31, 0, 0]], [[31, 0, 1]]


def row(contact_id: int, email: str | None, phone: str | None, linked_id: int | None = None, **more: Any) -> Contact:
    """A contact of the table; its rank is its id."""
    return Contact(contact_id, contact_id, linked_id, email, phone, phone, **more)


def said(email: str | None = None, phone: str | None = None) -> Identifiers:
    """What a request has."""
    return Identifiers(email, phone, phone)


def outcomes(plan: Plan) -> list[tuple[Reason, list[tuple[str, str, int | None]]]]:
    """Why each request ended as it did, and what was withheld from it."""
    return [
        (decision.reason, [(kind, cause, holder and holder.id) for kind, cause, holder in decision.withheld])
        for decision in plan.decisions
    ]


@pytest.mark.parametrize(
    "text", ["null", "None", " UNDEFINED ", "N/A", "[object Object]", "-", "...", "@", "\N{BALLOT X}"]
)
def test_common_values(text: str) -> None:
    """The texts that programs send for "nothing" identify nobody, as email or as phone number, in any case."""
    email, phone = normal_email(text), normal_phone(text)
    assert email is not None
    assert phone is not None
    assert is_common("email", email)
    assert is_common("phoneNumber", plain_key(phone))


def test_a_value_that_no_request_has() -> None:
    """Another program may have stored an empty text."""
    assert is_common("email", "")
    assert is_common("phoneNumber", "")


def test_the_list_is_in_the_form_that_is_matched() -> None:
    """Each text of the list is its own match key, both as an email and as a phone number."""
    assert all(normal_email(text) == text == plain_key(str(normal_phone(text))) for text in COMMON)


@pytest.mark.parametrize("phone", ["000000", "0000000000", "+00 00-00"])
def test_phone_numbers_of_zeros(phone: str) -> None:
    """Six or more zeros and nothing else are no phone number."""
    assert is_common("phoneNumber", plain_key(phone))


OTHERS: list[tuple[Any, str]] = [("phoneNumber", key) for key in ("00000", "0000001", "1", "x")]
OTHERS += [("email", key) for key in ("000000", "nullx", "a", "+1", "\N{CJK UNIFIED IDEOGRAPH-6C34}")]


@pytest.mark.parametrize(("kind", "key"), OTHERS)
def test_other_values(kind: Any, key: str) -> None:
    """What has a letter or digit, and is none of the texts, identifies somebody."""
    assert not is_common(kind, key)


def test_a_blocked_value_is_as_if_it_had_not_been_sent() -> None:
    """The rest of the request is linked; a request of which nothing is left is refused, and stores nothing."""
    blocked = {("phoneNumber", "911"), ("email", "null"), ("phoneNumber", "n/a")}
    guards = Guards(blocked=frozenset(blocked))  # type: ignore[arg-type] # literals
    clusters = Clusters([row(1, "a", "1")], guards)

    plan = decide([said("b", "911"), said("null", "1"), said("c", "n/a"), said("null", "911"), said("b")], clusters)

    assert outcomes(plan) == [
        (Reason.CREATED, [("phoneNumber", "blocked", None)]),
        (Reason.KNOWN, [("email", "blocked", None)]),
        (Reason.CREATED, [("phoneNumber", "blocked", None)]),
        (Reason.REFUSED, [("email", "blocked", None), ("phoneNumber", "blocked", None)]),
        (Reason.KNOWN, []),
    ]
    assert [(contact.email, contact.phone_key) for contact, _ in plan.inserts] == [("b", None), ("c", None)]
    assert plan.events == []  # blocked values are not reviewed


def test_a_refused_request_has_no_identity() -> None:
    """The others of its batch have theirs."""
    plan = decide(
        [said("null"), said("a")], Clusters([row(1, "a", "1")], Guards(blocked=frozenset({("email", "null")})))
    )

    refused, known = plan.identities()
    assert refused is None
    assert known is not None
    assert known.primary_id == 1


def test_without_guards_nothing_is_withheld() -> None:
    """A migrated database has the guards off: any text is a value like others."""
    plan = decide([said("null", "000000"), said("-", "000000")], Clusters())
    assert outcomes(plan) == [(Reason.CREATED, []), (Reason.EXTENDED, [])]


def test_a_link_between_identities_that_are_kept_apart_is_withheld() -> None:
    """The request is handled as if only its email had been given; one event is for review, however often it comes."""
    clusters = Clusters([row(1, "a", "1", apart=APART_0), row(2, "b", "2", apart=APART_1)])

    plan = decide([said("a", "2"), said("a", "2"), said("b", "1"), said("b", "2")], clusters)

    withheld = [[("phoneNumber", "kept-apart", holder)] for holder in (2, 2, 1)]
    assert outcomes(plan) == [*((Reason.KNOWN, each) for each in withheld), (Reason.KNOWN, [])]
    assert [(e.place, e.kind, e.email, e.phone_key, e.primary.id, e.detail) for e in plan.events] == [
        (1, Kind.WITHHELD, "a", "2", 1, {"reason": "kept-apart"}),
        (2, Kind.WITHHELD, "b", "1", 2, {"reason": "kept-apart"}),
    ]
    assert plan.relinks == plan.inserts == []


def test_marks_survive_merges_and_pass_on_to_new_contacts() -> None:
    """A third identity that merges with one side is on that side; a new contact has the marks of what it matched."""
    rows = [row(1, "a", "1", apart=APART_0), row(2, "b", "2", apart=APART_1), row(3, "c", "3")]

    plan = decide([said("c", "1"), said("c", "2"), said("new", "1"), said("other", "3")], Clusters(rows))

    assert [decision.reason for decision in plan.decisions] == [
        Reason.MERGED, Reason.KNOWN, Reason.EXTENDED, Reason.EXTENDED
    ]  # fmt: skip
    assert [contact.apart for contact, _ in plan.inserts] == [APART_0, None]


def test_sides_that_are_the_same_or_of_other_constraints_are_not_opposed() -> None:
    """Two identities are kept apart only by different sides of one constraint."""
    one = {Mark(31, 0, 0), Mark(40, 1, 0)}
    assert opposed(one, marks_of([[31, 0, 1]])) == {31}
    assert opposed(one, marks_of([[31, 0, 0], [31, 1, 1], [40, 0, 1], [41, 1, 1]])) == set()
    assert opposed(one, marks_of(None)) == set()
    assert opposed(one, {Mark(31, 0, 1), Mark(40, 1, 2)}) == {31, 40}


def test_the_limit_of_phone_numbers() -> None:
    """The email's identity has the most phone numbers: the request is answered as known, and its phone not stored."""
    rows = [row(1, "a", "1"), row(2, "a", "2", 1)]

    plan = decide([said("a", "3"), said("a", "2"), said("b", "2")], Clusters(rows, Guards(max_phones=2)))

    assert outcomes(plan) == [
        (Reason.KNOWN, [("phoneNumber", "limit", None)]), (Reason.KNOWN, []), (Reason.EXTENDED, [])
    ]  # fmt: skip
    assert [(event.kind, event.detail) for event in plan.events] == [(Kind.WITHHELD, {"reason": "limit"})]


def test_the_limit_of_emails() -> None:
    """The phone's identity has the most emails: a new identity with the email alone."""
    rows = [row(1, "a", "1"), row(2, "b", "1", 1)]

    plan = decide([said("c", "1"), said("c", "1")], Clusters(rows, Guards(max_emails=2)))

    assert outcomes(plan) == [
        (Reason.CREATED, [("phoneNumber", "limit", 1)]), (Reason.KNOWN, [("phoneNumber", "limit", 1)])
    ]  # fmt: skip
    assert [(event.place, event.primary, event.other) for event in plan.events] == [
        (2, plan.inserts[0][0], rows[0])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "merges"), [({"max_emails": 2}, False), ({"max_emails": 3}, True), ({"max_phones": 1}, False), ({}, True)]
)
def test_the_limits_of_a_merge(limit: dict[str, int], *, merges: bool) -> None:
    """A merge adds what the side with more of a kind lacks."""
    rows = [row(1, "a", "1"), row(2, "b", None, 1), row(3, "c", "3")]
    plan = decide([said("b", "3")], Clusters(rows, Guards(**limit)))
    assert [decision.reason for decision in plan.decisions] == [Reason.MERGED if merges else Reason.KNOWN]


def test_an_identity_over_the_limit_that_does_not_grow() -> None:
    """Nothing is withheld from it: it keeps what it has, and may grow in the other kind, and merge with one without."""
    rows = [row(1, "a", None), row(2, "b", "1", 1), row(3, "c", "1", 1), row(4, None, "4")]
    guards = Guards(max_emails=2, max_phones=3)

    plan = decide([said("a", "9"), said("c", "4"), said("b", "1"), said("d", "1")], Clusters(rows, guards))

    assert [decision.reason for decision in plan.decisions] == [
        Reason.EXTENDED, Reason.MERGED, Reason.KNOWN, Reason.CREATED
    ]  # fmt: skip


def test_a_recorded_link_is_not_recorded_again() -> None:
    """Its event is dropped, and those behind it move up, so that ids are drawn without gaps."""
    rows = [row(1, "a", "1", apart=APART_0), row(2, "b", "2", apart=APART_1), row(3, "c", "3")]
    plan = decide([said("new"), said("a", "2"), said("c", "1"), said("b", "1")], Clusters(rows))
    assert [event.place for event in plan.events] == [2, 3, 4]
    assert plan.pairs() == [("a", "2"), ("b", "1")]

    plan.drop_recorded({("a", "2")})

    assert [(event.place, event.kind) for event in plan.events] == [(2, Kind.MERGED), (3, Kind.WITHHELD)]


def test_rows_of_other_programs_that_share_a_blocked_value() -> None:
    """Every contact that has it loses it; one that has nothing else is deleted, and the next oldest is primary."""
    rows = [row(1, None, "911"), row(2, "a", "911", 1), row(3, "b", "911"), row(4, "c", None)]
    clusters = Clusters(rows, Guards(blocked=frozenset({("phoneNumber", "911")})))

    plan = decide([said("a"), said("b")], clusters)

    assert [(loss.cause, [loser.id for loser in loss.losers], loss.kept) for loss in plan.losses] == [
        (Cause.BLOCKED, [1, 2], [1]),
        (Cause.BLOCKED, [3], []),
    ]
    assert plan.relinks == [(1, 2)]
    details = [(event.kind, event.detail) for event in plan.events if event.kind is Kind.WITHHELD]
    assert details == [
        (Kind.WITHHELD, {"reason": "blocked", "moved": [[2, "phoneNumber", None, "911"]], "deleted": [1]}),
        (Kind.WITHHELD, {"reason": "blocked", "moved": [[3, "phoneNumber", None, "911"]], "deleted": []}),
    ]
    assert [(identity.primary_id, identity.phone_numbers) for identity in filter(None, plan.identities())] == [
        (2, []), (3, [])
    ]  # fmt: skip


def test_a_blocked_value_that_is_shared_after_a_repair() -> None:
    """The contacts of an absorbed identity lose it as part of the other one; who does not have it loses nothing."""
    rows = [row(1, "a", "911"), row(2, "a", "2"), row(3, "c", "3"), row(4, "d", "911")]

    clusters = Clusters(rows, Guards(blocked=frozenset({("phoneNumber", "911")})))

    assert [(loss.cluster.root, [loser.id for loser in loss.losers]) for loss in clusters.losses] == [
        (1, [1]),
        (4, [4]),
    ]
    assert [(cluster.root, cluster.absorbed_by and cluster.absorbed_by.root) for cluster in clusters.all] == [
        (1, None), (2, 1), (3, None), (4, None)
    ]  # fmt: skip


def test_a_blocked_email_that_is_shared() -> None:
    """Contacts keep the rest of what they have."""
    rows = [row(1, "noreply", "1"), row(2, "noreply", "2")]

    clusters = Clusters(rows, Guards(blocked=frozenset({("email", "noreply")})))

    assert [(loss.kind, loss.key, [loser.id for loser in loss.losers]) for loss in clusters.losses] == [
        ("email", "noreply", [1]), ("email", "noreply", [2])
    ]  # fmt: skip
    assert [(contact.email, contact.phone_key) for contact in rows] == [(None, "1"), (None, "2")]


def test_rows_of_other_programs_that_are_kept_apart_share_an_identifier() -> None:
    """The younger contact loses it, whichever of the identities is older."""
    rows = [
        row(1, "a", None, apart=APART_0),
        row(2, "b", "2", apart=APART_1),
        row(3, None, "2", 1, apart=APART_0),
        row(4, "x", "2", 1, apart=APART_0),
    ]
    plan = decide([said("a"), said("b", "2")], Clusters(rows))

    assert [(loss.cause, [loser.id for loser in loss.losers], loss.kept) for loss in plan.losses] == [
        (Cause.KEPT_APART, [3, 4], [3])
    ]
    [event] = plan.events
    assert isinstance(event.other, Contact)
    assert (event.primary.id, event.other.id, event.phone_key) == (1, 2, "2")
    assert outcomes(plan) == [(Reason.KNOWN, []), (Reason.KNOWN, [])]


def test_a_verdict_leaves_the_clusters_as_they_are() -> None:
    """The read pass asks for verdicts of requests that the write pass then decides."""
    rows = [row(1, "a", "1", apart=APART_0), row(2, "b", "2", apart=APART_1), row(3, "c", "3")]
    clusters = Clusters([replace(each) for each in rows])

    known = [partly_known(request, clusters) for request in (said("a", "2"), said("a", "3"), said("b", "1"), said("d"))]

    assert [(cluster and cluster.root, len(withheld)) for cluster, withheld in known] == [
        (1, 1),
        (None, 0),
        (2, 1),
        (None, 0),
    ]
    assert [list(cluster.contacts) for cluster in clusters.all] == [[each] for each in rows]


def test_pairs_that_a_release_frees() -> None:
    """A pair is free if no other event keeps it apart; both sides of one event in one identity do no harm."""
    rng = random.Random(7)  # noqa: S311 -- no secret
    for _ in range(200):
        marks = {
            each: {Mark(rng.randrange(3), rng.randrange(2), rng.randrange(3)) for _ in range(rng.randrange(4))}
            for each in range(6)
        }
        events = rng.sample(range(3), rng.randrange(1, 3))

        expected = [
            (one, other)
            for one, other in itertools.combinations(marks, 2)
            if (apart := opposed(marks[one], marks[other])) & set(events) and apart <= set(events)
        ]
        assert freed_pairs(marks, events) == expected
