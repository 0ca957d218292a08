"""Uploads and downloads against a model: whatever the chunks, the file is what a bytearray would be."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astore.errors import StorageError, TransferError
from astore.files import FileStat
from astore.volume_work import transfer
from astore.volume_work.copying import Count, copy_blocks, data_ranges, next_data
from astore.volume_work.transfer import Hole, downloading, upload
from astore.volume_work.uploads import chunks_of

GRAIN = 64


class ModelFile:
    """A file in memory, whose calls end in any order, and whose holes are known."""

    in_flight = 3

    def __init__(self, data: bytes = b"", *, seed: int = 0) -> None:
        self.data = bytearray(data)
        self.punched = self.synced = 0
        self.most = self.now = 0
        self._random = random.Random(seed)

    async def _later(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(self._random.randrange(5)):
            await asyncio.sleep(0)
        self.now -= 1

    async def stat(self) -> FileStat:
        return FileStat(0o100600, 1, len(self.data), 0, 0, 0, 0, 0, 0)

    async def pread(self, length: int, offset: int) -> bytes:
        await self._later()
        return bytes(self.data[offset : offset + length])

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        data = await self.pread(len(buffer), offset)
        buffer[: len(data)] = data
        return len(data)

    async def pwrite(self, data: Any, offset: int) -> None:
        await self._later()
        if len(data):
            self.data.extend(bytes(max(0, offset + len(data) - len(self.data))))
            self.data[offset : offset + len(data)] = data

    async def truncate(self, length: int) -> None:
        del self.data[length:]
        self.data.extend(bytes(length - len(self.data)))

    async def punch(self, offset: int, length: int) -> None:
        await self._later()
        assert length > 0
        assert offset + length <= len(self.data), "a hole beyond the end is none"
        self.punched += length
        self.data[offset : offset + length] = bytes(length)

    async def seek_data(self, offset: int) -> int | None:
        await self._later()
        while offset < len(self.data):
            block = offset // GRAIN * GRAIN
            if any(self.data[block : block + GRAIN]):
                return offset
            offset = block + GRAIN
        return None

    async def seek_hole(self, offset: int) -> int:
        while offset < len(self.data):
            block = offset // GRAIN * GRAIN
            if not any(self.data[block : block + GRAIN]):
                return offset
            offset = block + GRAIN
        return len(self.data)

    async def sync(self) -> None:
        self.synced += 1


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is counted in MiB is counted in tens of bytes here."""
    monkeypatch.setattr(transfer, "BLOCK", 100)
    monkeypatch.setattr(transfer, "MOST", 250)
    monkeypatch.setattr(transfer, "GRAIN", GRAIN)
    monkeypatch.setattr(transfer, "_ZEROS", bytes(250))
    monkeypatch.setattr("astore.volume_work.copying.BLOCK", 130)


sizes = st.one_of(st.integers(0, 20), st.integers(90, 110), st.integers(240, 700))
blobs = st.builds(
    lambda size, kind: bytes(size) if kind == 0 else bytes((n * 7 + kind) % 251 for n in range(size)),
    sizes,
    st.integers(0, 3),
)
pieces_ = st.lists(st.one_of(blobs, blobs.map(bytearray), blobs.map(memoryview), st.builds(Hole, sizes)), max_size=9)


def plain(pieces: Sequence[Any]) -> bytes:
    """What the pieces are, put together."""
    return b"".join(bytes(one.length) if isinstance(one, Hole) else bytes(one) for one in pieces)


async def given_one_by_one(pieces: Sequence[Any]) -> AsyncIterator[Any]:
    """The pieces; each that can be changed is, once the next is asked for."""
    for piece in pieces:
        yield piece
        if isinstance(piece, bytearray):
            piece[:] = b"\xff" * len(piece)


class Steps:
    """Progress that must grow."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, done: int, total: int | None) -> None:
        assert done > self.done
        self.done = done


@settings(max_examples=150)
@given(
    before=blobs, pieces=pieces_, offset=sizes, sparse=st.booleans(), length=st.none() | sizes, seed=st.integers(0, 99)
)
def test_upload_is_what_a_bytearray_would_be(
    before: bytes, pieces: list[Any], offset: int, sparse: bool, length: int | None, seed: int
) -> None:
    """Any pieces, anywhere, with holes or without, up to a limit or not."""
    data = plain(pieces)
    written = data if length is None else data[:length]
    expected = bytearray(before)
    if written:
        expected.extend(bytes(max(0, offset + len(written) - len(expected))))
        expected[offset : offset + len(written)] = written
    file, steps = ModelFile(before, seed=seed), Steps()
    count = Count(None, steps)
    call = upload(file, given_one_by_one(pieces), offset, length, sparse, count)
    if len(written) < len(data):
        with pytest.raises(TransferError) as caught:
            asyncio.run(call)
        assert caught.value.done == length
    else:
        assert asyncio.run(call) == offset + len(data)
    assert file.data == expected
    assert (steps.done, count.done, file.synced) == (len(written), len(written), 1)
    assert file.most <= ModelFile.in_flight


@settings(max_examples=100)
@given(data=st.lists(blobs, max_size=5).map(b"".join), offset=sizes, length=st.none() | sizes, sparse=st.booleans())
def test_download_is_the_file(data: bytes, offset: int, length: int | None, sparse: bool) -> None:
    """Whatever part is asked for, with holes told or not."""
    end = len(data) if length is None else min(len(data), offset + length)
    start = min(offset, end)

    async def run() -> tuple[list[Any], int]:
        steps = Steps()
        file = ModelFile(data)
        async with downloading(file, start, end, sparse, Count(None, steps)) as blocks:
            got = [one async for one in blocks]
        assert file.most <= ModelFile.in_flight
        return got, steps.done

    got, done = asyncio.run(run())
    assert plain(got) == data[start:end]
    assert done == end - start
    assert sparse or not any(isinstance(one, Hole) for one in got)
    assert not any(isinstance(one, Hole) and not one.length for one in got)


@settings(max_examples=100)
@given(data=st.lists(blobs, max_size=6).map(b"".join))
def test_copied_blocks_are_the_file(data: bytes) -> None:
    """A copy has all data, and no more writes than there are data; progress is complete."""

    async def run() -> None:
        source, target, steps = ModelFile(data), ModelFile(bytes(len(data))), Steps()
        await copy_blocks(source, target, len(data), Count(len(data), steps))
        assert target.data == data
        assert steps.done == len(data)
        ranges = [one async for one in data_ranges(source, 0, len(data))]
        assert all(begin < until for begin, until in ranges)
        assert sorted(ranges) == ranges

    asyncio.run(run())


async def test_pieces_that_are_views_of_anything() -> None:
    """Views of numbers, and views with gaps, are the bytes that they show."""
    file = ModelFile()
    numbers = memoryview(b"abcdefgh" * 50).cast("I")
    gaps = memoryview(b"a-b-c-" * 30)[::2]
    count = Count(None, None)
    assert await upload(file, given_one_by_one([numbers, gaps, numbers]), 0, None, False, count) == 890
    assert file.data == b"abcdefgh" * 50 + b"abc" * 30 + b"abcdefgh" * 50


class BrokenFile(ModelFile):
    """A file that fails beyond an offset."""

    def __init__(self, limit: int, error: Exception, data: bytes = b"") -> None:
        super().__init__(data)
        self.limit, self.error = limit, error

    async def pwrite(self, data: Any, offset: int) -> None:
        if offset >= self.limit:
            raise self.error
        await super().pwrite(data, offset)

    async def pread(self, length: int, offset: int) -> bytes:
        if offset >= self.limit:
            raise self.error
        return await super().pread(length, offset)


async def test_writes_under_way_come_to_their_end() -> None:
    """When the storage says no, what was on its way is written, and counted."""
    for error in (OSError(28, "No space left on device"), StorageError("no space", errno=28, pool="p")):
        file = BrokenFile(400, error)
        with pytest.raises(TransferError) as caught:
            await upload(file, given_one_by_one([b"x" * 200] * 4), 0, None, False, Count(None, None))
        assert (caught.value.done, caught.value.errno, len(file.data)) == (400, 28, 400)
        assert caught.value.__cause__ is error


async def test_source_that_waits_is_given_up() -> None:
    """A source that waits for more is not waited for when the storage has said no."""
    closed = False

    async def slow() -> AsyncIterator[bytes]:
        nonlocal closed
        try:
            yield b"x" * 200
            await asyncio.Event().wait()
        finally:
            closed = True

    async with asyncio.timeout(20):
        with pytest.raises(TransferError):
            await upload(BrokenFile(0, OSError(5, "no")), slow(), 0, None, False, Count(None, None))
    assert closed
    for error in (TimeoutError("late"), ValueError("a bug")):
        with pytest.raises(type(error)) as caught:
            await upload(BrokenFile(0, error), given_one_by_one([b"x" * 300] * 3), 0, None, False, Count(None, None))
        assert caught.value is error


async def test_download_gives_what_comes_before_an_error() -> None:
    """All blocks before the one that cannot be read are given; then the error, as often as one asks."""
    got = []
    async with downloading(BrokenFile(300, OSError(5, "no"), b"x" * 1000), 0, 1000, False, Count(None, None)) as blocks:
        for _ in range(3):
            got.append(await anext(blocks))
        for _ in range(2):
            with pytest.raises(OSError, match="no"):
                await anext(blocks)
    assert b"".join(got) == b"x" * 300  # type: ignore[arg-type]


async def test_blocks_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that somebody keeps, or looks at, stay as they are; the memory of the others is used again."""
    monkeypatch.setattr(transfer, "BLOCK", 1000)
    data = random.Random(5).randbytes(99_500)
    file = ModelFile(data)
    used = set()
    async with downloading(file, 0, len(data), False, Count(None, None)) as blocks:
        async for block in blocks:
            used.add(id(block))
    assert len(used) <= 1 + 2 + file.in_flight
    kept: list[Any] = []
    async with downloading(file, 0, len(data), False, Count(None, None)) as blocks:
        async for block in blocks:
            assert isinstance(block, bytearray)
            kept.append(memoryview(block)[:10] if len(kept) % 3 else block)
    assert [bytes(one[:10]) for one in kept] == [data[at : at + 10] for at in range(0, len(data), 1000)]
    assert kept[3] == data[3000:4000]


async def test_upload_of_a_download() -> None:
    """What one volume gives another takes, as it is."""
    data = random.Random(6).randbytes(9_000_001)
    target = ModelFile(seed=7)
    async with downloading(ModelFile(data), 0, len(data), False, Count(None, None)) as blocks:
        assert await upload(target, blocks, 0, None, False, Count(None, None)) == len(data)
    assert target.data == data


async def test_download_of_what_is_cut() -> None:
    """A file that is cut while it is read ends there."""
    file = ModelFile(b"x" * 1000)
    async with downloading(file, 0, 1000, False, Count(None, None)) as blocks:
        await anext(blocks)
        await file.truncate(150)
        rest = [one async for one in blocks]
        assert len(plain(rest)) <= 500
        with pytest.raises(StopAsyncIteration):
            await anext(blocks)


async def test_hole_that_moved() -> None:
    """Where the end of data is told to be before its beginning, some progress is made all the same."""
    file = ModelFile(b"x" * 1000)

    async def nowhere(offset: int) -> int:
        return offset

    file.seek_hole = nowhere  # type: ignore[method-assign]
    assert await next_data(file, 10, 1000) == (10, 140)
    assert await next_data(file, 990, 1000) == (990, 1000)


async def test_sources_by_kind() -> None:
    """What is no source is refused by its type; bytes know their size."""
    async with chunks_of(memoryview(b"abcd").cast("I"), None) as (chunks, size):
        assert size == 4
        assert [bytes(one) async for one in chunks] == [b"abcd"]  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="list"):
        async with chunks_of([b"x"], None):  # type: ignore[arg-type]
            raise AssertionError("it is no source")
