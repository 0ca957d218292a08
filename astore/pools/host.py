"""Host: what a pool asks of its Manager: to keep its definition, and to tell others that it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from astore.pools.life import Life
from astore.pools.record import PoolRecord

T = TypeVar("T")


class Host(Protocol):
    """Keeps definitions and runs of pools where other processes find them."""

    async def catch_up(self, record: PoolRecord) -> None:
        """Take over what other processes did to the pool. :raises ManagerClosedError: the Manager is closed."""
        ...

    async def until_current(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Attempt a change until nobody was faster. :raises OutdatedError: others were, for ten seconds."""
        ...

    async def undefine(self, record: PoolRecord) -> None:
        """Remove the pool's definition. :raises StoreError: that failed. OutdatedError: see :meth:`catch_up` first."""
        ...

    async def set_autostart(self, record: PoolRecord, autostart: bool) -> None:
        """Keep whether the pool is started automatically. :raises StoreError: that failed."""
        ...

    async def begin_run(self, record: PoolRecord, life: Life) -> None:
        """Note that the pool is being started. Cancelled, nothing is noted, or :meth:`end_run` takes it back.

        :raises OutdatedError: another process has started or undefined it. StoreError: it cannot be noted.
        """
        ...

    async def check_end_run(self, record: PoolRecord) -> None:
        """:raises StoreError: :meth:`end_run` would fail: nothing is to be let go."""
        ...

    async def end_run(self, record: PoolRecord, life: Life) -> None:
        """Note that the pool is not active any more; a transient one is gone then. Bounded; never raises."""
        ...

    async def runs_elsewhere(self, record: PoolRecord, life: Life) -> bool:
        """Return whether another process has the pool active. Bounded; False where that cannot be told."""
        ...
