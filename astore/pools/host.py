"""Host: the services of a Manager that a pool needs: it keeps the pool's definition and its run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from astore.pools.life import Life
from astore.pools.record import PoolRecord

T = TypeVar("T")


class Host(Protocol):
    """Keeps definitions and runs of pools where other processes find them."""

    async def catch_up(self, record: PoolRecord) -> None:
        """Take over other processes' changes to the pool. :raises ManagerClosedError: the Manager is closed."""
        ...

    async def until_current(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Retry a change while it raises OutdatedError. :raises OutdatedError: it still did after ten seconds."""
        ...

    async def undefine(self, record: PoolRecord) -> None:
        """Remove the pool's definition. :raises StoreError: that failed. OutdatedError: call :meth:`catch_up`, and retry."""
        ...

    async def set_autostart(self, record: PoolRecord, autostart: bool) -> None:
        """Store the pool's autostart mark. :raises StoreError: that failed."""
        ...

    async def begin_run(self, record: PoolRecord, life: Life) -> None:
        """Record the run of a pool that is being started. After a cancellation, :meth:`end_run` removes it if need be.

        :raises OutdatedError: another process has started or undefined the pool. StoreError: the run cannot be recorded.
        """
        ...

    async def check_end_run(self, record: PoolRecord) -> None:
        """Check that :meth:`end_run` can work, before the storage is released. :raises StoreError: it cannot."""
        ...

    async def end_run(self, record: PoolRecord, life: Life) -> None:
        """Remove the run of a pool that was stopped, and a transient pool itself. Bounded; never raises."""
        ...

    async def runs_elsewhere(self, record: PoolRecord, life: Life) -> bool:
        """Return whether another process has the pool active. Bounded; False if the store does not answer."""
        ...
