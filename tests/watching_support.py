"""For tests of the watch: a dir pool, another process that changes it, and an oracle."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from pathlib import Path

from core_fakes import eventually

import astore


async def dir_pool(manager: astore.Manager, folder: Path, name: str = "images") -> astore.Pool:
    """Define and start a dir pool."""
    pool = await manager.define(f"<pool type='dir'><name>{name}</name><target><path>{folder}</path></target></pool>")
    await pool.start()
    return pool


async def watched(pool: astore.Pool, way: str = "inotify") -> None:
    """Wait until the pool is watched, and everything until now has been seen."""
    await eventually(
        lambda: pool.info.freshness is not None and pool.info.freshness.way == way, f"{pool.name} is {way}"
    )


async def by_another_process(command: str, folder: Path) -> None:
    """Run a shell command in the folder, to its end."""
    process = await asyncio.create_subprocess_shell(command, cwd=folder)
    assert await process.wait() == 0, command


async def true_volumes(folder: Path, state: Path) -> dict[str, astore.VolumeInfo]:
    """Return what a full refresh by another Manager finds."""
    async with astore.Manager(state) as other:
        pool = await other.create(f"<pool type='dir'><name>oracle</name><target><path>{folder}</path></target></pool>")
        await pool.refresh(full=True)
        found = dict(pool.snapshot.by_name)
        await pool.stop()
    return found


def same(snapshot: astore.Snapshot, true: dict[str, astore.VolumeInfo], but: Collection[str] = ()) -> bool:
    """Whether a snapshot has the volumes that are there. :param but: names that are not looked at."""
    mine = snapshot.by_name
    return not (mine.keys() ^ true.keys()) - set(but) and all(
        mine[name].same_as(true[name]) for name in mine.keys() & true.keys() if name not in but
    )
