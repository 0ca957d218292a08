"""Checks of new volumes: raw, by qemu-img, and directories; each complete or absent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from astore.errors import CommandError, DefinitionError, StorageError, VolumeExistsError
from astore.events import VolumeAdded
from astore.manager import Manager
from astore.model import BackingStore, Permissions, VolumeDef, VolumeType
from astore.pools.pool import Pool
from astore.testing.conformance.base import (
    ConformanceBase,
    NewSource,
    another,
    require,
    start_able,
    start_with,
)
from astore.testing.conformance.source import DIRECTORIES, IMAGES, PERMISSIONS, SourceUnderTest, raw

MIB = 1 << 20

BAD_NAMES = (
    *("", ".", "..", "a/b", "/etc/passwd", "../outside", "-rf", "a\nb", "a\0b", "\x7f", "x" * 256, "ü" * 128),
    *(".astore-", ".astore-0123456789abcdef.tmp", "\udce4"),
)
"""Names that no volume can have."""

ODD_NAMES = (
    "two words.img",
    "100%.img",
    "a,b=c.img",
    "json:x.img",
    "Größe-日本語.img",
    ".hidden",
    "x" * 255,
    "'\"<&>$(id)`",
)
"""Unusual but valid names."""


async def require_qemu_img() -> None:
    """Skip the test if there is no qemu-img."""
    if await asyncio.to_thread(shutil.which, "qemu-img") is None:
        pytest.skip("there is no qemu-img (Debian package qemu-utils)")


async def require_images(source: SourceUnderTest) -> None:
    """Skip the test if volumes cannot be images, or there is no qemu-img."""
    require(source, IMAGES)
    await require_qemu_img()


def mode_of(source: SourceUnderTest, mode: int) -> int:
    """Return the mode of a volume that was created with ``mode``; without permissions all have the same."""
    return mode if PERMISSIONS in source.can else 0o600


def kinds_of(source: SourceUnderTest) -> tuple[str, ...]:
    """Return the formats that need no qemu-img."""
    return ("raw", "dir") if DIRECTORIES in source.can else ("raw",)


def qemu_img(*arguments: str | Path) -> str:
    """Run qemu-img, and assert that it succeeds without messages."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


async def fetched(source: SourceUnderTest, folder: Path, *names: str) -> Path:
    """Copy these files of the storage into a local folder; return the path of the first."""
    await source.settle()
    for name in names:
        data = await source.content(name)
        await asyncio.to_thread((folder / name).write_bytes, data)
    return folder / names[0]


async def checked(source: SourceUnderTest, folder: Path, name: str, *others: str) -> dict[str, Any]:
    """Check an image of the storage by qemu-img, and return what ``qemu-img info`` says.

    :param others: its backing images.
    """
    path = await fetched(source, folder, name, *others)
    info: dict[str, Any] = json.loads(await asyncio.to_thread(qemu_img, "info", "--output=json", path))
    if info["format"] != "raw":
        await asyncio.to_thread(qemu_img, "check", "-q", "-f", info["format"], path)
    return info


class MadeVolumeChecks(ConformanceBase):
    """Create."""

    async def test_create_raw(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A raw volume is a hole of its capacity; it is in the snapshot at once, told, and nothing new to a refresh."""
        await start_able(pool, "create-volume")
        async with manager.events() as events:
            disk = await pool.create_volume(VolumeDef("a.img", capacity=5 * MIB + 1))
            event = await anext(aiter(events))
        assert isinstance(event, VolumeAdded)
        assert (event.pool, event.name, event.volume) == (pool.name, "a.img", disk.info)
        assert pool.volume("a.img") == disk
        info = disk.info
        assert (info.capacity, info.physical, info.format) == (5 * MIB + 1, 5 * MIB + 1, "raw")
        assert info.allocation < MIB
        assert stat.S_IMODE(info.mode) == 0o600
        outcome = await pool.refresh(full=True)
        assert (outcome.added, outcome.changed, outcome.removed, outcome.unchanged) == ((), (), (), 1)
        assert disk.info.same_as(info)
        assert await source.settled_names() == {"a.img"}
        assert await source.content("a.img") == bytes(5 * MIB + 1)

    async def test_create_allocated(self, pool: Pool) -> None:
        """A raw volume's allocation is allocated at once, up to its capacity."""
        await start_able(pool, "create-volume")
        for allocation, least, most in ((0, 0, MIB), (2 * MIB, 2 * MIB, 3 * MIB), (9 * MIB, 4 * MIB, 5 * MIB)):
            disk = await pool.create_volume(VolumeDef(f"{allocation}", capacity=4 * MIB, allocation=allocation))
            assert least <= disk.info.allocation < most
            assert disk.info.capacity == 4 * MIB

    async def test_create_empty_and_huge(self, pool: Pool, source: SourceUnderTest) -> None:
        """Capacities of 0 and of more than 8 GiB work."""
        await start_able(pool, "create-volume")
        for capacity in (0, (1 << 31) + 1, (1 << 33) + 4096):
            disk = await pool.create_volume(VolumeDef(f"{capacity}.img", capacity=capacity))
            assert disk.info.capacity == capacity
            assert disk.info.allocation < MIB
        await source.settle()
        assert (await pool.refresh(full=True)).unchanged == 3

    async def test_create_from_xml(self, pool: Pool, source: SourceUnderTest) -> None:
        """A volume can be created by libvirt's XML document."""
        await start_able(pool, "create-volume")
        text = """<volume><name>x.img</name><capacity unit='KiB'>8</capacity><allocation>0</allocation>
            <target><format type='raw'/><permissions><mode>0640</mode></permissions></target></volume>"""
        disk = await pool.create_volume(text)
        assert (disk.name, disk.info.capacity) == ("x.img", 8192)
        assert stat.S_IMODE(disk.info.mode) == mode_of(source, 0o640)
        again = VolumeDef.from_xml(disk.to_xml())
        assert (again.name, again.capacity, again.format) == ("x.img", 8192, "raw")
        with pytest.raises(DefinitionError):
            await pool.create_volume("<volume><name>y</name></volume>")
        with pytest.raises(DefinitionError):
            await pool.create_volume("<pool/>")

    async def test_create_with_permissions(self, pool: Pool, source: SourceUnderTest) -> None:
        """The mode is as asked, whatever the umask; and the owner, where that is who one is."""
        await start_able(pool, "create-volume")
        require(source, PERMISSIONS)
        for mode in (0o400, 0o666, 0o660):
            disk = await pool.create_volume(VolumeDef(f"{mode:o}", capacity=1, permissions=Permissions(mode=mode)))
            assert stat.S_IMODE(disk.info.mode) == mode
        mine = pool.volume("666").info
        same = Permissions(owner=mine.uid, group=mine.gid)
        disk = await pool.create_volume(VolumeDef("owned", capacity=1, permissions=same))
        assert (disk.info.uid, disk.info.gid, stat.S_IMODE(disk.info.mode)) == (mine.uid, mine.gid, 0o600)
        await source.settle()
        assert (await pool.refresh()).unchanged == 4

    async def test_create_where_something_is(self, pool: Pool, source: SourceUnderTest) -> None:
        """An existing file, known to astore or not, is left alone and named in the error."""
        await start_able(pool, "create-volume")
        await source.put("unknown", raw(8192, b"u"))
        await source.put("known", raw(8192, b"k"))
        if DIRECTORIES in source.can:
            await source.mkdir("folder")
        await source.settle()
        await pool.refresh("known")
        for name in sorted(await source.names()):
            for kind in kinds_of(source):
                with pytest.raises(VolumeExistsError, match=name) as caught:
                    await pool.create_volume(VolumeDef(name, capacity=1, format=kind))
                assert (caught.value.pool, isinstance(caught.value, FileExistsError)) == (pool.name, True)
        assert await source.content("unknown") == raw(8192, b"u")
        assert await source.content("known") == raw(8192, b"k")
        assert not any(name.startswith(".") for name in await source.names())
        assert pool.volume("known").info.capacity == 8192

    async def test_names(self, pool: Pool, source: SourceUnderTest) -> None:
        """Names that lead elsewhere, or are reserved, are refused; unusual ones are not."""
        await start_able(pool, "create-volume")
        for name in BAD_NAMES:
            with pytest.raises(DefinitionError):
                await pool.create_volume(VolumeDef(name, capacity=1))
            with pytest.raises(DefinitionError):
                await pool.create_volume(VolumeDef(name, capacity=1, format="dir"))
        assert (pool.volumes, await source.names()) == ((), set())
        for name in ODD_NAMES:
            await pool.create_volume(VolumeDef(name, capacity=512))
        assert await source.settled_names() == set(ODD_NAMES)
        assert (await pool.refresh(full=True)).unchanged == len(ODD_NAMES)
        if "rename-volume" in pool.abilities():
            for name in BAD_NAMES:
                with pytest.raises(DefinitionError):
                    await pool.volume("two words.img").rename(name)
        if "delete-volume" in pool.abilities():
            for name in ODD_NAMES:
                await pool.volume(name).delete()
            assert await source.settled_names() == set()

    async def test_create_nonsense(self, pool: Pool, source: SourceUnderTest) -> None:
        """An impossible definition is refused by an error that names the element, and nothing is made."""
        await start_able(pool, "create-volume")
        backing = BackingStore("/base", "raw")
        for element, wanted in (
            ("capacity", VolumeDef("v")),
            ("capacity", VolumeDef("v", capacity=-1)),
            ("capacity", VolumeDef("v", capacity=1 << 63)),
            ("allocation", VolumeDef("v", capacity=1, allocation=-1)),
            ("format", VolumeDef("v", capacity=1, format="iso")),
            ("format", VolumeDef("v", capacity=1, format="no such format")),
            ("encryption", VolumeDef("v", capacity=1, format="luks")),
            ("backingStore", VolumeDef("v", capacity=1, format="raw", backing=backing)),
            ("capacity", VolumeDef("v", format="qcow2", backing=backing)),
            ("backingStore", VolumeDef("v", format="qcow2", capacity=1, backing=BackingStore("/no/such/base"))),
            ("compat", VolumeDef("v", capacity=1, format="vdi", compat="1.1")),
            ("compat", VolumeDef("v", capacity=1, format="qcow2", compat="1.1,backing_file=/etc/passwd")),
            ("features", VolumeDef("v", capacity=1, format="qcow2", features=("backing_file=/etc/passwd,lazy",))),
            ("clusterSize", VolumeDef("v", capacity=1, cluster_size=512)),
        ):
            with pytest.raises(DefinitionError) as caught:
                await pool.create_volume(wanted)
            assert caught.value.element == element, wanted
        assert (pool.volumes, await source.names()) == ((), set())

    async def test_directories(self, pool: Pool, source: SourceUnderTest) -> None:
        """A directory is created with its mode, and removed only when it is empty."""
        await start_able(pool, "create-volume", "delete-volume")
        if DIRECTORIES not in source.can:
            for wanted in (VolumeDef("folder", format="dir"), VolumeDef("folder", type=VolumeType.DIR)):
                with pytest.raises(DefinitionError, match="director"):
                    await pool.create_volume(wanted)
            assert await source.names() == set()
            return
        folder = await pool.create_volume(VolumeDef("folder", format="dir"))
        assert folder.info.type in (VolumeType.DIR, VolumeType.NETDIR)
        assert stat.S_IMODE(folder.info.mode) == 0o711
        other = VolumeDef("other", type=VolumeType.DIR, permissions=Permissions(mode=0o770, owner=folder.info.uid))
        assert stat.S_IMODE((await pool.create_volume(other)).info.mode) == 0o770
        assert (await pool.refresh(full=True)).unchanged == 2
        with contextlib.suppress(NotImplementedError):
            await source.mkdir("folder/inside")
            await source.settle()
            with pytest.raises(StorageError) as caught:
                await folder.delete()
            assert caught.value.pool == pool.name
            assert await source.names() == {"folder", "other"}
            await source.remove("folder/inside")
            await source.settle()
        await folder.delete()
        assert [volume.name for volume in pool.volumes] == ["other"]
        assert await source.names() == {"other"}

    async def test_create_qcow2(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """A qcow2 image is what was asked for, to qemu-img as to astore."""
        await start_able(pool, "create-volume")
        await require_images(source)
        cases = (
            VolumeDef("plain", capacity=1 << 30, format="qcow2"),
            VolumeDef("old", capacity=1 << 30, format="qcow2", compat="0.10"),
            VolumeDef("lazy", capacity=1 << 30, format="qcow2", features=("lazy_refcounts",), cluster_size=1 << 20),
            VolumeDef("subclusters", capacity=1 << 30, format="qcow2", features=("extended_l2", "lazy_refcounts")),
        )
        for wanted in cases:
            disk = await pool.create_volume(wanted)
            said = await checked(source, tmp_path, wanted.name)
            data = said["format-specific"]["data"]
            assert (said["format"], said["virtual-size"]) == ("qcow2", 1 << 30)
            assert (data["compat"], said["cluster-size"]) == (disk.info.compat, disk.info.cluster_size)
            assert data["compat"] == (wanted.compat or "1.1")
            assert said["cluster-size"] == (wanted.cluster_size or 65536)
            assert (data.get("lazy-refcounts", False), data.get("extended-l2", False)) == (
                "lazy_refcounts" in (wanted.features or ()),
                "extended_l2" in (wanted.features or ()),
            )
            assert set(disk.info.features) == set(wanted.features or ())
            assert stat.S_IMODE(disk.info.mode) == 0o600
        assert (await pool.refresh(full=True)).unchanged == len(cases)

    async def test_create_preallocated(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """Metadata are written at once where that is wanted, and the space for all data where the allocation says so."""
        await start_able(pool, "create-volume")
        await require_images(source)
        disk = await pool.create_volume(VolumeDef("m", capacity=16 * MIB, format="qcow2"), prealloc_metadata=True)
        assert disk.info.physical >= 16 * MIB
        assert disk.info.allocation < 4 * MIB
        await checked(source, tmp_path, "m")
        full = VolumeDef("f", capacity=16 * MIB, allocation=16 * MIB, format="qcow2")
        disk = await pool.create_volume(full, prealloc_metadata=True)
        assert disk.info.allocation >= 16 * MIB
        await checked(source, tmp_path, "f")

    async def test_create_other_formats(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """Every other format that qemu-img writes can be created."""
        await start_able(pool, "create-volume")
        await require_images(source)
        for kind in ("qcow", "qed", "vmdk", "vdi", "vpc"):
            disk = await pool.create_volume(VolumeDef(kind, capacity=64 * MIB, format=kind))
            assert (disk.info.format, disk.info.capacity >= 64 * MIB) == (kind, True)
            path = await fetched(source, tmp_path, kind)
            said = json.loads(await asyncio.to_thread(qemu_img, "info", "--output=json", "-f", kind, path))
            assert said["virtual-size"] == disk.info.capacity
        with pytest.raises(CommandError):  # a size that this format cannot have: what qemu-img says
            await pool.create_volume(VolumeDef("too much", capacity=1 << 62, format="vpc"))
        assert await source.names() == {"qcow", "qed", "vmdk", "vdi", "vpc"}

    async def test_create_backed(
        self, tmp_path: Path, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A volume backed by another has its capacity and format, by name in its pool or by path from any other."""
        await start_able(pool, "create-volume")
        await require_images(source)
        base = await pool.create_volume(VolumeDef("base.img", capacity=3 * MIB))
        over = await pool.create_volume(VolumeDef("over", format="qcow2", backing=BackingStore("base.img")))
        assert (over.info.capacity, over.info.backing, over.info.backing_format) == (3 * MIB, "base.img", "raw")
        assert over.info.backing_path == base.path
        top = await pool.create_volume(
            VolumeDef("top", format="qcow2", capacity=4 * MIB, backing=BackingStore("over", "qcow2"))
        )
        assert (top.info.capacity, top.info.backing_format) == (4 * MIB, "qcow2")
        said = await checked(source, tmp_path, "top", "over", "base.img")
        assert (said["backing-filename"], said["backing-filename-format"]) == ("over", "qcow2")
        other, _ = await another(manager, new_source)
        far = await other.create_volume(VolumeDef("far", format="qcow2", backing=BackingStore(base.path)))
        assert (far.info.capacity, far.info.backing_path) == (3 * MIB, base.path)
        assert [link.volume for link in far.backing_chain()] == [far, base]

    async def test_create_beside_many(self, pool: Pool, source: SourceUnderTest) -> None:
        """Many volumes created at once all exist in the end, in name order, in snapshot and storage."""
        await start_with(pool, source, {"there.img": raw()})
        if "create-volume" not in pool.abilities():
            pytest.skip("no create-volume")
        names = [f"{n:03}.img" for n in range(40)]
        await asyncio.gather(*(pool.create_volume(VolumeDef(name, capacity=4096)) for name in names))
        await source.settle()
        assert [volume.name for volume in pool.volumes] == [*names, "there.img"]
        assert await source.names() == {*names, "there.img"}
        assert (await pool.refresh(full=True)).unchanged == 41
