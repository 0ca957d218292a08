"""Clean-up that a cancellation must not interrupt, and blocking calls that must not be abandoned half-way."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio

T = TypeVar("T")

CLEANUP_SECONDS = 2.0
"""How long a clean-up may take; the next start removes what is left then."""

HELD_SECONDS = 0.7
"""How long clean-ups may hold up a caller that was cancelled."""

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


_left_behind: set[asyncio.Task[Any]] = set()
_last_of: WeakKeyDictionary[asyncio.Task[Any], asyncio.Task[Any]] = WeakKeyDictionary()
"""The clean-up that a task has left behind last: the next one of that task begins after it."""


def left_behind() -> asyncio.Task[Any] | None:
    """Return the clean-up that the current task has left behind last, if that goes on yet."""
    caller = asyncio.current_task()
    task = None if caller is None else _last_of.get(caller)
    return None if task is None or task.done() else task


def cleanups_left_behind() -> int:
    """Return how many clean-ups of this process go on although their callers have returned."""
    return len(_left_behind)


async def shielded(call: Coroutine[Any, Any, T], *, whole: bool = False) -> T:
    """Run ``call`` to its end, however often the caller is cancelled meanwhile. ``call`` must be bounded.

    A caller that is cancelled, before or meanwhile, is held up for HELD_SECONDS at most: then ``call`` goes on without it
    (and the result is None, if no cancellation comes meanwhile). The caller's next clean-ups begin after that, in order.

    anyio's shield alone holds off anyio's own cancel scopes, not ``Task.cancel()``, which ``asyncio.timeout`` and
    ``asyncio.TaskGroup`` use.

    :param whole: wait for the end of ``call`` in any case.
    :raises asyncio.CancelledError: the caller was cancelled meanwhile. Else what ``call`` raises.
    """
    loop, caller, before = asyncio.get_running_loop(), asyncio.current_task(), left_behind()
    task = loop.create_task(call if before is None else _after(before, call))
    cancelled: asyncio.CancelledError | None = None
    until = None
    if not whole and _handles_cancellation():
        until = loop.time() + (HELD_SECONDS if before is None else 0.0)
    with anyio.CancelScope(shield=True):
        while not task.done() and (until is None or loop.time() < until):
            try:
                await asyncio.wait([task], timeout=None if until is None else until - loop.time())
            except asyncio.CancelledError as error:
                cancelled = error
                if until is None and not whole:
                    until = loop.time() + HELD_SECONDS
    if not task.done():
        _left_behind.add(task)
        task.add_done_callback(_left_behind.discard)
        task.add_done_callback(retrieved)
        if caller is not None:
            _last_of[caller] = task
    if cancelled is not None:
        if task.done():
            retrieved(task)
        raise cancelled
    return task.result() if task.done() else cast(T, None)


async def _after(before: asyncio.Task[Any], call: Coroutine[Any, Any, T]) -> T:
    try:
        await asyncio.wait([before])
    except BaseException:
        call.close()
        raise
    return await call


def _handles_cancellation() -> bool:
    """Return whether a CancelledError is being handled (and not a TimeoutError that an inner deadline made of one)."""
    error = sys.exc_info()[1]
    while error is not None and not isinstance(error, (asyncio.CancelledError, TimeoutError)):
        error = error.__context__
    return isinstance(error, asyncio.CancelledError)


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
        await shielded(_settled(lane, task, undo))
        raise


async def _settled(lane: Runs, task: asyncio.Future[T], undo: Callable[[T], object] | None) -> None:
    """Wait for the end of a call whose caller was cancelled, and undo its effect. Bounded."""
    try:
        await bounded(asyncio.wait([task]))
    finally:
        if not task.done():
            task.cancel()  # if the call ends after all, its thread undoes it
    if undo is not None and not task.cancelled() and task.done() and task.exception() is None:
        await cleaned_up(lane, partial(undo, task.result()))


class Once:
    """A blocking call that runs once, on the first thread that calls it."""

    def __init__(self, func: Callable[[], object]) -> None:
        self._func = func
        self._lock = threading.Lock()
        self.begun: bool = False

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


class TaskGroup(asyncio.TaskGroup):
    """An ``asyncio.TaskGroup`` that leaves no cancellation with its caller when one of its tasks fails.

    That of CPython 3.11 and 3.12 cancels its caller once for a task that fails while it waits for the last ones, and never
    takes that back: ``Task.cancelling()`` stays 1. Then a later CancelledError that was meant for another task would be taken
    for the caller's own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._begun: set[asyncio.Task[Any]] = set()

    def create_task(self, *args: Any, **kwargs: Any) -> asyncio.Task[Any]:
        """See ``asyncio.TaskGroup``."""
        task = super().create_task(*args, **kwargs)
        self._begun.add(task)
        task.add_done_callback(self._begun.discard)
        return task

    async def __aexit__(
        self, et: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if exc is None:
            try:
                while self._begun:  # here, where the base class takes its cancellation back, and not in its own wait
                    await asyncio.wait(self._begun)
            except asyncio.CancelledError as cancelled:
                await super().__aexit__(type(cancelled), cancelled, cancelled.__traceback__)
                raise
        await super().__aexit__(et, exc, tb)
