"""Run a blocking call on a thread of its own, outside all lanes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar, cast

T = TypeVar("T")


async def on_own_thread(func: Callable[[], T], *, name: str) -> T:
    """Run a blocking call on a new daemon thread, for calls that must not wait for the threads of a lane.

    If the caller is cancelled, the thread stays behind and its result is dropped.

    :param name: the name of the thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():  # the caller was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(cast(T, result))

    def work() -> None:
        result, failure = None, None
        try:
            result = func()
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await future
