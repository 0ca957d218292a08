"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


async def end(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait for their end.

    They are cancelled again and again: ``asyncio.wait_for`` of Python 3.11, which nats-py uses, swallows a cancellation that
    comes in the moment of the result.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=0.2)
