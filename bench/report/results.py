"""The figures of a run, as results.json holds them."""

from datetime import datetime

from pydantic import BaseModel


class Series(BaseModel):
    """The figures of one workload on one system."""

    round: int
    workload: str
    system: str
    connections: int
    seconds: float = 0
    requests: int = 0
    per_second: float = 0
    p50_ms: float = 0
    p99_ms: float = 0
    errors: int = 0  # requests without a 200
    retries: float | None = None  # of transactions, per request
    system_cpu: float | None = None  # CPU seconds per thousand requests, as the next three
    system_kernel: float | None = None  # the part of them in the kernel
    database_cpu: float | None = None
    load_cpu: float | None = None
    read_batch: float | None = None  # requests that shared a transaction, on average
    write_batch: float | None = None
    rss_mib: list[float] = []  # each second
    contacts: int | None = None  # in the table at the end
    answers_checked: int = 0
    problems: list[str] = []  # why its figures do not count

    @property
    def name(self) -> str:
        """The name that --only matches."""
        return f"{self.workload}/{self.system}/{self.connections}"

    @property
    def counts(self) -> bool:
        """Whether its figures count: it was answered, and has no problems."""
        return bool(self.requests) and not self.problems


class Step(BaseModel):
    """The duration of one step in milliseconds, as recon's process measures it, and as PostgreSQL logs it."""

    workload: str
    name: str
    count: int
    p50_ms: float
    p99_ms: float
    database_p50_ms: float | None = None
    database_p99_ms: float | None = None


class Share(BaseModel):
    """A part of recon's process, its share of the CPU time (0 to 1), and the functions with the most samples."""

    workload: str
    part: str
    share: float
    most_in: dict[str, float]


class Profile(BaseModel):
    """Where the time goes: a separate run, because clocks and samplers take time themselves."""

    started: datetime
    minutes: float = 0
    seconds: int  # of each series
    source: str
    sampler: str
    series: list[Series] = []
    steps: list[Step] = []
    shares: list[Share] = []

    def get(self, workload: str, system: str) -> Series | None:
        """Return one of its series, or None if it is missing or does not count."""
        return next(
            (each for each in self.series if (each.workload, each.system) == (workload, system) and each.counts), None
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
