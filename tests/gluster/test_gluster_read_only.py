"""A brick whose file system has become read-only: volumes are read as before, and only changes fail."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from volumes.real_servers import gluster_pool, netfs_pool, volume_on_disk

from astore.errors import StorageError
from astore.events import VolumeRemoved
from astore.images import HEADER_SIZE
from astore.manager import Manager
from astore.model import PoolState, VolumeDef
from beds import fuse
from beds.images import make_images

if TYPE_CHECKING:
    from beds.gluster import GlusterBed
    from tests.gluster.conftest import CountedGfapi, Folder

pytestmark = [pytest.mark.root, pytest.mark.gluster, pytest.mark.fuse]

RAW = b"x" * 100_000


@pytest.fixture
def brick(gluster: GlusterBed, tmp_path: Path) -> Iterator[Path]:
    """The brick of the volume ``readonly``, which has ten images and a raw file of 100,000 bytes."""
    with volume_on_disk(gluster, "readonly", tmp_path / "disk") as brick:
        mounted = gluster.mount("readonly")
        make_images(mounted, 10, backing_every=3)
        (mounted / "raw.img").write_bytes(RAW)
        yield brick


def remount(brick: Path, how: str) -> None:
    """Remount a brick's file system ``ro`` or ``rw``."""
    subprocess.run(["mount", "-o", f"remount,{how}", brick], check=True)


def make_immutable(path: Path, how: str) -> None:
    """Make a file immutable with ``+i``; ``-i`` undoes it."""
    subprocess.run(["chattr", how, path], check=True)


async def test_nothing_is_removed(gluster: GlusterBed, brick: Path, tmp_path: Path) -> None:
    """Pools over both protocols keep and read every volume; so does a process that starts now. Changes say what is wrong."""
    target = tmp_path / "mounted"
    target.mkdir()
    async with Manager(tmp_path / "state") as manager:
        pools = [
            await manager.define(gluster_pool(gluster, "readonly", "gfapi")),
            await manager.define(netfs_pool(gluster, "readonly", target, "fuse")),
        ]
        for pool in pools:
            await pool.start()
        before = {pool.name: {one.name: (one.format, one.capacity) for one in pool.volumes} for pool in pools}
        await asyncio.to_thread(remount, brick, "ro")
        async with manager.events(kinds={VolumeRemoved}) as events:
            for pool in pools:
                for full in (False, True):
                    outcome = await pool.refresh(full=full)
                    assert (pool.state, outcome.removed, outcome.changed, outcome.errors) == (
                        PoolState.RUNNING,
                        (),
                        (),
                        (),
                    )
                assert len(pool.volumes) >= 11
                async with pool.volume("raw.img").download() as chunks:
                    assert b"".join([bytes(chunk) async for chunk in chunks]) == RAW
                with pytest.raises(
                    StorageError, match=f"pool '{pool.name}': .*'new'.*: Read-only file system"
                ) as caught:
                    await pool.create_volume(VolumeDef("new", capacity=1 << 20))
                assert caught.value.errno == errno.EROFS
            assert events.receive_nowait() is None
        async with Manager(tmp_path / "other") as other:
            found = await other.define(gluster_pool(gluster, "readonly"))
            await found.start()
            assert {one.name: (one.format, one.capacity) for one in found.volumes} == before["gfapi"]
        await asyncio.to_thread(remount, brick, "rw")
        for pool in pools:
            await (await pool.create_volume(VolumeDef("new", capacity=1 << 20))).delete()
            assert {one.name: (one.format, one.capacity) for one in pool.volumes} == before[pool.name]
            await pool.stop()
    await asyncio.to_thread(fuse.release, target)


async def test_a_file_that_its_brick_may_not_write(gluster: GlusterBed, brick: Path, tmp_path: Path) -> None:
    """A volume that somebody made immutable on the brick is read by opening it."""
    await asyncio.to_thread(make_immutable, brick / "raw.img", "+i")
    try:
        async with Manager(tmp_path / "state") as manager:
            pool = await manager.define(gluster_pool(gluster, "readonly"))
            await pool.start()
            assert pool.state is PoolState.RUNNING
            assert pool.volume("raw.img").info.capacity == len(RAW)
    finally:
        await asyncio.to_thread(make_immutable, brick / "raw.img", "-i")


def test_nothing_stays_open(folder: Folder, counted: CountedGfapi, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is opened for its header is closed again, also if it cannot be opened."""
    (folder.path / "file").write_bytes(RAW)

    def fail(*arguments: object) -> int:
        ctypes.set_errno(errno.EROFS)
        return -1

    monkeypatch.setattr(folder.tree.connection.gfapi, "h_anonymous_read", fail)
    opened = counted.calls["h_open"]
    entry = folder.tree.lookup("file")
    assert entry is not None
    assert folder.tree.read_header(entry, lambda head: True) == RAW[:HEADER_SIZE]
    assert counted.calls["h_open"] == opened + 1
    monkeypatch.setattr(folder.tree.connection.gfapi, "h_open", lambda *arguments: fail() and None)
    entry = folder.tree.lookup("file")
    assert entry is not None
    with pytest.raises(OSError) as caught:
        folder.tree.read_header(entry, lambda head: True)
    assert caught.value.errno == errno.EROFS
    assert counted.left == {}
