"""Streams of bytes in pieces of all kinds, for the checks of uploads and downloads."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anyio

from astore.pools.volume import Volume
from astore.testing.conformance.volumes_made import MIB
from astore.volume_io.blocks import Hole

DATA = hashlib.shake_128(b"astore").digest(9 * MIB + 4321)


def chunks(data: bytes, *sizes: int) -> list[bytes]:
    """Cut data into pieces of these sizes, over and over."""
    pieces, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        pieces.append(data[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


async def given(pieces: Iterable[Any]) -> AsyncIterator[Any]:
    """Yield the pieces one by one."""
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def one_buffer(data: bytes) -> AsyncIterator[memoryview]:
    """Yield the data in pieces of a MiB that share the same memory."""
    buffer = bytearray(MIB)
    for at in range(0, len(data), MIB):
        size = min(MIB, len(data) - at)
        buffer[:size] = data[at : at + size]
        yield memoryview(buffer)[:size]


class Received(anyio.abc.ByteReceiveStream):
    """An anyio stream that delivers the pieces, and then ends."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Return the next piece."""
        await asyncio.sleep(0)
        for piece in self._pieces:
            return piece
        raise anyio.EndOfStream

    async def aclose(self) -> None:
        """End the stream."""
        self._pieces = iter(())


async def taken(volume: Volume, **options: Any) -> bytes:
    """Read a whole download, with holes as zeros."""
    async with volume.download(**options) as blocks:
        return b"".join([bytes(one.length) if isinstance(one, Hole) else one async for one in blocks])


async def holes_and_data(volume: Volume, **options: Any) -> tuple[int, int]:
    """Read a whole sparse download; return the bytes of its holes and of its data."""
    async with volume.download(sparse=True, **options) as blocks:
        sizes = [(one.length, 0) if isinstance(one, Hole) else (0, len(one)) async for one in blocks]
    return sum(hole for hole, _ in sizes), sum(data for _, data in sizes)


class Watch:
    """Records the calls of ``on_progress`` and asserts that the count grows and the total stays."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int | None]] = []

    def __call__(self, done: int, total: int | None) -> None:
        if self.steps:
            assert done > self.steps[-1][0]
            assert total == self.steps[-1][1]
        assert total is None or done <= total
        self.steps.append((done, total))

    def assert_complete(self, size: int, *, total: int | None) -> None:
        """Assert that progress reached the total."""
        assert self.steps[-1] == (size, total)
