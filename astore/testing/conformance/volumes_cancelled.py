"""Checks of volume work that is cancelled at every step: nothing is left, held or changed elsewhere."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.testing.conformance.base import (
    Census,
    ConformanceBase,
    NewSource,
    another,
    assert_no_growth,
    cancel_everywhere,
    start_able,
)
from astore.testing.conformance.source import DIRECTORIES, IMAGES, SourceUnderTest
from astore.testing.conformance.streams import DATA, chunks, given, taken
from astore.testing.conformance.volumes_made import MIB
from astore.volume_io.volume_names import TEMPORARY


class CancelledWorkChecks(ConformanceBase):
    """Checks of cancelled volume work."""

    async def _cancelled(
        self,
        manager: Manager,
        pool: Pool,
        source: SourceUnderTest,
        call: Callable[[], Awaitable[object]],
        back: Callable[[], Awaitable[object]],
    ) -> None:
        """Cancel ``call`` everywhere. After each, what is shown is what is there, and ``back`` brings that back."""
        witness = await pool.create_volume(VolumeDef("witness", capacity=MIB))
        await witness.upload(DATA[:MIB])
        before = await Census.taken()

        async def look(cancelled: bool) -> None:
            await source.settle()
            there = await source.names()
            assert not any(name.startswith(TEMPORARY) for name in there)
            assert {one.name for one in pool.volumes} == there
            await back()

        await cancel_everywhere(call, look)
        await assert_no_growth(before, manager)
        assert await source.settled_content("witness") == DATA[:MIB]
        outcome = await pool.refresh(full=True)
        assert (outcome.added, outcome.removed, outcome.errors) == ((), (), ())

    async def test_cancelled_create(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A cancelled create leaves nothing; the next one of this name works."""
        await start_able(pool, "create-volume", "open-volume", "delete-volume")

        async def none_there() -> None:
            for one in pool.volumes:
                if one.name != "witness":
                    await pool.volume(one.name).delete()

        kinds = [VolumeDef("new", capacity=MIB, allocation=MIB)]
        if DIRECTORIES in source.can:
            kinds.append(VolumeDef("new", format="dir"))
        if IMAGES in source.can and await asyncio.to_thread(shutil.which, "qemu-img") is not None:
            kinds.append(VolumeDef("new", capacity=MIB, format="qcow2"))
        for number, wanted in enumerate(kinds):
            if number:
                await pool.volume("witness").delete()

            async def cancelled_means_none(wanted: VolumeDef = wanted) -> None:
                try:
                    await pool.create_volume(wanted)
                except asyncio.CancelledError:
                    late = manager.statistics().cleanups  # which slow storage has not done yet
                    assert late or "new" not in await source.names(), "it was cancelled, and yet it is there"
                    raise

            await self._cancelled(manager, pool, source, cancelled_means_none, none_there)

    async def test_cancelled_copy(
        self, tmp_path: Path, manager: Manager, pool: Pool, source: SourceUnderTest, new_source: NewSource
    ) -> None:
        """A cancelled copy leaves nothing, within the pool, from another, and in another format."""
        await start_able(pool, "create-volume", "open-volume", "copy-volume", "receive-volume", "delete-volume")
        other, _ = await another(manager, new_source)
        near = await pool.create_volume(VolumeDef("near", capacity=6 * MIB))
        far = await other.create_volume(VolumeDef("far", capacity=6 * MIB))
        for disk in (near, far):
            await disk.upload(DATA[: 6 * MIB])

        async def one_copy_less() -> None:
            if pool.snapshot.get("copy") is not None:
                await pool.volume("copy").delete()

        jobs = [(near, VolumeDef("copy")), (far, VolumeDef("copy"))]
        images = IMAGES in source.can and "convert-volume" in pool.abilities()
        if images and await asyncio.to_thread(shutil.which, "qemu-img") is not None:
            jobs.append((far, VolumeDef("copy", format="qcow2")))
        for number, (original, wanted) in enumerate(jobs):
            if number:
                await pool.volume("witness").delete()

            async def cancelled_means_none(original: Volume = original, wanted: VolumeDef = wanted) -> None:
                try:
                    await pool.copy_volume(original, wanted)
                except asyncio.CancelledError:
                    late = manager.statistics().cleanups  # which slow storage has not done yet
                    assert late or "copy" not in await source.names(), "it was cancelled, and yet it is there"
                    raise

            await self._cancelled(manager, pool, source, cancelled_means_none, one_copy_less)
        assert await taken(near) == DATA[: 6 * MIB]
        assert await taken(far) == DATA[: 6 * MIB]

    async def test_cancelled_streams(
        self, tmp_path: Path, manager: Manager, pool: Pool, source: SourceUnderTest
    ) -> None:
        """A cancelled upload or download holds no lock: the next one works at once."""
        await start_able(pool, "create-volume", "open-volume", "delete-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=6 * MIB))
        file = tmp_path / "file"
        await asyncio.to_thread(file.write_bytes, DATA[: 6 * MIB])

        async def write() -> None:
            async with disk.open(write=True) as opened:
                await opened.pwrite(b"w" * MIB, MIB)
                await opened.sync()

        async def works_at_once() -> None:
            await disk.upload(b"free")
            assert disk.info.capacity == 6 * MIB
            assert await taken(disk, length=4) == b"free"

        for number, call in enumerate(
            (
                lambda: disk.upload(given(chunks(DATA[: 6 * MIB], 333_333))),
                lambda: disk.upload(file, sparse=True),
                lambda: taken(disk),
                lambda: taken(disk, sparse=True),
                write,
            )
        ):
            if number:
                await pool.volume("witness").delete()
            await self._cancelled(manager, pool, source, call, works_at_once)

    async def test_cancelled_changes(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A change that was cancelled has happened, or not, and the snapshot says which."""
        await start_able(
            pool,
            *("create-volume", "open-volume", "delete-volume", "rename-volume", "resize-volume", "wipe-volume"),
        )
        disk = await pool.create_volume(VolumeDef("a.img", capacity=MIB))

        async def as_before() -> None:
            if pool.snapshot.get("b.img") is not None:
                await pool.volume("b.img").rename("a.img")
            if pool.snapshot.get("a.img") is None:
                await pool.create_volume(VolumeDef("a.img", capacity=MIB))
            await source.settle()
            assert len(await source.content("a.img")) == disk.info.capacity
            if disk.info.capacity != MIB:
                await disk.resize(MIB, shrink=True)

        for number, call in enumerate(
            (
                lambda: disk.resize(4 * MIB, allocate=True),
                lambda: disk.wipe("dod"),
                lambda: disk.rename("b.img"),
                disk.delete,
            )
        ):
            if number:
                await pool.volume("witness").delete()
            await self._cancelled(manager, pool, source, call, as_before)

    async def test_cancelled_beside_a_refresh(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A refresh beside a cancelled create does not keep the volume."""
        await start_able(pool, "create-volume", "delete-volume")

        async def beside() -> None:
            async with asyncio.TaskGroup() as group:  # which waits for those that it cancels
                group.create_task(pool.create_volume(VolumeDef("new", capacity=1)))
                group.create_task(pool.refresh(full=True))
                group.create_task(pool.refresh())

        async def none_there(cancelled: bool) -> None:
            await pool.refresh()
            await source.settle()
            assert {one.name for one in pool.volumes} == await source.names()
            if pool.snapshot.get("new") is not None:
                await pool.volume("new").delete()

        await cancel_everywhere(beside, none_there)
