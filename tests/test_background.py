"""Background tasks: a failure of a task is always logged."""

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import pytest

from recon import background, keys
from recon.app import create_app
from recon.background import keep_running, run_once
from recon.database.transactions import Database
from recon.errors import DeadlineExceeded
from recon.identities import deadlines
from recon.identities.batching import Batch, Lane
from recon.identities.deadlines import Deadlines
from recon.identities.identify import Requests
from recon.keys import Keys, new_key
from recon.rules.identifiers import Identifiers
from recon.server import connections
from recon.server.connections import Runner, Server
from recon.settings import Settings


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restart failed tasks without a pause."""
    monkeypatch.setattr(background, "RESTART_PAUSE", 0)


class Planted(Exception):
    """An unexpected error."""


def failures(caplog: pytest.LogCaptureFixture) -> list[tuple[str, bool]]:
    """Return the lines about failed tasks, each with whether it has the planted error."""
    return [
        (record.getMessage(), bool(record.exc_info and isinstance(record.exc_info[1], Planted)))
        for record in caplog.records
        if record.name == "recon.background"
    ]


async def test_a_task_that_fails_starts_again(caplog: pytest.LogCaptureFixture) -> None:
    """Each failure is logged with its error, and the task is started again until it returns."""
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise Planted

    await keep_running("the work", work)

    assert runs == 3
    assert failures(caplog) == [("the background task 'the work' failed; it starts again", True)] * 2


async def test_a_task_that_awaits_something_cancelled_starts_again(caplog: pytest.LogCaptureFixture) -> None:
    """Only the cancellation of the task itself ends the task."""
    runs = 0

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled
        await asyncio.Event().wait()

    task = keep_running("the work", work)
    while runs < 2:
        await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [message for message, _ in failures(caplog)] == [
        "the background task 'the work' was cancelled from inside; it starts again"
    ]


async def test_a_task_that_runs_once_is_logged_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The failure is logged at once, even if something still refers to the task and nothing awaits it."""

    async def work() -> None:
        raise Planted

    task = run_once("the work", work())
    await asyncio.wait([task])
    await asyncio.sleep(0)

    assert failures(caplog) == [("the background task 'the work' failed", True)]


async def test_a_task_that_nothing_refers_to_goes_on() -> None:
    """The garbage collector does not remove a running task."""
    ended = asyncio.Event()

    async def work() -> None:
        waiting = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda ref: ref.set_result(None), waiting)
        await waiting
        ended.set()

    run_once("the work", work())
    gc.collect()

    async with asyncio.timeout(5):
        await ended.wait()


async def _logged(caplog: pytest.LogCaptureFixture, times: int = 2) -> None:
    async with asyncio.timeout(20):
        while len(failures(caplog)) < times:
            await asyncio.sleep(0.01)
    assert all(planted for _, planted in failures(caplog))


async def test_the_reload_of_api_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, database_url: str
) -> None:
    """After an unexpected error, the next change of the key file is loaded."""
    file = tmp_path / "keys"
    file.write_text(new_key("one", ["read"])[1])
    app = create_app(Settings(database_url=database_url, api_keys_file=file))
    monkeypatch.setattr(keys, "CHECK_EVERY", 0.01)

    def fails(_: Keys) -> Any:
        raise Planted

    with monkeypatch.context() as planted:
        planted.setattr(Keys, "_read", fails)
        runner = Runner(app, Settings(database_url=database_url), [])
        await runner.setup()
        try:
            file.write_text(new_key("two", ["read"])[1])
            await _logged(caplog, 1)
            planted.undo()
            monkeypatch.setattr(keys, "CHECK_EVERY", 0.01)
            caplog.set_level(logging.INFO)
            file.write_text(new_key("three", ["read", "identify"])[1])
            async with asyncio.timeout(5):
                while "was reloaded" not in caplog.text:
                    await asyncio.sleep(0.01)
        finally:
            await runner.cleanup()


async def test_the_watch_over_connections(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, database_url: str
) -> None:
    """The watch over connections continues after an unexpected error."""

    def fails(_: Server, _settings: Settings, _now: float) -> None:
        raise Planted

    monkeypatch.setattr(connections, "close_overdue", fails)
    settings = Settings(database_url=database_url)
    runner = Runner(create_app(settings), settings, [])
    await runner.setup()
    try:
        await _logged(caplog)
    finally:
        await runner.cleanup()


async def test_a_batch(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """After an unexpected error, the next batch is processed."""

    async def work(requests: Requests) -> list[bytes]:
        return [b"answer"] * len(requests())

    def fails(*_: object) -> None:
        raise Planted

    lane = Lane("test", work, limit=10, deadlines=Deadlines(0.2))
    with monkeypatch.context() as planted:
        planted.setattr(Batch, "requests", fails)
        planted.setattr(Batch, "fail", fails)
        lost = lane.submit(Identifiers("a", None, None))
        await _logged(caplog, 1)

    assert await lane.submit(Identifiers("b", None, None)) == b"answer"
    with pytest.raises(DeadlineExceeded):
        await lost


async def test_the_deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines work after an unexpected error, which the event loop reports."""
    loop = asyncio.get_running_loop()
    reported: list[object] = []
    monkeypatch.setattr(loop, "call_exception_handler", lambda context: reported.append(context["exception"]))
    watched = Deadlines(0.2)
    broken, later = loop.create_future(), loop.create_future()
    watched.watch(broken)
    watched.watch(later)
    with monkeypatch.context() as planted:
        planted.setattr(deadlines, "DeadlineExceeded", lambda: 1 / 0)
        async with asyncio.timeout(5):
            while not reported:
                await asyncio.sleep(0.01)
    last = loop.create_future()
    watched.watch(last)

    with pytest.raises(DeadlineExceeded):
        await last
    assert [type(error) for error in reported] == [ZeroDivisionError]


async def test_the_wait_for_the_database(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, database_url: str, unused_tcp_port: int
) -> None:
    """The wait continues after an unexpected error, and ends when the database is available."""
    database = Database(f"postgresql://recon@127.0.0.1:{unused_tcp_port}/recon")
    async with database.opened():

        async def fails() -> None:
            raise Planted

        with monkeypatch.context() as planted:
            planted.setattr(database, "prepare", fails)
            await _logged(caplog)
        database._url = database._pool._url = database_url

        async with asyncio.timeout(20):
            while not database._ready:
                await asyncio.sleep(0.01)


async def test_what_ends_the_process_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    """A signal's SystemExit may arrive in any task: the event loop raises it."""

    async def interrupted() -> None:
        raise SystemExit(130)

    def run() -> None:
        async def main() -> None:
            await run_once("the work", interrupted())

        asyncio.run(main())

    with pytest.raises(SystemExit):
        await asyncio.to_thread(run)
    assert not [record for record in caplog.records if "failed" in record.message]
