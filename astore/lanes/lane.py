"""PoolLane: one pool's share of the threads, and the calls that it makes on them; see :mod:`astore.lanes`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from astore.errors import LaneStuckError, LaneTimeoutError

if TYPE_CHECKING:
    from astore.lanes import Lanes
    from astore.lanes.gil_turns import Aside, Turn

T = TypeVar("T")


class Job:
    """One blocking call. Its fields change under the lock of its Lanes only."""

    __slots__ = ("abandoned", "args", "discard", "func", "future", "lane", "loop", "parent", "stuck")

    def __init__(
        self,
        lane: PoolLane,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop | None = None,
        discard: Callable[[Any], object] | None = None,
        parent: Job | None = None,
    ) -> None:
        self.lane = lane
        self.func = func
        self.args = args
        self.loop = loop
        self.future: asyncio.Future[Any] | None = None if loop is None else loop.create_future()
        self.discard = discard
        self.parent = parent
        self.abandoned = False
        self.stuck = False


here = threading.local()
"""``job``: the one that this thread is at."""


def discard(job: Job, result: Any) -> None:
    """Nobody takes the result of a job: give it to whoever is to undo it."""
    if job.discard is not None:
        with contextlib.suppress(Exception):
            job.discard(result)


class PoolLane:
    """A lane: ``limit`` threads for one pool's blocking calls. See :class:`astore.backend.Lane` for the contract."""

    def __init__(self, lanes: Lanes, name: str, limit: int, timeout: float) -> None:
        self.name = name
        self.limit = limit
        self.timeout = timeout
        self._lanes = lanes
        self._queue: deque[Job] = deque()
        self._running: set[Job] = set()
        self._stuck = 0
        self._listed = False  # whether it stands in Lanes._ready

    @property
    def stuck(self) -> int:
        """How many of its threads are stuck in calls past their deadline."""
        return self._stuck

    async def run(
        self,
        func: Callable[..., T],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Run ``func(*args)`` on a thread of this lane; see :meth:`astore.backend.Lane.run`."""
        limit = self.timeout if timeout is None else timeout
        loop = asyncio.get_running_loop()
        job = Job(self, func, args, loop, discard)
        future = job.future
        assert future is not None
        lanes = self._lanes
        with lanes._lock:
            if self._stuck >= self.limit:
                raise LaneStuckError(
                    f"{self.name}: all {self.limit} threads hang in calls that passed their deadline", lane=self.name
                )
            self._queue.append(job)
            try:
                lanes._offer(self)
            except RuntimeError:  # there is no thread at all, and none to be had
                self._queue.remove(job)
                raise
        timer = loop.call_later(limit, self._expire, job, limit) if limit != float("inf") else None
        try:
            return cast(T, await future)
        except asyncio.CancelledError:
            # The thread cannot be interrupted. Its timer stays, so that it is counted as stuck when it is overdue.
            if not self._abandon(job) and timer is not None:
                timer.cancel()
            timer = None
            if not future.cancelled() and future.exception() is None:  # it came in the very moment of the cancellation
                self._give_back(job, future.result())
            raise
        finally:
            if timer is not None:
                timer.cancel()
            # the traceback of an error holds this frame, and the future holds the error: no cycles of what failed
            job.future = None
            del future

    def assist(self, func: Callable[[], None], count: int = 1) -> None:
        """Have up to ``count`` more threads run ``func`` beside the present call; see :meth:`astore.backend.Lane.assist`."""
        parent: Job | None = getattr(here, "job", None)
        if parent is None or parent.lane is not self:
            raise RuntimeError("assist() is for calls that run on this lane")
        lanes = self._lanes
        with lanes._lock:
            for _ in range(count):
                self._queue.append(Job(self, func, (), parent=parent.parent or parent))
                lanes._offer(self)

    def turn(self) -> Turn:
        """This thread's turn at computing; see :meth:`astore.backend.Lane.turn`."""
        return self._lanes._turns.turn()

    def aside(self, most: float) -> Aside:
        """This thread's work without haste; see :meth:`astore.backend.Lane.aside`."""
        return self._lanes._turns.aside(most)

    @property
    def in_company(self) -> bool:
        """Whether threads take turns; see :attr:`astore.backend.Lane.in_company`."""
        return self._lanes._turns.in_company

    def write_off(self) -> None:
        """Count the threads of calls that nobody waits for any more as stuck now, not only at their deadline."""
        with self._lanes._lock:
            for job in list(self._running):
                if job.abandoned and not job.stuck:
                    self._lanes._write_off(job)

    def close(self) -> None:
        """Leave the statistics; calls that run end as they would have."""
        self._lanes.forget(self)

    # ---------------------------------------------------------------------------------------------- inner works

    def _may_start(self) -> bool:
        """Whether there is a call in the queue and a thread for it. With the lock held."""
        queue = self._queue
        while queue:
            job = queue[0]
            parent = job.parent
            if parent is not None and parent not in self._running:
                queue.popleft()  # an assistant whose principal is done
                continue
            if parent is not None and len(self._running) >= self.limit - 1:
                # the last thread is not for assistants: a short call need not wait for a long refresh
                if all(other.parent is not None for other in queue):
                    return False
                queue.rotate(-1)
                continue
            return len(self._running) < self.limit
        return False

    def _abandon(self, job: Job) -> bool:
        """Nobody will take the job's result. Say whether its thread is at it."""
        with self._lanes._lock:
            job.abandoned = True
            if job in self._running:
                return True
            with contextlib.suppress(ValueError):
                self._queue.remove(job)
            return False

    def _expire(self, job: Job, limit: float) -> None:
        """The job's deadline came. On the loop."""
        with self._lanes._lock:
            job.abandoned = True
            running = job in self._running
            if running:
                self._lanes._write_off(job)
            else:
                with contextlib.suppress(ValueError):
                    self._queue.remove(job)
        future = job.future
        if future is not None and not future.done():
            what = "did not return" if running else "found no free thread"
            future.set_exception(
                LaneTimeoutError(f"{self.name}: the call {what} within {limit:g} s", lane=self.name, timeout=limit)
            )

    def _deliver(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Hand the result to the caller. On the loop."""
        future = job.future
        if future is None or future.done():
            if error is None:
                self._give_back(job, result)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _give_back(self, job: Job, result: Any) -> None:
        """Have a result that came as far as the loop discarded on the lane."""
        if job.discard is not None:
            with self._lanes._lock:
                self._queue.append(Job(self, discard, (job, result)))
                self._lanes._offer(self)
