"""Checks of copies: within a pool, between pools, into other formats, and larger than the original."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path

import pytest

from astore.errors import AstoreError, DefinitionError, StorageError, VolumeExistsError, VolumeNotFoundError
from astore.manager import Manager
from astore.model import BackingStore, Permissions, VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.testing.conformance.base import ConformanceBase, NewSource, another, start_able
from astore.testing.conformance.source import DIRECTORIES, SourceUnderTest, qcow2
from astore.testing.conformance.streams import DATA, Watch, given
from astore.testing.conformance.volumes_made import MIB, checked, fetched, mode_of, qemu_img, require_images
from astore.volume_io.blocks import Hole

SPARSE = DATA[:MIB] + bytes(5 * MIB) + DATA[MIB : 3 * MIB + 7] + bytes(MIB)
"""Data, a hole, data with an unaligned end, and a hole."""


async def sparse_volume(pool: Pool, name: str = "old.img") -> Volume:
    """Create a raw volume with SPARSE and its holes."""
    disk = await pool.create_volume(VolumeDef(name, capacity=len(SPARSE)))
    await disk.upload(given([DATA[:MIB], Hole(5 * MIB), DATA[MIB : 3 * MIB + 7]]), sparse=True)
    return disk


async def qcow2_volume(pool: Pool, folder: Path, name: str = "old.qcow2", *arguments: str) -> Volume:
    """Create a qcow2 volume whose disk has SPARSE."""
    raw, image = folder / "made.raw", folder / "made.qcow2"
    await asyncio.to_thread(raw.write_bytes, SPARSE)
    await asyncio.to_thread(qemu_img, "convert", "-f", "raw", "-O", "qcow2", *arguments, raw, image)
    disk = await pool.create_volume(VolumeDef(name, capacity=MIB))
    await disk.upload(image)
    assert disk.info.format == "qcow2"
    return disk


async def compare(source: SourceUnderTest, folder: Path, name: str, format: str, wanted: bytes) -> None:
    """Assert that an image in the storage has this disk."""
    path = await fetched(source, folder, name)
    raw = folder / "wanted.raw"
    await asyncio.to_thread(raw.write_bytes, wanted)
    await asyncio.to_thread(qemu_img, "compare", "-q", "-f", format, "-F", "raw", path, raw)


class CopiedVolumeChecks(ConformanceBase):
    """Copy."""

    async def test_copy_within(self, pool: Pool, source: SourceUnderTest) -> None:
        """A copy within a pool has the same bytes and holes, its own mode and capacity, and the original nothing of it."""
        await start_able(pool, "create-volume", "open-volume", "copy-volume")
        old = await sparse_volume(pool)
        before = old.info
        for name, capacity in (("same.img", None), ("larger.img", 20 * MIB)):
            watch = Watch()
            copy = await pool.copy_volume(old, VolumeDef(name, capacity=capacity), on_progress=watch)
            watch.assert_complete(len(SPARSE), total=len(SPARSE))
            size = capacity or len(SPARSE)
            assert (copy.info.capacity, copy.info.physical, copy.info.format) == (size, size, "raw")
            assert stat.S_IMODE(copy.info.mode) == 0o600
            assert copy.info.allocation < 5 * MIB
            assert await source.settled_content(name) == SPARSE.ljust(size, b"\0")
        taken_all = VolumeDef("full.img", allocation=len(SPARSE), permissions=Permissions(mode=0o640))
        full = await pool.copy_volume(old, taken_all)
        assert full.info.allocation >= len(SPARSE)
        assert stat.S_IMODE(full.info.mode) == mode_of(source, 0o640)
        await full.upload(b"changed")
        assert await source.settled_content("old.img") == SPARSE
        assert old.info.same_as(before)
        assert (await pool.refresh(full=True)).unchanged == 4

    async def test_copy_across(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A copy in another pool has the same bytes and holes too."""
        await start_able(pool, "create-volume", "open-volume", "receive-volume")
        other, other_source = await another(manager, new_source)
        old = await sparse_volume(pool)
        for name, capacity in (("same.img", None), ("larger.img", 20 * MIB)):
            watch = Watch()
            copy = await other.copy_volume(old, VolumeDef(name, capacity=capacity), on_progress=watch)
            watch.assert_complete(len(SPARSE), total=len(SPARSE))
            assert (copy.pool, copy.info.capacity) == (other, capacity or len(SPARSE))
            assert copy.info.allocation < 5 * MIB
            await other_source.settle()
            assert await other_source.content(name) == SPARSE.ljust(copy.info.capacity, b"\0")
        assert await source.names() == {"old.img"}
        assert (await other.refresh(full=True)).unchanged == 2

    async def test_copy_refused(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """An impossible copy is refused with a reason, and leaves nothing."""
        await start_able(pool, "create-volume", "open-volume", "copy-volume")
        old = await sparse_volume(pool)
        taken = ["old.img"]
        if DIRECTORIES in source.can:
            taken.append((await pool.create_volume(VolumeDef("folder", format="dir"))).name)
        names = await source.names()
        refused: list[tuple[VolumeDef, type[AstoreError]]] = [(VolumeDef(name), VolumeExistsError) for name in taken]
        refused += [
            (VolumeDef("new", capacity=len(SPARSE) - 1), DefinitionError),
            (VolumeDef(".astore-x"), DefinitionError),
            (VolumeDef("a/b"), DefinitionError),
            (VolumeDef("new", format="iso"), DefinitionError),
        ]
        for wanted, error in refused:
            with pytest.raises(error):
                await pool.copy_volume(old, wanted)
        for name in taken[1:]:
            with pytest.raises(StorageError):
                await pool.copy_volume(pool.volume(name), VolumeDef("new"))
        with pytest.raises(VolumeNotFoundError):
            await pool.copy_volume(Volume(pool, "nothing"), VolumeDef("new"))
        assert await source.names() == names
        await source.remove("old.img")
        await source.settle()
        with pytest.raises(VolumeNotFoundError):
            await pool.copy_volume(old, VolumeDef("new"))
        assert await source.names() == set(taken[1:])

    async def test_convert(
        self, tmp_path: Path, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A copy in another format is the same disk, wherever it is made."""
        await start_able(pool, "create-volume", "open-volume", "convert-volume")
        await require_images(source)
        other, other_source = await another(manager, new_source)
        old = await sparse_volume(pool)
        padded = SPARSE.ljust((len(SPARSE) + 511) // 512 * 512, b"\0")
        watch = Watch()
        image = await other.copy_volume(old, VolumeDef("a.qcow2", format="qcow2", compat="0.10"), on_progress=watch)
        assert watch.steps[-1] == (len(padded), len(padded))
        assert (image.info.format, image.info.compat, image.info.capacity) == ("qcow2", "0.10", len(padded))
        assert image.info.allocation < 5 * MIB
        await checked(other_source, tmp_path, "a.qcow2")
        await compare(other_source, tmp_path, "a.qcow2", "qcow2", SPARSE)
        for name, format, capacity in (("b.img", "raw", None), ("c.img", "raw", 20 * MIB)):
            copy = await other.copy_volume(image, VolumeDef(name, format=format, capacity=capacity))
            assert (copy.info.format, copy.info.capacity) == (format, capacity or len(padded))
            await compare(other_source, tmp_path, name, format, SPARSE)
        larger = await other.copy_volume(old, VolumeDef("e.qcow2", format="qcow2", capacity=1 << 30))
        assert larger.info.capacity == 1 << 30
        assert (await checked(other_source, tmp_path, "e.qcow2"))["virtual-size"] == 1 << 30
        assert (await other.refresh(full=True)).unchanged == 4

    async def test_copy_image(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """A copy of an image in its own format can be larger, or differ in its clusters."""
        await start_able(pool, "create-volume", "open-volume", "copy-volume", "convert-volume")
        await require_images(source)
        old = await qcow2_volume(pool, tmp_path)
        copy = await pool.copy_volume(old, VolumeDef("same.qcow2"))
        assert (copy.info.format, copy.info.capacity) == ("qcow2", old.info.capacity)
        assert await source.settled_content("same.qcow2") == await source.content("old.qcow2")
        larger = await pool.copy_volume(old, VolumeDef("larger.qcow2", capacity=30 * MIB))
        assert larger.info.capacity == 30 * MIB
        await compare(source, tmp_path, "larger.qcow2", "qcow2", SPARSE)
        other = await pool.copy_volume(old, VolumeDef("other.qcow2", format="qcow2", cluster_size=1 << 20))
        assert other.info.cluster_size == 1 << 20
        await compare(source, tmp_path, "other.qcow2", "qcow2", SPARSE)
        for name in ("same.qcow2", "larger.qcow2", "other.qcow2"):
            await checked(source, tmp_path, name)

    async def test_copy_backed(
        self, tmp_path: Path, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """In its pool, the copy of a backed volume is backed too; elsewhere, where that name means nothing, it is whole."""
        await start_able(pool, "create-volume", "open-volume", "copy-volume", "convert-volume")
        await require_images(source)
        base = await sparse_volume(pool, "base.img")
        over = await pool.create_volume(VolumeDef("over", format="qcow2", backing=BackingStore("base.img")))
        size = over.info.capacity
        padded = SPARSE.ljust(size, b"\0")
        near = await pool.copy_volume(over, VolumeDef("near"))
        assert near.info.backing_path == base.path
        other, other_source = await another(manager, new_source)
        far = await other.copy_volume(over, VolumeDef("far"))
        assert (far.info.format, far.info.backing, far.info.capacity) == ("qcow2", None, size)
        await compare(other_source, tmp_path, "far", "qcow2", padded)
        rebased = VolumeDef("rebased", format="qcow2", backing=BackingStore("over", "qcow2"))
        assert (await pool.copy_volume(over, rebased)).info.backing == "over"
        said = await checked(source, tmp_path, "rebased", "over", "base.img")
        assert said["backing-filename"] == "over"

    async def test_convert_nothing_from_outside(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """Files that an image's header names are not read if they are not volumes."""
        await start_able(pool, "create-volume", "open-volume", "convert-volume")
        await require_images(source)
        secret = tmp_path / "secret"
        await asyncio.to_thread(secret.write_bytes, b"secret" * 1000)
        await source.put("backed", qcow2(MIB, str(secret), "raw"))
        await source.put("far", qcow2(MIB, "nbd://127.0.0.1/x", "raw"))
        descriptor = '# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType="monolithicFlat"\n'
        descriptor += f'RW 8 FLAT "{secret}" 0\n'
        await source.put("flat.vmdk", descriptor.encode())
        header = b"KDMV" + (1).to_bytes(4, "little") * 2 + bytes(8) + (128).to_bytes(8, "little")
        header += (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
        await source.put("embedded.vmdk", header.ljust(512, b"\0") + descriptor.encode().ljust(65536, b"\0"))
        data_file = tmp_path / "with_data_file"
        await asyncio.to_thread(
            qemu_img,
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            f"data_file={tmp_path}/data,data_file_raw=on",
            data_file,
            "1M",
        )
        await source.put("split", await asyncio.to_thread(data_file.read_bytes))
        await source.settle()
        await pool.refresh()
        before = await source.names()
        for name in sorted(before):
            with pytest.raises(StorageError) as caught:
                await pool.copy_volume(pool.volume(name), VolumeDef("copy", format="raw"))
            assert caught.value.pool == pool.name, name
        assert await source.names() == before

    async def test_others_images(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """A volume that another program made is copied like astore's own."""
        await start_able(pool, "create-volume", "open-volume", "convert-volume")
        await require_images(source)
        for kind in ("vmdk", "vpc"):
            image = tmp_path / f"image.{kind}"
            raw = tmp_path / "raw"
            await asyncio.to_thread(raw.write_bytes, SPARSE)
            await asyncio.to_thread(qemu_img, "convert", "-f", "raw", "-O", kind, raw, image)
            await source.put(image.name, await asyncio.to_thread(image.read_bytes))
        iso = (bytes(32_768) + b"\1CD001\1").ljust(MIB, b"\0")
        await source.put("image.iso", iso)
        await source.settle()
        await pool.refresh()
        for name in sorted(await source.names()):
            copy = await pool.copy_volume(pool.volume(name), VolumeDef(f"copy of {name}", format="raw"))
            path = await fetched(source, tmp_path, copy.name)
            said = json.loads(await asyncio.to_thread(qemu_img, "info", "--output=json", "-f", "raw", path))
            assert said["virtual-size"] == copy.info.capacity
            await compare(source, tmp_path, copy.name, "raw", iso if name.endswith("iso") else SPARSE)
        assert (await source.content("copy of image.iso"))[: len(iso)] == iso
