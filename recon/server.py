"""Serving the application: in this process, or in several under gunicorn."""

import asyncio
import gc
import logging
import signal
import ssl
from contextlib import suppress
from typing import Any

import uvloop
from aiohttp import web
from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from prometheus_client import multiprocess

from recon import listening
from recon.app import create_app, make_database
from recon.connections import BACKLOG, Runner, allow_files
from recon.errors import Unavailable
from recon.keys import wait_until_valid
from recon.middleware import protocol_error
from recon.settings import Settings

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight."""
    # aiohttp has no other hook for what fails before there is a request.
    web.RequestHandler.handle_error = protocol_error  # type: ignore[assignment,method-assign]
    settings = allow_files(settings)
    if settings.workers == 1:
        uvloop.run(_serve(settings))
    else:
        with suppress(Unavailable):  # which each worker waits out; what cannot be served ends here, once
            asyncio.run(make_database(settings).prepare())
        _Gunicorn(settings).run()


def _runner(settings: Settings) -> web.AppRunner:
    # What has been loaded by now stays, and requests leave hardly any cycles behind: looking for them as often
    # as is usual takes a twentieth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    return Runner(create_app(settings), settings)


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    runner = _runner(settings)
    try:
        await runner.setup()
        tls = listening.tls(settings)
        await web.TCPSite(runner, settings.host, settings.port, ssl_context=tls).start()
        where = listening.url(settings, *runner.addresses[0][:2])
        log.info("serving on %s (API documentation at /docs)", where)
        await stop.wait()
        log.info("stopping: finishing the requests in flight")
    finally:
        await runner.cleanup()


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's messages, in recon's format."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002 (gunicorn calls it so)
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Worker(GunicornUVLoopWebWorker):
    """aiohttp's worker, which would make a TLS context of its own that takes any version."""

    @staticmethod
    def _create_ssl_context(cfg: Any) -> ssl.SSLContext:
        context: ssl.SSLContext = cfg.ssl_context(cfg, None)
        return context


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """gunicorn, with recon's settings and no configuration of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options: dict[str, Any] = {
            "bind": listening.at(settings.host, settings.port),
            "workers": settings.workers,
            "worker_class": _Worker,
            "certfile": settings.tls_cert and str(settings.tls_cert),
            "keyfile": settings.tls_key and str(settings.tls_key),
            "ssl_context": lambda _config, _default: listening.tls(settings),
            "graceful_timeout": max(1, round(settings.shutdown_timeout)),
            "backlog": BACKLOG,
            "control_socket_disable": True,
            "logger_class": _Logger,
            "proc_name": "recon",
            "child_exit": lambda _server, worker: multiprocess.mark_process_dead(worker.pid),  # type: ignore[no-untyped-call]
            "when_ready": lambda _server: log.info(
                "serving on %s with %d processes (API documentation at /docs)",
                listening.url(settings, settings.host, settings.port),
                settings.workers,
            ),
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        async def runner() -> web.AppRunner:
            await wait_until_valid(self._settings)
            return _runner(self._settings)

        return runner
