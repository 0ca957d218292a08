"""Blocking calls that must not be left half-way: bounded, brought to their end, undone where nobody takes what they did."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from astore.backend import Lane
from astore.shield import shielded

T = TypeVar("T")

CLEANUP_SECONDS = 2.0
"""How long putting things in order may hold up a cancellation; what is left then, the next start removes."""

SYNC_SECONDS = 600.0
"""How long storage may take until all that was written is safe: gigabytes may wait in its caches."""


async def bounded(call: Awaitable[object]) -> None:
    """Wait for a clean-up, but not for long, and whatever it says."""
    with anyio.move_on_after(CLEANUP_SECONDS):
        with contextlib.suppress(Exception):
            await call


async def to_the_end(lane: Lane, func: Callable[..., T], *args: object, undo: Callable[[T], object] | None = None) -> T:
    """Run ``func(*args)`` on the lane. Cancelled, wait for its end all the same (bounded), and undo what it did.

    So that whoever cancelled finds the storage at rest: the thread of a cancelled call goes on.

    :param undo: given what ``func`` returned, on the lane.
    """
    task = asyncio.ensure_future(lane.run(func, *args, discard=undo))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await shielded(bounded(asyncio.wait([task])))
        if not task.done():
            task.cancel()  # and where it comes to its end after all, its thread undoes it
        elif undo is not None and not task.cancelled() and task.exception() is None:
            await shielded(bounded(lane.run(undo, task.result())))
        raise


def in_a_thread(func: Callable[[], object]) -> None:
    """Run a clean-up for which the lane has no thread, in one of its own. Nobody waits for it."""

    def run() -> None:
        with contextlib.suppress(Exception):
            func()

    threading.Thread(target=run, name="astore-cleanup", daemon=True).start()
