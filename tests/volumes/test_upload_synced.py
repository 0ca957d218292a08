"""What an upload says of its bytes when it breaks off: written, and synced, which is what has arrived for certain."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from volumes.model_file import ModelFile

from astore.errors import TransferError
from astore.manager import Manager
from astore.model import PoolDef, Target, VolumeDef
from astore.volume_io import transfer
from astore.volume_io.copying import Count
from beds.fuse_fs import FuseFs

MIB = 1 << 20


async def blocks(data: bytes) -> AsyncIterator[bytes]:
    """The data, in pieces of 1 MiB."""
    for at in range(0, len(data), MIB):
        yield data[at : at + MIB]


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.parametrize("fault", ["full", "outage"])
async def test_cache_that_accepts_more(
    new_fuse_fs: Callable[..., FuseFs], manager: Manager, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The kernel accepts what the server then cannot keep: that much is written, and less of it synced, which has arrived."""
    monkeypatch.setattr(transfer, "SYNC_EVERY", 4 * MIB)
    fs = new_fuse_fs(writeback=True)
    pool = await manager.define(PoolDef(type="dir", name="far", target=Target(path=str(fs.mount()))))
    await pool.start()
    disk = await pool.create_volume(VolumeDef("a", capacity=0))
    data = os.urandom(25 * MIB)
    before = fs.calls()["fsync"]

    async def source() -> AsyncIterator[bytes]:
        async for block in blocks(data[: 12 * MIB]):
            yield block
        while fault == "outage" and (await asyncio.to_thread(fs.calls))["fsync"] == before:
            await asyncio.sleep(0.01)
        if fault == "outage":
            await asyncio.to_thread(fs.fail, "write", errno.EIO)
        async for block in blocks(data[12 * MIB :]):
            yield block

    if fault == "full":
        fs.room(12 * MIB)
    with pytest.raises(TransferError) as caught:
        await disk.upload(source())
    error = caught.value
    assert error.errno == (errno.ENOSPC if fault == "full" else errno.EIO)
    assert 0 < error.synced <= error.done <= len(data)
    assert f"after {error.done} bytes, of which {error.synced} are synced" in str(error)
    assert (fs.files / "a").read_bytes()[: error.synced] == data[: error.synced]
    assert error.synced <= 12 * MIB < len(data)
    await pool.stop()


class _Synced(ModelFile):
    """A file whose syncs end when they are let, and fail if they are to."""

    def __init__(self) -> None:
        super().__init__()
        self.syncing = asyncio.Event()
        self.go_on = asyncio.Event()
        self.error: OSError | None = None

    async def sync(self) -> None:
        self.syncing.set()
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        await super().sync()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncs are due after every 200 bytes, and blocks have 100."""
    monkeypatch.setattr(transfer, "SYNC_EVERY", 200)
    monkeypatch.setattr(transfer, "BLOCK", 100)
    monkeypatch.setattr(transfer, "MOST", 100)


@pytest.mark.usefixtures("often")
async def test_writes_go_on_beside_a_sync() -> None:
    """A sync does not hold up the next writes, and there is one at a time."""
    file = _Synced()
    uploaded = asyncio.create_task(transfer.upload(file, blocks(b"x" * 3000), 0, None, False, Count(None, None)))
    await file.syncing.wait()
    while len(file.data) < 3000:
        await asyncio.sleep(0)
    file.go_on.set()
    assert await uploaded == 3000
    assert file.synced == 2, "the one beside, which began before the end, and the last"


@pytest.mark.usefixtures("often")
async def test_sync_that_fails() -> None:
    """A sync that fails ends the upload, and nothing is synced."""
    file = _Synced()
    file.error = OSError(errno.EIO, "lost")
    file.go_on.set()
    with pytest.raises(TransferError, match=r"lost, after [0-9]+ bytes, of which 0 are synced") as caught:
        await transfer.upload(file, blocks(b"x" * 3000), 0, None, False, Count(None, None))
    assert (caught.value.errno, caught.value.synced) == (errno.EIO, 0)


@pytest.mark.usefixtures("often")
async def test_write_that_fails_beside_a_sync() -> None:
    """A write that fails while a sync runs may have got the error of what the sync covers: that counts for nothing."""

    class Failing(_Synced):
        async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
            if self.syncing.is_set():
                asyncio.get_running_loop().call_soon(self.go_on.set)
                raise OSError(errno.ENOSPC, "full")
            await super().pwrite(data, offset)

    with pytest.raises(TransferError) as caught:
        await transfer.upload(Failing(), blocks(b"x" * 3000), 0, None, False, Count(None, None))
    assert caught.value.done > 0
    assert caught.value.synced == 0


@pytest.mark.root
async def test_full_disk(manager: Manager, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a disk that is full, what is synced is there."""
    monkeypatch.setattr(transfer, "SYNC_EVERY", MIB)
    pool = await manager.define(PoolDef(type="dir", name="small", target=Target(path=str(small))))
    await pool.start()
    disk = await pool.create_volume(VolumeDef("a", capacity=0))
    data = os.urandom(8 * MIB)
    with pytest.raises(TransferError) as caught:
        await disk.upload(blocks(data))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.synced <= caught.value.done <= 4 * MIB
    assert (small / "a").read_bytes()[: caught.value.done] == data[: caught.value.done]
    await pool.stop()
