"""An additional slow client during each series, which compares each of its answers with a model of the rules."""

import http.client
import json
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from bench.load import people
from bench.load.watch import Meanwhile
from bench.load.workloads import Growth, Range, Workload
from tests.harness.model import Model, Request

INTERVAL = 0.1  # seconds between requests: under a thousandth of the load
TIMEOUT = 10  # seconds to wait for an answer
SHOWN = 3  # wrong answers that are described
HTTP_OK = 200
NO_ID = 0  # stands for a contact that recon should have added and did not; no contact has this id

Identity = dict[str, Any]


class Expected:
    """The right answers about a few people about whom no other client sends requests.

    They come from the model of the tests, which shares no code with recon, so the check does not repeat a mistake in
    recon's rules. The model has ids of its own; the ids in the table are taken from the answers.
    """

    def __init__(self, stored: dict[int, Request] | None = None) -> None:
        self._model = Model()
        self._ids: list[int] = []  # of the model's contacts, in its order
        for contact_id, request in (stored or {}).items():
            self._model.identify(request)
            self._ids.append(contact_id)

    @property
    def size(self) -> tuple[int, int]:
        """The number of contacts, and of primaries among them."""
        links = [linked_id for *_, linked_id in self._model.table()]
        return len(links), links.count(None)

    def answer(self, request: Request, given: Identity) -> Identity:
        """Return the right answer to a request. `given` is recon's answer, which has the id of a new contact."""
        right: Identity = self._model.identify(request)
        if len(self._model.rows) > len(self._ids):
            named = [given.get("primaryContactId"), *given.get("secondaryContactIds", ())]
            self._ids.append(next((each for each in named if each not in self._ids), NO_ID))
        ids = dict(zip((row[0] for row in self._model.rows), self._ids, strict=True))
        return right | {
            "primaryContactId": ids[right["primaryContactId"]],
            "primaryContatctId": ids[right["primaryContatctId"]],
            "secondaryContactIds": [ids[number] for number in right["secondaryContactIds"]],
        }


class Probe(Meanwhile):
    """Sends requests while its context is open, and counts wrong answers.

    With a workload that writes, it goes through the rules with its own people: new, repeated, extended, found by the
    new phone number, merged with another person. Otherwise it requests people that were stored before.

    Attributes
    ----------
    answers : the number of checked answers.
    errors : the number of requests without a 200.
    wrong : the number of wrong answers; `examples` describes the first ones.
    """

    def __init__(self, port: int, workload: Workload) -> None:
        super().__init__()
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
        self._workload = workload
        self._rows = self._primaries = 0  # that its answered requests have added
        self.answers = self.errors = self.wrong = 0
        self.examples: list[str] = []

    @property
    def growth(self) -> Growth:
        """By how much its requests made the table grow; the effect of a failed request is unknown."""
        return Growth(
            Range(self._rows, self._rows + self.errors),
            Range(self._primaries - self.errors, self._primaries + self.errors),
        )

    def run(self) -> None:
        """Send requests until the end."""
        rounds = self._rules if self._workload.changes else self._seeded
        for number in count(1):
            try:
                for _ in rounds(number):
                    if self._over.wait(INTERVAL):
                        return
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                self.errors += 1
                self._connection.close()
            if self._over.wait(INTERVAL):
                return

    def _seeded(self, _number: int) -> Iterator[None]:
        """One customer stored before, whose number is the id of the contact."""
        who = random.randint(1, self._workload.people)  # noqa: S311 (a choice, not a secret)
        request = people.email(people.SEEDED, who), people.phone(people.SEEDED, who)
        self._send(Expected({who: request}), request)
        yield

    def _rules(self, number: int) -> Iterator[None]:
        """The README's rules 1 to 4 on two people and one more phone; each step is one request."""
        first, second, third = (3 * number + step for step in range(3))
        email, other_email = people.email(people.PROBE, first), people.email(people.PROBE, second)
        phone, other_phone = people.phone(people.PROBE, first), people.phone(people.PROBE, second)
        new_phone = people.phone(people.PROBE, third)
        expected = Expected()
        for request in (
            (email, phone),  # new
            (email, phone),  # repeated
            (email, new_phone),  # extended
            (None, new_phone),  # found by the new phone
            (other_email, other_phone),  # another new one
            (email, other_phone),  # merged
            (other_email, None),  # found by what the other one brought
        ):
            self._send(expected, request)
            yield

    def _send(self, expected: Expected, request: Request) -> None:
        given = self._post(request)
        contacts, primaries = expected.size
        right = expected.answer(request, given)
        self._rows += expected.size[0] - contacts
        self._primaries += expected.size[1] - primaries
        self.answers += 1
        if given != right:
            self.wrong += 1
            if self.wrong <= SHOWN:
                self.examples.append(f"wrong answer: {given} instead of {right}")

    def _post(self, request: Request) -> Identity:
        body = json.dumps(dict(zip(("email", "phoneNumber"), request, strict=True)))
        self._connection.request("POST", "/identify", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != HTTP_OK:
            raise ValueError(f"answered {response.status}")
        identity: Identity = answer["contact"]
        return identity

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self._connection.close()
