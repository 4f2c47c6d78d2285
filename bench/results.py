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
    system_cpu: float | None = None  # CPU seconds a thousand requests, as the next two
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
