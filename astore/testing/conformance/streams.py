"""Bytes for the suite's volumes, and what watches over their way there and back."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

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
    """The pieces, one by one."""
    for piece in pieces:
        await asyncio.sleep(0)
        yield piece


async def taken(volume: Volume, **options: Any) -> bytes:
    """All that a download gives, holes as zeros."""
    async with volume.download(**options) as blocks:
        return b"".join([bytes(one.length) if isinstance(one, Hole) else one async for one in blocks])


class Watch:
    """What ``on_progress`` told; it must grow, and say the same of the whole."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int | None]] = []

    def __call__(self, done: int, total: int | None) -> None:
        if self.steps:
            assert done > self.steps[-1][0]
            assert total == self.steps[-1][1]
        assert total is None or done <= total
        self.steps.append((done, total))

    def assert_complete(self, size: int, *, total: int | None) -> None:
        """All was told of, and how much it would be."""
        assert self.steps[-1] == (size, total)
