"""Checks of volumes that are resized, wiped, renamed and deleted, and of backing volumes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from astore.errors import (
    DefinitionError,
    StorageError,
    VolumeExistsError,
    VolumeInUseError,
    VolumeNotFoundError,
)
from astore.events import VolumeAdded, VolumeChanged, VolumeEvent, VolumeRemoved
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.testing.conformance.base import ConformanceBase, NewSource, another, start_able
from astore.testing.conformance.source import DIRECTORIES, SourceUnderTest, qcow2, raw
from astore.testing.conformance.streams import DATA, Watch, given, taken
from astore.testing.conformance.volumes_copied import SPARSE, compare, qcow2_volume
from astore.testing.conformance.volumes_made import MIB, checked, require_images
from astore.volume_io.blocks import Hole
from astore.volume_io.wiping import ALGORITHMS, PASSES, passes_of


class ChangedVolumeChecks(ConformanceBase):
    """Checks of resize, wipe, rename, delete and backing chains."""

    async def test_resize_raw(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A raw volume grows by a hole or by space; it shrinks only if that is asked for."""
        await start_able(pool, "create-volume", "open-volume", "resize-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=2 * MIB))
        await disk.upload(DATA[: 2 * MIB])
        async with manager.events() as events:
            assert (await disk.resize(3 * MIB)).capacity == 3 * MIB
            event = await anext(aiter(events))
            assert isinstance(event, VolumeChanged)
            assert event.volume == disk.info
        assert disk.info.allocation < 3 * MIB
        assert (await disk.resize(5 * MIB, allocate=True)).allocation >= 4 * MIB
        assert (await disk.resize(MIB, delta=True)).capacity == 6 * MIB
        assert await source.settled_content("a.img") == DATA[: 2 * MIB] + bytes(4 * MIB)
        for capacity in (6 * MIB - 1, 0, -1, 1 << 63):
            with pytest.raises(DefinitionError):
                await disk.resize(capacity)
        for capacity in (7 * MIB, -1):
            with pytest.raises(DefinitionError):
                await disk.resize(capacity, delta=True, shrink=True)
        assert disk.info.capacity == 6 * MIB
        assert (await disk.resize(MIB + 1, shrink=True)).capacity == MIB + 1
        assert (await disk.resize(1, delta=True, shrink=True)).capacity == MIB
        assert (await disk.resize((1 << 33) + 1)).capacity == (1 << 33) + 1
        assert (await disk.resize(MIB, shrink=True)).capacity == MIB
        assert await source.settled_content("a.img") == DATA[:MIB]
        assert (await pool.refresh(full=True)).unchanged == 1

    async def test_resize_of_what_changed(self, pool: Pool, source: SourceUnderTest) -> None:
        """A volume that another program made larger meanwhile is not shrunk by a resize that meant to grow it."""
        await start_able(pool, "create-volume", "resize-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=MIB))
        await source.put("a.img", raw(4 * MIB, b"x"))
        await source.settle()
        with pytest.raises(StorageError):
            await disk.resize(2 * MIB)
        assert await source.content("a.img") == raw(4 * MIB, b"x")
        assert disk.info.capacity == 4 * MIB
        with pytest.raises(DefinitionError):
            await disk.resize(2 * MIB)
        await disk.resize(5 * MIB)

    async def test_resize_qcow2(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """A qcow2 volume grows and shrinks by qemu-img, with its data."""
        await start_able(pool, "create-volume", "open-volume", "resize-volume")
        await require_images(source)
        disk = await qcow2_volume(pool, tmp_path)
        for capacity, options in (
            (64 * MIB, {}),
            (80 * MIB, {"allocate": True}),
            (72 * MIB, {"shrink": True}),
        ):
            before = disk.info.allocation
            changed = await disk.resize(capacity, **options)
            assert changed.allocation >= before + 16 * MIB or "allocate" not in options
            assert (changed.capacity, changed.format, disk.info) == (capacity, "qcow2", changed)
            assert (await checked(source, tmp_path, disk.name))["virtual-size"] == capacity
            await compare(source, tmp_path, disk.name, "qcow2", SPARSE)
        with pytest.raises(DefinitionError):
            await disk.resize(MIB)

    async def test_wipe(self, pool: Pool, source: SourceUnderTest) -> None:
        """Each algorithm leaves what its last pass wrote where data were, holes where holes were, and the size."""
        await start_able(pool, "create-volume", "open-volume", "wipe-volume")
        size = 3 * MIB + 77
        disk = await pool.create_volume(VolumeDef("a.img", capacity=size))
        for algorithm in ALGORITHMS:
            if algorithm == "trim":
                continue
            await disk.upload(given([DATA[:MIB], Hole(MIB), DATA[: MIB + 77]]), sparse=True)
            watch = Watch()
            await disk.wipe(algorithm, on_progress=watch)
            data = 2 * MIB + 77
            last = watch.steps[-1]
            assert last[0] == last[1]
            assert data <= last[0] / passes_of(algorithm) < data + MIB
            got = await source.settled_content("a.img")
            pattern = PASSES[algorithm][-1]
            assert (len(got), disk.info.capacity, got[MIB : 2 * MIB]) == (size, size, bytes(MIB))
            assert disk.info.allocation < 3 * MIB
            for at, end in ((0, MIB), (2 * MIB, size)):
                if pattern is None:
                    assert got[at:end] != DATA[: end - at]
                    assert len(set(got[at:end])) == 256
                else:
                    whole = pattern * (size // len(pattern) + 1)
                    assert got[at:end] == whole[at:end]
        with pytest.raises(DefinitionError, match="algorithm"):
            await disk.wipe("no such algorithm")

    async def test_trim(self, pool: Pool, source: SourceUnderTest) -> None:
        """Trimming gives the space back."""
        await start_able(pool, "create-volume", "open-volume", "wipe-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=3 * MIB))
        await disk.upload(DATA[: 3 * MIB])
        watch = Watch()
        await disk.wipe("trim", on_progress=watch)
        watch.assert_complete(3 * MIB, total=3 * MIB)
        await disk.refresh()
        assert (disk.info.capacity, disk.info.allocation < MIB) == (3 * MIB, True)
        assert await source.settled_content("a.img") == bytes(3 * MIB)

    async def test_wiped_image(self, pool: Pool, source: SourceUnderTest) -> None:
        """A wiped image is no longer an image."""
        await start_able(pool, "create-volume", "wipe-volume")
        await require_images(source)
        disk = await pool.create_volume(VolumeDef("a.qcow2", capacity=MIB, format="qcow2"))
        await disk.wipe()
        assert (disk.info.format, disk.info.capacity) == ("raw", disk.info.physical)

    async def test_rename(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A volume keeps all but its name, and never takes another's, known or not."""
        await start_able(pool, "create-volume", "open-volume", "rename-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=MIB))
        await disk.upload(DATA[:1000])
        await source.put("unknown", raw(512, b"u"))
        await pool.create_volume(VolumeDef("known", capacity=512))
        either = [disk]
        if DIRECTORIES in source.can:
            either += [await pool.create_volume(VolumeDef(name, format="dir")) for name in ("folder", "empty folder")]
        others = {"unknown", "known", *(one.name for one in either[2:])}
        await source.settle()
        for one in either[:2]:
            for name in (*sorted(others), one.name):
                with pytest.raises(VolumeExistsError) as caught:
                    await one.rename(name)
                assert caught.value.pool == pool.name
        assert await source.names() == others | {one.name for one in either[:2]}
        assert await source.content("unknown") == raw(512, b"u")
        async with manager.events() as events:
            renamed = await disk.rename("b.img")
            both = [await anext(aiter(events)) for _ in range(2)]
        heard = {type(event): event.name for event in both if isinstance(event, VolumeEvent)}
        assert heard == {VolumeAdded: "b.img", VolumeRemoved: "a.img"}
        assert (renamed.name, renamed.info.capacity) == ("b.img", MIB)
        assert await taken(renamed, length=1000) == DATA[:1000]
        with pytest.raises(VolumeNotFoundError):
            await disk.rename("c.img")
        for folder in either[1:2]:
            assert (await folder.rename("folder 2")).info.format == "dir"
            others.add("folder 2")
        assert await source.settled_names() == others | {"b.img"}
        assert (await pool.refresh(full=True)).added == ()

    async def test_delete(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A deleted volume is gone from snapshot and storage; for a link, the link itself is removed."""
        await start_able(pool, "create-volume", "delete-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=MIB))
        await pool.create_volume(VolumeDef("b.img", capacity=MIB))
        async with manager.events() as events:
            await disk.delete()
            event = await anext(aiter(events))
        assert isinstance(event, VolumeRemoved)
        assert event.name == "a.img"
        assert await source.settled_names() == {"b.img"}
        with pytest.raises(VolumeNotFoundError):
            await disk.delete()
        await source.remove("b.img")
        await source.settle()
        with pytest.raises(VolumeNotFoundError):
            await pool.volume("b.img").delete()
        assert pool.volumes == ()
        if "links" in source.can:
            await source.put("target", raw(512, b"t"))
            await source.symlink("target", "link")
            await source.settle()
            await pool.refresh()
            await pool.volume("link").delete()
            assert pool.snapshot.by_name.keys() == {"target"}
            assert await source.settled_names() == {"target"}

    async def test_dependents(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A backing volume, of this pool or another, is not changed unless that is forced."""
        await start_able(
            pool, "create-volume", "open-volume", "delete-volume", "rename-volume", "resize-volume", "wipe-volume"
        )
        await require_images(source)
        base = await pool.create_volume(VolumeDef("base.img", capacity=MIB))
        other, _ = await another(manager, new_source)
        assert manager.dependents(base) == []
        for owner, name, backing in ((pool, "near", "base.img"), (other, "far", base.path)):
            disk = await owner.create_volume(VolumeDef(name, capacity=0))
            await disk.upload(qcow2(MIB, backing, "raw"), allow_references=True)
        expected = sorted([(pool.name, "near"), (other.name, "far")])
        assert [(one.pool.name, one.name) for one in manager.dependents(base)] == expected

        async def opened(force: bool) -> None:
            async with base.open(write=True, force=force) as file:
                await file.pwrite(b"o", 0)

        changes: dict[str, Callable[[bool], Awaitable[object]]] = {
            "upload": lambda force: base.upload(b"x", force=force),
            "write": opened,
            "resize": lambda force: base.resize(2 * MIB, force=force),
            "wipe": lambda force: base.wipe(force=force),
            "rename": lambda force: base.rename("new name", force=force),
            "delete": lambda force: pool.volume("new name" if force else "base.img").delete(force=force),
        }
        for operation, change in changes.items():
            with pytest.raises(VolumeInUseError) as caught:
                await change(False)
            error = caught.value
            assert (error.pool, error.operation, len(error.dependents)) == (pool.name, operation, 2)
            assert base.info.capacity == MIB
        async with base.open() as file:
            assert await file.pread(1, 0) == b"\0"
        for operation, change in changes.items():
            await change(True)
            if operation == "rename":
                assert manager.dependents(pool.volume("new name")) == []
                await pool.volume("new name").rename("base.img")
                assert len(manager.dependents(base)) == 2
                await base.rename("new name", force=True)
        with pytest.raises(VolumeNotFoundError):
            manager.dependents(base)

    async def test_backing_chain(
        self, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A chain goes down over pools, to what no pool has; one that loops is an error."""
        await start_able(pool, "open-volume")
        await require_images(source)
        other_source = await new_source()
        other = await manager.define(other_source.definition)
        await other_source.put("d", raw(512))
        await other_source.put("c", qcow2(MIB, "d", "raw"))
        await other_source.settle()
        await other.start()
        await source.put("b", qcow2(MIB, other.volume("c").path, "qcow2"))
        await source.put("a", qcow2(MIB, "b", "qcow2"))
        await source.put("outside", qcow2(MIB, "/no/such/file", "vmdk"))
        await source.put("x", qcow2(MIB, "y", "qcow2"))
        await source.put("y", qcow2(MIB, "z", "qcow2"))
        await source.put("z", qcow2(MIB, "x", "qcow2"))
        await source.put("self", qcow2(MIB, "self", "qcow2"))
        await source.settle()
        await pool.refresh()
        chain = pool.volume("a").backing_chain()
        assert [link.volume for link in chain] == [pool.volume(n) for n in "ab"] + [other.volume(n) for n in "cd"]
        assert [link.format for link in chain] == ["qcow2", "qcow2", "qcow2", "raw"]
        assert [link.path for link in chain] == [link.volume.path for link in chain if link.volume is not None]
        (own, last) = pool.volume("outside").backing_chain()
        assert (own.volume, last.volume, last.format) == (pool.volume("outside"), None, "vmdk")
        for name in ("x", "self"):
            with pytest.raises(StorageError, match="loops"):
                pool.volume(name).backing_chain()
        with pytest.raises(VolumeNotFoundError):
            Volume(pool, "nothing").backing_chain()
        await other.stop()
        assert [link.volume for link in pool.volume("a").backing_chain()] == [pool.volume("a"), pool.volume("b"), None]

    async def test_changes_side_by_side(self, pool: Pool, source: SourceUnderTest) -> None:
        """Work on different volumes runs concurrently, and each has its result."""
        await start_able(pool, "create-volume", "open-volume", "delete-volume", "rename-volume", "resize-volume")
        disks = [await pool.create_volume(VolumeDef(f"{n}.img", capacity=MIB)) for n in range(12)]
        await asyncio.gather(
            *(disk.upload(DATA[:MIB]) for disk in disks[:4]),
            *(disk.resize(2 * MIB) for disk in disks[4:8]),
            *(disk.rename(f"renamed {disk.name}") for disk in disks[8:10]),
            *(disk.delete() for disk in disks[10:]),
            *(pool.refresh() for _ in range(3)),
            pool.refresh(full=True),
        )
        expected = {f"{n}.img" for n in range(8)} | {"renamed 8.img", "renamed 9.img"}
        assert {one.name for one in pool.volumes} == expected
        assert await source.settled_names() == expected
        assert [pool.volume(f"{n}.img").info.capacity for n in range(8)] == [MIB] * 4 + [2 * MIB] * 4
        outcome = await pool.refresh(full=True)
        assert (outcome.added, outcome.changed, outcome.removed) == ((), (), ())
