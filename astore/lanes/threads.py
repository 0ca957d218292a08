"""Lanes: bounded worker threads for blocking calls, with deadlines, accounting and fairness.

Each pool has a :class:`PoolLane`. All lanes share the threads of one :class:`Lanes`, under a global cap, and take turns. A
call that passes its deadline gives its caller :class:`~astore.errors.LaneTimeoutError`; its thread is then *stuck*:
it still counts against its lane, which fails at once when all it may have are stuck, and no longer against the cap,
so that other lanes lose nothing. When the call returns after all, the lane has its thread back.

Threads are daemons of our own rather than an executor's, because an executor's are joined at exit, and a
thread that hangs in the kernel would keep the process from ending.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import msgspec

from astore.lanes.gil_turns import Turns
from astore.lanes.lane import Job, PoolLane, discard, here
from astore.lanes.tracebacks import let_go_of_locals

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


class Lanes:
    """The threads that all lanes share.

    :param max_threads: how many may run at once, stuck ones not counted.
    """

    def __init__(self, max_threads: int = DEFAULT_MAX_THREADS) -> None:
        if max_threads < 1:
            raise ValueError("max_threads must be at least 1")
        self.max_threads = max_threads
        self._lock = threading.Lock()
        self._ready: deque[PoolLane] = deque()  # lanes with a call that may start, in turn
        self._lanes: dict[int, PoolLane] = {}
        self._threads = 0
        self._idle: list[
            threading.Lock
        ] = []  # the bells of threads without work, the last one to have had some at the end
        self._coming = 0  # threads that were called, or started, and are not here yet
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
            while self._idle:
                self._call_idle()

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
        # a lane that is ready may have work for several threads: they are called together, not one by the other
        self._wake(min(len(lane._queue), lane.limit - len(lane._running)) - 1)

    def _wake(self, more: int = 0) -> None:
        """See that threads come: one for each lane that is ready, ``more`` beside, and each that comes wakes the next."""
        wanted = len(self._ready) + max(more, 0) - self._coming
        while wanted > 0 and self._idle:
            self._call_idle()
            wanted -= 1
        if wanted > 0 and self._threads - self._stuck < self.max_threads:
            self._threads += 1
            self._coming += 1
            thread = threading.Thread(target=self._serve, name="astore-lane", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads to be had: those there are will come to it
                self._threads -= 1
                self._coming -= 1
                if self._threads == 0:
                    raise

    def _call_idle(self) -> None:
        """Have the thread come that was idle last: those that there is nothing for are to find that out, and go."""
        self._coming += 1
        self._idle.pop().release()

    def _take(self) -> Job | None:
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

    def _release(self, job: Job) -> bool:
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

    def _write_off(self, job: Job) -> None:
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
        bell = threading.Lock()
        bell.acquire()
        called, waited = True, False
        while True:
            with self._lock:
                self._coming -= called
                job = self._take()
                if job is None:
                    if self._closed or (waited and not called):
                        self._threads -= 1
                        return
                    self._idle.append(bell)
            if job is None:
                called, waited = self._wait(bell), True
                continue
            called = waited = False
            surplus = self._execute(job)
            del job
            if surplus:
                return

    def _wait(self, bell: threading.Lock) -> bool:
        """Wait to be called; say whether it was."""
        if bell.acquire(timeout=IDLE_SECONDS):
            return True
        with self._lock:
            if bell in self._idle:
                self._idle.remove(bell)
                return False
        return bell.acquire()  # it was called in this very moment

    def _execute(self, job: Job) -> bool:
        result: Any = None
        error: BaseException | None = None
        here.job = job
        try:
            result = job.func(*job.args)
        except Exception as exc:
            error = exc
        except BaseException as exc:  # sys.exit() in a plugin must not end the event loop
            error = RuntimeError(f"{type(exc).__name__} was raised in a worker thread: {exc}")
            error.__cause__ = exc
        here.job = None
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
            discard(job, result)
        error = None  # its traceback holds this frame
        return surplus


def _done() -> None:
    """What a job calls that was called."""
