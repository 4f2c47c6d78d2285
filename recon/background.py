"""Background tasks: a failure of one is logged when it happens, and a task that must go on is started again.

`asyncio.create_task` reports a failed task only when nothing refers to the task any more: while something keeps it, as
is usual for a task that is cancelled later, it ends unnoticed. So recon starts its tasks with one of these functions.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

RESTART_PAUSE = 1.0  # seconds; a task that fails at once must not fill the log or the processor

_running: set["asyncio.Task[None]"] = set()  # the event loop itself holds its tasks by weak references only


def keep_running(name: str, work: Callable[[], Awaitable[None]]) -> "asyncio.Task[None]":
    """Run `work` in the background until it returns. Each time it raises, log that and start it again.

    To stop it, cancel the task. `name` is what the log calls it.
    """
    return run_once(name, _repeat(name, work))


def run_once(name: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
    """Run `work` in the background. If it raises, log that."""
    task = asyncio.create_task(work, name=name)
    _running.add(task)
    task.add_done_callback(_ended)
    return task


async def _repeat(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            log.exception("the background task %r was cancelled from inside; it starts again", name)
        except Exception:
            log.exception("the background task %r failed; it starts again", name)
        else:
            return
        await asyncio.sleep(RESTART_PAUSE)


def _is_cancelled() -> bool:
    """Whether this task is to stop. Awaiting something that was cancelled elsewhere raises the same error."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _ended(task: "asyncio.Task[None]") -> None:
    _running.discard(task)
    if task.cancelled():
        return
    if isinstance(error := task.exception(), Exception):  # others, such as SystemExit, end the event loop
        log.error("the background task %r failed", task.get_name(), exc_info=error)
