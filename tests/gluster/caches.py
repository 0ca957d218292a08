"""What a cache of connections has, and waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable

from astore_gluster.volume.connection import ConnectionCache


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def counts(cache: ConnectionCache) -> tuple[int, int, int, int]:
    found = cache.statistics()
    return found["open"], found["idle"], found["opening"], found["closing"]
