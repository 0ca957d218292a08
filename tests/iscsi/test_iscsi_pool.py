"""Pools of the type iscsi-direct on a real target: what they list, and the bytes of their volumes."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import random
import subprocess
import threading
from pathlib import Path

import pytest
from iscsi_support import INITIATOR, MIB, NewPool

from astore.errors import StorageError, UnsupportedOperationError, VolumeNotFoundError
from astore.manager import Manager
from astore.model import PoolDef, PoolState, Target, VolumeDef
from astore.volume_io.blocks import Hole
from astore_iscsi.target import client
from beds.iscsi import Target as IscsiTarget

pytestmark = pytest.mark.iscsi

NAMES = ["unit:0:0:1", "unit:0:0:2", "unit:0:0:7"]


async def test_units_are_volumes(target: IscsiTarget, new_pool: NewPool) -> None:
    """Every disk is a volume with libvirt's name and key and its whole size; the controller, LUN 0, is none."""
    for lun, size in ((1, 8 * MIB), (2, 13_631_488), (7, 512)):
        target.add_lun(lun, size)
    threads = threading.active_count()
    pool = await new_pool(target)
    assert [(one.name, one.capacity) for one in pool.volumes] == [
        ("unit:0:0:1", 8 * MIB),
        ("unit:0:0:2", 13_631_488),
        ("unit:0:0:7", 512),
    ]
    assert pool.state is PoolState.RUNNING
    disk = pool.volume("unit:0:0:2")
    assert disk.key == disk.path == f"ip-127.0.0.1:{target.bed.port}-iscsi-{target.iqn}-lun-2"
    assert (disk.info.type, disk.info.format) == ("network", "raw")
    assert (pool.info.capacity, pool.info.available) == (8 * MIB + 13_631_488 + 512, 0)
    before = pool.volumes
    outcome = await pool.refresh(full=True)
    assert (outcome.added, outcome.changed, outcome.removed, outcome.unchanged) == ((), (), (), 3)
    assert all(a is b for a, b in zip(before, pool.volumes, strict=True))
    assert threading.active_count() <= threads + 1, "all of this is on the event loop"  # one: the store's files


async def test_many_units(target: IscsiTarget, new_pool: NewPool) -> None:
    """Units beyond 255, which have another way of addressing, are volumes too."""
    await asyncio.to_thread(target.add_lun, 300, MIB)
    pool = await new_pool(target)
    (disk,) = pool.volumes
    assert disk.name == f"unit:0:0:{0x4000 | 300}", "libiscsi's number, which libvirt and QEMU use"
    await pool.volume(disk.name).upload(b"far")
    async with pool.volume(disk.name).open() as file:
        assert await file.pread(5, 0) == b"far\0\0"


async def test_long_list(target: IscsiTarget, new_pool: NewPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of units that does not fit is asked for again, with room for all of it."""
    monkeypatch.setattr(client, "LIST", 16)
    for lun in range(1, 6):
        target.add_lun(lun, 512)
    assert len((await new_pool(target)).volumes) == 5


async def test_bad_unit_is_one_entry(target: IscsiTarget, new_pool: NewPool) -> None:
    """A unit that is offline is an error of its own; the others are served, and it is back when it is online."""
    for lun in (1, 2):
        target.add_lun(lun, MIB)
    pool = await new_pool(target)
    target.update_lun(1, online="0")
    await pool.refresh()
    assert pool.state is PoolState.DEGRADED
    (wrong,) = pool.snapshot.errors
    assert wrong.name == "unit:0:0:1"
    assert wrong.errno in (errno.ENXIO, errno.ENOMEDIUM), wrong
    assert pool.volume("unit:0:0:2").info.capacity == MIB
    target.update_lun(1, online="1")
    await pool.refresh()
    assert pool.state is PoolState.RUNNING
    assert [one.name for one in pool.volumes] == ["unit:0:0:1", "unit:0:0:2"]


async def test_changes_of_units(target: IscsiTarget, new_pool: NewPool) -> None:
    """Added, removed and replaced units are seen; a unit that takes another's number is another volume."""
    for lun in (1, 2):
        target.add_lun(lun, MIB)
    pool = await new_pool(target)
    first = pool.volume("unit:0:0:1").info
    target.remove_lun(1)
    target.add_lun(1, MIB)
    target.remove_lun(2)
    target.add_lun(3, 2 * MIB)
    outcome = await pool.refresh()
    assert (outcome.added, outcome.changed, outcome.removed) == (("unit:0:0:3",), ("unit:0:0:1",), ("unit:0:0:2",))
    assert pool.volume("unit:0:0:1").info.inode != first.inode
    await pool.refresh("unit:0:0:3")
    await pool.refresh("unit:0:0:0")
    assert [one.name for one in pool.volumes] == ["unit:0:0:1", "unit:0:0:3"]
    for name in ("unit:0:0:9", "unit:0:0:01", "unit:0:0:65536", "disk"):
        await pool.refresh(name)
        with pytest.raises(VolumeNotFoundError):
            pool.volume(name)
    with pytest.raises(UnsupportedOperationError):
        await pool.create_volume(VolumeDef("unit:0:0:4", capacity=MIB))


@pytest.mark.parametrize(("thin", "block"), [(False, 512), (True, 512), (False, 4096), (True, 4096)])
async def test_bytes(target: IscsiTarget, new_pool: NewPool, thin: bool, block: int) -> None:
    """Reads and writes at any offset, of any length, several at once, have the effect they have on a file."""
    path = target.add_lun(1, 8 * MIB, thin=thin, block=block)
    pool = await new_pool(target)
    disk = pool.volume("unit:0:0:1")
    chance = random.Random(14)
    meant = bytearray(8 * MIB)

    async with disk.open(write=True) as file:

        async def work(begin: int, end: int) -> None:
            for _ in range(12):
                start = chance.randrange(begin, end)
                length = min(chance.choice((1, 511, 512, 513, 4096, 70_001, 3 * MIB)), end - start)
                if chance.random() < 0.3:
                    if not thin:
                        with pytest.raises(OSError, match="not supported"):
                            await file.punch(start, length)
                        continue
                    await file.punch(start, length)
                    meant[start : start + length] = bytes(length)
                else:
                    data = chance.randbytes(length)
                    kinds = (data, bytearray(data), memoryview(data), memoryview(bytearray(data)))
                    await file.pwrite(chance.choice(kinds), start)
                    meant[start : start + length] = data
                assert await file.pread(length, start) == meant[start : start + length]

        edges = [0, 1_000_001, 2 * MIB + 100, 5 * MIB, 8 * MIB]  # neighbours share blocks
        await asyncio.gather(*(work(*pair) for pair in itertools.pairwise(edges)))
        await file.sync()
        assert await file.pread(100, 8 * MIB - 10) == meant[-10:]
        assert await file.pread(100, 9 * MIB) == b""
        with pytest.raises(OSError, match="No space") as caught:
            await file.pwrite(b"x", 8 * MIB)
        assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == meant


async def test_holes(target: IscsiTarget, new_pool: NewPool) -> None:
    """A thin unit tells its holes, gets new ones, and gives the space back; a thick one is data from end to end."""
    path = target.add_lun(1, 64 * MIB, thin=True)
    target.add_lun(2, 64 * MIB)
    pool = await new_pool(target)
    thin, thick = pool.volume("unit:0:0:1"), pool.volume("unit:0:0:2")
    async with thin.open(write=True) as file:
        assert await file.seek_data(0) is None
        await file.pwrite(b"x" * MIB, 10 * MIB)
        await file.pwrite(b"y" * MIB, 30 * MIB)
        assert await file.seek_data(0) == 10 * MIB
        assert await file.seek_hole(10 * MIB) == 11 * MIB
        assert await file.seek_data(11 * MIB) == 30 * MIB
        await file.punch(10 * MIB, MIB)
        assert await file.seek_data(0) == 30 * MIB
        assert await file.seek_data(31 * MIB) is None
    assert os.stat(path).st_blocks * 512 == MIB
    async with thin.download(sparse=True) as pieces:
        got = [piece async for piece in pieces]
    assert sum(piece.length for piece in got if isinstance(piece, Hole)) == 63 * MIB
    async with thick.open() as file:
        assert (await file.seek_data(5), await file.seek_hole(5)) == (5, 64 * MIB)


async def test_wiped(target: IscsiTarget, new_pool: NewPool) -> None:
    """A wiped unit has only zeros; a write-protected one says so."""
    path = target.add_lun(1, 4 * MIB)
    target.add_lun(2, MIB, readonly=True)
    pool = await new_pool(target)
    disk = pool.volume("unit:0:0:1")
    await disk.upload(b"secret" * 500_000)
    assert b"secret" in path.read_bytes()
    await disk.wipe()
    assert not path.read_bytes().strip(b"\0")
    thin = target.add_lun(3, 4 * MIB, thin=True)
    await pool.refresh()
    await pool.volume("unit:0:0:3").upload(b"secret" * 500_000)
    assert os.stat(thin).st_blocks
    await pool.volume("unit:0:0:3").wipe("trim")
    assert not os.stat(thin).st_blocks, "its space is given back"
    with pytest.raises(StorageError, match="write-protected") as caught:
        await pool.volume("unit:0:0:2").upload(b"x")
    assert caught.value.errno == errno.EROFS


@pytest.mark.qemu
async def test_copies_between_pools(manager: Manager, target: IscsiTarget, new_pool: NewPool, tmp_path: Path) -> None:
    """A unit is copied to a folder, as it is and converted, and filled from there; qemu-img finds the same bytes everywhere."""
    target.add_lun(1, 8 * MIB, thin=True)
    target.add_lun(2, 8 * MIB)
    pool = await new_pool(target)
    folder = await manager.create(PoolDef("dir", "folder", target=Target(str(tmp_path))))
    disk = pool.volume("unit:0:0:1")
    await disk.upload(random.Random(1).randbytes(3 * MIB), offset=MIB)
    plain = await folder.copy_volume(disk, VolumeDef("plain.img"))
    image = await folder.copy_volume(disk, VolumeDef("image.qcow2", format="qcow2"))
    async with plain.download(sparse=True) as pieces:
        await pool.volume("unit:0:0:2").upload(pieces, sparse=True)
    for name in ("unit:0:0:1", "unit:0:0:2"):
        url = f"iscsi://127.0.0.1:{target.bed.port}/{target.iqn}/{name[-1]}"
        for copy, format in ((plain, "raw"), (image, "qcow2")):
            argv = ["qemu-img", "compare", "-f", "raw", "-F", format, url, copy.path]
            done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    node = disk.qemu_blockdev()
    assert node["file"]["initiator-name"] == INITIATOR
    for name in (f"json:{json.dumps(node)}", disk.qemu_uri()):
        argv = ["qemu-img", "info", "--output=json", name]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True)
        assert done.returncode == 0 and f'"virtual-size": {8 * MIB}' in done.stdout, done.stdout + done.stderr
