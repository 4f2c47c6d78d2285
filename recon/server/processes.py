"""Serving the application: in this process, or in several under gunicorn."""

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import uvloop
from aiohttp.worker import GunicornUVLoopWebWorker
from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger
from prometheus_client import multiprocess

from recon import signals
from recon.app import create_app, make_database
from recon.errors import NotPrepared, Unavailable
from recon.keys import wait_until_valid
from recon.server import listening
from recon.server.connections import BACKLOG, Runner, allow_files
from recon.settings import Settings

log = logging.getLogger(__name__)


def serve(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then shut down gracefully."""
    settings = allow_files(settings)
    if settings.workers == 1:
        uvloop.run(_serve(settings))
    else:
        # Workers wait for a database that is unavailable or not yet prepared. One that recon cannot serve ends recon
        # here, once, and not in each worker.
        with suppress(Unavailable, NotPrepared):
            asyncio.run(make_database(settings).prepare())
        _Gunicorn(settings).run()


def _runner(settings: Settings, sockets: Sequence[socket.socket]) -> Runner:
    # Modules stay loaded, and requests create hardly any reference cycles: at its default rate, the garbage collector
    # takes a twentieth of the time.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    return Runner(create_app(settings), settings, sockets, listening.tls(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    for signum in signals.not_ignored():
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    runner = _runner(settings, listening.sockets(settings))
    try:
        await runner.setup()
        url = listening.url(settings, *runner.addresses[0][:2])
        log.info("serving on %s (API documentation at /docs)", url)
        await stop.wait()
        log.info("stopping: finishing the requests in progress")
    finally:
        await runner.cleanup()
        # The event loop removes its handlers when it ends. A second Ctrl-C would end this process before its clean-up.
        signals.block()


class _Logger(Logger):  # type: ignore[misc]
    """gunicorn's messages, in recon's format."""

    def setup(self, cfg: Any) -> None:  # noqa: ARG002 (gunicorn calls it so)
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)


class _Worker(GunicornUVLoopWebWorker):
    """aiohttp's worker; the runner serves the sockets."""

    def __init__(self, age: int, ppid: int, sockets: Sequence[Any], app: "_Gunicorn", *others: Any) -> None:
        super().__init__(age, ppid, [], app, *others)
        app.sockets = sockets


class _Arbiter(Arbiter):  # type: ignore[misc]
    """gunicorn's main process, which ends on SIGHUP instead of reloading its configuration."""

    def init_signals(self) -> None:
        ignored = {*signals.ENDING} - {*signals.not_ignored()}
        super().init_signals()
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)

    def handle_hup(self) -> None:
        self.handle_term()


class _Gunicorn(BaseApplication):  # type: ignore[misc]
    """gunicorn, with recon's settings and no configuration of its own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.sockets: Sequence[Any] = []  # bound by gunicorn, served by the worker
        super().__init__()

    def load_config(self) -> None:
        settings = self._settings
        options: dict[str, Any] = {
            "bind": listening.authority(settings.host, settings.port),
            "workers": settings.workers,
            "worker_class": _Worker,
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

    def run(self) -> None:
        _Arbiter(self).run()

    def load(self) -> Any:
        async def runner() -> Runner:
            await wait_until_valid(self._settings)
            return _runner(self._settings, self.sockets)

        return runner
