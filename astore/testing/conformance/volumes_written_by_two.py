"""Checks of concurrent work: two writers, refreshes beside work, leftovers of killed processes, and stops."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from astore.backend import Backend, Context, ReceivesVolumes
from astore.errors import AstoreError, InvalidStateError, StorageError, VolumeBusyError, VolumeExistsError
from astore.manager import Manager
from astore.model import FileStat, PoolState, VolumeDef, VolumeInfo
from astore.pools.pool import Pool
from astore.pools.volume import Volume
from astore.testing.conformance.base import (
    PATIENCE,
    Census,
    ConformanceBase,
    assert_no_growth,
    start_able,
)
from astore.testing.conformance.source import SourceUnderTest, raw
from astore.testing.conformance.streams import DATA, taken
from astore.testing.conformance.volumes_made import MIB, kinds_of
from astore.volume_io.volume_names import TEMPORARY

LEFT = f"{TEMPORARY}0123456789abcdef.tmp"
"""The name of an unfinished volume."""


class Faucet:
    """A source to upload or copy that delivers its bytes when the test lets it."""

    in_flight = 2

    def __init__(self, size: int = 2 * MIB) -> None:
        self.size = size
        self.asked = asyncio.Event()
        self.open = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield b"\xee" * MIB
        self.asked.set()
        await self.open.wait()
        yield b"\xee" * (self.size - MIB)

    async def stat(self) -> FileStat:
        return FileStat(0o100600, 1, self.size, 0, 0, 0, 0, 0, 0)

    async def pread(self, length: int, offset: int) -> bytes:
        self.asked.set()
        if offset:
            await self.open.wait()
        return b"\xee" * min(length, self.size - offset)

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        data = await self.pread(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    async def seek_data(self, offset: int) -> int | None:
        return offset

    async def seek_hole(self, offset: int) -> int:
        return min(offset + MIB, self.size)

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        raise AssertionError("it is read only")

    async def truncate(self, length: int) -> None:
        raise AssertionError("it is read only")

    async def punch(self, offset: int, length: int) -> None:
        raise AssertionError("it is read only")

    async def sync(self) -> None:
        raise AssertionError("it is read only")


@contextlib.asynccontextmanager
async def uploading(disk: Volume) -> AsyncIterator[Faucet]:
    """Run an upload to the volume during the block; it ends with 2 MiB of 0xee unless the block fails."""
    faucet = Faucet()
    task = asyncio.ensure_future(disk.upload(faucet))
    try:
        async with asyncio.timeout(PATIENCE):
            await faucet.asked.wait()
        yield faucet
    finally:
        faucet.open.set()
        await asyncio.wait([task])
    await task


async def writers(disk: Volume) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return the operations that need the volume exclusively, by name."""

    async def open_() -> None:
        async with disk.open(write=True) as file:
            await file.pwrite(b"x", 0)

    able = set(disk.pool.abilities())
    every: dict[str, Callable[[], Awaitable[object]]] = {
        "open-volume": lambda: disk.upload(b"x"),
        "": open_,
        "resize-volume": lambda: disk.resize(3 * MIB),
        "wipe-volume": disk.wipe,
        "delete-volume": disk.delete,
    }
    return {name: call for name, call in every.items() if not name or name in able}


class TwoWriterChecks(ConformanceBase):
    """Checks of concurrent work."""

    async def test_two_writers(self, pool: Pool, source: SourceUnderTest) -> None:
        """The second writer of a volume is refused by name; readers, refreshes and other volumes are not."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=2 * MIB))
        other = await pool.create_volume(VolumeDef("b.img", capacity=2 * MIB))
        async with uploading(disk):
            for call in (await writers(disk)).values():
                with pytest.raises(VolumeBusyError, match=r"'a\.img'") as caught:
                    await call()
                assert caught.value.pool == pool.name
            with pytest.raises(VolumeBusyError):
                await pool.create_volume(VolumeDef("a.img", capacity=1))
            assert len(await taken(disk)) == 2 * MIB
            await other.upload(DATA[:MIB])
            assert (await pool.refresh(full=True)).errors == ()
            assert pool.volume("a.img") == disk
        assert await source.settled_content("a.img") == b"\xee" * 2 * MIB
        assert (await source.content("b.img"))[:MIB] == DATA[:MIB]
        await disk.upload(b"free again")

    async def test_two_managers(self, tmp_path: Path, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A second writer in another process is refused too."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=2 * MIB))
        async with self.make_manager(tmp_path / "other") as others:
            twin = await others.define(source.definition)
            await twin.start()
            same = twin.volume("a.img")
            async with uploading(disk):
                for call in (await writers(same)).values():
                    with pytest.raises(VolumeBusyError, match=r"'a\.img'") as caught:
                        await call()
                    assert caught.value.pool == twin.name
                assert len(await taken(same)) == 2 * MIB
            assert await same.upload(DATA[:MIB]) == MIB
            async with uploading(same):
                with pytest.raises(VolumeBusyError):
                    await disk.upload(b"x")
            results = await asyncio.gather(
                *(one.create_volume(VolumeDef("new", capacity=n)) for n in range(1, 6) for one in (pool, twin)),
                return_exceptions=True,
            )
            made = [result for result in results if isinstance(result, Volume)]
            assert len(made) == 1
            assert all(isinstance(one, (Volume, VolumeExistsError, VolumeBusyError)) for one in results), results
            await source.settle()
            assert len(await source.content("new")) == made[0].info.capacity
            assert await source.names() == {"a.img", "new"}

    async def test_created_twice_at_once(self, pool: Pool, source: SourceUnderTest) -> None:
        """Of several concurrent creates of one name one succeeds."""
        await start_able(pool, "create-volume")
        kinds = kinds_of(source)
        results = await asyncio.gather(
            *(pool.create_volume(VolumeDef("a.img", capacity=n, format=kinds[n % len(kinds)])) for n in range(8)),
            return_exceptions=True,
        )
        assert sum(isinstance(result, Volume) for result in results) == 1
        assert sum(isinstance(result, (VolumeBusyError, VolumeExistsError)) for result in results) == 7
        assert await source.settled_names() == {"a.img"}

    async def test_in_the_making(
        self, tmp_path: Path, pool: Pool, source: SourceUnderTest, backend: Backend, context: Context
    ) -> None:
        """An unfinished volume is hidden and cannot be removed, but another program may take its name."""
        await start_able(pool, "create-volume", "receive-volume")
        definition = backend.check(source.definition)
        session = await backend.open(definition, context)  # as another process has it
        try:
            assert isinstance(session, ReceivesVolumes)
            for name, taken_by in (("first", None), ("second", "raw"), ("third", kinds_of(source)[-1])):
                faucet = Faucet()
                call = session.receive_volume(faucet, faucet.size, VolumeDef(name))
                making: asyncio.Task[VolumeInfo] = asyncio.ensure_future(call)
                async with asyncio.timeout(PATIENCE):
                    await faucet.asked.wait()
                await source.settle()
                hidden = [one for one in await source.names() if one.startswith(TEMPORARY)]
                assert len(hidden) == 1
                assert (await pool.refresh(full=True)).errors == ()
                before = pool.volumes
                await pool.refresh(hidden[0])
                assert pool.volumes == before
                async with self.make_manager(tmp_path / f"other {name}") as others:
                    twin = await others.define(source.definition)
                    await twin.start()  # which removes what was left, but this was not
                    assert hidden[0] in await source.names()
                if taken_by:
                    await pool.create_volume(VolumeDef(name, capacity=1, format=taken_by))
                faucet.open.set()
                if taken_by:
                    with pytest.raises(VolumeExistsError):
                        await making
                else:
                    assert (await making).capacity == faucet.size
                await source.settle()
                assert not any(one.startswith(TEMPORARY) for one in await source.names())
            assert await source.content("first") == b"\xee" * 2 * MIB
            assert await source.content("second") == b"\0"
            assert (await pool.refresh()).errors == ()
            assert [one.name for one in pool.volumes] == ["first", "second", "third"]
        finally:
            await session.aclose()

    async def test_leftovers(self, pool: Pool, source: SourceUnderTest) -> None:
        """An unfinished volume of a killed process is never shown, and the next start removes it."""
        await source.put(LEFT, raw(4096, b"x"))
        await source.put(f"{TEMPORARY}notes", raw(512))
        await source.put("a.img", raw(512))
        await source.settle()
        await start_able(pool, "create-volume")
        assert [one.name for one in pool.volumes] == ["a.img"]
        assert pool.state is PoolState.RUNNING
        assert await source.settled_names() == {"a.img", f"{TEMPORARY}notes"}, "it removes its own, and nothing else"
        await source.put(LEFT, raw(4096, b"x"))
        await source.settle()
        assert (await pool.refresh(full=True)).unchanged == 1
        await pool.stop()
        await pool.start()
        assert await source.settled_names() == {"a.img", f"{TEMPORARY}notes"}

    async def test_refreshes_beside_work(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """Refreshes beside uploads, creates and deletes: no error, nothing lost, no state that never was."""
        await start_able(pool, "create-volume", "open-volume", "delete-volume")
        disk = await pool.create_volume(VolumeDef("big.img", capacity=8 * MIB))
        done = False
        refreshes = 0

        async def refresh(full: bool) -> None:
            nonlocal refreshes
            while not done:
                outcome = await pool.refresh(full=full)
                refreshes += 1
                assert outcome.errors == ()
                assert pool.state is PoolState.RUNNING
                assert pool.snapshot.get("big.img") is not None

        async def make(number: int) -> None:
            for turn in range(6):
                name = f"{number}.{turn}.img"
                made = await pool.create_volume(VolumeDef(name, capacity=4096))
                for _ in range(3):
                    await asyncio.sleep(0)
                    assert pool.snapshot.get(name) is not None, "a refresh that began before lost it"
                if turn % 2:
                    await made.delete()
                    for _ in range(3):
                        await asyncio.sleep(0)
                        assert pool.snapshot.get(name) is None, "a refresh that began before brought it back"

        beside = [asyncio.ensure_future(refresh(full)) for full in (False, True, False)]
        try:
            await asyncio.gather(disk.upload(DATA[: 8 * MIB]), *(make(number) for number in range(4)))
            await disk.upload(DATA[1 : 8 * MIB + 1])
        finally:
            done = True
            await asyncio.wait(beside)
        for task in beside:
            await task
        assert refreshes > 3
        expected = {"big.img"} | {f"{number}.{turn}.img" for number in range(4) for turn in (0, 2, 4)}
        assert {one.name for one in pool.volumes} == expected
        assert await source.settled_content("big.img") == DATA[1 : 8 * MIB + 1]
        outcome = await pool.refresh(full=True)
        assert (outcome.added, outcome.changed, outcome.removed, outcome.unchanged) == ((), (), (), 13)

    async def test_stop_beside_work(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """A pool with volumes open for writing is stopped only by force, and then the work fails."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=2 * MIB))
        before = await Census.taken()
        async with uploading(disk):
            with pytest.raises(VolumeBusyError, match=r"'a\.img'"):
                await pool.stop()
            assert pool.state is PoolState.RUNNING
        faucet = Faucet()
        task = asyncio.ensure_future(disk.upload(faucet))
        await faucet.asked.wait()
        async with asyncio.timeout(PATIENCE):
            await pool.stop(force=True)
            assert pool.state is PoolState.INACTIVE
            faucet.open.set()
            with pytest.raises((StorageError, InvalidStateError)):
                await task
        assert pool.state is PoolState.INACTIVE, "work that ends late does not bring a pool back to life"
        assert pool.volumes == ()
        with pytest.raises(InvalidStateError):
            await pool.create_volume(VolumeDef("b.img", capacity=1))
        with pytest.raises(AstoreError):
            await disk.upload(b"x")
        await pool.start()
        await pool.volume("a.img").upload(b"free")
        await assert_no_growth(before, manager)

    async def test_stop_beside_a_download(self, manager: Manager, pool: Pool) -> None:
        """A download ends with its pool, by an error, and leaves nothing."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=64 * MIB))
        await pool.stop()
        await pool.start()  # what the first stop of all begins, and keeps, is not the download's
        before = await Census.taken()
        with contextlib.suppress(StorageError):
            async with disk.download() as blocks:
                await anext(blocks)
                await pool.stop(force=True)
                with pytest.raises(StorageError):
                    _ = [one async for one in blocks]
        assert pool.state is PoolState.INACTIVE
        await pool.start()
        await assert_no_growth(before, manager)

    async def test_closed_beside_work(self, manager: Manager, pool: Pool, source: SourceUnderTest) -> None:
        """Closing a Manager fails its running work and removes unfinished volumes."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=2 * MIB))
        faucet = Faucet()
        work: list[asyncio.Future[Any]] = [asyncio.ensure_future(disk.upload(faucet))]
        await faucet.asked.wait()
        work += [asyncio.ensure_future(pool.create_volume(VolumeDef(f"{n}", capacity=1))) for n in range(8)]
        await asyncio.sleep(0.001)
        async with asyncio.timeout(PATIENCE):
            await manager.aclose()
            faucet.open.set()
            results = await asyncio.gather(*work, return_exceptions=True)
        assert isinstance(results[0], AstoreError)
        assert all(isinstance(result, (AstoreError, Volume)) for result in results), results
        async with manager:
            assert pool.state is PoolState.RUNNING
            await pool.refresh()
            assert not any(name.startswith(TEMPORARY) for name in await source.names())
            assert {one.name for one in pool.volumes} == await source.names()
            await disk.upload(b"free")
            await pool.stop()
