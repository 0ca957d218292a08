"""Comparing two volumes byte by byte, without reading their holes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from anyio import to_thread

from astore.volume_io.blocks import Hole

if TYPE_CHECKING:
    from astore.backend import Progress
    from astore.pools.volume import Volume

    Piece = bytearray | Hole


async def same_content(one: Volume, other: Volume, on_progress: Progress) -> bool:
    """Return whether two volumes have the same bytes. A hole is zeros.

    :param on_progress: called with the bytes compared.
    """
    async with one.download(sparse=True) as left, other.download(sparse=True) as right:
        mine, theirs = _Reader(aiter(left)), _Reader(aiter(right))
        done = 0
        while True:
            count = min(await mine.available(), await theirs.available())
            if not count:
                return await mine.available() == await theirs.available()
            if not await to_thread.run_sync(_equal, mine.take(count), theirs.take(count)):
                return False
            done += count
            on_progress(done, None)


class _Reader:
    """Takes a download apart into pieces of any length."""

    def __init__(self, pieces: AsyncIterator[Piece]) -> None:
        self._pieces = pieces
        self._now: memoryview | int = 0

    async def available(self) -> int:
        """Return how many bytes can be taken at once; 0 at the end."""
        while not self._left:
            piece = await anext(self._pieces, None)
            if piece is None:
                return 0
            self._now = piece.length if isinstance(piece, Hole) else memoryview(piece)
        return self._left

    @property
    def _left(self) -> int:
        return self._now if isinstance(self._now, int) else len(self._now)

    def take(self, count: int) -> memoryview | int:
        """Take bytes, or the length of a part of a hole."""
        now = self._now
        if isinstance(now, int):
            self._now = now - count
            return count
        self._now = now[count:]
        return now[:count]


def _equal(one: memoryview | int, other: memoryview | int) -> bool:
    if isinstance(one, int):
        return isinstance(other, int) or other == bytes(one)
    return one == (bytes(other) if isinstance(other, int) else other)
