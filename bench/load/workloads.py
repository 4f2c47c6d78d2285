"""What is asked: the workloads, and what each must leave in the table."""

from dataclasses import dataclass

from bench.load.wrk import Load


@dataclass(frozen=True, slots=True)
class Workload:
    """One mix of requests.

    Attributes
    ----------
    name : as in the tables.
    title : what it is, in a few words.
    requests : what identify.lua builds: `new`, `known` or `mix`.
    people : how many there are before, one contact each.
    apart : whether the warm-up meets other people than the measured run, since it leaves them changed.
    regulars : how many of the people there the load meets, when it is not all of them.
    """

    name: str
    title: str
    requests: str
    people: int
    apart: bool = False
    regulars: int | None = None

    @property
    def met(self) -> int:
        """How many of the people there one run of the load meets."""
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
        Workload("alone", "known customers, from one client with one connection", "known", 1_000),
        Workload("memory", "the mix, for several minutes", "mix", 2_000, apart=True),
    )
}


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the most that something may be."""

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
    """By how much the table's contacts, and the primaries among them, must have grown."""

    contacts: Range
    primaries: Range

    def __add__(self, other: "Growth") -> "Growth":
        return Growth(self.contacts + other.contacts, self.primaries + other.primaries)


def growth(load: Load) -> Growth:
    """What the requests of one run of wrk come to.

    Each new customer is a primary; each new identifier of a known one a secondary; each joining turns a
    primary into a secondary; the rest changes nothing. wrk stops with requests under way: of those that
    were sent and not answered 200 nobody knows, so they are the width of the ranges.
    """
    rows = load.new + load.extended
    primaries = load.new - load.joined
    return Growth(
        Range(max(0, rows - load.unsure), rows),
        Range(max(-load.joined, primaries - load.unsure), min(load.new, primaries + load.unsure)),
    )
