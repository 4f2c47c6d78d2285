"""One more client during each series, a slow one, that checks every answer it gets to the letter."""

import http.client
import json
import random
from collections.abc import Iterator
from itertools import count
from typing import Any

from bench.load import people
from bench.load.watch import Meanwhile
from bench.load.workloads import Growth, Range, Workload

INTERVAL = 0.1  # seconds between requests: under a thousandth of the load
TIMEOUT = 10  # seconds to wait for an answer
SHOWN = 3  # wrong answers that are described
HTTP_OK = 200

Identity = dict[str, Any]


class Probe(Meanwhile):
    """Asks from entering to leaving, and remembers what was wrong.

    With a workload that writes, it goes through the rules with people of its own: new, repeated,
    extended, found by the new phone, joined with another. With one that does not, it asks for people
    there before.

    Attributes
    ----------
    answers : how many were checked.
    errors : how many requests were not answered 200.
    wrong : how many answers were wrong; `examples` says how the first were.
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
        """By how much it has made the table grow; of each request that failed nobody knows."""
        return Growth(
            Range(self._rows, self._rows + self.errors),
            Range(self._primaries - self.errors, self._primaries + self.errors),
        )

    def run(self) -> None:
        """Ask until it is over."""
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
        who = random.randint(1, self._workload.people)  # noqa: S311 (a choice, not a secret)
        email, phone = people.email(people.SEEDED, who), people.phone(people.SEEDED, who)
        self._expect(self._ask(email, phone), who, [email], [phone], [])
        yield

    def _rules(self, number: int) -> Iterator[None]:
        """The README's rules 1 to 4 on two people and one more phone; each step is one request."""
        first, second, third = (3 * number + step for step in range(3))
        email, other_email = people.email(people.PROBE, first), people.email(people.PROBE, second)
        phone, other_phone = people.phone(people.PROBE, first), people.phone(people.PROBE, second)
        new_phone = people.phone(people.PROBE, third)

        answer = self._ask(email, phone, rows=1, primaries=1)
        primary = answer["primaryContactId"]
        self._expect(answer, primary, [email], [phone], [])
        yield
        self._expect(self._ask(email, phone), primary, [email], [phone], [])
        yield
        answer = self._ask(email, new_phone, rows=1)
        secondary = (answer["secondaryContactIds"] or [None])[0]
        self._expect(answer, primary, [email], [phone, new_phone], [secondary])
        yield
        self._expect(self._ask(None, new_phone), primary, [email], [phone, new_phone], [secondary])
        yield
        answer = self._ask(other_email, other_phone, rows=1, primaries=1)
        other = answer["primaryContactId"]
        self._expect(answer, other, [other_email], [other_phone], [])
        yield
        for said_email, said_phone, primaries in ((email, other_phone, -1), (other_email, None, 0)):
            self._expect(
                self._ask(said_email, said_phone, primaries=primaries),
                primary,
                [email, other_email],
                [phone, new_phone, other_phone],
                [secondary, other],
            )
            yield

    def _ask(self, email: str | None, phone: str | None, *, rows: int = 0, primaries: int = 0) -> Identity:
        body = json.dumps({"email": email, "phoneNumber": phone})
        self._connection.request("POST", "/identify", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = json.loads(response.read())
        if response.status != HTTP_OK:
            raise ValueError(f"answered {response.status}")
        self.answers += 1
        self._rows += rows
        self._primaries += primaries
        identity: Identity = answer["contact"]
        return identity

    def _expect(
        self, answer: Identity, primary: int, emails: list[str], phones: list[str], secondaries: list[int | None]
    ) -> None:
        expected = {
            "primaryContactId": primary,
            "primaryContatctId": primary,
            "emails": emails,
            "phoneNumbers": phones,
            "secondaryContactIds": secondaries,
        }
        if answer != expected:
            self.wrong += 1
            if self.wrong <= SHOWN:
                self.examples.append(f"wrong answer: {answer} and not {expected}")

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self._connection.close()
