"""Clean-up that a cancellation must not cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


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
