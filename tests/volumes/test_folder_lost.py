"""A pool whose folder or files fail under work on its volumes: the error says what it is, and so does the state."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from core_fakes import names

from astore.errors import PoolInaccessibleError, StorageError, TransferError
from astore.model import PoolState, VolumeDef
from astore.pools.pool import Pool
from astore.testing.faults import Faults

ALL = (
    VolumeDef("new", capacity=10),
    VolumeDef("new", capacity=10, allocation=10),
    VolumeDef("new", format="dir"),
    pytest.param(VolumeDef("new", capacity=1 << 20, format="qcow2"), marks=pytest.mark.qemu),
)


@pytest.mark.parametrize("definition", ALL)
async def test_create_in_a_folder_that_is_gone(pool: Pool, folder: Path, definition: VolumeDef) -> None:
    """The pool is inaccessible, not a volume missing. Its volumes are still listed, and a refresh finds the folder again."""
    await pool.create_volume(VolumeDef("old", capacity=10))
    folder.rename(folder.with_name("away"))
    with pytest.raises(PoolInaccessibleError, match=f"^pool 'p': .*{folder}: No such file or directory$") as caught:
        await pool.create_volume(definition)
    assert (caught.value.errno, caught.value.pool) == (errno.ENOENT, "p")
    assert (pool.state, names(pool)) == (PoolState.INACCESSIBLE, ["old"])
    folder.with_name("away").rename(folder)
    await pool.refresh()
    assert pool.state is PoolState.RUNNING
    await pool.create_volume(definition)


@pytest.mark.parametrize("definition", ALL[:3])
async def test_folder_removed_just_now(pool: Pool, faults: Faults, definition: VolumeDef) -> None:
    """So if the folder is removed between its opening and the making of the file in it."""
    faults.fail(("tree.create", "tree.mkdir"), errno.ENOENT)
    with pytest.raises(PoolInaccessibleError, match="pool 'p': the pool's folder is gone"):
        await pool.create_volume(definition)
    assert pool.state is PoolState.INACCESSIBLE


async def test_work_in_a_folder_that_is_gone(pool: Pool, folder: Path) -> None:
    """Other work is no different."""
    disk = await pool.create_volume(VolumeDef("old", capacity=10))
    folder.rename(folder.with_name("away"))
    for work in (lambda: disk.upload(b"x"), disk.delete, lambda: disk.rename("b"), lambda: disk.resize(20)):
        with pytest.raises(PoolInaccessibleError, match=f"{folder}: No such file"):
            await work()
        assert (pool.state, names(pool)) == (PoolState.INACCESSIBLE, ["old"])


async def test_failed_upload_keeps_the_volume(pool: Pool, folder: Path, faults: Faults) -> None:
    """A volume that cannot be read after a failed upload stays, and is an error as in any refresh, until it can be read."""
    disk = await pool.create_volume(VolumeDef("a", capacity=10))
    before = disk.info
    faults.fail(("file.pwrite", "tree.reading"), errno.EIO)
    with pytest.raises(TransferError):
        await disk.upload(b"x" * 10)
    assert (disk.info, pool.state) == (before, PoolState.DEGRADED)
    assert [error.name for error in pool.snapshot.errors] == ["a"]
    faults.clear("tree.reading")
    with pytest.raises(TransferError):
        await disk.upload(b"x" * 10)
    assert (disk.info.capacity, pool.state) == (10, PoolState.RUNNING)


async def test_no_descriptor_left(pool: Pool, faults: Faults) -> None:
    """A process without descriptors is told so; it says nothing about the pool, nor about the entry that it came upon."""
    disk = await pool.create_volume(VolumeDef("a", capacity=10))
    words = r"^pool 'p': refresh: .*Too many open files: raise the limit \(ulimit -n\)$"
    for point, full in (("tree.scan", False), ("tree.reading", True), ("tree.statvfs", False)):
        faults.fail(point, errno.EMFILE)
        with pytest.raises(StorageError, match=words) as caught:
            await pool.refresh(full=full)
        assert not isinstance(caught.value, PoolInaccessibleError)
        assert (caught.value.errno, pool.state, names(pool)) == (errno.EMFILE, PoolState.RUNNING, ["a"])
        faults.clear(point)
    faults.fail("tree.reading", errno.EMFILE)
    with pytest.raises(StorageError, match="raise the limit"):
        await disk.refresh()
    faults.fail("tree.create", errno.EMFILE)
    with pytest.raises(StorageError, match=r"create of volume 'b': .*raise the limit"):
        await pool.create_volume(VolumeDef("b", capacity=10))
    assert (pool.state, names(pool)) == (PoolState.RUNNING, ["a"])
