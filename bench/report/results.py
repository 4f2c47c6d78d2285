"""The figures of a run, as results.json holds them."""

from datetime import datetime

from pydantic import BaseModel


class Series(BaseModel):
    """One workload on one system: what it came to."""

    round: int
    workload: str
    system: str
    connections: int
    seconds: float = 0
    requests: int = 0
    per_second: float = 0
    p50_ms: float = 0
    p99_ms: float = 0
    errors: int = 0  # not answered 200, or not at all
    retries: float | None = None  # of transactions, a request
    system_cpu: float | None = None  # CPU seconds a thousand requests, as the next three
    system_kernel: float | None = None  # the part of them in the kernel
    database_cpu: float | None = None
    load_cpu: float | None = None
    read_batch: float | None = None  # requests that shared a transaction, on average
    write_batch: float | None = None
    rss_mib: list[float] = []  # each second
    contacts: int | None = None  # in the table at the end
    answers_checked: int = 0
    problems: list[str] = []  # why it does not count

    @property
    def name(self) -> str:
        """What --only matches."""
        return f"{self.workload}/{self.system}/{self.connections}"

    @property
    def counts(self) -> bool:
        """Whether its figures are worth anything."""
        return bool(self.requests) and not self.problems


class Step(BaseModel):
    """How long one step takes, in milliseconds: as recon's process sees it, and as PostgreSQL does."""

    workload: str
    name: str
    count: int
    p50_ms: float
    p99_ms: float
    database_p50_ms: float | None = None
    database_p99_ms: float | None = None


class Share(BaseModel):
    """A part of recon's process and how much of its time is spent there (0 to 1), with the functions it is most in."""

    workload: str
    part: str
    share: float
    most_in: dict[str, float]


class Profile(BaseModel):
    """Where the time goes: a run of its own, since clocks and samplers take time themselves."""

    started: datetime
    minutes: float = 0
    seconds: int  # of each series
    source: str
    sampler: str
    series: list[Series] = []
    steps: list[Step] = []
    shares: list[Share] = []

    def get(self, workload: str, system: str) -> Series | None:
        """One of its series, unless it does not count."""
        return next(
            (one for one in self.series if (one.workload, one.system) == (workload, system) and one.counts), None
        )


class Results(BaseModel):
    """Everything about one run."""

    started: datetime
    minutes: float = 0
    rounds: int
    seconds: int  # of each series
    warm_up: int  # seconds before it
    command: str
    machine: dict[str, str]
    series: list[Series] = []
    profile: Profile | None = None
