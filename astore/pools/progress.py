"""Progress of work on volumes: to the caller at every step, and to readers of events now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from astore.backend import Progress
from astore.events import VolumeProgress
from astore.pools.record import PoolRecord

PROGRESS_SECONDS = 0.25
"""The least time between two progress events of one piece of work."""


@contextlib.contextmanager
def reporting(record: PoolRecord, name: str, operation: str, on_progress: Progress | None) -> Iterator[Progress]:
    """Yield what work on a volume calls with its progress. The last event of several tells of the last step."""
    told = time.monotonic()
    last: tuple[int, int | None] | None = None

    def publish(done: int, total: int | None) -> None:
        record.publish(VolumeProgress, name=name, operation=operation, done=done, total=total)

    def tell(done: int, total: int | None) -> None:
        nonlocal told, last
        if on_progress is not None:
            on_progress(done, total)
        now = time.monotonic()
        if now - told >= PROGRESS_SECONDS:
            told = now
            last = None
            publish(done, total)
            return
        last = done, total

    began = told
    yield tell
    if last is not None and told > began:
        publish(*last)
