"""A volume that is there and cannot be read for a time: it is an error, it is never removed, and it comes back."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from volumes.real_servers import dir_pool

from astore.errors import PoolInaccessibleError, StorageError, VolumeInUseError, reason
from astore.events import VolumeRemoved
from astore.manager import Manager
from astore.model import BackingStore, PoolState, VolumeDef
from astore.testing.conformance.source import qcow2
from astore.trees.local import LocalTree

if TYPE_CHECKING:
    from beds.fuse_fs import FuseFs

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.mark.parametrize("call", ["read", "open", "getattr"])
async def test_a_volume_that_cannot_be_read(new_fuse_fs: Callable[..., FuseFs], tmp_path: Path, call: str) -> None:
    """Its record stays, and the pool is degraded until it can be read again, whether or not the file has changed."""
    fs = new_fuse_fs()
    folder = fs.mount()
    for name in ("bad.qcow2", "good.qcow2"):
        (fs.files / name).write_bytes(qcow2(1 << 30))
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.define(dir_pool(folder))
        await pool.start()
        before = pool.volume("bad.qcow2").info
        async with manager.events(kinds={VolumeRemoved}) as events:
            with fs.fail(call, errno.EIO, names="bad.qcow2"):
                for full in (True, False, True):
                    outcome = await pool.refresh(full=full)
                    assert (pool.state, outcome.removed) == (PoolState.DEGRADED, ())
                    assert [(one.name, one.errno) for one in outcome.errors] == [("bad.qcow2", errno.EIO)]
                    assert pool.volume("bad.qcow2").info.inode == before.inode
                with pytest.raises(StorageError, match=r"'bad.qcow2' of pool 'p': Input/output error"):
                    await pool.volume("bad.qcow2").refresh()
                assert (pool.state, len(pool.volumes)) == (PoolState.DEGRADED, 2)
                with pytest.raises(StorageError, match=r"'p'.*'bad.qcow2'.*Input/output error"):
                    async with pool.volume("bad.qcow2").download() as chunks:
                        assert [chunk async for chunk in chunks] == []
            await pool.refresh()
            assert (pool.state, len(pool.volumes)) == (PoolState.RUNNING, 2)
            assert events.receive_nowait() is None


@pytest.mark.parametrize("call", ["opendir", "readdir", "statfs"])
async def test_a_folder_that_cannot_be_read(new_fuse_fs: Callable[..., FuseFs], tmp_path: Path, call: str) -> None:
    """The error of a refresh has the names of the pool and of the folder, and the cause; no descriptor's number."""
    fs = new_fuse_fs()
    folder = fs.mount()
    (fs.files / "a.img").write_bytes(b"x" * 5000)
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.define(dir_pool(folder))
        await pool.start()
        with fs.fail(call, errno.EIO), pytest.raises(PoolInaccessibleError) as caught:
            await pool.refresh()
        assert str(caught.value) == f"pool 'p': refresh: {folder}: Input/output error"
        assert (pool.state, len(pool.volumes)) == (PoolState.INACCESSIBLE, 1)
        await pool.refresh()
        assert (pool.state, len(pool.volumes)) == (PoolState.RUNNING, 1)


def test_a_folder_that_may_not_be_read() -> None:
    """So where permission is missing."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o755)
        folder = Path(above) / "folder"
        folder.mkdir(mode=0o700)
        tree = LocalTree(str(folder))
        os.seteuid(65534)
        try:
            with pytest.raises(PoolInaccessibleError) as caught:
                list(tree.scan(lambda name, st: True))
        finally:
            os.seteuid(0)
            tree.close()
    assert reason(caught.value) == f"{folder}: Permission denied"


@pytest.mark.parametrize("skipped", [False, True])
async def test_other_processes_keep_its_record_too(
    new_fuse_fs: Callable[..., FuseFs], tmp_path: Path, skipped: bool
) -> None:
    """What one process could not read is not gone for the next one, and the volume that it stands on stays protected."""
    fs = new_fuse_fs()
    folder = fs.mount()
    async with Manager(tmp_path / "state") as manager:
        pool = await manager.define(dir_pool(folder))
        await pool.start()
        base = await pool.create_volume(VolumeDef("base.raw", 1 << 20))
        await pool.create_volume(
            VolumeDef("over.qcow2", 1 << 20, format="qcow2", backing=BackingStore(base.info.path, "raw"))
        )
    async with Manager(tmp_path / "state") as manager:
        pool = manager.pool("p")
        with fs.fail("open", errno.EACCES if skipped else errno.EIO, names="over.qcow2"):
            with pytest.raises(StorageError):
                await pool.volume("over.qcow2").refresh()
            with pytest.raises(VolumeInUseError):
                await pool.volume("base.raw").delete()
    async with Manager(tmp_path / "state") as manager:
        pool = manager.pool("p")
        assert [one.name for one in pool.volumes] == ["base.raw", "over.qcow2"]
        with (
            fs.fail("open", errno.EACCES if skipped else errno.EIO, names="over.qcow2"),
            pytest.raises(VolumeInUseError, match=r"over\.qcow2"),
        ):
            await pool.volume("base.raw").delete()
