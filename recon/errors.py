"""The errors that recon raises. Nothing here knows HTTP; `http.problems` maps each error to a status.

    ReconError
    ├── InvalidRequest      the client's mistake, in the body
    ├── InvalidParameter    the client's mistake, in the path or the query
    ├── Unauthorized        no valid API key
    ├── Forbidden           a valid API key of another scope
    ├── ForeignHost         the request names a host that recon does not serve
    ├── NotFound            no contact ever had what the request names
    ├── Gone                a contact had it once
    │   ├── Deleted         but every contact of its identity is soft-deleted
    │   └── Erased          but its identity was erased
    ├── Conflict            a request that the present state forbids
    │   ├── Changed         the identity has changed since the caller looked at it
    │   ├── NotDivided      what remains still connects the identity
    │   ├── KeptApart       a steward keeps the identities apart
    │   ├── OneIdentity     the contacts are of one identity, which can only be split
    │   └── PositionAhead   the change feed has not got to this position
    ├── Unprocessable       a valid request that cannot be carried out
    │   ├── Blocked         all that it has are values that identify nobody
    │   ├── InvalidCorrection
    │   └── KeyReused       its Idempotency-Key came with another request before
    ├── Misconfigured       the operator's mistake
    ├── SchemaMismatch      this version cannot serve the database's schema
    │   └── NotPrepared     it can once an operator has run a command; a process waits for that
    └── Unavailable         a temporary failure: retry later
        ├── ShuttingDown
        ├── Unreachable     why there is no session with the database
        ├── Overloaded
        ├── DeadlineExceeded
        ├── RetriesExhausted
        ├── RowsHeld
        └── OutcomeUnknown

A class's docstring is its message.
"""

from typing import Any, NamedTuple


class FieldError(NamedTuple):
    """One thing that is wrong with a request; `pointer` is a JSON pointer into its body."""

    pointer: str
    detail: str


class ReconError(Exception):
    """recon failed."""

    code = "error"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail or type(self).__doc__)


class InvalidRequest(ReconError):
    """The request body is invalid."""

    code = "invalid-request"

    def __init__(self, errors: list[FieldError]) -> None:
        super().__init__()
        self.errors = errors


class InvalidParameter(ReconError):
    """A parameter of the request's path or query is invalid."""

    code = "invalid-parameter"


class Unauthorized(ReconError):
    """Send a valid API key: `Authorization: Bearer <key>`."""

    code = "unauthorized"


class Forbidden(ReconError):
    """The API key lacks the scope that the request needs."""

    code = "forbidden"


class ForeignHost(ReconError):
    """recon does not serve the host that the request names; --allowed-hosts adds hosts."""

    code = "foreign-host"


class NotFound(ReconError):
    """No contact ever had this id."""

    code = "not-found"


class Gone(ReconError):
    """The identity is gone."""


class Deleted(Gone):
    """No live contact of this identity is left."""

    code = "deleted"


class Erased(Gone):
    """The identity was erased."""

    code = "erased"


class Conflict(ReconError):
    """The present state forbids this request."""


class Changed(Conflict):
    """The identity has changed since. Look at it again."""

    code = "changed"


class NotDivided(Conflict):
    """Other links still connect the identity: cut one of the links in `path`, too."""

    code = "not-divided"

    def __init__(self, path: Any) -> None:
        super().__init__()
        self.path = path  # links, as a message of the API shows them


class KeptApart(Conflict):
    """These identities are kept apart. `release` lifts the constraints in `keptApart` and links them."""

    code = "kept-apart"

    def __init__(self, kept_apart: list[dict[str, Any]]) -> None:
        super().__init__()
        self.kept_apart = kept_apart  # who decided it, when and why, as a message of the API shows it


class OneIdentity(Conflict):
    """These contacts are of one identity: split it instead."""

    code = "one-identity"


class PositionAhead(Conflict):
    """The database has not got to this position: it was restored or emptied. Start a new copy with after=0."""

    code = "position-ahead"


class Unprocessable(ReconError):
    """The request cannot be carried out."""


class Blocked(Unprocessable):
    """Every identifier of the request is a value that identifies nobody. Nothing was stored."""

    code = "blocked"


class InvalidCorrection(Unprocessable):
    """The correction cannot be made of this identity."""

    code = "invalid-correction"


class KeyReused(Unprocessable):
    """The Idempotency-Key came with another request before."""

    code = "idempotency-key-reused"


class Misconfigured(ReconError):
    """The settings, or the files that they name, are invalid."""

    code = "misconfigured"


class SchemaMismatch(ReconError):
    """The installed version of recon cannot serve this database."""

    code = "schema-mismatch"


class NotPrepared(SchemaMismatch):
    """recon can serve the database once an operator has prepared it."""


class Unavailable(ReconError):
    """The database cannot be reached or cannot answer now. Nothing was changed; try again."""

    code = "unavailable"


class ShuttingDown(Unavailable):
    """The process is shutting down. Nothing was changed; try again."""


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
    """The transaction had too many serialization conflicts. Nothing was changed; try again."""

    code = "retries-exhausted"


class RowsHeld(Unavailable):
    """Another session of the database holds a lock that this request needs. Nothing was changed; try again."""

    code = "locked"


class OutcomeUnknown(Unavailable):
    """The database failed or took too long during the write. Requests are idempotent: try again."""

    code = "outcome-unknown"
