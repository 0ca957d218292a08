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
from typing import Any

LATE = 0.015
"""Seconds from which on the stacks are looked at."""

STEP = 0.002
"""Seconds between two timers of the probe, and between two looks of the thread beside it."""


class LateLoop:
    """A probe of how late the event loop reaches a timer due every 2 ms. Use it as ``async with``.

    :ivar delays: seconds, one for each timer. :ivar waits: of these, those in which the loop's thread was ready to run and had
        no processor (the second number of /proc/thread-self/schedstat), which are not astore's.
    """

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.waits: list[float] = []
        self._due = time.perf_counter()
        self._loop_thread = threading.get_ident()
        self._ended = threading.Event()
        self._watching = threading.Thread(target=self._watch, name="late-loop", daemon=True)
        self._seen: list[tuple[float, str]] = []

    async def __aenter__(self) -> LateLoop:
        self._task = asyncio.create_task(self._measure())
        self._watching.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        self._ended.set()
        self._watching.join()

    def told(self) -> str:
        """Return what was seen while the loop was latest: the stacks' ends, the loop's first; "" if it was never late."""
        return max(self._seen, default=(0.0, ""))[1]

    async def _measure(self) -> None:
        while True:
            self._due, waited = time.perf_counter() + STEP, _waited()
            await asyncio.sleep(STEP)
            self.delays.append(max(time.perf_counter() - self._due, 0.0))
            self.waits.append(_waited() - waited)

    def _watch(self) -> None:
        """Look at all stacks whenever the loop is late. On a thread of its own, which needs the interpreter as the loop does:
        one that is late itself says that another thread kept the interpreter.
        """
        looked = time.perf_counter()
        while not self._ended.wait(STEP):
            now = time.perf_counter()
            late, itself = now - self._due, now - looked - STEP
            looked = now
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
                self._seen.append((late, "\n".join(stacks)))


def _ends(frame: FrameType | None, depth: int = 6) -> str:
    """Return the innermost calls of a stack, innermost first."""
    calls = []
    while frame is not None and len(calls) < depth:
        calls.append(f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(calls)


def _waited() -> float:
    """Return the seconds for which this thread was ready to run, but had no processor."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


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
