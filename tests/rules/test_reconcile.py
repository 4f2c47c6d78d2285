"""The rules, as a table."""

from dataclasses import dataclass, field

import pytest

from recon.rules.clusters import Cluster, Clusters, Contact, Identity, consolidate
from recon.rules.identifiers import Identifiers
from recon.rules.journal import Kind
from recon.rules.reconcile import Deciding, Entry, Reason, decide


def said(email: str | None = None, phone: str | None = None) -> Identifiers:
    """What a request says; the phone is its own key."""
    return Identifiers(email, phone, phone)


def row(contact_id: int, email: str | None, phone: str | None, linked_id: int | None = None) -> Contact:
    """A row of the table; the smaller its id, the older it is."""
    return Contact(contact_id, contact_id, linked_id, email, phone, phone)


@dataclass
class Case:
    """Rows that are there, a request, and what is to come of it."""

    there: list[Contact]
    request: Identifiers
    reason: Reason
    inserted: list[tuple[str | None, str | None, int | None]] = field(default_factory=list)  # email, phone, primary
    relinked: list[tuple[int, int]] = field(default_factory=list)  # root, primary


A = [row(1, "a", "1")]
AB = [*A, row(2, "b", "2")]
CASES = {
    "rule 1: nothing is known": Case([], said("a", "1"), Reason.CREATED, [("a", "1", None)]),
    "rule 1: an email alone": Case([], said("a"), Reason.CREATED, [("a", None, None)]),
    "rule 1: a phone alone": Case([], said(phone="1"), Reason.CREATED, [(None, "1", None)]),
    "rule 2: a new email": Case(A, said("b", "1"), Reason.EXTENDED, [("b", "1", 1)]),
    "rule 2: a new phone": Case(A, said("a", "2"), Reason.EXTENDED, [("a", "2", 1)]),
    "rule 2: points at the primary, not at the row that matched": Case(
        [*A, row(2, "b", "1", 1)], said("b", "2"), Reason.EXTENDED, [("b", "2", 1)]
    ),
    "rule 2: a phone for an email alone": Case([row(1, "a", None)], said("a", "1"), Reason.EXTENDED, [("a", "1", 1)]),
    "rule 3: the same again": Case(A, said("a", "1"), Reason.KNOWN),
    "rule 3: a part of it": Case(A, said(phone="1"), Reason.KNOWN),
    "rule 3: known on different rows": Case([*A, row(2, "b", "1", 1)], said("b", "1"), Reason.KNOWN),
    "rule 3: known on rows that never met": Case(
        [*A, row(2, "b", "1", 1), row(3, "a", "2", 1)], said("b", "2"), Reason.KNOWN
    ),
    "rule 4: the older primary stays": Case(AB, said("a", "2"), Reason.MERGED, [], [(2, 1)]),
    "rule 4: whichever of them was named by what": Case(AB, said("b", "1"), Reason.MERGED, [], [(2, 1)]),
    "rule 4: by secondaries": Case(
        [*AB, row(3, "c", "1", 1), row(4, "d", "2", 2)], said("d", "1"), Reason.MERGED, [], [(2, 1)]
    ),
    "rule 6: an email is no phone": Case([row(1, "1", "2")], said("2", "1"), Reason.CREATED, [("2", "1", None)]),
    "no live primary: the oldest live row becomes it": Case(
        [row(2, "b", "1", 1), row(3, "c", "1", 1)], said("c"), Reason.KNOWN, [], [(1, 2)]
    ),
    "two clusters with one email (foreign data): mended when met": Case(
        [row(1, "a", "1"), row(2, "a", "2")], said("a"), Reason.KNOWN, [], [(2, 1)]
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_rule(case: Case) -> None:
    """One request against a table."""
    plan = decide([case.request], Clusters(case.there))

    assert [decision.reason for decision in plan.decisions] == [case.reason]
    assert [
        (new.email, new.phone_number, None if primary is new else primary.id) for new, primary in plan.inserts
    ] == case.inserted
    assert plan.relinks == case.relinked


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_only_what_changes_nothing_is_known(case: Case) -> None:
    """The read pass answers just those requests for which the write pass would write nothing."""
    known = Clusters(case.there).knowing(case.request)

    assert (known is not None) == (not case.inserted and not case.relinked)


def test_a_batch_sees_itself() -> None:
    """Each request of a batch is decided upon what those before it did, and answered as of then."""
    requests = [said("a", "1"), said("a", "2"), said("b", "3"), said("b", "1"), said("a", "1")]

    plan = decide(requests, Clusters())
    for new_id, (contact, _) in enumerate(plan.inserts, start=1):
        contact.id = new_id

    assert [decision.reason for decision in plan.decisions] == [
        Reason.CREATED,
        Reason.EXTENDED,
        Reason.CREATED,
        Reason.MERGED,
        Reason.KNOWN,
    ]
    # All three are inserted where they belong in the end: nothing is left to relink.
    assert [(contact.id, primary.id) for contact, primary in plan.inserts] == [(1, 1), (2, 1), (3, 1)]
    assert plan.relinks == []
    assert plan.identities() == [
        Identity(1, ["a"], ["1"], []),
        Identity(1, ["a"], ["1", "2"], [2]),
        Identity(3, ["b"], ["3"], []),
        Identity(1, ["a", "b"], ["1", "2", "3"], [2, 3]),
        Identity(1, ["a", "b"], ["1", "2", "3"], [2, 3]),
    ]


def test_requests_that_one_state_answers_share_it() -> None:
    """However the requests of a batch alternate, each state of an identity is one object, so it is encoded once."""
    there = [row(1, "a", "1"), row(2, "b", "2")]

    plan = decide([said("a"), said("b"), said("a"), said("c", "1"), said("b"), said("c")], Clusters(there))
    plan.inserts[0][0].id = 3
    first, other, again, extended, still, latest = plan.identities()

    assert first is again
    assert other is still
    assert extended is latest
    assert extended == Identity(1, ["a", "c"], ["1"], [3])


def test_a_chain_of_merges_in_a_batch_relinks_each_root_once() -> None:
    """However clusters merge within a batch, each of the table's ends straight under the last winner."""
    there = [row(n, f"e{n}", str(n)) for n in (1, 2, 3, 4)]

    plan = decide([said("e4", "3"), said("e3", "2"), said("e2", "1")], Clusters(there))

    assert plan.relinks == [(2, 1), (3, 1), (4, 1)]
    assert [(event.place, event.primary.id, event.other.id) for event in plan.events] == [
        (1, 3, 4),
        (2, 2, 3),
        (3, 1, 2),
    ]


def test_a_merge_is_an_event() -> None:
    """It says which request merged which primaries, at its place among the batch's contacts and events."""
    requests = [said("a", "1"), said("b", "2"), Identifiers("a", "2", "2", "shop"), said("c", "1")]

    plan = decide(requests, Clusters())

    [event] = plan.events
    first, second, _ = (contact for contact, _ in plan.inserts)
    assert event == Entry(3, Kind.MERGED, first, second, "a", "2", "2", "shop")
    assert [contact.source for contact, _ in plan.inserts] == [None] * 3


def test_a_repair_is_an_event() -> None:
    """Clusters that share an identifier, and a cluster without its primary, are repaired before the first request."""
    there = [row(1, "a", "1"), row(2, "b", "2"), row(3, "c", "2"), row(4, "d", "4", 3), row(6, "e", "6", 5)]

    plan = decide([said("b"), said("new"), said("e")], Clusters(there))

    assert plan.events == [
        Entry(1, Kind.MENDED, there[1], there[2], None, "2", "2", detail={"contacts": [3, 4]}),
        Entry(2, Kind.MENDED, there[4], 5),
    ]
    assert plan.relinks == [(3, 2), (5, 6)]


def test_the_primary_comes_first_even_when_it_is_not_the_oldest() -> None:
    """The primary's own email and phone lead the answer, whatever order the rows come in."""
    older, primary = row(1, "old", "1", 2), row(2, "new", "2")

    identity = consolidate(primary, [older, primary])

    assert identity == Identity(2, ["new", "old"], ["2", "1"], [1])
    plan = decide([said("old"), said("third", "1")], Clusters([older, primary]))
    plan.inserts[0][0].id = 3
    assert plan.identities() == [identity, Identity(2, ["new", "old", "third"], ["2", "1"], [1, 3])]


def test_a_phone_shows_in_the_form_first_seen() -> None:
    """Two spellings of one number are one number."""
    first = Contact(1, 1, None, "a", "+1 (987) 654-3210", "19876543210")
    second = Contact(2, 2, 1, "b", "19876543210", "19876543210")

    assert consolidate(first, [first, second]).phone_numbers == ["+1 (987) 654-3210"]


def test_a_contact_without_an_id_is_no_part_of_an_identity() -> None:
    """An identity names its contacts by their ids, so it is consolidated after they were inserted, not before."""
    inserted, new = row(1, "a", "1"), Contact(2, None, 1, "b", "1", "1")

    with pytest.raises(ValueError, match="^a contact has no id before it has been inserted$"):
        consolidate(inserted, [inserted, new])


def test_decisions_without_order() -> None:
    """For a dry run, clusters are united without an order, and what was decided is forgotten; all else is the same."""
    requests = [
        said("a", "1"),
        said("b", "2"),
        said("c", "3"),
        said("c", "2"),
        said("a", "3"),
        said("c", "9"),
        said("d"),
    ]
    clusters, usual = Clusters(), Clusters()
    decide(requests, usual)
    deciding = Deciding(clusters, ordered=False)

    deciding.add(requests[:4])
    first = deciding.forget()
    deciding.add(requests[4:])
    second = deciding.forget()

    assert [len(plan.decisions) for plan in (first, second)] == [4, 3]
    assert [event.kind for event in (*first.events, *second.events)] == [Kind.MERGED] * 2
    assert deciding.plan.decisions == []
    assert sorted(len(each.contacts) for each in clusters.living()) == [1, 4]
    shown = {
        each.primary.email: sorted((one.email or "", one.phone_key) for one in each.contacts)
        for each in clusters.living()
    }
    assert shown == {
        each.primary.email: sorted((one.email or "", one.phone_key) for one in each.contacts) for each in usual.living()
    }


def test_a_long_way_to_the_present_cluster() -> None:
    """Each look shortens the way of a cluster that was absorbed again and again, so that a next one is quick."""
    first, *absorbed = (Cluster(None, [row(rank, f"{rank}", None)]) for rank in range(9))
    for older, younger in zip([first, *absorbed], absorbed, strict=False):
        younger.absorbed_by = older

    assert absorbed[-1].current() is first

    assert [absorbed.index(each.absorbed_by) if each.absorbed_by in absorbed else None for each in absorbed] == [
        None, None, 0, 1, 2, 3, 4, 5
    ]  # fmt: skip
    assert all(each.current() is first for each in absorbed)
