"""A Gluster volume that is full, or whose quota is used up: work fails, says how far it came, and leaves nothing."""

from __future__ import annotations

import asyncio
import errno
import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from core_fakes import eventually
from volumes.real_servers import (
    MIB,
    PATIENCE,
    come_to_rest,
    dir_pool,
    gluster_pool,
    names_on,
    used_of,
    volume_in_memory,
)

from astore.errors import CommandError, StorageError, TransferError
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from beds import namespace

if TYPE_CHECKING:
    from beds.gluster import GlusterBed

pytestmark = [pytest.mark.root, pytest.mark.gluster]

ROOM = 8 * MIB
"""What there is room for."""

MS_REMOUNT = 0x20
"""linux/mount.h"""

MOST = 128 * MIB
"""More than anybody can write before bricks find that the quota is used up, which they do a little late."""

SIZE_ATTRIBUTE = "trusted.glusterfs.quota.size.1"
"""A brick folder's attribute in which it counts what is used of a quota: bytes, files and folders, big-endian."""

SAID = {errno.ENOSPC: "No space left", errno.EDQUOT: "Disk quota exceeded"}


class Small(NamedTuple):
    """A Gluster volume of 8 MiB, its brick, what it says when that is not enough, and what changes how much it is."""

    name: str
    brick: Path
    errno: int
    set_room: Callable[[int], object]

    async def uses(self, size: int) -> None:
        """Wait until so much is used, of the quota too: both are counted a little later than it is written or removed."""
        await eventually(lambda: used_of(self.brick) == size == self._counted(size), f"{size} bytes being used")

    def _counted(self, size: int) -> int:
        if self.errno == errno.ENOSPC:
            return size
        return int.from_bytes(os.getxattr(self.brick, SIZE_ATTRIBUTE)[:8])


@pytest.fixture(scope="module", params=["space", "quota"])
def small_volume(request: pytest.FixtureRequest, gluster: GlusterBed) -> Iterator[Small]:
    """Small because its brick is, or because it has a quota."""
    name = f"small-{request.param}"
    if request.param == "space":
        with volume_in_memory(gluster, name, ROOM // MIB) as brick:
            remount = functools.partial(namespace.mount, "tmpfs", brick, "tmpfs", flags=MS_REMOUNT)
            yield Small(name, brick, errno.ENOSPC, lambda room: remount(data=f"size={room}"))
        return
    with volume_in_memory(gluster, name, 2 * MOST // MIB) as brick:
        gluster.gluster("volume", "quota", name, "enable")
        gluster.set_option(name, {"features.quota-deem-statfs": "off"})  # or statvfs tells, and nothing is tried
        for what in ("hard-timeout", "soft-timeout"):
            gluster.gluster("volume", "quota", name, what, "0")  # what is used is looked up at each write

        def limit(room: int) -> None:
            gluster.gluster("volume", "quota", name, "limit-usage", "/", str(room))

        limit(ROOM)
        yield Small(name, brick, errno.EDQUOT, limit)


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    """A Manager with the installed backends."""
    async with Manager(tmp_path / "state", call_timeout=PATIENCE) as manager, asyncio.timeout(2 * PATIENCE):
        yield manager


@pytest.fixture
async def full(manager: Manager, gluster: GlusterBed, small_volume: Small) -> AsyncIterator[Pool]:
    """A pool on the small volume. After the test it takes what there is room for again, and is emptied."""
    pool = await manager.define(gluster_pool(gluster, small_volume.name))
    await pool.start()
    yield pool
    await come_to_rest(manager)
    await eventually(
        lambda: not any(name.startswith(".astore-") for name in names_on(small_volume.brick)), "no hidden file"
    )
    for one in pool.volumes:
        await Volume(pool, one.name).delete()
    await pool.refresh()
    assert (pool.volumes, names_on(small_volume.brick)) == ((), [])
    await small_volume.uses(0)
    disk = await pool.create_volume(VolumeDef("last", capacity=ROOM - 2 * MIB, allocation=ROOM - 2 * MIB))
    await disk.upload(bytes(MIB))
    await disk.delete()
    await pool.stop()


@pytest.fixture
async def far(manager: Manager, tmp_path: Path) -> Volume:
    """A volume of another pool, of type ``dir``, with more in it than the small one has room for."""
    folder = tmp_path / "far"
    folder.mkdir()
    pool = await manager.define(dir_pool(folder, "far"))
    await pool.start()
    disk = await pool.create_volume(VolumeDef("far", capacity=2 * ROOM))
    await disk.upload(os.urandom(2 * ROOM))
    return disk


async def filled(pool: Pool, small: Small, name: str, mib: int) -> Volume:
    """A new volume full of its own first letter, the only one."""
    disk = await pool.create_volume(VolumeDef(name, capacity=mib * MIB))
    await disk.upload(name[0].encode() * (mib * MIB))
    await small.uses(mib * MIB)
    return disk


def expected(first: int, last: int) -> bytes:
    """The bytes of an upload: in each MiB its number."""
    return b"".join(bytes([number]) * MIB for number in range(first // MIB, (last + MIB - 1) // MIB))[: last - first]


async def pieces(grain: int, first: int = 0, last: int = MOST) -> AsyncIterator[bytes]:
    """An upload in pieces of ``grain`` bytes, no faster than a brick counts."""
    for at in range(first, last, grain):
        yield expected(at - at % MIB, at - at % MIB + MIB)[:grain]
        await asyncio.sleep(0.001)


async def used_up(pool: Pool, small: Small) -> Volume:
    """A volume of which there was no room for all, so that there is no more room for anything."""
    disk = await pool.create_volume(VolumeDef("up", capacity=MOST))
    with pytest.raises(TransferError) as caught:
        await disk.upload(pieces(MIB))
    assert caught.value.errno == small.errno
    return disk


async def refused(
    small: Small, work: Callable[[], Awaitable[Volume]], undo: Callable[[Volume], Awaitable[object]] = Volume.delete
) -> StorageError:
    """The error of work for which there is no room.

    A quota is counted a little later than it is used, and astore writes several blocks at once: now and then one slips through.
    """
    before = used_of(small.brick)
    for _ in range(20 if small.errno == errno.EDQUOT else 1):
        try:
            with pytest.raises(StorageError, match=SAID[small.errno]) as caught:
                await undo(await work())
        except pytest.fail.Exception:
            await small.uses(before)
            continue
        assert caught.value.errno == small.errno
        return caught.value
    raise AssertionError("there was room")


async def only(small: Small, *names: str) -> None:
    """Wait until a volume has these files only: work that failed may still be cleaned up after its caller was told."""
    await eventually(lambda: names_on(small.brick) == list(names), f"no files but {names}")


async def test_create(full: Pool, small_volume: Small) -> None:
    """A create for which there is no room makes nothing, and what is sparse can be made all the same."""
    wanted = VolumeDef("a", capacity=2 * ROOM, allocation=2 * ROOM)
    error = await refused(small_volume, lambda: full.create_volume(wanted))
    assert isinstance(error, TransferError)
    assert (error.done, error.pool) == (0, "p")
    await only(small_volume)
    await full.create_volume(VolumeDef("a", capacity=1 << 40))


@pytest.mark.qemu
async def test_create_image(full: Pool, small_volume: Small) -> None:
    """So with an image of which the metadata alone, or all that it is to hold, need more than there is."""
    await filled(full, small_volume, "near", 5)
    for capacity, allocation in ((128 << 30, 0), (2 * ROOM, 2 * ROOM)):
        wanted = VolumeDef("a", capacity=capacity, allocation=allocation, format="qcow2")
        create = functools.partial(full.create_volume, wanted, prealloc_metadata=True)
        assert isinstance(await refused(small_volume, create), TransferError)
        await only(small_volume, "near")
        await small_volume.uses(5 * MIB)


async def test_copy(full: Pool, small_volume: Small, far: Volume) -> None:
    """A copy says how much of it there was room for, in the pool and from another; the original stays."""
    near = await filled(full, small_volume, "near", 5)
    for original in (near, far):
        copy = functools.partial(full.copy_volume, original, VolumeDef("copy"))
        error = await refused(small_volume, copy)
        assert isinstance(error, TransferError)
        assert error.pool == "p"
        assert 0 <= error.done < original.info.capacity
        await only(small_volume, "near")
        await small_volume.uses(5 * MIB)
    assert (small_volume.brick / "near").read_bytes() == b"n" * 5 * MIB


@pytest.mark.parametrize("grain", [MIB // 4, MIB])
async def test_upload(full: Pool, small_volume: Small, grain: int) -> None:
    """An upload says how much is there: who goes on from there, when there is room, has uploaded all."""
    await filled(full, small_volume, "near", 2)
    disk = await full.create_volume(VolumeDef("a", capacity=MOST))
    with pytest.raises(TransferError, match=SAID[small_volume.errno]) as caught:
        await disk.upload(pieces(grain))
    done = caught.value.done
    assert (caught.value.errno, caught.value.pool) == (small_volume.errno, "p")
    assert done % grain == 0
    assert stored(small_volume.brick / "a", done) == expected(0, done)
    assert disk.info.capacity == MOST
    assert (small_volume.brick / "near").read_bytes() == b"n" * 2 * MIB
    try:
        await asyncio.to_thread(small_volume.set_room, 2 * MOST)
        assert await disk.upload(pieces(grain, done, done + ROOM), offset=done) == ROOM
        assert stored(small_volume.brick / "a", done + ROOM) == expected(0, done + ROOM)
    finally:
        await disk.delete()
        await small_volume.uses(2 * MIB)
        await asyncio.to_thread(small_volume.set_room, ROOM)


def stored(path: Path, length: int) -> bytes:
    """The beginning of a file."""
    with path.open("rb") as file:
        return file.read(length)


async def test_resize(full: Pool, small_volume: Small) -> None:
    """A volume for which there is no room to grow keeps its size."""
    disk = await filled(full, small_volume, "a", 1)

    async def grow() -> Volume:
        await disk.resize(2 * ROOM, allocate=True)
        return disk

    await refused(small_volume, grow, lambda grown: grown.resize(MIB, shrink=True))
    assert disk.info.capacity == (small_volume.brick / "a").stat().st_size == MIB
    await small_volume.uses(MIB)
    assert (small_volume.brick / "a").read_bytes() == b"a" * MIB
    await disk.resize(2 * ROOM)
    assert (await disk.refresh()).capacity == 2 * ROOM


async def test_wipe(full: Pool, small_volume: Small) -> None:
    """Overwriting needs no space; a quota that is used up forbids even that, and the volume is whole all the same."""
    disk = await filled(full, small_volume, "a", 2)
    other = await used_up(full, small_volume)
    if small_volume.errno == errno.ENOSPC:
        await disk.wipe("random")
    else:
        with pytest.raises(TransferError, match=SAID[small_volume.errno]) as caught:
            await disk.wipe("random")
        assert 0 <= caught.value.done <= 2 * MIB
        assert (await disk.refresh()).capacity == 2 * MIB
        await other.delete()
        await small_volume.uses(2 * MIB)
        await disk.wipe("random")
    content = (small_volume.brick / "a").read_bytes()
    assert len(content) == 2 * MIB
    assert b"a" * 64 not in content


async def test_where_nothing_fits_any_more(full: Pool, small_volume: Small) -> None:
    """Renaming, reading, giving space back and deleting go on."""
    disk = await filled(full, small_volume, "a", 2)
    other = await used_up(full, small_volume)
    disk = await disk.rename("b")
    async with disk.download() as blocks:
        assert b"".join([bytes(block) async for block in blocks]) == b"a" * 2 * MIB
    assert names_on(small_volume.brick) == ["b", "up"]
    assert (small_volume.brick / "b").read_bytes() == b"a" * 2 * MIB
    await full.refresh(full=True)
    assert [(one.name, one.capacity) for one in full.volumes] == [("b", 2 * MIB), ("up", MOST)]
    await other.wipe("trim")
    await small_volume.uses(2 * MIB)
    assert await other.upload(b"u" * MIB) == MIB
    await other.delete()
    assert names_on(small_volume.brick) == ["b"]


@pytest.mark.qemu
async def test_convert(full: Pool, small_volume: Small, far: Volume, tmp_path: Path) -> None:
    """A conversion for which there is no room leaves nothing, and says why; one out of there goes well."""
    near = await filled(full, small_volume, "near", 7)
    image = await full.create_volume(VolumeDef("image", capacity=MIB, format="qcow2"))
    came, grown, went = await asyncio.gather(
        full.copy_volume(far, VolumeDef("copy", format="qcow2")),
        image.resize(4 * ROOM, allocate=True),
        far.pool.copy_volume(near, VolumeDef("copy", format="qcow2")),
        return_exceptions=True,
    )
    for error in (came, grown):  # told by the storage, or by qemu-img, whichever comes to know of it
        assert isinstance(error, (StorageError, CommandError))
        assert SAID[small_volume.errno] in str(error)
    assert isinstance(went, Volume)
    assert (went.info.format, went.info.capacity) == ("qcow2", 7 * MIB)
    await only(small_volume, "image", "near")
    assert (small_volume.brick / "near").read_bytes() == b"n" * 7 * MIB
    assert (await image.refresh()).format == "qcow2"
    kept = tmp_path / "kept"
    async with image.download() as blocks:
        kept.write_bytes(b"".join([bytes(block) async for block in blocks]))
    checking = await asyncio.create_subprocess_exec("qemu-img", "check", "-q", kept)
    assert await checking.wait() == 0
