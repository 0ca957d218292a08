"""A progress display on stderr, for what lasts; it appears only on a terminal, and not before half a second has passed."""

from __future__ import annotations

import asyncio
import sys
import threading
from types import TracebackType
from typing import Self

DELAY = 0.5
"""Seconds that something may last without a display."""

_EVERY = 0.1


class Ticker:
    """Counts what is done, and shows it from a thread of its own: its methods never wait.

    :param shown: whether to display anything; None: if stderr is a terminal. :param delay: seconds before it appears.
    :param stays: leave the last state on the terminal.
    """

    def __init__(self, *, shown: bool | None = None, delay: float = DELAY, stays: bool = False) -> None:
        self.shown = sys.stderr.isatty() if shown is None else shown
        self.delay = delay
        self.stays = stays
        self._now = ("", 0, 0)  # label, done, total: replaced in one step, so that it needs no lock
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.shown:
            self._thread = threading.Thread(target=self._display, name="astore-progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join(timeout=2.0)

    async def __aenter__(self) -> Self:
        # a thread that starts is waited for, and so is its end: not by an event loop
        await asyncio.to_thread(self.__enter__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.__exit__, kind, error, trace)

    def begin(self, label: str, total: int = 0) -> None:
        """Say what is being done now, in how many steps (0: that is not known); nothing is shown before."""
        self._now = (label, 0, total)

    def step(self, done: int | None = None) -> None:
        """One more step is done, or ``done`` are in all."""
        label, before, total = self._now
        self._now = (label, before + 1 if done is None else done, total)

    def stop(self) -> None:
        """Show nothing any more."""
        self._over.set()

    def _display(self) -> None:
        if self._over.wait(self.delay) and not self.stays:
            return
        while not self._now[0]:
            if self._over.wait(_EVERY) and not (self.stays and self._now[0]):
                return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=not self.stays,
            auto_refresh=False,
        ) as progress:
            task = progress.add_task("", visible=False)
            over = False
            while True:
                label, done, total = self._now
                progress.update(task, description=label, completed=done, total=total or None, visible=bool(label))
                progress.refresh()
                if over:
                    return
                over = self._over.wait(_EVERY)
