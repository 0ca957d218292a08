"""Work on a pool that is under way inside a call, so that this process has a file of the pool's storage open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from core_fakes import PATIENCE
from drills.conftest import Drill

from astore.manager import Manager
from astore.model import PoolDef, Target, VolumeDef
from astore.pools.pool import Pool
from beds.fuse_fs import Rule
from beds.images import template

MIB = 1 << 20

WORK = ("upload", "download", "header")
"""What may have a file open: an upload, a download, a refresh that reads a header."""


async def started(manager: Manager, drill: Drill) -> Pool:
    """The drill's pool, with a raw volume and an image, started."""
    (drill.fs.files / "a.raw").write_bytes(bytes(8 * MIB))
    await asyncio.to_thread(template("qcow2", MIB).write, drill.fs.files / "a.qcow2")
    pool = await manager.define(drill.definition)
    await pool.start()
    assert [one.name for one in pool.volumes] == ["a.qcow2", "a.raw"]
    return pool


async def _download(pool: Pool) -> None:
    async with pool.volume("a.raw").download() as chunks:
        async for _ in chunks:
            pass


@contextlib.asynccontextmanager
async def inside(pool: Pool, drill: Drill, what: str) -> AsyncIterator[Rule]:
    """Begin work, and return when a call on its open file has reached the server, which does not answer it.

    The work is cancelled at the end.
    """
    gate = drill.fs.hold("write" if what == "upload" else "read", names="a.qcow2" if what == "header" else "a.raw")
    work: asyncio.Future[object]
    if what == "upload":
        work = asyncio.ensure_future(pool.volume("a.raw").upload(bytes(8 * MIB)))
    elif what == "download":
        work = asyncio.ensure_future(_download(pool))
    else:
        work = asyncio.ensure_future(pool.refresh(full=True))
    await asyncio.to_thread(gate.wait, timeout=120)
    try:
        yield gate
    finally:
        work.cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait([work])


async def dir_pool(manager: Manager, folder: Path) -> Pool:
    """A started pool of the type dir."""
    folder.mkdir()
    pool = await manager.define(PoolDef(type="dir", name="well", target=Target(path=str(folder))))
    await pool.start()
    return pool


async def make_images(pool: Pool, prefix: str, count: int = 4) -> None:
    """Make qcow2 volumes at once, which needs qemu-img, and a converted copy of one."""
    async with asyncio.timeout(PATIENCE):
        made = await asyncio.gather(
            *(
                pool.create_volume(VolumeDef(f"{prefix}{number}.qcow2", capacity=MIB, format="qcow2"))
                for number in range(count)
            )
        )
        await pool.copy_volume(made[0], VolumeDef(f"{prefix}.vmdk", format="vmdk"))
