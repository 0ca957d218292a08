"""Uploads and copies against a model: whatever the chunks, the file is what a bytearray would be."""

from __future__ import annotations

import asyncio
import random
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from volumes.model_file import GRAIN, BrokenFile, ModelFile, Steps, blobs, plain, sizes

from astore.errors import StorageError, TransferError
from astore.volume_io import transfer
from astore.volume_io.blocks import Hole
from astore.volume_io.copying import Count, copy_blocks, data_ranges, next_data
from astore.volume_io.downloads import downloading
from astore.volume_io.transfer import upload
from astore.volume_io.uploads import chunks_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is counted in MiB is counted in tens of bytes here."""
    monkeypatch.setattr(transfer, "BLOCK", 100)
    monkeypatch.setattr(transfer, "MOST", 250)
    monkeypatch.setattr(transfer, "GRAIN", GRAIN)
    monkeypatch.setattr(transfer, "_ZEROS", bytes(250))
    monkeypatch.setattr("astore.volume_io.copying.BLOCK", 130)


pieces_ = st.lists(st.one_of(blobs, blobs.map(bytearray), blobs.map(memoryview), st.builds(Hole, sizes)), max_size=9)


async def given_one_by_one(pieces: Sequence[Any]) -> AsyncIterator[Any]:
    """The pieces; each that can be changed is, once the next is asked for."""
    for piece in pieces:
        yield piece
        if isinstance(piece, bytearray):
            piece[:] = b"\xff" * len(piece)


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


@pytest.mark.parametrize("rows", [1, 4, 40])
async def test_pieces_of_several_dimensions(rows: int) -> None:
    """Tables, numbers without dimension and arrays are the bytes that they are made of."""
    file = ModelFile()
    table = memoryview(bytes(range(250)) * rows).cast("B", (rows, 250))
    one = memoryview(b"12345678").cast("Q", ())
    numbers = array("d", range(30))
    pieces = [b"-", table, one, table, numbers, bytearray(b"."), table]
    expected = b"-" + bytes(table) + b"12345678" + bytes(table) + numbers.tobytes() + b"." + bytes(table)
    assert await upload(file, given_one_by_one(pieces), 0, None, False, Count(None, None)) == len(expected)
    assert file.data == expected
    file = ModelFile()
    async with chunks_of(table, None) as (chunks, size):
        assert size == len(bytes(table)) == await upload(file, chunks, 0, None, False, Count(None, None))
    assert file.data == bytes(table)


@pytest.mark.parametrize("length", [70, 100, 99, 230])
async def test_pieces_that_change_behind_its_back(length: int) -> None:
    """Whoever gave a piece may change it at once, and make it longer, though it is not all written yet."""
    file = ModelFile()
    piece = bytearray(b"a" * length)

    async def source() -> AsyncIterator[bytearray]:
        for letter in b"abcde":
            piece[:] = bytes([letter]) * length
            changing = asyncio.get_running_loop().call_soon(piece.extend, b"?")
            yield piece
            changing.cancel()

    assert await upload(file, source(), 0, None, False, Count(None, None)) == 5 * length
    assert file.data == b"".join(bytes([letter]) * length for letter in b"abcde")


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

    async with asyncio.timeout(120):
        with pytest.raises(TransferError):
            await upload(BrokenFile(0, OSError(5, "no")), slow(), 0, None, False, Count(None, None))
    assert closed
    for error in (TimeoutError("late"), ValueError("a bug")):
        with pytest.raises(type(error)) as caught:
            await upload(BrokenFile(0, error), given_one_by_one([b"x" * 300] * 3), 0, None, False, Count(None, None))
        assert caught.value is error


async def test_upload_of_a_download() -> None:
    """What one volume gives another takes, as it is."""
    data = random.Random(6).randbytes(9_000_001)
    target = ModelFile(seed=7)
    async with downloading(ModelFile(data), 0, len(data), False, Count(None, None)) as blocks:
        assert await upload(target, blocks, 0, None, False, Count(None, None)) == len(data)
    assert target.data == data


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
