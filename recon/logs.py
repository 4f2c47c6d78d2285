"""Logging: text on a terminal, JSON elsewhere, and never a customer's identifier."""

import logging
import sys
import time
import traceback
from collections.abc import Callable

import structlog

from recon.settings import Settings


class Failures:
    """Rate limiter for log lines about failed requests: at most fifty in any second; counts those left out.

    Under overload, logging a refused request would take more time than serving it. This is a token bucket: each line
    takes a token, and a second has at most the tokens that the bucket held and those added in that second.
    """

    BURST = 25  # lines: half of what a second may have
    REFILL = 25  # lines a second: the other half

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tokens = float(self.BURST)
        self._refilled_at = clock()
        self._left_out = 0

    def may_be_logged(self) -> bool:
        """Take a token for a line; if there is none, count the line as left out."""
        now = self._clock()
        self._tokens = min(self.BURST, self._tokens + (now - self._refilled_at) * self.REFILL)
        self._refilled_at = now
        if self._tokens < 1:
            self._left_out += 1
            return False
        self._tokens -= 1
        return True

    def left_out(self) -> dict[str, int]:
        """Return a field for the next line: how many lines were left out before it, if any."""
        if not self._left_out:
            return {}
        count, self._left_out = self._left_out, 0
        return {"failures_not_logged_before": count}

    def filter(self, record: logging.LogRecord) -> bool:
        """Limit a logger whose lines clients can cause."""
        if not self.may_be_logged():
            return False
        record.__dict__.update(self.left_out())
        return True


failures = Failures()


def configure(settings: Settings) -> None:
    """Send all log lines, of libraries too, to standard error in the settings' format."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso" if as_json else "%Y-%m-%d %H:%M:%S.%f%z", utc=as_json),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _trace_without_values, renderer],
        )
    )
    logging.basicConfig(level=settings.log_level.upper(), handlers=[handler], force=True)
    # Their lines at level info are about their internals.
    for name in ("asyncio", "gunicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("asyncio").addFilter(failures)  # the event loop's report of a callback that failed
    # Its errors are tracebacks about broken client connections; the middleware logs recon's own failures.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def _trace_without_values(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Log an exception's class and traceback without its text: a driver's text may quote the failed row."""
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()
    if isinstance(raised, BaseException):
        raised = (type(raised), raised, raised.__traceback__)
    if raised and raised[0] is not None:
        event["error"] = raised[0].__qualname__
        event["where"] = "".join(traceback.format_tb(raised[2]))
    return event
