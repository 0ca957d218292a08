"""Calls that run together, and ending tasks for certain.

``asyncio.wait_for`` of Python 3.11, which nats-py uses, swallows cancellations.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, TypeVar

from astore.cancellation import TaskGroup

T = TypeVar("T")


async def heeding(call: Awaitable[T]) -> T:
    """Await a call of nats-py. If it swallows a cancellation, because its result came in the same moment, raise that."""
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()
    try:
        return await call
    finally:
        if task.cancelling() > before:
            raise asyncio.CancelledError


async def together(calls: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run calls at once. If one fails, cancel the others, and raise what it has raised: no group, which nobody expects."""
    try:
        async with TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for their end.

    They are cancelled again and again: not all of them wait by :func:`heeding`.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=0.2)
