"""The history checker compared with trying all orders of a few requests on the model."""

import json
from itertools import chain, combinations, permutations
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.exchanges import Exchange, History, Outcome, Request
from tests.harness.history import check
from tests.harness.model import Model

# Few identifiers and few requests, so that all orders can be tried.
REQUESTS = st.tuples(st.sampled_from([None, "a", "b", "c"]), st.sampled_from([None, "1", "2", "3"])).filter(any)
INTERVALS = st.tuples(st.integers(0, 8), st.integers(1, 8)).map(lambda drawn: (drawn[0], drawn[0] + drawn[1] + 0.5))


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Exchange], list[dict[str, Any]]]:
    """Overlapping exchanges, with the answers of one order of the requests or of two, and the rows of the first one."""
    outcomes = draw(st.sampled_from(["A", "AAU"]))
    drawn = draw(st.lists(st.tuples(REQUESTS, INTERVALS, st.sampled_from(outcomes)), min_size=1, max_size=5))
    known = {"A": Outcome.ACKNOWLEDGED, "U": Outcome.UNKNOWN}
    exchanges = [
        Exchange(number, 0, "", Request(*request), *interval, known[outcome])
        for number, (request, interval, outcome) in enumerate(drawn)
    ]
    happened = [each for each in exchanges if each.outcome is Outcome.ACKNOWLEDGED or draw(st.booleans())]
    moments = {
        each.number: draw(st.floats(each.started, min(each.latest, 20), allow_subnormal=False)) for each in happened
    }
    right, rows = serial(sorted(happened, key=lambda each: moments[each.number]), None)
    wrong, _ = serial(draw(st.permutations(happened)), rows)
    for each in exchanges:
        if each.outcome is Outcome.ACKNOWLEDGED:
            answer = draw(st.sampled_from([right, right, right, wrong]))[each.number]
            each.body = json.dumps({"contact": answer}).encode()
    return exchanges, rows


def serial(
    order: list[Exchange], like: list[dict[str, Any]] | None
) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Return the model's answers and rows for an order of requests, with the ids of the rows in `like`."""
    model = Model()
    answers: dict[int, Any] = {each.number: model.identify((each.request.email, each.request.phone)) for each in order}
    ids = {(row["email"], row["phone_number"]): row["id"] for row in like or []}
    renamed = {n: n if like is None else ids.get((email, phone), -n) for n, email, phone in model.rows}
    for answer in answers.values():
        answer["primaryContactId"] = answer["primaryContatctId"] = renamed[answer["primaryContactId"]]
        answer["secondaryContactIds"] = [renamed[n] for n in answer["secondaryContactIds"]]
    rows = [
        {"id": renamed[n], "email": email, "phone_number": phone, "linked_id": root and renamed[root]}
        for n, email, phone, root in model.table()
    ]
    return answers, [row | {"created_at": row["id"]} for row in sorted(rows, key=_root)]


def _root(row: dict[str, Any]) -> int:
    """Return the key that groups the rows of a cluster and keeps their order."""
    return int(row["linked_id"] or row["id"])


def some_order_explains(exchanges: list[Exchange], rows: list[dict[str, Any]]) -> bool:
    """Whether an order of all acknowledged and some unknown requests that agrees with real time explains the result."""
    acknowledged = [each for each in exchanges if each.outcome is Outcome.ACKNOWLEDGED]
    unknown = [each for each in exchanges if each.outcome is Outcome.UNKNOWN]
    wanted = {each.number: json.loads(each.body)["contact"] for each in acknowledged}
    for happened in chain.from_iterable(combinations(unknown, n) for n in range(len(unknown) + 1)):
        for order in permutations([*acknowledged, *happened]):
            if all(one.started <= other.latest for one, other in combinations(order, 2)):
                answers, left = serial(list(order), rows)
                if left == rows and all(answers[number] == contact for number, contact in wanted.items()):
                    return True
    return False


@settings(max_examples=200, deadline=None)
@given(runs())
def test_the_verdict_is_that_of_trying_all_orders(run: tuple[list[Exchange], list[dict[str, Any]]]) -> None:
    """The checker accepts everything that an order explains; if all requests were answered, nothing else."""
    exchanges, rows = run

    violations = check(History(sorted(exchanges, key=lambda each: each.started)), rows)  # type: ignore[arg-type]

    if violations or all(each.outcome is Outcome.ACKNOWLEDGED for each in exchanges):
        assert (violations == []) == some_order_explains(exchanges, rows), violations
