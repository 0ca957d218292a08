"""Calls: makes the calls of a block pool, be they coroutine functions or blocking ones."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from astore.backend import Context, Lane
from astore.blocks.contract import Answer
from astore.cancellation import Once, bounded, in_a_thread, retrieved, shielded, to_the_end
from astore.errors import LaneTimeoutError
from astore.lanes.job import PATIENCE

T = TypeVar("T")


class Calls:
    """Runs coroutines on the loop and blocking calls on the pool's lane, each with a deadline.

    :param context: the pool's.
    """

    def __init__(self, context: Context) -> None:
        self.lane: Lane = context.lane
        self._name = context.name
        self._timeout = context.timeout
        self._undoing: set[asyncio.Future[Any]] = set()

    async def run(
        self,
        func: Callable[..., Answer[T]],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Make a call.

        :param timeout: in seconds; None is the pool's own, or what the caller's patience leaves if that is longer.
        :param discard: takes the result of a blocking call whose caller was cancelled. (A coroutine is cancelled instead.)
        :raises LaneTimeoutError: the call did not end in time.
        """
        if inspect.iscoroutinefunction(func):
            return await self.settled(func(*args), timeout)
        undo = None if discard is None else self._undoes(discard)

        def undone(result: Any) -> None:
            if inspect.iscoroutine(result):
                result.close()  # it never began
            elif undo is not None:
                undo(result)

        answer = await self.lane.run(func, *args, timeout=timeout, discard=undone)
        return await self.settled(answer, timeout)

    async def settled(self, answer: Answer[T], timeout: float | None = None) -> T:
        """Return the result of a call that was made, awaited if it is awaitable. :param timeout: see :meth:`run`."""
        if inspect.isawaitable(answer):
            return await self._within(answer, timeout)
        return answer

    async def to_the_end(
        self, func: Callable[..., Answer[T]], *args: object, undo: Callable[[T], object] | None = None
    ) -> T:
        """Make a call. If this is cancelled, wait for the call's end (bounded) and undo its effect."""
        call: Callable[..., Any] = func
        try:
            result: T = await to_the_end(self, call, *args, undo=None if undo is None else self._undoes(undo))
        except asyncio.CancelledError:
            if self._undoing:
                await shielded(bounded(asyncio.wait(self._undoing)))
            raise
        return result

    async def close(self, close: Callable[[], Answer[None]]) -> None:
        """Make a call that closes something, on an own thread if the lane has none free."""
        if inspect.iscoroutinefunction(close):
            await self.run(close)
            return
        once = Once(close)
        try:
            await self.run(once)
        finally:
            if not once.begun:
                in_a_thread(partial(self._undoes(Once.__call__), once))

    def _undoes(self, undo: Callable[[T], object]) -> Callable[[T], None]:
        """Return a function for any thread: it calls ``undo``, and lets the loop await what that returns."""
        loop = asyncio.get_running_loop()

        def call(result: T) -> None:
            if inspect.isawaitable(undoing := undo(result)):
                loop.call_soon_threadsafe(self._await, undoing)

        return call

    def _await(self, undoing: Awaitable[Any]) -> None:
        future = asyncio.ensure_future(undoing)
        self._undoing.add(future)
        future.add_done_callback(self._undoing.discard)
        future.add_done_callback(retrieved)

    async def _within(self, call: Awaitable[T], timeout: float | None) -> T:
        """Await a call until its deadline, which the caller's patience may put off meanwhile, as on a lane."""
        patience = PATIENCE.get() if timeout is None else None
        limit = self._timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def expire() -> None:
            nonlocal limit, timer
            if patience is not None and (more := patience.left()) > 0:
                limit += more
                timer = loop.call_later(more, expire)
            else:
                scope.reschedule(loop.time())

        try:
            async with asyncio.timeout(None) as scope:
                timer = loop.call_later(limit, expire) if limit != float("inf") else None
                try:
                    return await call
                finally:
                    if timer is not None:
                        timer.cancel()
        except TimeoutError as error:
            if not scope.expired():
                raise
            message = f"{self._name}: the call did not return within {limit:g} s"
            raise LaneTimeoutError(message, lane=self._name, timeout=limit) from error
