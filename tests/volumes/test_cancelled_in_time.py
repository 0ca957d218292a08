"""Work that hangs gives a cancelled caller back soon; its clean-up goes on, in order, and is counted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from core_fakes import eventually, quiet
from leaks import open_files

from astore import cancellation
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.testing.faults import Faults

MIB = 1 << 20

WORK: dict[str, Callable[[Pool, Volume], Awaitable[object]]] = {
    "create": lambda pool, disk: pool.create_volume(VolumeDef("new", capacity=MIB)),
    "create qcow2": lambda pool, disk: pool.create_volume(VolumeDef("new", capacity=MIB, format="qcow2")),
    "upload": lambda pool, disk: disk.upload(bytes(8 * MIB)),
    "clone": lambda pool, disk: pool.copy_volume(disk, VolumeDef("new")),
    "rename": lambda pool, disk: disk.rename("new"),
    "resize": lambda pool, disk: disk.resize(16 * MIB),
    "wipe": lambda pool, disk: disk.wipe(),
    "delete": lambda pool, disk: disk.delete(),
}

HANGS = {
    "create": ("file.sync", "tree.create", "tree.link", "file.close"),
    "create qcow2": ("file.sync", "file.pwrite"),
    "upload": ("file.pwrite", "file.sync", "tree.open", "file.close"),
    "clone": ("file.sync", "file.close"),
    "rename": ("tree.rename",),
    "resize": ("file.truncate", "file.sync"),
    "wipe": ("file.sync",),
    "delete": ("tree.unlink",),
}


@pytest.fixture(autouse=True)
def patient_cleanups(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean-up takes far longer than a caller is held up."""
    monkeypatch.setattr(cancellation, "CLEANUP_SECONDS", 30.0)
    monkeypatch.setattr(cancellation, "HELD_SECONDS", 0.1)


@pytest.mark.parametrize(("work", "point"), [(work, point) for work, points in HANGS.items() for point in points])
async def test_cancelled(manager: Manager, pool: Pool, folder: Path, faults: Faults, work: str, point: str) -> None:
    """The caller does not wait for one clean-up after the other; when the storage is back, they come to their end."""
    disk = await pool.create_volume(VolumeDef("a", capacity=8 * MIB))
    before = open_files()
    gate = faults.hang(point)
    task = asyncio.ensure_future(WORK[work](pool, disk))
    await eventually(lambda: gate.inside or task.done())
    if task.done():
        pytest.fail(f"{work} does not reach {point}")
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 20.0, "less than one clean-up takes"
    faults.clear(point)
    gate.open()
    await eventually(lambda: quiet(manager) and not open_files() - before and not manager.statistics().cleanups)
    await pool.refresh(full=True)
    left = sorted(os.listdir(folder))
    assert [one.name for one in pool.volumes] == left
    assert set(left) <= ({"a"} if work not in ("rename", "delete") else {"a", "new"}), left
    await pool.create_volume(VolumeDef("afterwards", capacity=MIB))


async def test_order() -> None:
    """Clean-ups that were left behind run one after the other, and the caller's next clean-up waits for none of them."""
    told: list[str] = []
    go = asyncio.Event()

    async def first() -> None:
        await go.wait()
        told.append("first")

    async def second() -> str:
        told.append("second")
        return "its result"

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            await cancellation.shielded(first())
            told.append("went on")
            assert await cancellation.shielded(second()) is None
            told.append("returned")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["went on", "returned"]
    assert cancellation.cleanups_left_behind() == 2
    go.set()
    await eventually(lambda: not cancellation.cleanups_left_behind())
    assert told == ["went on", "returned", "first", "second"]


async def test_whole() -> None:
    """What must be complete is waited for, however long that takes; and so is what nobody cancels."""
    told: list[str] = []
    go = asyncio.Event()

    async def call() -> str:
        await go.wait()
        return "done"

    async def work() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            told.append(await cancellation.shielded(call(), whole=True))

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0.3)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["done"]
    go.clear()
    plain = asyncio.create_task(cancellation.shielded(call()))
    await asyncio.sleep(0.3)
    go.set()
    assert await plain == "done"
