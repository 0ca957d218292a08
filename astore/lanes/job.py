"""Jobs, and the record of a lane: plain data that lanes and threads share; and what becomes of results and errors."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

_MAY_BE_SUSPENDED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Job:
    """One blocking call. Its fields change only under the lock of the threads that run it.

    :ivar future: the caller's, on ``loop``. A job without a loop has no caller; its result is dropped.
    :ivar parent: the job that this one assists.
    :ivar abandoned: whether its caller has gone. :ivar stuck: whether its thread is counted as stuck.
    :ivar overdue: whether its thread no longer counts against the cap of all lanes.
    :ivar timer: of its deadline; None also if nobody waits for it.
    :ivar returned: whether its ``result`` was sent to the loop. Nobody else undoes that if the job is abandoned afterwards.
    """

    __slots__ = (
        "abandoned",
        "args",
        "discard",
        "func",
        "future",
        "lane",
        "loop",
        "overdue",
        "parent",
        "result",
        "returned",
        "stuck",
        "timer",
    )

    def __init__(
        self,
        lane: LaneRecord,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop | None = None,
        discard: Callable[[Any], object] | None = None,
        parent: Job | None = None,
    ) -> None:
        self.lane: LaneRecord = lane
        self.func: Callable[..., Any] = func
        self.args: tuple[Any, ...] = args
        self.loop: asyncio.AbstractEventLoop | None = loop
        self.future: asyncio.Future[Any] | None = None if loop is None else loop.create_future()
        self.discard: Callable[[Any], object] | None = discard
        self.parent: Job | None = parent
        self.abandoned: bool = False
        self.stuck: bool = False
        self.overdue: bool = False
        self.returned: bool = False
        self.timer: asyncio.TimerHandle | None = None
        self.result: Any = None


class LaneRecord:
    """A lane's state. Its fields change only under the lock of the threads.

    :ivar limit: how many threads the lane may use at once.
    :ivar stuck: how many of its threads are stuck in calls past their deadline.
    :ivar listed: whether it is among the lanes that are ready.
    """

    __slots__ = ("limit", "listed", "name", "queue", "running", "stuck")

    def __init__(self, name: str, limit: int) -> None:
        self.name: str = name
        self.limit: int = limit
        self.queue: deque[Job] = deque()
        self.running: set[Job] = set()
        self.stuck: int = 0
        self.listed: bool = False

    def may_start(self) -> bool:
        """Return whether a queued call may start now; that call is then the first of the queue."""
        queue = self.queue
        while queue:
            job = queue[0]
            parent = job.parent
            if parent is not None and parent not in self.running:
                queue.popleft()  # its parent has returned
                continue
            if parent is not None and len(self.running) >= self.limit - 1:
                # the last thread is not for assistants, so that a short call need not wait for a long refresh
                if all(other.parent is not None for other in queue):
                    return False
                queue.rotate(-1)
                continue
            return len(self.running) < self.limit
        return False


class Patience:
    """The time that a caller gives a piece of work, however many calls it is made of; it may be extended meanwhile.

    :ivar until: on the monotonic clock.
    """

    __slots__ = ("until",)

    def __init__(self, seconds: float | None) -> None:
        self.until: float = 0.0
        self.extend(seconds)

    def extend(self, seconds: float | None) -> None:
        """Give so many seconds from now, if that is longer. :param seconds: None: no more than the calls have anyway."""
        if seconds is not None:
            self.until = max(self.until, time.monotonic() + seconds)

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.until - time.monotonic()


PATIENCE: ContextVar[Patience | None] = ContextVar("astore_patience", default=None)
"""The patience of the present work's caller: a call with the lane's own deadline has at least so long."""


def at_least(seconds: float) -> float:
    """Return the seconds that a piece of work has: so many, or what its caller's patience leaves it, if that is longer."""
    patience = PATIENCE.get()
    return seconds if patience is None else max(seconds, patience.left())


@contextlib.contextmanager
def patient(seconds: float | None) -> Iterator[None]:
    """Give the calls inside at least so long. :param seconds: None: what they have anyway."""
    if seconds is None:
        yield
        return
    token = PATIENCE.set(Patience(seconds))
    try:
        yield
    finally:
        PATIENCE.reset(token)


here: threading.local = threading.local()
"""``here.job`` is the job that this thread runs, or None."""


def given_up() -> bool:
    """Return whether nobody waits any more for the call that this thread runs, or assists."""
    job: Job | None = getattr(here, "job", None)
    return job is not None and (job.parent or job).abandoned


def discard(job: Job, result: Any) -> None:
    """Undo a job's effect by its ``discard``, because nobody takes the result."""
    if job.discard is not None:
        with contextlib.suppress(Exception):
            job.discard(result)


def let_go_of_locals(error: BaseException) -> None:
    """Clear the frames of an error, and of its causes.

    A stored error could otherwise keep a descriptor open, and so a mount busy.
    """
    seen: set[int] = set()
    rest: list[BaseException | None] = [error]
    while rest:
        one = rest.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            at = one.__traceback__
            while at is not None:
                frame = at.tb_frame
                if not frame.f_code.co_flags & _MAY_BE_SUSPENDED:  # clearing a suspended frame would end it
                    with contextlib.suppress(RuntimeError):  # the frame is still running
                        frame.clear()
                at = at.tb_next
            rest += [one.__cause__, one.__context__]
