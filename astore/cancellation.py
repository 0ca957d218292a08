"""Clean-up that a cancellation must not cut short, and blocking calls that must not be left half-way."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

import anyio

T = TypeVar("T")

CLEANUP_SECONDS = 2.0
"""How long putting things in order may hold up a cancellation; what is left then, the next start removes."""

SYNC_SECONDS = 600.0
"""How long storage may take until all that was written is safe: gigabytes may wait in its caches."""


GRACE_SECONDS = 0.5
"""How long what was cancelled may take to give up."""


def seconds_until(until: float | None) -> float:
    """Return how long a clean-up may last: CLEANUP_SECONDS, or until a moment of the monotonic clock."""
    return CLEANUP_SECONDS if until is None else max(until - time.monotonic(), 0.05)


class Runs(Protocol):
    """What runs blocking calls on threads of its own, as :class:`astore.backend.Lane` does."""

    async def run(
        self,
        func: Callable[..., T],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """See :meth:`astore.backend.Lane.run`."""
        ...


async def shielded(call: Coroutine[Any, Any, T]) -> T:
    """Run ``call`` to its end, however often the caller is cancelled meanwhile; the cancellation comes after it.

    anyio's shield alone keeps off anyio's own cancel scopes, not ``Task.cancel()``, which ``asyncio.timeout`` and
    ``asyncio.TaskGroup`` use. What is called must be bounded.

    :raises asyncio.CancelledError: the caller was cancelled. What ``call`` raises, if it was not.
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
    """A done callback for a task that nobody waits for any more: what it raises is no news."""
    if not task.cancelled():
        task.exception()


async def bounded(call: Coroutine[Any, Any, object], seconds: float | None = None) -> None:
    """Wait for a clean-up, but not for long, whatever it says, and even where it does not let itself be cancelled.

    :param seconds: how long; None means CLEANUP_SECONDS.
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
    """Run ``func(*args)`` on the lane. Cancelled, wait for its end all the same (bounded), and undo what it did.

    So that whoever cancelled finds the storage at rest: the thread of a cancelled call goes on.

    :param undo: given what ``func`` returned, on the lane.
    """
    task = asyncio.ensure_future(lane.run(func, *args, discard=undo))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(retrieved)
        await shielded(bounded(asyncio.wait([task])))
        if not task.done():
            task.cancel()  # and where it comes to its end after all, its thread undoes it
        elif undo is not None and not task.cancelled() and task.exception() is None:
            await shielded(bounded(lane.run(undo, task.result())))
        raise


class Once:
    """A blocking call that is made once, whoever comes to it first."""

    def __init__(self, func: Callable[[], object]) -> None:
        self._func = func
        self._lock = threading.Lock()
        self.begun = False

    def __call__(self) -> None:
        with self._lock:
            if self.begun:
                return
            self.begun = True
        self._func()


async def cleaned_up(lane: Runs, func: Callable[[], object]) -> None:
    """Make a blocking clean-up on the lane, or in a thread of its own where the lane has none for it. Bounded, and shielded."""
    once = Once(func)
    try:
        await shielded(bounded(lane.run(once)))
    finally:
        if not once.begun:
            in_a_thread(once)


def in_a_thread(func: Callable[[], object]) -> None:
    """Run a clean-up for which the lane has no thread, in one of its own. Nobody waits for it."""

    def run() -> None:
        with contextlib.suppress(Exception):
            func()

    threading.Thread(target=run, name="astore-cleanup", daemon=True).start()
