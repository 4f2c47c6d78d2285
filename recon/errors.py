"""Everything that recon itself raises. Nothing here knows HTTP; `middleware` maps it.

    ReconError
    ├── InvalidRequest      the caller's mistake
    ├── Unauthorized        nobody knows who asks
    ├── Forbidden           who asks may not
    ├── ForeignHost         the request is for a host that recon does not serve
    ├── Misconfigured       the operator's mistake
    ├── SchemaMismatch      the database is not one that this version can serve
    └── Unavailable         nobody's mistake: try again later
        ├── Unreachable     why there is no session with the database
        ├── Overloaded
        ├── DeadlineExceeded
        ├── RetriesExhausted
        ├── RowsHeld
        └── OutcomeUnknown

A class's docstring is its message.
"""

from typing import NamedTuple


class FieldError(NamedTuple):
    """One thing that is wrong with a request; `pointer` is a JSON pointer into its body."""

    pointer: str
    detail: str


class ReconError(Exception):
    """Something went wrong."""

    code = "error"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or type(self).__doc__)


class InvalidRequest(ReconError):
    """The request is not one that recon understands."""

    code = "invalid-request"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__()
        self.errors = errors


class Unauthorized(ReconError):
    """An API key that recon knows is needed: Authorization: Bearer, and the key."""

    code = "unauthorized"


class Forbidden(ReconError):
    """The API key that came with the request is for something else."""

    code = "forbidden"


class ForeignHost(ReconError):
    """recon does not serve the host that the request names; --allowed-hosts adds hosts."""

    code = "foreign-host"


class Misconfigured(ReconError):
    """The settings, or the files that they name, are not such that recon could run."""

    code = "misconfigured"


class SchemaMismatch(ReconError):
    """The database is not one that this version of recon can serve."""

    code = "schema-mismatch"


class Unavailable(ReconError):
    """The database cannot be reached or cannot answer now. Nothing was changed; try again."""

    code = "unavailable"


class Unreachable(Unavailable):
    """The database cannot be reached or cannot answer now. Nothing was changed; try again."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason  # for the operator alone: it names host, database and user


class Overloaded(Unavailable):
    """Too many requests are waiting. Nothing was changed; try again."""

    code = "overloaded"


class DeadlineExceeded(Unavailable):
    """The database did not answer in time. Nothing was changed; try again."""

    code = "deadline-exceeded"


class RetriesExhausted(Unavailable):
    """The transaction met others too many times in a row. Nothing was changed; try again."""

    code = "retries-exhausted"


class RowsHeld(Unavailable):
    """Another session of the database holds a lock that this request needs. Nothing was changed; try again."""

    code = "locked"


class OutcomeUnknown(Unavailable):
    """The database was lost, or took too long, while it was writing. Sending the request again is safe."""

    code = "outcome-unknown"
