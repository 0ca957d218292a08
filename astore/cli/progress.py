"""A progress display on stderr. It appears only on a terminal, and only after half a second."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, NamedTuple, Self

from astore.cli.output import size

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

DELAY = 0.5
"""Seconds before the display appears."""

_EVERY = 0.1


class _Now(NamedTuple):
    """The state of the display. ``total`` is None if it is unknown."""

    label: str = ""
    done: int = 0
    total: int | None = None
    in_bytes: bool = False

    def moved(self, done: int, total: int | None) -> _Now:
        return self._replace(done=done, total=total)


class Ticker:
    """Count progress, and display it from a thread. The counting methods never wait.

    :param shown: whether to display anything; None displays if stderr is a terminal.
    :param delay: seconds before the display appears. :param stays: leave the last state on the terminal.
    """

    def __init__(self, *, shown: bool | None = None, delay: float = DELAY, stays: bool = False) -> None:
        self.shown: bool = sys.stderr.isatty() if shown is None else shown
        self.delay = delay
        self.stays = stays
        self._now = _Now()  # replaced atomically, so it needs no lock
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.shown:
            self._thread = threading.Thread(target=self._display, name="astore-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        import asyncio

        # starting and joining a thread blocks, so keep both off the event loop
        await asyncio.to_thread(self.__enter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        import asyncio

        await asyncio.to_thread(self.__exit__)

    def begin(self, label: str, total: int = 0) -> None:
        """Begin an operation. Nothing is shown before the first one. :param total: the number of steps; 0 if unknown."""
        self._now = _Now(label, 0, total or None)

    def step(self, done: int | None = None) -> None:
        """Count one more step, or set the count to ``done``."""
        now = self._now
        self._now = now.moved(now.done + 1 if done is None else done, now.total)

    def begin_bytes(self, label: str, total: int | None = None) -> None:
        """Begin an operation that is counted in bytes, and show its rate and remaining time."""
        self._now = _Now(label, 0, total, in_bytes=True)

    def progress(self, done: int, total: int | None) -> None:
        """Set the count of bytes, and the total if it is known."""
        now = self._now
        self._now = now.moved(done, now.total if total is None else total)

    @property
    def done(self) -> tuple[int, int | None]:
        """The number of steps or bytes done, and the total if it is known."""
        return self._now.done, self._now.total

    def stop(self) -> None:
        """Stop the display."""
        self._over.set()

    def close(self) -> None:
        """Stop the display and wait until it is gone. Blocks for a tenth of a second; may be called twice."""
        self.stop()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    def _display(self) -> None:
        if self._over.wait(self.delay) and not self.stays:
            return
        while not self._now.label:
            if self._over.wait(_EVERY) and not (self.stays and self._now.label):
                return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=not self.stays, auto_refresh=False) as progress:
            shown = None
            over = False
            while True:
                now = self._now
                if shown is None or (now.label, now.in_bytes) != (shown.label, shown.in_bytes):
                    # a new task, since rich computes the rate from a task's samples
                    for old in progress.task_ids:
                        progress.remove_task(old)
                    progress.columns = _columns(now.in_bytes)
                    task = progress.add_task(now.label, total=now.total, visible=bool(now.label))
                shown = now
                progress.update(task, completed=now.done, total=now.total)
                progress.refresh()
                if over:
                    return
                over = self._over.wait(_EVERY)


def _columns(in_bytes: bool) -> tuple[ProgressColumn, ...]:
    from rich import progress as rich
    from rich.text import Text

    class Rate(rich.ProgressColumn):
        """The rate, in the same units as the sizes."""

        def render(self, task: rich.Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{size(int(speed))}/s", style="progress.data.speed")

    class Count(rich.MofNCompleteColumn):
        """The count of steps; empty if the total is unknown."""

        def render(self, task: rich.Task) -> Text:
            return Text("") if task.total is None else super().render(task)

    first = rich.SpinnerColumn(), rich.TextColumn("{task.description}", markup=False), rich.BarColumn(bar_width=30)
    if in_bytes:
        return (*first, rich.DownloadColumn(binary_units=True), Rate(), rich.TimeRemainingColumn(compact=True))
    return (*first, Count(), rich.TimeElapsedColumn())
