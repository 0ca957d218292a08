"""Lanes: bounded worker threads for blocking calls, with deadlines, accounting and fairness.

Each pool has a :class:`PoolLane`. All lanes share the threads of one :class:`Lanes`, under a global cap, and take turns. A
call that passes its deadline gives its caller :class:`~astore.errors.LaneTimeoutError`; its thread is then *stuck*:
it still counts against its lane, which fails at once when all it may have are stuck, and no longer against the cap,
so that other lanes lose nothing. When the call returns after all, the lane has its thread back.

Threads are daemons of our own rather than an executor's, because an executor's are joined at exit, and a
thread that hangs in the kernel would keep the process from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import msgspec

from astore.errors import LaneStuckError, LaneTimeoutError
from astore.tracebacks import let_go_of_locals
from astore.turns import Turn, Turns

T = TypeVar("T")

IDLE_SECONDS = 5.0
"""How long a thread without work stays."""

DEFAULT_TIMEOUT = 60.0
DEFAULT_MAX_THREADS = 32


class LaneStatistics(msgspec.Struct, frozen=True):
    """One lane at a moment: calls running in time, stuck past their deadline, and waiting for a thread."""

    name: str
    limit: int
    running: int
    stuck: int
    queued: int


class LanesStatistics(msgspec.Struct, frozen=True):
    """All lanes at a moment: ``threads`` there are (stuck ones included), ``stuck`` of them, and calls waiting."""

    max_threads: int
    threads: int
    stuck: int
    queued: int
    lanes: tuple[LaneStatistics, ...]


class _Job:
    """One blocking call. Its fields change under the lock of its Lanes only."""

    __slots__ = ("abandoned", "args", "discard", "func", "future", "lane", "loop", "parent", "stuck")

    def __init__(
        self,
        lane: PoolLane,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop | None = None,
        discard: Callable[[Any], object] | None = None,
        parent: _Job | None = None,
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


_here = threading.local()


class Lanes:
    """The threads that all lanes share.

    :param max_threads: how many may run at once, stuck ones not counted.
    """

    def __init__(self, max_threads: int = DEFAULT_MAX_THREADS) -> None:
        if max_threads < 1:
            raise ValueError("max_threads must be at least 1")
        self.max_threads = max_threads
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._ready: deque[PoolLane] = deque()  # lanes with a call that may start, in turn
        self._lanes: dict[int, PoolLane] = {}
        self._threads = 0
        self._idle = 0
        self._stuck = 0
        self._closed = False
        self._turns = Turns()

    def lane(self, name: str, *, limit: int = 4, timeout: float = DEFAULT_TIMEOUT) -> PoolLane:
        """A new lane.

        :param name: for messages. :param limit: how many threads it may use at once.
        :param timeout: seconds a call may take that does not say.
        """
        if limit < 1:
            raise ValueError("limit must be at least 1")
        lane = PoolLane(self, name, limit, timeout)
        with self._lock:
            self._lanes[id(lane)] = lane
        return lane

    def forget(self, lane: PoolLane) -> None:
        """Leave a lane out of the statistics; calls that still run on it end as they would have."""
        with self._lock:
            self._lanes.pop(id(lane), None)

    def close(self) -> None:
        """Let idle threads go, and busy ones when they are done; calls still queued run. May be called twice."""
        with self._lock:
            self._closed = True
            self._work.notify_all()

    def statistics(self) -> LanesStatistics:
        """Counts at this moment."""
        with self._lock:
            lanes = tuple(
                LaneStatistics(
                    lane.name,
                    lane.limit,
                    sum(not job.stuck for job in lane._running),
                    lane._stuck,
                    len(lane._queue),
                )
                for lane in self._lanes.values()
            )
            return LanesStatistics(
                self.max_threads, self._threads, self._stuck, sum(lane.queued for lane in lanes), lanes
            )

    # ------------------------------------------------------------------------------- below: with the lock held

    def _offer(self, lane: PoolLane) -> None:
        """Let the lane have a turn if it has a call that may start, and see that a thread comes for it."""
        if not lane._listed and lane._may_start():
            lane._listed = True
            self._ready.append(lane)
        self._wake()

    def _wake(self) -> None:
        """See that threads come for the lanes that are ready; each thread that comes wakes the next."""
        wanted = len(self._ready)
        if wanted == 0:
            return
        if self._idle:
            self._work.notify(min(wanted, self._idle))
        # an idle thread that was notified a moment ago still counts as idle: start another if in doubt
        if self._idle < wanted and self._threads - self._stuck < self.max_threads:
            self._threads += 1
            thread = threading.Thread(target=self._serve, name="astore-lane", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had: those there are will come to it
                self._threads -= 1
                if self._threads == 0:
                    raise

    def _take(self) -> _Job | None:
        while self._ready:
            lane = self._ready.popleft()
            lane._listed = False
            if not lane._may_start():
                continue
            job = lane._queue.popleft()
            lane._running.add(job)
            if lane._may_start():
                lane._listed = True
                self._ready.append(lane)
            self._wake()
            return job
        return None

    def _release(self, job: _Job) -> bool:
        """The job's call returned; say whether its thread is one too many now."""
        lane = job.lane
        lane._running.discard(job)
        if job.stuck:
            job.stuck = False
            lane._stuck -= 1
            self._stuck -= 1
        if not lane._listed and lane._may_start():
            lane._listed = True
            self._ready.append(lane)
        surplus = self._threads - self._stuck > self.max_threads
        if surplus:
            self._wake()  # this thread goes, and so will not look what there is for it
        return surplus

    def _write_off(self, job: _Job) -> None:
        """Count the job's thread, and those of its assistants, as stuck."""
        lane = job.lane
        for other in lane._running:
            if (other is job or other.parent is job) and not other.stuck:
                other.stuck = True
                lane._stuck += 1
                self._stuck += 1
        self._wake()  # there is room under the cap again

    # -------------------------------------------------------------------------------------------- the threads

    def _serve(self) -> None:
        while True:
            with self._lock:
                job = self._take()
                while job is None:
                    if self._closed:
                        self._threads -= 1
                        return
                    self._idle += 1
                    woken = self._work.wait(IDLE_SECONDS)
                    self._idle -= 1
                    job = self._take()
                    if job is None and not woken:
                        self._threads -= 1
                        return
            surplus = self._execute(job)
            del job
            if surplus:
                return

    def _execute(self, job: _Job) -> bool:
        result: Any = None
        error: BaseException | None = None
        _here.job = job
        try:
            result = job.func(*job.args)
        except Exception as exc:
            error = exc
        except BaseException as exc:  # sys.exit() in a plugin must not end the event loop
            error = RuntimeError(f"{type(exc).__name__} was raised in a worker thread: {exc}")
            error.__cause__ = exc
        _here.job = None
        job.func, job.args = _done, ()  # the timer of a call given up keeps the job until its deadline, but no more
        if isinstance(error, StopIteration):  # which a future cannot carry
            error = RuntimeError(f"StopIteration was raised in a worker thread: {error}")
        if error is not None:
            let_go_of_locals(error)
        with self._lock:
            surplus = self._release(job)
            if surplus:
                self._threads -= 1
            deliver = not job.abandoned
        if deliver and job.loop is not None:
            try:
                job.loop.call_soon_threadsafe(job.lane._deliver, job, result, error)
            except RuntimeError:  # the loop was closed meanwhile
                deliver = False
        if not deliver and error is None:
            _discard(job, result)
        error = None  # its traceback holds this frame
        return surplus


class PoolLane:
    """A lane: ``limit`` threads for one pool's blocking calls. See :class:`astore.backend.Lane` for the contract."""

    def __init__(self, lanes: Lanes, name: str, limit: int, timeout: float) -> None:
        self.name = name
        self.limit = limit
        self.timeout = timeout
        self._lanes = lanes
        self._queue: deque[_Job] = deque()
        self._running: set[_Job] = set()
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
        job = _Job(self, func, args, loop, discard)
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
        parent: _Job | None = getattr(_here, "job", None)
        if parent is None or parent.lane is not self:
            raise RuntimeError("assist() is for calls that run on this lane")
        lanes = self._lanes
        with lanes._lock:
            for _ in range(count):
                self._queue.append(_Job(self, func, (), parent=parent.parent or parent))
                lanes._offer(self)

    def turn(self) -> Turn:
        """This thread's turn at computing; see :meth:`astore.backend.Lane.turn`."""
        return self._lanes._turns.turn()

    def give_way(self, most: float) -> float:
        """Let those who compute go first; see :meth:`astore.backend.Lane.give_way`."""
        return self._lanes._turns.give_way(most)

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

    def _abandon(self, job: _Job) -> bool:
        """Nobody will take the job's result. Say whether its thread is at it."""
        with self._lanes._lock:
            job.abandoned = True
            if job in self._running:
                return True
            with contextlib.suppress(ValueError):
                self._queue.remove(job)
            return False

    def _expire(self, job: _Job, limit: float) -> None:
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

    def _deliver(self, job: _Job, result: Any, error: BaseException | None) -> None:
        """Hand the result to the caller. On the loop."""
        future = job.future
        if future is None or future.done():
            if error is None:
                self._give_back(job, result)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def _give_back(self, job: _Job, result: Any) -> None:
        """Have a result that came as far as the loop discarded on the lane."""
        if job.discard is not None:
            with self._lanes._lock:
                self._queue.append(_Job(self, _discard, (job, result)))
                self._lanes._offer(self)


def _done() -> None:
    """What a job calls that was called."""


def _discard(job: _Job, result: Any) -> None:
    if job.discard is not None:
        with contextlib.suppress(Exception):
            job.discard(result)


def monotonic_deadline(timeout: float | None) -> float:
    """The moment ``timeout`` seconds from now on time.monotonic()'s clock; None is never."""
    return float("inf") if timeout is None else time.monotonic() + timeout
