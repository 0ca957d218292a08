"""Checks of the watch: what others change is seen without a refresh, whatever the storage tells."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from astore.events import VolumeEvent
from astore.manager import Manager
from astore.model import PoolState, VolumeInfo
from astore.pools.pool import Pool
from astore.testing.conformance.base import (
    PATIENCE,
    Census,
    ConformanceBase,
    assert_no_growth,
    broken,
    require,
    start_with,
)
from astore.testing.conformance.source import BREAK, SourceUnderTest, raw

STALE = 0.5
"""Seconds between two polls."""


class WatchChecks(ConformanceBase):
    """Checks of the watch."""

    async def test_what_others_change_is_seen(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """Files that others make, change and remove are events, and how the pool learns of them is told."""
        await start_with(pool, source, {"a.img": raw(), "b.img": raw()})
        before = await Census.taken()
        async with manager.watch(max_staleness=STALE):
            await _until(lambda: pool.info.freshness is not None)
            freshness = pool.info.freshness
            assert freshness is not None
            assert freshness.pushed or freshness.note, "it says why the storage tells nothing"
            async with manager.events(kinds={VolumeEvent}) as events:
                await source.put("new.img", raw(1024))
                await source.put("b.img", raw(4096))
                await source.remove("a.img")
                await _until(lambda: list(pool.snapshot.by_name) == ["b.img", "new.img"])
                await _until(lambda: pool.volume("b.img").info.capacity == 4096)
                told = []
                while (event := events.receive_nowait()) is not None:
                    told.append((type(event).__name__, getattr(event, "name", "")))
                assert {("VolumeAdded", "new.img"), ("VolumeChanged", "b.img"), ("VolumeRemoved", "a.img")} <= {*told}
            seen = pool.volumes
            await pool.refresh(full=True)
            assert _alike(seen, pool.volumes)
        assert pool.info.freshness is None
        await assert_no_growth(before, manager)

    async def test_comes_back_by_itself(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A pool whose source does not answer is inaccessible, and is tried again until it does."""
        require(source, BREAK)
        await start_with(pool, source, {"a.img": raw()})
        async with manager.watch(max_staleness=STALE):
            await _until(lambda: pool.info.freshness is not None)
            async with broken(source):
                await _until(lambda: pool.state is PoolState.INACCESSIBLE)
                assert [volume.name for volume in pool.volumes] == ["a.img"]
            await _until(lambda: pool.state is PoolState.RUNNING)
            await source.put("b.img", raw())
            await _until(lambda: len(pool.volumes) == 2)


def _alike(some: tuple[VolumeInfo, ...], others: tuple[VolumeInfo, ...]) -> bool:
    return len(some) == len(others) and all(one.same_as(other) for one, other in zip(some, others, strict=True))


async def _until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
