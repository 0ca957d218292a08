"""Two hundred pools, refreshed at once for a while: nothing may grow.

ASTORE_SOAK_SECONDS says how long each takes; five minutes are what a release is measured by.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import astore
from beds.images import make_images

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

SECONDS = float(os.environ.get("ASTORE_SOAK_SECONDS", "10"))
POOLS = 200
PAGE = os.sysconf("SC_PAGE_SIZE")


def threads() -> int:
    """Those of libgfapi included, which starts more of its own as it needs them, up to some for each connection."""
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def measure() -> tuple[int, int, int, int]:
    return threading.active_count(), descriptors(), resident(), threads()


class Reader:
    """Polls the volumes of all pools, as a page that somebody looks at would."""

    def __init__(self, manager: astore.Manager) -> None:
        self._manager = manager
        self.looks = 0

    async def run(self) -> None:
        while True:
            for pool in self._manager.pools():
                snapshot = pool.snapshot
                assert list(snapshot.by_name) == [volume.name for volume in snapshot.volumes]
            self.looks += 1
            await asyncio.sleep(0.05)


class Listener:
    """Reads all events, and sees that each comes once and in order."""

    def __init__(self, manager: astore.Manager) -> None:
        self._manager = manager
        self.seen = 0

    async def run(self) -> None:
        last = None
        async with self._manager.events() as events:
            async for event in events:
                if isinstance(event, astore.Lagged):
                    last = event.seq
                    continue
                assert last is None or event.seq == last + 1
                last = event.seq
                self.seen += 1


@pytest.mark.root
@pytest.mark.gluster
@pytest.mark.soak
@pytest.mark.timeout(SECONDS * 2 + 600)
@pytest.mark.parametrize("volumes", [1, 10])
async def test_two_hundred_pools(gluster: GlusterBed, tmp_path: Path, volumes: int) -> None:
    """Defined, started and refreshed at once with a reader and a listener beside: threads, descriptors, memory stay."""
    names = [f"soak{volumes}x{index}" for index in range(volumes)]
    per_volume = POOLS // volumes
    documents = []

    def prepare() -> None:
        for name in names:
            gluster.create_volume(name)
            mounted = gluster.mount(name)
            for index in range(per_volume):
                (mounted / f"d{index}").mkdir()
                make_images(mounted / f"d{index}", 5)
                documents.append(
                    f"<pool type='gluster'><name>{name}-{index}</name><source><host name='{gluster.host}'/>"
                    f"<dir path='/d{index}'/><name>{name}</name></source></pool>"
                )

    await asyncio.to_thread(prepare)
    measured: list[tuple[int, int, int, int]] = []
    rounds = 0
    try:
        async with astore.Manager(tmp_path / "state", event_capacity=4096) as manager:
            pools = await asyncio.gather(*(manager.define(text) for text in documents))
            assert len(pools) == POOLS
            assert set((await manager.start_all(autostart_only=False)).values()) == {None}
            reader, listener = Reader(manager), Listener(manager)
            tasks = [asyncio.create_task(reader.run()), asyncio.create_task(listener.run())]
            warm_until = time.monotonic() + max(SECONDS * 0.3, 4)
            until = time.monotonic() + max(SECONDS, 8)
            mark = 0.0
            while time.monotonic() < until:
                report = await manager.refresh_all(full=rounds % 5 == 0)
                assert not report.failed
                assert len(report.pools) == POOLS
                rounds += 1
                if time.monotonic() >= warm_until and time.monotonic() >= mark:
                    mark = time.monotonic() + max(SECONDS / 20, 0.3)
                    measured.append(await asyncio.to_thread(measure))
            assert not any(task.done() for task in tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert reader.looks > 0
            assert listener.seen >= rounds * POOLS * 0.5
            statistics = manager.statistics()
            assert statistics.lanes.stuck == 0
            assert statistics.lanes.threads <= statistics.lanes.max_threads
            for pool in pools:
                await pool.stop()
    finally:
        await asyncio.to_thread(lambda: [gluster.delete_volume(name) for name in names])
    first, last = measured[: len(measured) // 3 or 1], measured[-(len(measured) // 3 or 1) :]
    print(f"{rounds} rounds of {POOLS} pools; threads, descriptors, bytes: {measured[0]} … {measured[-1]}")
    # the lanes start more of theirs when the machine is busy with something else, up to their cap
    own = max(2, statistics.lanes.max_threads - min(row[0] for row in measured) + 4)
    # libgfapi starts more of its own as it needs them, 16 for each connection at most (SYNCENV_PROC_MAX), and keeps them
    native = 16 * volumes + own
    for what, index, slack in (
        ("Python's threads", 0, own),
        ("descriptors", 1, 2),
        ("bytes", 2, 8 << 20),
        ("threads", 3, native),
    ):
        before, after = max(row[index] for row in first), max(row[index] for row in last)
        assert after <= before + slack, f"{what} grew: {before} to {after} ({[row[index] for row in measured]})"
