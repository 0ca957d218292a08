"""Files in memory for tests of what moves bytes, and what is said of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from astore.model import FileStat
from astore.volume_io.blocks import Hole

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


class Steps:
    """Progress that must grow."""

    def __init__(self) -> None:
        self.done = 0

    def __call__(self, done: int, total: int | None) -> None:
        assert done > self.done
        self.done = done


def plain(pieces: Sequence[Any]) -> bytes:
    """What the pieces are, put together."""
    return b"".join(bytes(one.length) if isinstance(one, Hole) else bytes(one) for one in pieces)


sizes = st.one_of(st.integers(0, 20), st.integers(90, 110), st.integers(240, 700))
blobs = st.builds(
    lambda size, kind: bytes(size) if kind == 0 else bytes((n * 7 + kind) % 251 for n in range(size)),
    sizes,
    st.integers(0, 3),
)
