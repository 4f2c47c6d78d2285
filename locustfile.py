"""A load test of recon that checks every answer: `locust` with the web page, `locust --headless -u 50 -r 10 -t 1m`.

Each simulated user is a shop with its own customers, so it can compute every right answer by the README's
rules. A wrong answer is a failed request, and any failure makes locust exit with 1. Failures quote no email
and no phone number. The shares of KINDS are options and variables (`--new 50`, `LOCUST_NEW=50`; `locust
--help` cannot show them) and fields of the web page.
"""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import count, product
from random import SystemRandom
from typing import Any, NamedTuple

from locust import FastHttpUser, events, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import FastResponse
from locust.env import Environment
from locust.exception import StopTest
from pydantic import BaseModel, Field, ValidationError

KINDS = {  # of requests: the default share, and the customers
    "returning": (70, "known customers who bring nothing new"),
    "new": (20, "customers never seen before"),
    "another": (8, "known customers with another email or phone number"),
    "joining": (2, "customers whose email and phone number were two people so far"),
}
MAX_CUSTOMERS = 100  # that a shop remembers: about 100 kB
MAX_CONTACTS = 20  # of a remembered customer; customers that join others would grow without limit

random = SystemRandom()  # without a state that worker processes inherit, with which all would invent the same customers


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_shares(parser: LocustArgumentParser, **_: Any) -> None:
    """Make each kind's share an option, a variable and a field of the web page."""
    for kind, (share, whose) in KINDS.items():
        text = f"Share of requests by {whose}. Defaults to {share}"
        variable = f"LOCUST_{kind.upper()}"
        parser.add_argument(f"--{kind}", type=float, default=str(share), env_var=variable, metavar="<share>", help=text)


def shares(environment: Environment) -> list[float]:
    """Return the shares in the order of KINDS. Raises ValueError if they are invalid."""
    given = [float(getattr(environment.parsed_options, kind)) for kind in KINDS]
    if not (all(0 <= share < math.inf for share in given) and any(given)):
        raise ValueError(f"the shares --{', --'.join(KINDS)} must be 0 or more, and one of them more than 0")
    return given


@events.init.add_listener  # type: ignore[untyped-decorator]
def refuse_options(environment: Environment, **_: Any) -> None:
    """Refuse to start with invalid shares."""
    try:
        shares(environment)
    except ValueError as error:
        sys.exit(f"locust: error: {error}")


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def refuse_form(environment: Environment, **_: Any) -> None:
    """Stop a run that the web page started with invalid shares."""
    try:
        shares(environment)
    except ValueError as error:
        raise StopTest(str(error)) from None


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def fail_for_any_failure(environment: Environment, **_: Any) -> None:
    """Exit with 1 if a request failed or this file raised an exception; on a master, for any worker."""
    if environment.stats.errors or (environment.runner is not None and environment.runner.exceptions):
        environment.process_exit_code = 1


class Contact(BaseModel, strict=True, extra="forbid"):
    """The identity in an answer: exactly these fields, without null."""

    primary: int = Field(alias="primaryContactId")
    primary_again: int = Field(alias="primaryContatctId")
    emails: list[str]
    phones: list[str] = Field(alias="phoneNumbers")
    secondaries: list[int] = Field(alias="secondaryContactIds")


class Answer(BaseModel, strict=True, extra="forbid"):
    """The body of an answer."""

    contact: Contact


class WrongAnswer(Exception):
    """An answer is wrong; the message says how."""


class Row(NamedTuple):
    """A request: its place among those of the shop, the email in canonical form, the phone number as sent."""

    place: int
    email: str | None
    phone: str | None


@dataclass(slots=True, eq=False)
class Customer:
    """A customer that recon knows: a row per contact, oldest first, and the contacts' ids, the primary's first."""

    rows: list[Row]
    ids: list[int]

    @property
    def emails(self) -> list[str]:
        """The emails as in an answer."""
        return list(dict.fromkeys(row.email for row in self.rows if row.email is not None))

    @property
    def phones(self) -> dict[str, str]:
        """The phone numbers as in an answer, by their digits."""
        first_seen: dict[str, str] = {}
        for row in self.rows:
            if row.phone is not None:
                first_seen.setdefault(digits(row.phone), row.phone)
        return first_seen


def digits(phone: str) -> str:
    """Return the match key of a phone number."""
    return "".join(filter(str.isdigit, phone))


def predict(touched: list[Customer], request: Row) -> Customer:
    """Apply rules 1 to 4: merge the customers that a request matches, and add a contact if its identifiers are new."""
    oldest_first = sorted(touched, key=lambda customer: customer.rows[0])
    merged = Customer(
        rows=sorted(row for customer in touched for row in customer.rows),
        ids=[contact_id for customer in oldest_first for contact_id in customer.ids],
    )
    knows_email = request.email is None or request.email in merged.emails
    knows_phone = request.phone is None or digits(request.phone) in merged.phones
    if not (knows_email and knows_phone):
        merged.rows.append(request)
    return merged


def read(response: FastResponse) -> Contact:
    """The contact in a 200 of the contract's shape; raises WrongAnswer for anything else."""
    if response.status_code != HTTPStatus.OK:
        reason = type(getattr(response, "error", None)).__name__  # not its text: it may quote the answer
        raise WrongAnswer(f"status {response.status_code}" if response.status_code else f"no answer: {reason}")
    try:
        return Answer.model_validate_json(response.content or b"").contact
    except ValidationError as error:
        raise WrongAnswer(f"not of the contract's shape: {error.errors()[0]['type']}") from None


def compare(contact: Contact, request: Row, expected: Customer) -> None:
    """Raise WrongAnswer with the first difference between an answer and the expected customer, if any."""
    ids = [contact.primary, *contact.secondaries]
    phone_keys = [digits(phone) for phone in contact.phones]
    answered, known = {*contact.emails, *phone_keys}, {*expected.emails, *expected.phones}
    wrong = {
        "the two spellings of the primary's id differ": contact.primary != contact.primary_again,
        "the primary is among the secondaries": contact.primary in contact.secondaries,
        "a secondary occurs twice": len({*ids}) != len(ids),
        "an email occurs twice": len({*contact.emails}) != len(contact.emails),
        "a phone number occurs twice": len({*phone_keys}) != len(phone_keys),
        "the request's email is missing": request.email is not None and request.email not in contact.emails,
        "the request's phone number is missing": request.phone is not None and digits(request.phone) not in phone_keys,
        "an identifier of an earlier answer is missing": not known <= answered,
        "an identifier of another customer is present": not answered <= known,
        "the emails are in the wrong order": contact.emails != expected.emails,
        "the phone numbers are in the wrong order or form": contact.phones != [*expected.phones.values()],
        "the primary is not the oldest contact": expected.ids[:1] not in ([], [contact.primary]),
        "a contact of an earlier answer is missing": not {*expected.ids} <= {*ids},
        "there are too many or too few contacts": len(ids) != len(expected.rows),
    }
    for difference, exists in wrong.items():
        if exists:
            raise WrongAnswer(difference)


def typed(request: Row) -> dict[str, str | int | None]:
    """Return the request's body, in a spelling that clients use: capitals, blanks, a number instead of text."""
    email, phone = request.email or "", request.phone or ""
    return {
        "email": random.choice([email or None, email.upper(), f" {email} "]),
        "phoneNumber": random.choice([phone or None, f" {phone} ", int(phone) if phone.isdigit() else phone]),
    }


def both_or_one(emails: Iterable[str], phones: Iterable[str]) -> list[tuple[str | None, str | None]]:
    """Return all combinations: an email and a phone number, or only one of them."""
    return list(product([*emails, None], [*phones, None]))[:-1]  # the last is neither


class Shop(FastHttpUser):
    """A shop that sends one request after another, without pause; the statistics are by kind."""

    host = "http://127.0.0.1:8000"
    max_redirects = 0  # recon has none

    def on_start(self) -> None:
        """Start without customers, and with a random number that no other shop has, in any run."""
        self.shares = shares(self.environment)
        self.customers: list[Customer] = []  # the most recent one is the last
        self.number = random.randrange(10**15, 10**16)
        self.places = count(1)

    @task
    def visit(self) -> None:
        """Send a request of a customer, and check the answer."""
        kind, touched, request = self.choose(next(self.places))
        expected = predict(touched, request)
        # Forget them until the answer is right: after a failure, what recon has stored is unknown.
        self.customers = [customer for customer in self.customers if customer not in touched]
        with self.client.post("/identify", json=typed(request), name=kind, catch_response=True) as response:
            try:
                contact = read(response)
                compare(contact, request, expected)
            except WrongAnswer as wrong:
                response.failure(wrong)
                # At once, since --reset-stats and the web page's next run forget what has failed.
                self.environment.process_exit_code = 1
                return
        expected.ids = [contact.primary, *contact.secondaries]
        if len(expected.rows) <= MAX_CONTACTS:
            self.customers = [*self.customers, expected][-MAX_CUSTOMERS:]

    def choose(self, place: int) -> tuple[str, list[Customer], Row]:
        """Choose a kind, the customers that it matches, and a request; a new customer while others are too few."""
        [kind] = random.choices([*KINDS], self.shares)
        touched = random.sample(self.customers, min(2 if kind == "joining" else 1, len(self.customers)))
        new_email, new_phone = f"customer{place}@shop{self.number}.example.com", f"{self.number}{place}"
        choices: list[tuple[str | None, str | None]] = []
        match kind, touched:
            case "returning", [one]:
                choices = both_or_one(one.emails, one.phones)
            case "another", [one]:
                choices = [*product(one.emails, [new_phone]), *product([new_email], one.phones)]
            case "joining", [one, two]:
                choices = [*product(one.emails, two.phones), *product(two.emails, one.phones)]
        if not choices:
            kind, touched, choices = "new", [], both_or_one([new_email], [new_phone])
        email, phone = random.choice(choices)
        written = phone and random.choice([phone, f"+{phone[:-10]} ({phone[-10:-7]}) {phone[-7:-4]}-{phone[-4:]}"])
        return kind, touched, Row(place, email, written)
