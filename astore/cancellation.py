"""Clean-up that a cancellation must not interrupt, and blocking calls that must not be abandoned half-way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol, TypeVar

import anyio

T = TypeVar("T")

CLEANUP_SECONDS = 2.0
"""How long a clean-up may delay a cancellation; the next start removes what is left then."""

SYNC_SECONDS = 600.0
"""How long a sync may take: gigabytes may wait in the storage's caches."""

GRACE_SECONDS = 0.5
"""How long a cancelled task may take to end."""


def seconds_until(until: float | None) -> float:
    """Return the seconds left for a clean-up until a time of the monotonic clock; None means CLEANUP_SECONDS."""
    return CLEANUP_SECONDS if until is None else max(until - time.monotonic(), 0.05)


class Runs(Protocol):
    """Runs blocking calls on threads, like :class:`astore.backend.Lane`."""

    async def run(
        self,
        func: Callable[..., T],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """See :meth:`astore.backend.Lane.run`."""


async def shielded(call: Coroutine[Any, Any, T]) -> T:
    """Run ``call`` to its end, however often the caller is cancelled meanwhile. ``call`` must be bounded.

    anyio's shield alone holds off anyio's own cancel scopes, not ``Task.cancel()``, which ``asyncio.timeout`` and
    ``asyncio.TaskGroup`` use.

    :raises asyncio.CancelledError: after ``call`` has ended, if the caller was cancelled. Else what ``call`` raises.
    """
    task = asyncio.get_running_loop().create_task(call)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        retrieved(task)
        raise cancelled
    return task.result()


def retrieved(task: asyncio.Task[Any]) -> None:
    """Ignore what a task raised. A done callback for tasks that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


async def bounded(call: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Wait for a clean-up, and cancel it if it takes too long. Ignore its errors, and return even if it goes on.

    :param seconds: None means CLEANUP_SECONDS; GRACE_SECONDS may come on top.
    """
    task = asyncio.get_running_loop().create_task(call)
    task.add_done_callback(retrieved)
    try:
        await asyncio.wait([task], timeout=CLEANUP_SECONDS if seconds is None else seconds)
    finally:
        if not task.done():
            task.cancel()
    if not task.done():
        await asyncio.wait([task], timeout=GRACE_SECONDS)


async def to_the_end(lane: Runs, func: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None) -> T:
    """Run ``func(*args)`` on the lane. If the caller is cancelled, wait for the call's end (bounded), and undo its effect.

    The thread of a cancelled call goes on: without the wait, the caller would go on while the storage still changes.

    :param undo: called on the lane with the result of ``func``.
    """
    task = asyncio.ensure_future(lane.run(func, *args, discard=undo))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(retrieved)
        await shielded(bounded(asyncio.wait([task])))
        if not task.done():
            task.cancel()  # if the call ends after all, its thread undoes it
        elif undo is not None and not task.cancelled() and task.exception() is None:
            await cleaned_up(lane, partial(undo, task.result()))
        raise


class Once:
    """A blocking call that runs once, on the first thread that calls it."""

    def __init__(self, func: Callable[[], object]) -> None:
        self._func = func
        self._lock = threading.Lock()
        self.begun = False

    def __call__(self) -> object:
        with self._lock:
            if self.begun:
                return None
            self.begun = True
        return self._func()


async def cleaned_up(lane: Runs, func: Callable[[], object]) -> None:
    """Run a blocking clean-up on the lane, or on a thread of its own if no thread of the lane took it. Bounded, shielded."""
    once = Once(func)
    try:
        await shielded(bounded(lane.run(once)))
    finally:
        if not once.begun:
            in_a_thread(once)


def in_a_thread(func: Callable[[], object]) -> None:
    """Run a clean-up on a thread of its own, and do not wait for it. If no thread can be started, it is not run."""

    def run() -> None:
        with contextlib.suppress(Exception):
            func()

    with contextlib.suppress(RuntimeError):
        threading.Thread(target=run, name="astore-cleanup", daemon=True).start()
