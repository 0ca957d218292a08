"""A file system that is full: work on volumes fails, says how far it came, and leaves as much space as there was."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from astore.errors import StorageError, TransferError
from astore.manager import Manager
from astore.model import PoolDef, Target, VolumeDef
from astore.pools.pool import Pool

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
async def full(manager: Manager, small: Path) -> AsyncIterator[Pool]:
    """A pool on a file system of 4 MiB."""
    pool = await manager.define(PoolDef(type="dir", name="small", target=Target(path=str(small))))
    await pool.start()
    yield pool
    await pool.stop()


def free(small: Path) -> int:
    """Bytes that are free."""
    vfs = os.statvfs(small)
    return vfs.f_bfree * vfs.f_frsize


async def test_create(full: Pool, small: Path) -> None:
    """A create for which there is no space makes nothing."""
    before = free(small)
    with pytest.raises(TransferError, match="No space left") as caught:
        await full.create_volume(VolumeDef("a", capacity=8 * MIB, allocation=8 * MIB))
    assert (caught.value.errno, caught.value.done, caught.value.pool) == (errno.ENOSPC, 0, "small")
    assert (os.listdir(small), free(small)) == ([], before)
    await full.create_volume(VolumeDef("a", capacity=1 << 40))


@pytest.mark.qemu
async def test_create_image(full: Pool, small: Path) -> None:
    """So with an image that is to have all its space."""
    before = free(small)
    wanted = VolumeDef("a", capacity=8 * MIB, allocation=8 * MIB, format="qcow2")
    with pytest.raises(TransferError) as caught:
        await full.create_volume(wanted, prealloc_metadata=True)
    assert caught.value.errno == errno.ENOSPC
    assert (os.listdir(small), free(small)) == ([], before)


async def test_upload(full: Pool, small: Path) -> None:
    """An upload for which there is no space says how much of it there was for."""
    disk = await full.create_volume(VolumeDef("a", capacity=8 * MIB))

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(8):
            yield bytes([number + 1]) * MIB

    with pytest.raises(TransferError, match="No space left") as caught:
        await disk.upload(pieces())
    done = caught.value.done
    assert caught.value.errno == errno.ENOSPC
    assert 0 <= done <= 4 * MIB
    expected = b"".join(bytes([number + 1]) * MIB for number in range(8))
    assert (small / "a").read_bytes()[:done] == expected[:done]
    await disk.wipe("trim")
    assert await disk.upload(b"x" * MIB) == MIB


async def test_copy(full: Pool, small: Path, pool: Pool) -> None:
    """So does a copy, in the pool and from another; the original stays."""
    near = await full.create_volume(VolumeDef("near", capacity=3 * MIB))
    await near.upload(b"n" * 3 * MIB)
    far = await pool.create_volume(VolumeDef("far", capacity=6 * MIB))
    await far.upload(b"f" * 6 * MIB)
    before = free(small)
    for original in (near, far):
        with pytest.raises(TransferError, match="No space left") as caught:
            await full.copy_volume(original, VolumeDef("copy"))
        assert caught.value.errno == errno.ENOSPC
        assert 0 <= caught.value.done < 4 * MIB
        assert (os.listdir(small), free(small)) == (["near"], before)
    assert (small / "near").read_bytes() == b"n" * 3 * MIB


@pytest.mark.qemu
async def test_convert(full: Pool, small: Path, pool: Pool) -> None:
    """A conversion for which there is no space leaves nothing; it is the storage's error, in qemu-img's words."""
    far = await pool.create_volume(VolumeDef("far", capacity=6 * MIB))
    await far.upload(os.urandom(6 * MIB))
    before = free(small)
    for definition in (VolumeDef("copy", format="qcow2"), VolumeDef("copy", format="vmdk")):
        words = "pool 'small': convert of volume 'copy': .*: No space left on device$"
        with pytest.raises(StorageError, match=words) as caught:
            await full.copy_volume(far, definition)
        assert (caught.value.errno, caught.value.pool) == (errno.ENOSPC, "small")
        assert isinstance(caught.value.__cause__, OSError)
        assert (os.listdir(small), free(small)) == ([], before)


async def test_resize(full: Pool, small: Path) -> None:
    """A volume for which there is no space to grow keeps its size."""
    disk = await full.create_volume(VolumeDef("a", capacity=MIB))
    before = free(small)
    with pytest.raises(StorageError) as caught:
        await disk.resize(9 * MIB, allocate=True)
    assert caught.value.errno == errno.ENOSPC
    assert (disk.info.capacity, (small / "a").stat().st_size, free(small)) == (MIB, MIB, before)
