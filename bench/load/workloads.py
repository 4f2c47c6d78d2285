"""The workloads, and the rows that each must add to the table."""

from dataclasses import dataclass

from bench.load.wrk import Load


@dataclass(frozen=True, slots=True)
class Workload:
    """One mix of requests.

    Attributes
    ----------
    name : the name in the tables.
    title : a short description.
    requests : the requests that identify.lua builds: `new`, `known` or `mix`.
    people : the number of people stored before, with one contact each.
    apart : whether warm-up and measured run use different people, because the warm-up changes its people.
    regulars : the number of stored people that the load uses; None means all of them.
    followers : how many followers of the change feed wait meanwhile.
    """

    name: str
    title: str
    requests: str
    people: int
    apart: bool = False
    regulars: int | None = None
    followers: int = 0

    @property
    def used(self) -> int:
        """The number of stored people that one run of the load uses."""
        return self.people // 2 if self.apart else self.regulars or self.people

    @property
    def changes(self) -> bool:
        """Whether its requests write."""
        return self.requests != "known"


MIX = "70% known customers, 20% new ones, 8% known ones with a new phone number or email, 2% two known ones merged"
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("new", "a new customer each time; the table is empty at first", "new", 0),
        Workload("known", "one of 1,000 stored customers, by email and phone number", "known", 1_000),
        Workload("known-1m", "one of 1,000 customers among 1,000,000 stored ones", "known", 1_000_000, regulars=1_000),
        Workload("any-1m", "any one of 1,000,000 stored customers", "known", 1_000_000),
        Workload("hot", "one of ten stored customers", "known", 10),
        Workload("mix", f"a shop's mix: {MIX}", "mix", 2_000, apart=True),
        Workload(
            "followed",
            "the mix, beside a hundred followers of the change feed",
            "mix",
            2_000,
            apart=True,
            followers=100,
        ),
        Workload("alone", "known customers, from one client with one connection", "known", 1_000),
        Workload("import", "a file with a million records of a shop; a third of them repeats or extends", "new", 0),
        Workload("memory", "the mix, for several minutes", "mix", 2_000, apart=True),
    )
}


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the greatest allowed value."""

    least: int
    most: int

    def __contains__(self, value: int) -> bool:
        return self.least <= value <= self.most

    def __add__(self, other: "Range") -> "Range":
        return Range(self.least + other.least, self.most + other.most)

    def __str__(self) -> str:
        return f"{self.least:,}" if self.least == self.most else f"{self.least:,} to {self.most:,}"


@dataclass(frozen=True, slots=True)
class Growth:
    """By how much the numbers of contacts, and of primaries among them, must have grown."""

    contacts: Range
    primaries: Range

    def __add__(self, other: "Growth") -> "Growth":
        return Growth(self.contacts + other.contacts, self.primaries + other.primaries)


def growth(load: Load) -> Growth:
    """Return the growth that the requests of one run of wrk must cause.

    Each new customer is a primary, and each new identifier of a known one a secondary. Each joining turns a primary
    into a secondary. Other requests change nothing. wrk stops with requests in progress: the effect of requests that
    were sent and not answered 200 is unknown, so their number is the width of the ranges.
    """
    rows = load.new + load.extended
    primaries = load.new - load.joined
    return Growth(
        Range(max(0, rows - load.unsure), rows),
        Range(max(-load.joined, primaries - load.unsure), min(load.new, primaries + load.unsure)),
    )
