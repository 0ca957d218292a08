"""Work on many pools at once. A pool that fails or hangs does not affect the others."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence

import anyio
import anyio.lowlevel

from astore.model import RefreshOutcome, RefreshReport
from astore.pools.pool import Pool

AT_ONCE = 4
"""With how many pools work begins in one round of the event loop: each takes up to a millisecond of it."""

OnProgress = Callable[[int, int, RefreshOutcome], None]
"""Called after each pool with the number of pools done, the number of all, and the outcome; must not block."""


async def refresh_pools(
    pools: Sequence[Pool], *, limit: int, timeout: float | None, full: bool, on_progress: OnProgress | None
) -> RefreshReport:
    """Refresh pools; see :meth:`astore.Manager.refresh_all`."""
    outcomes: dict[str, RefreshOutcome] = {}

    async def one(pool: Pool) -> None:
        began = time.monotonic()
        try:
            outcome = await pool.refresh(full=full, timeout=timeout)
        except Exception as error:  # a backend may raise anything
            outcome = RefreshOutcome(pool=pool.name, uuid=pool.uuid, seconds=time.monotonic() - began, error=error)
        outcomes[pool.name] = outcome
        if on_progress is not None:
            on_progress(len(outcomes), len(pools), outcome)

    began = time.monotonic()
    await _each(pools, one, limit)
    return RefreshReport(tuple(outcomes[name] for name in sorted(outcomes)), time.monotonic() - began)


async def start_pools(pools: Sequence[Pool], *, limit: int, timeout: float | None) -> dict[str, Exception | None]:
    """Start pools; see :meth:`astore.Manager.start_all`."""
    outcomes: dict[str, Exception | None] = {}

    async def one(pool: Pool) -> None:
        pool.parts.record.wanted = True
        try:
            await pool.start(timeout=timeout)
        except Exception as error:  # a backend may raise anything
            outcomes[pool.name] = error
        else:
            outcomes[pool.name] = None

    await _each(pools, one, limit)
    return dict(sorted(outcomes.items()))


async def _each(pools: Sequence[Pool], call: Callable[[Pool], Awaitable[None]], limit: int) -> None:
    """Await ``call`` for each pool, ``limit`` at a time."""
    if limit < 1:
        raise ValueError("limit must be at least 1")
    waiting = iter(pools)

    async def worker() -> None:
        for pool in waiting:
            await call(pool)

    async with anyio.create_task_group() as group:
        for number in range(min(limit, len(pools))):
            if number and not number % AT_ONCE:
                await anyio.lowlevel.checkpoint()
            group.start_soon(worker)
