"""Progress of work on volumes: reported to the caller at every step, and as events now and then."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from astore.backend import Progress
from astore.events import VolumeProgress
from astore.pools.record import PoolRecord

PROGRESS_SECONDS = 0.25
"""The least number of seconds between two progress events of one job."""


@contextlib.contextmanager
def reporting(record: PoolRecord, name: str, operation: str, on_progress: Progress | None) -> Iterator[Progress]:
    """Yield the callback that work on a volume calls with its progress. If it lasted, the last step is an event too."""
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
