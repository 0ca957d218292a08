"""Lanes: bounded worker threads for blocking calls, with deadlines, accounting and fairness.

Each pool has a :class:`PoolLane`. All lanes of one :class:`Lanes` share its threads, under a global cap, and take turns. A
call that passes its deadline raises :class:`~astore.errors.LaneTimeoutError`, and its thread is then *stuck*. A stuck thread
still counts against its lane, which fails at once when all its threads are stuck. It no longer counts against the cap, so
that other lanes lose nothing. If the call returns after all, the lane has its thread back.
"""

from __future__ import annotations

import asyncio
import atexit
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast
from weakref import WeakSet

from astore.errors import LaneTimeoutError
from astore.lanes.gil_turns import Aside, Turn, Turns
from astore.lanes.job import PATIENCE, Job, LaneRecord, Patience, given_up, here
from astore.lanes.threads import LOST_SECONDS, LanesStatistics, LaneStatistics, SharedThreads

T = TypeVar("T")

DEFAULT_TIMEOUT = 60.0
"""The default deadline of a call on a lane, in seconds."""

DEFAULT_MAX_THREADS = 32
"""How many threads run at once in all, stuck ones not counted."""


class PoolLane:
    """A lane: up to ``limit`` threads for one pool's blocking calls. See :class:`astore.backend.Lane` for the contract."""

    def __init__(self, threads: SharedThreads, turns: Turns, name: str, limit: int, timeout: float) -> None:
        self.name = name
        self.limit = limit
        self.timeout = timeout
        self._threads = threads
        self._turns = turns
        self._record = LaneRecord(name, limit)
        threads.add(self._record)

    @property
    def stuck(self) -> int:
        """How many of its threads are stuck in calls past their deadline."""
        return self._record.stuck

    @property
    def busy(self) -> bool:
        """Whether any of its threads is in a call, stuck or not. True also for calls that nobody waits for."""
        return bool(self._record.running)

    async def run(
        self,
        func: Callable[..., T],
        *args: Any,
        timeout: float | None = None,
        discard: Callable[[T], object] | None = None,
    ) -> T:
        """Run ``func(*args)`` on a thread of this lane; see :meth:`astore.backend.Lane.run`."""
        limit, patience = timeout, None
        if limit is None:
            limit, patience = self.timeout, PATIENCE.get()
        loop = asyncio.get_running_loop()
        job = Job(self._record, func, args, loop, discard)
        future = job.future
        assert future is not None
        # A thread may hold the lock while it waits for the interpreter. The loop does not wait for that thread.
        pause = 0.0
        while not self._threads.submit(job):
            await asyncio.sleep(pause)
            pause = 0.001  # else the loop would keep a processor busy that the thread may need
        if self._threads.starting:
            loop.call_later(LOST_SECONDS * 1.1, self._threads.replace_lost)
        if limit != float("inf"):
            job.timer = loop.call_later(limit, self._expire, job, limit, patience)
        try:
            return cast(T, await future)
        except asyncio.CancelledError:
            # The thread cannot be interrupted. Its timer stays, so that it counts as stuck after its deadline.
            if not self._threads.abandon(job) and job.timer is not None:
                job.timer.cancel()
            job.timer = None
            if future.done() and not future.cancelled():
                future.exception()  # it came together with the cancellation, and is known now
            raise
        finally:
            if job.timer is not None:
                job.timer.cancel()
            # break the cycle: the traceback of an error holds this frame, and the future holds the error
            job.future = job.timer = None
            del future

    def assist(self, func: Callable[[], None], count: int = 1) -> None:
        """Let up to ``count`` more threads run ``func``; see :meth:`astore.backend.Lane.assist`.

        :raises RuntimeError: not called on a thread of this lane.
        """
        job: Job | None = getattr(here, "job", None)
        if job is None or job.lane is not self._record:
            raise RuntimeError("assist() is for calls that run on this lane")
        self._threads.assist(job.parent or job, func, count)

    @property
    def given_up(self) -> bool:
        """Whether nobody waits for this thread's call any more; see :attr:`astore.backend.Lane.given_up`."""
        return given_up()

    def turn(self, *, device: bool = False) -> Turn:
        """Return a turn at computing for this thread; see :meth:`astore.backend.Lane.turn`."""
        return Turn(self._turns, self._record, device=device)

    def aside(self, most: float) -> Aside:
        """Return background work for this thread; see :meth:`astore.backend.Lane.aside`."""
        return Aside(self._turns, most)

    @property
    def in_company(self) -> bool:
        """Whether threads take turns; see :attr:`astore.backend.Lane.in_company`."""
        return self._turns.in_company

    def statistics(self) -> LaneStatistics:
        """Return the counts at this moment, also after :meth:`close`."""
        return self._threads.lane_statistics(self._record)

    def close(self) -> None:
        """Remove the lane from the statistics; running calls go on."""
        self._threads.forget(self._record)

    def _expire(self, job: Job, limit: float, patience: Patience | None) -> None:
        """Fail a call at its deadline. On the loop."""
        job.timer = None
        future = job.future
        if not job.abandoned and (future is None or (future.done() and not future.cancelled())):
            return  # the caller has it, or is about to take it
        if patience is not None and not job.abandoned and (more := patience.left()) > 0 and job.loop is not None:
            self._threads.set_overdue(job)
            job.timer = job.loop.call_later(more, self._expire, job, limit + more, patience)
            return
        running = self._threads.expire(job)
        if future is not None and not future.done():
            what = "did not return" if running else "found no free thread"
            future.set_exception(
                LaneTimeoutError(f"{self.name}: the call {what} within {limit:g} s", lane=self.name, timeout=limit)
            )


class Lanes:
    """The lanes of a manager, and the threads and turns that they share.

    :param max_threads: how many threads may run at once, stuck ones not counted.
    :raises ValueError: it is less than 1.
    """

    def __init__(self, max_threads: int = DEFAULT_MAX_THREADS) -> None:
        if max_threads < 1:
            raise ValueError("max_threads must be at least 1")
        self.max_threads = max_threads
        self._threads = SharedThreads(max_threads)
        _all_threads.add(self._threads)
        self._turns = Turns()

    def lane(self, name: str, *, limit: int = 4, timeout: float = DEFAULT_TIMEOUT) -> PoolLane:
        """Return a new lane.

        :param name: for messages. :param limit: how many threads it may use at once.
        :param timeout: the default deadline of its calls, in seconds.
        :raises ValueError: ``limit`` is less than 1.
        """
        if limit < 1:
            raise ValueError("limit must be at least 1")
        return PoolLane(self._threads, self._turns, name, limit, timeout)

    @property
    def busy(self) -> bool:
        """Whether a thread is in a call, stuck or not, of whatever lane."""
        return self._threads.busy

    def close(self) -> None:
        """End idle threads now and busy ones when they are done; queued calls still run. May be called twice."""
        self._threads.close()

    def statistics(self) -> LanesStatistics:
        """Return the counts at this moment."""
        return self._threads.statistics()


_all_threads: WeakSet[SharedThreads] = WeakSet()


@atexit.register
def _let_threads_begin() -> None:
    """Wait for threads that were started a moment ago: CPython 3.11 aborts if one begins while it finalizes itself."""
    while any(threads.starting for threads in tuple(_all_threads)):
        time.sleep(0.001)
