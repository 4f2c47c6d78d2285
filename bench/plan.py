"""The series of a run, and their order."""

from dataclasses import dataclass
from fnmatch import fnmatchcase

FEW, MANY = 64, 256  # connections
_SERVERS = ("handler", "recon", "recon-2", "plain")


@dataclass(frozen=True, slots=True)
class Case:
    """A series to run."""

    round: int
    workload: str
    system: str
    connections: int

    @property
    def name(self) -> str:
        """The name that --only matches."""
        return f"{self.workload}/{self.system}/{self.connections}"

    def matches(self, pattern: str) -> bool:
        """Whether a pattern names it: the whole name (`new/*/64`) or any part of it (`new`, `recon`, `64`)."""
        if "/" in pattern:
            return fnmatchcase(self.name, pattern)
        return any(fnmatchcase(part, pattern) for part in (self.workload, self.system, str(self.connections)))


def cases(rounds: int, only: tuple[str, ...]) -> list[Case]:
    """All series of a run.

    Series that a target compares are close together, and every second round is in reverse order, so that a machine
    that gets slower or faster meanwhile favours no system.
    """
    plan: list[Case] = []
    for number in range(1, rounds + 1):
        one_round = _round(number)
        plan += one_round if number % 2 else reversed(one_round)
    plan.append(Case(1, "memory", "recon", MANY))
    return [case for case in plan if not only or any(case.matches(pattern) for pattern in only)]


def _round(number: int) -> list[Case]:
    plan = []
    for connections in (FEW, MANY):
        plan += [Case(number, "new", system, connections) for system in ("pgbench", *_SERVERS)]
        if connections == FEW:
            plan.append(Case(number, "new", "batch", 1))
        plan += [Case(number, "mix", system, connections) for system in _SERVERS]
        if connections == FEW:
            plan.append(Case(number, "followed", "recon", connections))
        plan += [Case(number, "known", system, connections) for system in reversed(_SERVERS)]
        if connections == FEW:
            plan.append(Case(number, "known", "batch", 1))
        plan += [Case(number, "known-1m", system, connections) for system in ("recon", "recon-2")]
        plan.append(Case(number, "any-1m", "recon", connections))
        plan += [Case(number, "hot", system, connections) for system in _SERVERS]
    plan += [Case(number, "alone", system, 1) for system in ("select", "recon")]
    plan += [Case(number, "import", system, 1) for system in ("command", "copy", "export", "copy-out", "dry-run")]
    return plan
