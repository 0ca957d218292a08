"""Cancels a call at each of its awaits: those of its own task, and of every task that it begins."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import ContextVar
from typing import Any

_counting: ContextVar[Callable[[], None]] = ContextVar("astore_counting")
"""Called at each await of the tasks that have it."""


class Counted(Coroutine[Any, Any, Any]):
    """A coroutine that tells of each await at which it waits. :param waits: called then."""

    def __init__(self, call: Coroutine[Any, Any, Any], waits: Callable[[], None]) -> None:
        self._call = call
        self._waits = waits

    def send(self, value: Any) -> Any:
        """See PEP 492."""
        found = self._call.send(value)
        self._waits()
        return found

    def throw(self, *error: Any) -> Any:
        """See PEP 492."""
        found = self._call.throw(*error)
        self._waits()
        return found

    def close(self) -> None:
        """See PEP 492."""
        self._call.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._call.__await__()

    def __getattr__(self, name: str) -> Any:  # cr_frame and the like
        return getattr(self._call, name)


def _task(loop: asyncio.AbstractEventLoop, call: Any, **more: Any) -> asyncio.Task[Any]:
    """Make a task; a task factory."""
    context: contextvars.Context = more.get("context") or contextvars.copy_context()
    waits = context.get(_counting)
    return asyncio.Task(call if waits is None else Counted(call, waits), loop=loop, **more)


async def cancelled_at(call: Callable[[], Awaitable[object]], number: int) -> tuple[asyncio.Task[None], bool]:
    """Cancel ``call()`` when it, or a task that it began, waits for the ``number``-th time.

    :return: its task, which has ended, and whether it was told to: if not, it has fewer awaits.
    """
    left, told = number, False

    def waits() -> None:
        nonlocal left, told
        left -= 1
        if left == 0:
            told = task.cancel()

    async def body() -> None:
        await call()

    context = contextvars.copy_context()
    context.run(_counting.set, waits)
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(_task)
    try:
        task = loop.create_task(body(), context=context)
        await asyncio.wait([task])
    finally:
        loop.set_task_factory(before)
    return task, told
