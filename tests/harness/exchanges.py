"""What clients sent to recon, and what it answered: the records that `shop` keeps and `history` judges.

Each attempt at a request is an exchange of its own, with one of three outcomes: acknowledged (200),
refused (it certainly did nothing: 4xx, a 503 that says so, no connection) or unknown (connection lost,
time-out, anything else): that has happened or not, now or later, but as a whole.
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
class Said:
    """What a request says, as it is sent."""

    email: str | None = None
    phone: Any = None

    @property
    def json(self) -> dict[str, Any]:
        """The request's body."""
        return {"email": self.email, "phoneNumber": self.phone}

    @property
    def names(self) -> tuple[str, ...]:
        """The identifiers in it, in the form in which they are the same."""
        names = (self.email and email_name(self.email), self.phone and phone_name(str(self.phone)))
        return tuple(name for name in names if name)

    @property
    def row(self) -> tuple[str | None, str | None]:
        """The email and the phone of the row that it leaves when it leaves one."""
        email = None if self.email is None else self.email.strip().lower()
        return email, None if self.phone is None else str(self.phone).strip()


def email_name(email: str) -> str:
    """What an email is the same by, of those that a shop sends."""
    return f"email {email.strip().lower()}"


def phone_name(phone: str) -> str:
    """What a phone is the same by, of those that a shop sends."""
    return f"phone {''.join(filter(str.isdigit, phone))}"


class Outcome(StrEnum):
    """What a client knows of a request."""

    ACKNOWLEDGED = "acknowledged"  # done
    REFUSED = "refused"  # certainly not done
    UNKNOWN = "unknown"  # done or not, or still to be done


@dataclass(slots=True)
class Exchange:
    """One attempt at a request. Times are of `time.monotonic()`."""

    number: int  # of the request; attempts at the same have the same
    attempt: int
    url: str
    said: Said
    started: float
    ended: float = inf
    outcome: Outcome = Outcome.UNKNOWN
    status: int | None = None
    body: bytes = b""

    def __str__(self) -> str:
        """Enough to find it, and to understand a violation."""
        return f"#{self.number}.{self.attempt} ({', '.join(self.said.names)})"

    @property
    def latest(self) -> float:
        """When it can have happened at the latest."""
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
        """Let the clients end what they are at, and begin nothing more."""
        self.stopped = True

    async def reached(self, acknowledged: int) -> None:
        """Return once so many exchanges have been acknowledged."""
        while self.acknowledged < acknowledged:
            assert self.ended is None, f"the load ended at {self.acknowledged} of {acknowledged} acknowledged"
            self._news.clear()
            await self._news.wait()

    def of(self, *outcomes: Outcome) -> list[Exchange]:
        """The exchanges that ended so."""
        return [exchange for exchange in self.exchanges if exchange.outcome in outcomes]

    def well_after(self, moment: float) -> float:
        """Seconds from `moment` (of time.monotonic) to the first acknowledgement of what was sent after it."""
        ends = [each.ended for each in self.of(Outcome.ACKNOWLEDGED) if each.started >= moment]
        return min(ends, default=inf) - moment

    def longest_gap(self) -> float:
        """The longest time, in seconds, in which nothing was acknowledged: how long service was away."""
        ends = sorted(exchange.ended for exchange in self.of(Outcome.ACKNOWLEDGED))
        moments = [self.started, *ends, self.ended or time.monotonic()]
        return max(later - earlier for earlier, later in pairwise(moments))

    def figures(self) -> dict[str, float]:
        """What a report says of the run."""
        outcomes = Counter(exchange.outcome for exchange in self.exchanges)
        return {
            "requests": len({exchange.number for exchange in self.exchanges}),
            **{outcome.value: outcomes[outcome] for outcome in Outcome},
            "retried": sum(exchange.attempt > 0 for exchange in self.exchanges),
            "seconds": round((self.ended or time.monotonic()) - self.started, 2),
            "longest gap": round(self.longest_gap(), 3),
        }

    def end(self) -> None:
        """Nothing more will come."""
        self.ended = time.monotonic()
        self._news.set()

    def notice(self, exchange: Exchange) -> None:
        """Count an exchange that has just ended."""
        self.acknowledged += exchange.outcome is Outcome.ACKNOWLEDGED
        self._news.set()
