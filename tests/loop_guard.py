"""What may not block in an event loop's thread while tests run."""

from __future__ import annotations

from blockbuster import BlockBuster


def loop_guard(*packages: str) -> BlockBuster:
    """A guard, not active yet, over these packages.

    beds may block, and so may coverage: a thread that enters a file for the first time waits there for
    another one that does the same (coverage's ``Collector.data_lock``).
    """
    guard = BlockBuster(list(packages), excluded_modules=["beds"])
    for name in ("threading.Lock.acquire", "threading.Lock.acquire_lock"):
        guard.functions[name].can_block_in("coverage/collector.py", "lock_data")
    return guard
