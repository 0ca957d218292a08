"""Calls on threads of their own, for when every thread of the lane may hang."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from astore.lanes.own_thread import on_own_thread

T = TypeVar("T")


class Call(threading.Thread):
    """A call with a path that may never return, and its result."""

    def __init__(self, func: Callable[[str], None], path: str) -> None:
        super().__init__(name="astore-netfs", daemon=True)
        self.error: OSError | None = None
        self._call = functools.partial(func, path)
        self.start()

    def run(self) -> None:
        """Make the call."""
        try:
            self._call()
        except OSError as error:
            self.error = error


async def aside(func: Callable[..., T], *args: Any, timeout: float) -> T:
    """Run a blocking call on a new daemon thread, for when every thread of the lane may hang.

    :raises TimeoutError: it did not return in ``timeout`` seconds; its thread stays behind.
    """
    async with asyncio.timeout(timeout):
        return await on_own_thread(functools.partial(func, *args), name="astore-netfs")
