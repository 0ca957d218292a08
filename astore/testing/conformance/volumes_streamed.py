"""Checks of upload, download and random access, with holes, far offsets and interruptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from astore.errors import AstoreError, StorageError, TransferError, VolumeNotFoundError
from astore.events import VolumeProgress
from astore.manager import Manager
from astore.model import VolumeDef
from astore.pools.pool import Pool
from astore.testing.conformance.base import ConformanceBase, start_able
from astore.testing.conformance.source import DIRECTORIES, SourceUnderTest
from astore.testing.conformance.streams import DATA, Received, Watch, chunks, given, holes_and_data, one_buffer, taken
from astore.testing.conformance.volumes_made import MIB
from astore.volume_io.blocks import Hole

FAR = (1 << 31) - 5, 1 << 31, (1 << 32) - 5, (1 << 33) + 12345
"""Offsets about 2 and 4 GiB, and beyond 8."""


def _write_sparsely(path: Path, data: dict[int, bytes], size: int) -> None:
    with path.open("wb") as file:
        for offset, one in data.items():
            file.seek(offset)
            file.write(one)
        file.truncate(size)


class StreamedVolumeChecks(ConformanceBase):
    """Checks of upload, download and open."""

    async def test_round_trips(self, pool: Pool, source: SourceUnderTest) -> None:
        """A download returns the uploaded bytes, for any sizes of pieces and any offset."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=10 * MIB))
        expected = bytearray(10 * MIB)
        for offset, size, sizes in (
            (0, len(DATA), (1, 65_537, 3 * MIB)),
            (123_457, 2 * MIB, (997, 1)),
            (MIB - 1, 3, (1,)),
            (5 * MIB, 5 * MIB, (5 * MIB,)),
            (77, 0, (1,)),
        ):
            data = DATA[-size:] if size else b""
            watch = Watch()
            assert await disk.upload(given(chunks(data, *sizes)), offset=offset, on_progress=watch) == size
            if size:
                watch.assert_complete(size, total=None)
            expected[offset : offset + size] = data
        assert await source.settled_content("a.img") == expected
        assert disk.info.capacity == 10 * MIB
        for offset, length in ((0, None), (1, 10 * MIB), (MIB + 3, MIB), (10 * MIB - 1, 1), (5, 0), (11 * MIB, None)):
            end = None if length is None else offset + length
            watch = Watch()
            got = await taken(disk, offset=offset, length=length, on_progress=watch)
            assert got == expected[offset:end]
            if got:
                watch.assert_complete(len(got), total=len(got))

    async def test_kinds_of_sources(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """Bytes come from bytes, a file, an async iterable of anything like bytes, or one of anyio's streams."""
        await start_able(pool, "create-volume", "open-volume")
        data = DATA[: 3 * MIB + 17]
        file = tmp_path / "file"
        await asyncio.to_thread(file.write_bytes, data)
        sources: tuple[Any, ...] = (
            data,
            bytearray(data),
            memoryview(data),
            file,
            str(file),
            given(chunks(data, 7, MIB)),
            one_buffer(data),
            Received(chunks(data, 100_000)),
        )
        for number, one in enumerate(sources):
            disk = await pool.create_volume(VolumeDef(f"{number}", capacity=0))
            watch = Watch()
            assert await disk.upload(one, on_progress=watch) == len(data)
            watch.assert_complete(len(data), total=len(data) if number < 5 else None)
            assert await source.settled_content(f"{number}") == data
            assert disk.info.capacity == len(data)

    async def test_what_is_no_source(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """An unusable source is refused by its own error, and the volume stays unchanged."""
        await start_able(pool, "create-volume", "open-volume")
        data = DATA[:MIB]
        disk = await pool.create_volume(VolumeDef("a.img", capacity=0))
        await disk.upload(data)
        await source.settle()
        nonsense: tuple[Any, ...] = (5, ["x"], given(["text"]), tmp_path)
        for wrong in nonsense:
            with pytest.raises(OSError if wrong is tmp_path else TypeError) as caught:
                await disk.upload(wrong)
            assert not isinstance(caught.value, AstoreError), "it is the source's error, not the storage's"
        assert await source.content(disk.name) == data

    async def test_sparse_upload(self, tmp_path: Path, pool: Pool, source: SourceUnderTest) -> None:
        """Zeros, told holes, and the holes of a file become holes, also over data that were there before."""
        await start_able(pool, "create-volume", "open-volume")
        content = DATA[:MIB] + bytes(3 * MIB) + DATA[:MIB] + bytes(3 * MIB - 5)
        file = tmp_path / "sparse"
        await asyncio.to_thread(_write_sparsely, file, {0: DATA[:MIB], 4 * MIB: DATA[:MIB]}, len(content))
        told = [DATA[:MIB], Hole(3 * MIB), DATA[:MIB], Hole(3 * MIB - 5)]
        sources: tuple[Any, ...] = (content, file, given(told), given(chunks(content, 333_333)))
        for number, one in enumerate(sources):
            disk = await pool.create_volume(VolumeDef(f"{number}", capacity=len(content)))
            await disk.upload(given([b"\xff" * MIB] * 5))
            assert disk.info.allocation >= 5 * MIB
            watch = Watch()
            assert await disk.upload(one, sparse=True, on_progress=watch) == len(content)
            assert watch.steps[-1][0] == len(content)
            assert await source.settled_content(f"{number}") == content
            await disk.refresh()
            assert 2 * MIB <= disk.info.allocation < 4 * MIB
        dense = await pool.create_volume(VolumeDef("dense", capacity=len(content)))
        await dense.upload(file)
        assert await source.settled_content("dense") == content
        await dense.refresh()
        assert dense.info.allocation >= len(content) - MIB, "nobody asked for holes"
        short = await pool.create_volume(VolumeDef("short", capacity=MIB))
        await short.upload(given([b"x", Hole(2 * MIB)]))
        assert short.info.capacity == 2 * MIB + 1, "it may end in a hole"

    async def test_sparse_download(self, pool: Pool) -> None:
        """Holes come as holes, and together with the data they are the whole volume."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=64 * MIB))
        await disk.upload(DATA[:MIB], offset=16 * MIB)
        await disk.upload(DATA[: 3 * MIB], offset=40 * MIB)
        for options in ({}, {"offset": 16 * MIB + 5, "length": 30 * MIB}, {"offset": 50 * MIB}):
            watch = Watch()
            holes, data = await holes_and_data(disk, on_progress=watch, **options)
            begin = options.get("offset", 0)
            size = options.get("length", 64 * MIB - begin)
            watch.assert_complete(size, total=size)
            assert holes + data == size
            assert data <= 5 * MIB
            assert await taken(disk, sparse=True, **options) == await taken(disk, **options)
        copy = await pool.create_volume(VolumeDef("b.img", capacity=64 * MIB))
        async with disk.download(sparse=True) as blocks:
            await copy.upload(blocks, sparse=True)
        await copy.refresh()
        assert copy.info.allocation < 6 * MIB
        assert await taken(copy) == await taken(disk)

    async def test_too_many_bytes(self, pool: Pool, source: SourceUnderTest) -> None:
        """From a source longer than announced the announced bytes are written, and the error says how many."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=8 * MIB))
        for length in (3 * MIB + 5, 1, 0):
            await disk.upload(bytes(8 * MIB))
            for pieces in (chunks(DATA[: 6 * MIB], 1 << 16), chunks(DATA[: 6 * MIB], 6 * MIB)):
                watch = Watch()
                with pytest.raises(TransferError) as caught:
                    await disk.upload(given(pieces), offset=MIB, length=length, on_progress=watch)
                assert (caught.value.done, caught.value.pool) == (length, pool.name)
                assert not watch.steps or watch.steps[-1] == (length, length)
                await source.settle()
                expected = bytes(MIB) + DATA[:length] + bytes(7 * MIB - length)
                assert await source.content("a.img") == expected
        assert await disk.upload(DATA[:MIB], length=MIB) == MIB
        assert await disk.upload(DATA[:5], length=MIB) == 5

    async def test_broken_source(self, pool: Pool, source: SourceUnderTest) -> None:
        """An error of the source is raised unwrapped, and the volume can be written again."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=8 * MIB))

        async def broken(error: BaseException) -> AsyncIterator[bytes]:
            for piece in chunks(DATA[: 5 * MIB], 700_000):
                yield piece
            raise error

        for error in (ConnectionResetError(104, "reset"), ValueError("x"), ExceptionGroup("g", [KeyError("k")])):
            with pytest.raises(type(error)) as caught:
                await disk.upload(broken(error))
            assert caught.value is error
            assert disk.info.capacity == 8 * MIB
        assert await disk.upload(DATA[: 2 * MIB]) == 2 * MIB
        assert (await source.settled_content("a.img"))[: 2 * MIB] == DATA[: 2 * MIB]

    async def test_far_offsets(self, pool: Pool) -> None:
        """Offsets beyond 2, 4 and 8 GiB work."""
        await start_able(pool, "create-volume", "open-volume")
        size = (1 << 33) + 3 * MIB
        disk = await pool.create_volume(VolumeDef("a.img", capacity=size))
        for offset in FAR:
            before = await taken(disk, offset=offset - 2, length=2)
            assert await disk.upload(DATA[:12_345], offset=offset) == 12_345
            assert await taken(disk, offset=offset - 2, length=12_349) == before + DATA[:12_345] + b"\0\0"
        assert disk.info.capacity == size
        assert disk.info.allocation < 4 * MIB
        holes, data = await holes_and_data(disk)
        assert holes + data == size
        assert data < 4 * MIB
        async with disk.open(write=True) as file:
            for offset in FAR:
                await file.pwrite(b"here", offset)
                assert await file.pread(5, offset) == b"here" + DATA[4:5]
                await file.punch(offset, 2)
                assert await file.pread(4, offset) == b"\0\0re"
        await disk.upload(b"end", offset=size + 5)
        assert disk.info.capacity == size + 8

    async def test_random_access(self, pool: Pool, source: SourceUnderTest) -> None:
        """An open volume is read and written anywhere, side by side, and what changed is in the snapshot afterwards."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=MIB))
        async with disk.open(write=True) as file:
            await asyncio.gather(*(file.pwrite(bytes([n]) * 1000, n * 1000) for n in range(100)))
            got = await asyncio.gather(*(file.pread(1000, n * 1000) for n in range(100)))
            assert got == [bytes([n]) * 1000 for n in range(100)]
            assert (await file.stat()).size == MIB
            assert await file.pread(10, MIB - 4) == b"\0" * 4
            assert await file.pread(10, 2 * MIB) == b""
            memory = bytearray(b"?" * 3000)
            assert await file.preadinto(memoryview(memory)[500:2500], 50_500) == 2000
            assert memory == b"?" * 500 + bytes([50]) * 500 + bytes([51]) * 1000 + bytes([52]) * 500 + b"?" * 500
            assert await file.preadinto(memory, MIB - 4) == 4
            assert memory[:5] == b"\0\0\0\0?"
            assert await file.preadinto(memory, 2 * MIB) == 0
            assert await file.preadinto(bytearray(), 0) == 0
            numbers = memoryview(bytearray(800)).cast("Q", (10, 10))
            assert await file.preadinto(numbers, 60_000) == 800
            assert bytes(numbers) == bytes([60]) * 800
            await file.truncate(2 * MIB)
            await file.sync()
            assert await file.seek_data(MIB) in (None, MIB)
            assert await file.seek_hole(0) <= 2 * MIB
        assert disk.info.capacity == 2 * MIB
        async with disk.open() as file:
            assert await file.pread(1000, 99_000) == bytes([99]) * 1000
            for change in (file.pwrite(b"x", 0), file.truncate(0), file.punch(0, 1)):
                with pytest.raises(StorageError) as caught:
                    await change
                assert caught.value.pool == pool.name
            with pytest.raises(FileNotFoundError) as own:
                raise FileNotFoundError(2, "the caller's own")
            assert not isinstance(own.value, AstoreError)
        with pytest.raises(StorageError):
            await file.pread(1, 0)

        async def fail() -> None:
            async with disk.open(write=True) as file:
                await file.pwrite(b"!", 0)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await fail()
        assert (await source.settled_content("a.img"))[:2] == b"!\0"

    async def test_callers_errors_inside(self, pool: Pool) -> None:
        """An error raised inside the block of a download or an open volume is not wrapped."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=8 * MIB))
        cause = KeyError("cause")

        async def fail_inside(context: Any, error: Exception) -> None:
            async with context as opened:
                if hasattr(opened, "__anext__"):
                    await anext(opened)
                raise error from cause

        for error in (PermissionError(13, "not here"), ExceptionGroup("two", [ValueError(), TypeError()])):
            for context in (disk.download(), disk.download(sparse=True), disk.open(), disk.open(write=True)):
                with pytest.raises(type(error)) as caught:
                    await fail_inside(context, error)
                assert caught.value is error
                assert caught.value.__cause__ is cause
        async with disk.download() as blocks:
            await anext(blocks)  # and no more
        assert await taken(disk) == bytes(8 * MIB)

    async def test_impatient_download(self, pool: Pool) -> None:
        """A consumer that cancels the wait for a late block, and asks again, misses none."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=0))
        await disk.upload(DATA)
        for sparse in (False, True):
            parts: list[bytearray] = []
            async with disk.download(sparse=sparse) as blocks:
                turn = 0
                while True:
                    turn += 1
                    try:
                        async with asyncio.timeout(0 if turn % 2 else None):
                            part = await anext(blocks)
                    except TimeoutError:
                        continue
                    except StopAsyncIteration:
                        break
                    assert isinstance(part, bytearray)
                    parts.append(part)
            assert b"".join(parts) == DATA

    async def test_progress_events(self, manager: Manager, pool: Pool) -> None:
        """Events report the progress and the end of long work."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=0))

        async def slow() -> AsyncIterator[bytes]:
            for _ in range(8):
                await asyncio.sleep(0.1)
                yield bytes(3 * MIB)

        async with manager.events() as events:
            await disk.upload(slow(), length=24 * MIB)
            heard = []
            async for event in events:
                if not isinstance(event, VolumeProgress):
                    break
                heard.append(event)
        assert 2 <= len(heard) <= 8
        assert {(one.pool, one.name, one.operation, one.total) for one in heard} == {
            (pool.name, "a.img", "upload", 24 * MIB)
        }
        assert sorted({one.done for one in heard}) == [one.done for one in heard]
        assert heard[-1].done == 24 * MIB

    async def test_what_is_not_there(self, pool: Pool, source: SourceUnderTest) -> None:
        """A removed volume is not found, and the snapshot drops it."""
        await start_able(pool, "create-volume", "open-volume")
        disk = await pool.create_volume(VolumeDef("a.img", capacity=MIB))
        await source.remove("a.img")
        await source.settle()
        with pytest.raises(VolumeNotFoundError):
            await disk.upload(b"x")
        with pytest.raises(VolumeNotFoundError):
            _ = disk.info
        with pytest.raises(VolumeNotFoundError):
            await disk.upload(b"x")
        with pytest.raises(VolumeNotFoundError):
            async with disk.download():
                raise AssertionError("there is nothing to download")
        assert (pool.volumes, await source.names()) == ((), set())
        if DIRECTORIES not in source.can:
            return
        folder = await pool.create_volume(VolumeDef("folder", format="dir"))
        with pytest.raises(StorageError):
            await folder.upload(b"x")
        with pytest.raises(StorageError):
            async with folder.download():
                raise AssertionError("a directory has no bytes")
        with pytest.raises(ValueError):
            await folder.upload(b"x", offset=-1)
        with pytest.raises(ValueError):
            await folder.upload(b"x", length=-1)
