"""Requests that clients sent and the responses: the records that `shop` keeps and `history` checks.

Each attempt at a request is an exchange, with one of three outcomes: acknowledged (200), refused (it
certainly changed nothing: 4xx, a 503 that says so, no connection) or unknown (connection lost, time-out,
anything else). An unknown one takes effect as a whole or not at all, now or later.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import inf
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """The identifiers of a request, as sent."""

    email: str | None = None
    phone: Any = None

    @property
    def json(self) -> dict[str, Any]:
        """The request's body."""
        return {"email": self.email, "phoneNumber": self.phone}

    @property
    def names(self) -> tuple[str, ...]:
        """Its identifiers by match key."""
        names = (self.email and email_name(self.email), self.phone and phone_name(str(self.phone)))
        return tuple(name for name in names if name)

    @property
    def row(self) -> tuple[str | None, str | None]:
        """The email and the phone of the row that it inserts, if it inserts one."""
        email = None if self.email is None else self.email.strip().lower()
        return email, None if self.phone is None else str(self.phone).strip()


def email_name(email: str) -> str:
    """The match key of an email that a shop sends."""
    return f"email {email.strip().lower()}"


def phone_name(phone: str) -> str:
    """The match key of a phone number that a shop sends."""
    return f"phone {''.join(filter(str.isdigit, phone))}"


class Outcome(StrEnum):
    """What a client knows about the effect of a request."""

    ACKNOWLEDGED = "acknowledged"  # done
    REFUSED = "refused"  # certainly not done
    UNKNOWN = "unknown"  # done or not, or still to be done


@dataclass(slots=True)
class Exchange:
    """One attempt at a request. Times are of `time.monotonic()`."""

    number: int  # of the request; all attempts at it have the same number
    attempt: int
    url: str
    request: Request
    started: float
    ended: float = inf
    outcome: Outcome = Outcome.UNKNOWN
    status: int | None = None
    body: bytes = b""

    def __str__(self) -> str:
        """Return what is needed to find it and to understand a violation."""
        return f"#{self.number}.{self.attempt} ({', '.join(self.request.names)})"

    @property
    def latest(self) -> float:
        """The latest time at which it can have taken effect."""
        return self.ended if self.outcome is Outcome.ACKNOWLEDGED else inf


@dataclass
class History:
    """All exchanges of a run, in order of their starts."""

    exchanges: list[Exchange] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    acknowledged: int = 0
    stopped: bool = False
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def stop(self) -> None:
        """Let the clients finish their requests in progress, and start no others."""
        self.stopped = True

    async def reached(self, acknowledged: int) -> None:
        """Return once so many exchanges have been acknowledged."""
        while self.acknowledged < acknowledged:
            assert self.ended is None, f"the load ended at {self.acknowledged} of {acknowledged} acknowledged"
            self._news.clear()
            await self._news.wait()

    def of(self, *outcomes: Outcome) -> list[Exchange]:
        """Return the exchanges with these outcomes."""
        return [exchange for exchange in self.exchanges if exchange.outcome in outcomes]

    def longest_gap(self) -> float:
        """The longest time, in seconds, in which nothing was acknowledged: the length of the outage."""
        ends = sorted(exchange.ended for exchange in self.of(Outcome.ACKNOWLEDGED))
        moments = [self.started, *ends, self.ended or time.monotonic()]
        return max(later - earlier for earlier, later in pairwise(moments))

    def figures(self) -> dict[str, float]:
        """The figures of the run, for a report."""
        outcomes = Counter(exchange.outcome for exchange in self.exchanges)
        return {
            "requests": len({exchange.number for exchange in self.exchanges}),
            **{outcome.value: outcomes[outcome] for outcome in Outcome},
            "retried": sum(exchange.attempt > 0 for exchange in self.exchanges),
            "seconds": round((self.ended or time.monotonic()) - self.started, 2),
            "longest gap": round(self.longest_gap(), 3),
        }

    def end(self) -> None:
        """Note that the run has ended."""
        self.ended = time.monotonic()
        self._news.set()

    def count(self, exchange: Exchange) -> None:
        """Count an exchange that has just ended."""
        self.acknowledged += exchange.outcome is Outcome.ACKNOWLEDGED
        self._news.set()
