"""The worker threads that all lanes share: which lane gets one next, how many run, and which are stuck.

A lane here is its :class:`~astore.lanes.job.LaneRecord`, a call its :class:`~astore.lanes.job.Job`; all of them change only
under the lock of :class:`SharedThreads`.

The threads are daemons of our own: those of an executor are joined at exit, and a thread that hangs in the kernel would
keep the process from ending.
"""

from __future__ import annotations

import _thread
import contextlib
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from astore.errors import LaneStuckError
from astore.lanes.job import Job, LaneRecord, discard, here, let_go_of_locals
from astore.lanes.thread_setup import save_address_space, take_name

IDLE_SECONDS = 5.0
"""How long an idle thread waits for work before it ends."""


STACK_BYTES = 2 << 20
"""The stack of a thread: a quarter of the usual, so that many threads fit where the address space is limited."""

LOST_SECONDS = 5.0
"""How long a thread that was started may take to begin, before it is thought to be lost."""


class LaneStatistics(msgspec.Struct, frozen=True):
    """Counts of one lane: calls running in time, stuck past their deadline, and queued."""

    name: str
    limit: int
    running: int
    stuck: int
    queued: int


class LanesStatistics(msgspec.Struct, frozen=True):
    """Counts of all lanes: ``threads`` (stuck ones included), ``stuck`` ones, and calls that are queued."""

    max_threads: int
    threads: int
    stuck: int
    queued: int
    lanes: tuple[LaneStatistics, ...]


class SharedThreads:
    """The threads, and the queue of lanes that need one.

    :param max_threads: how many may run at once, stuck ones not counted.
    """

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self._lock = threading.Lock()
        self._ready: deque[LaneRecord] = deque()  # lanes with a call that may start, the next one first
        self._lanes: dict[int, LaneRecord] = {}
        self._threads = 0
        self._idle: list[threading.Lock] = []  # the bells of idle threads; the thread that worked last at the end
        self._coming = 0  # threads that were called or started, and have not looked for work yet
        save_address_space()
        self._starting: deque[float] = deque()  # when the threads among them were started that have not begun
        self._stuck = 0
        self._closed = False

    def add(self, lane: LaneRecord) -> None:
        """Add a lane to the statistics."""
        with self._lock:
            self._lanes[id(lane)] = lane

    def forget(self, lane: LaneRecord) -> None:
        """Remove a lane from the statistics; its running calls go on."""
        with self._lock:
            self._lanes.pop(id(lane), None)

    def close(self) -> None:
        """End idle threads now and busy ones when they are done; queued calls still run. May be called twice."""
        with self._lock:
            self._closed = True
            while self._idle:
                self._call_idle()

    def lane_statistics(self, lane: LaneRecord) -> LaneStatistics:
        """Return the counts of one lane at this moment."""
        with self._lock:
            return _counts(lane)

    def statistics(self) -> LanesStatistics:
        """Return the counts at this moment."""
        with self._lock:
            lanes = tuple(map(_counts, self._lanes.values()))
            return LanesStatistics(
                self.max_threads, self._threads, self._stuck, sum(lane.queued for lane in lanes), lanes
            )

    # ----------------------------------------------------------------------------------------------------- calls

    def submit(self, job: Job) -> bool:
        """Queue a call, unless another thread has the lock at this moment; return whether it is queued.

        :raises LaneStuckError: all threads of its lane are stuck. RuntimeError: no thread can be started.
        """
        lane = job.lane
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if lane.stuck >= lane.limit:
                raise LaneStuckError(
                    f"{lane.name}: all {lane.limit} threads hang in calls that passed their deadline", lane=lane.name
                )
            lane.queue.append(job)
            try:
                self._offer(lane)
            except RuntimeError:  # there is no thread, and none can be started
                lane.queue.remove(job)
                raise
        finally:
            self._lock.release()
        return True

    def assist(self, parent: Job, func: Callable[[], None], count: int) -> None:
        """Queue ``count`` calls of ``func`` beside a running one."""
        lane = parent.lane
        with self._lock:
            for _ in range(count):
                lane.queue.append(Job(lane, func, (), parent=parent))
                self._offer(lane)

    def abandon(self, job: Job) -> bool:
        """Abandon a call: nobody takes its result. Return whether a thread is running it; if not, it never runs any more."""
        with self._lock:
            return self._abandon(job)

    def expire(self, job: Job) -> bool:
        """Abandon a call at its deadline, and count its thread as stuck. Return whether a thread is running it."""
        with self._lock:
            running = self._abandon(job)
            if running:
                self._write_off(job)
            return running

    @property
    def starting(self) -> bool:
        """Whether a thread was started lately that has not begun: call :meth:`replace_lost` after LOST_SECONDS."""
        starting = self._starting.copy()  # without the lock: the event loop asks at each call
        return bool(starting) and time.monotonic() - starting[-1] <= LOST_SECONDS

    def replace_lost(self) -> None:
        """Start others for threads that were started long ago and have not begun, if there is work for them."""
        with self._lock, contextlib.suppress(RuntimeError):
            self._wake()

    def set_overdue(self, job: Job) -> None:
        """Count the thread of a call against the cap no longer, although its caller waits yet."""
        with self._lock:
            self._set_overdue(job)

    @property
    def busy(self) -> bool:
        """Whether a thread is in a call, of whatever lane."""
        with self._lock:
            return self._threads > len(self._idle) + self._coming

    # ------------------------------------------------------------------------------- below: with the lock held

    def _offer(self, lane: LaneRecord) -> None:
        """List the lane as ready if it has a call that may start, and wake threads for it."""
        if not lane.listed and lane.may_start():
            lane.listed = True
            self._ready.append(lane)
        # a lane may have work for several threads: wake them together, not one after the other
        self._wake(min(len(lane.queue), lane.limit - len(lane.running)) - 1)

    def _wake(self, more: int = 0) -> None:
        """Call or start a thread for each ready lane, and ``more``; each of them wakes the next."""
        self._forget_lost()
        wanted = len(self._ready) + max(more, 0) - self._coming
        while wanted > 0 and self._idle:
            self._call_idle()
            wanted -= 1
        if wanted > 0 and self._threads - self._stuck < self.max_threads:
            self._threads += 1
            self._coming += 1
            try:
                # not Thread.start(): it waits for the thread, for ever if that has not enough memory to begin
                before = _thread.stack_size(STACK_BYTES)
                try:
                    _thread.start_new_thread(self._serve, (hasattr(here, "job"),))
                finally:
                    _thread.stack_size(before)
                self._starting.append(time.monotonic())
            except (RuntimeError, MemoryError):  # no thread can be started: the running ones take the work later
                self._threads -= 1
                self._coming -= 1
                if self._threads == 0:
                    raise RuntimeError("no thread can be started") from None

    def _call_idle(self) -> None:
        """Call the thread that worked last, so that the others stay idle and end after IDLE_SECONDS."""
        self._coming += 1
        self._idle.pop().release()

    def _take(self) -> Job | None:
        while self._ready:
            lane = self._ready.popleft()
            lane.listed = False
            if not lane.may_start():
                continue
            job = lane.queue.popleft()
            lane.running.add(job)
            if lane.may_start():
                lane.listed = True
                self._ready.append(lane)
            with contextlib.suppress(RuntimeError, MemoryError):  # this thread comes back
                self._wake()
            return job
        return None

    def _release(self, job: Job) -> bool:
        """Remove a call that returned from its lane; return whether its thread is one too many now."""
        lane = job.lane
        lane.running.discard(job)
        if job.stuck:
            job.stuck = False
            lane.stuck -= 1
        if job.overdue:
            job.overdue = False
            self._stuck -= 1
        if not lane.listed and lane.may_start():
            lane.listed = True
            self._ready.append(lane)
        surplus = self._threads - self._stuck > self.max_threads
        if surplus:
            self._threads -= 1
            self._wake()  # this thread ends, and will not look for more work
        return surplus

    def _forget_lost(self) -> None:
        """No longer count on threads that were started long ago and have not come: they had not enough memory to begin."""
        while self._starting and time.monotonic() - self._starting[0] > LOST_SECONDS:
            self._starting.popleft()
            self._threads -= 1
            self._coming -= 1

    def _abandon(self, job: Job) -> bool:
        lane = job.lane
        if job in lane.running:
            job.abandoned = True
            return True
        if not job.returned:
            with contextlib.suppress(ValueError):
                lane.queue.remove(job)
        elif job.discard is not None and not job.abandoned:
            # its result came just now, or is on its way to the loop, which may be about to be closed
            lane.queue.append(Job(lane, discard, (job, job.result)))
            with contextlib.suppress(RuntimeError, MemoryError):  # no thread can be started: one takes it later
                self._offer(lane)
        job.abandoned = True
        return False

    def _write_off(self, job: Job) -> None:
        """Count the job's thread, and those of its assistants, as stuck."""
        lane = job.lane
        for other in lane.running:
            if (other is job or other.parent is job) and not other.stuck:
                other.stuck = True
                lane.stuck += 1
        self._set_overdue(job)

    def _set_overdue(self, job: Job) -> None:
        for other in job.lane.running:
            if (other is job or other.parent is job) and not other.overdue:
                other.overdue = True
                self._stuck += 1
        self._wake()  # stuck threads make room under the cap

    # -------------------------------------------------------------------------------------------- the threads

    def _serve(self, named: bool) -> None:
        """Run calls until there are none.

        :param named: whether another of these threads started this one, which has inherited its name.
        """
        sys.settrace(threading.gettrace())  # as in threading.Thread
        if not named:
            take_name()
        here.job = None
        bell = threading.Lock()
        bell.acquire()
        called, waited = True, False
        with self._lock:
            if self._starting:
                self._starting.popleft()
            else:  # it was thought to be lost
                self._threads += 1
                self._coming += 1
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
            try:
                surplus = self._execute(job)
            except BaseException:  # for want of memory: its caller waits for the deadline
                with self._lock:
                    surplus = self._release(job)
            del job
            if surplus:
                return

    def _wait(self, bell: threading.Lock) -> bool:
        """Wait to be called; return False after IDLE_SECONDS."""
        if bell.acquire(timeout=IDLE_SECONDS):
            return True
        with self._lock:
            if bell in self._idle:
                self._idle.remove(bell)
                return False
        return bell.acquire()  # called at this very moment

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
        job.func, job.args = _done, ()  # the timer of an abandoned call keeps the job until its deadline
        if isinstance(error, StopIteration):  # a future cannot carry it
            error = RuntimeError(f"StopIteration was raised in a worker thread: {error}")
        if error is not None:
            let_go_of_locals(error)
        with self._lock:
            nobody = job.abandoned or job.loop is None
            if not nobody and error is None:
                job.returned, job.result = True, result
            surplus = self._release(job)
        with contextlib.suppress(MemoryError):  # then its caller waits for the deadline
            if not nobody and job.loop is not None:
                try:
                    job.loop.call_soon_threadsafe(self._deliver, job, result, error)
                except RuntimeError:  # the loop was closed meanwhile
                    with self._lock:
                        nobody, job.abandoned = not job.abandoned, True
            if nobody and error is None:
                discard(job, result)
        error = None  # its traceback holds this frame
        return surplus

    def _deliver(self, job: Job, result: Any, error: BaseException | None) -> None:
        """Give the result to the caller. On the loop."""
        future = job.future
        if future is None or future.done():  # the caller has gone
            self.abandon(job)
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)


def _counts(lane: LaneRecord) -> LaneStatistics:
    in_time = sum(not job.stuck for job in lane.running)
    return LaneStatistics(lane.name, lane.limit, in_time, lane.stuck, len(lane.queue))


def _done() -> None:
    """Stand in for the function of a job that has run."""
