"""How late the event loop is, and what it and the other threads did meanwhile."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from asyncio.events import Handle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

LATE = 0.015
"""Seconds from which on the stacks are looked at."""

STEP = 0.002
"""Seconds between two timers of the probe, and between two looks of the thread beside it."""


class Late(NamedTuple):
    """What was seen while the loop was late.

    :ivar seconds: how late. :ivar starved: seconds of them in which the loop's thread was ready to run and had no processor,
        which are not astore's. :ivar stacks: the stacks' ends, the loop's first.
    """

    seconds: float
    starved: float
    stacks: str


class LateLoop:
    """A probe of how late the event loop reaches a timer due every 2 ms. Use it as ``async with``.

    The loop itself makes no call that lets go of the interpreter's lock: that would make it late.

    :ivar delays: seconds, one for each timer.
    """

    def __init__(self) -> None:
        self.delays: list[float] = []
        self._due = time.perf_counter()
        self._loop_thread = threading.get_ident()
        self._loop_task = threading.get_native_id()
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="late-loop", daemon=True)
        self._seen: list[Late] = []

    async def __aenter__(self) -> LateLoop:
        self._task = asyncio.create_task(self._measure())
        self._watching.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._ended.set()
        self._watching.join()

    @property
    def latest(self) -> Late | None:
        """What was seen while the loop was latest; None if it was never late."""
        return max(self._seen, default=None)

    async def _measure(self) -> None:
        while True:
            self._due = time.perf_counter() + STEP
            await asyncio.sleep(STEP)
            self.delays.append(max(time.perf_counter() - self._due, 0.0))

    def _watch(self) -> None:
        """Look at all stacks whenever the loop is late. On a thread of its own, which needs the interpreter as the loop does:
        one that is late itself says that another thread kept the interpreter.
        """
        looked, starved, due = time.perf_counter(), self._starved(), self._due
        while not self._ended.wait(STEP):
            now = time.perf_counter()
            late, itself, looked = now - self._due, now - looked - STEP, now
            if due != self._due:  # the loop has run
                starved, due = self._starved(), self._due
            if late > LATE:
                frames = sys._current_frames()
                stacks = [
                    f"{late * 1e3:.1f} ms late (who looks: {itself * 1e3:.1f})  loop: {_ends(frames.get(self._loop_thread))}"
                ]
                stacks += [
                    f"    {ident}: {_ends(frame)}"
                    for ident, frame in frames.items()
                    if ident not in (self._loop_thread, threading.get_ident())
                ]
                self._seen.append(Late(late, self._starved() - starved, "\n".join(stacks)))

    def _starved(self) -> float:
        """Return the seconds for which the loop's thread was ready to run, but had no processor (proc(5), schedstat)."""
        try:
            return int(Path(f"/proc/self/task/{self._loop_task}/schedstat").read_text().split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0


def _ends(frame: FrameType | None, depth: int = 6) -> str:
    """Return the innermost calls of a stack, innermost first."""
    calls = []
    while frame is not None and len(calls) < depth:
        calls.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(calls)


@contextmanager
def longest_callback() -> Iterator[list[float]]:
    """Measure the longest callback of the event loop, in seconds of its thread's processor time."""
    longest, run = [0.0], Handle._run

    def measured(self: Handle) -> Any:
        began = time.thread_time()
        try:
            return run(self)
        finally:
            longest[0] = max(longest[0], time.thread_time() - began)

    Handle._run = measured  # type: ignore[method-assign]
    try:
        yield longest
    finally:
        Handle._run = run  # type: ignore[method-assign]
