"""A pool type whose volumes are blocks in the memory of this process: an example of a backend without files.

``MemoryBackend`` makes blocking calls, which run on the pool's lane. ``MemoryOnTheLoopBackend`` has coroutines instead.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
import time
from collections.abc import Mapping

from astore import Backend, DefinitionError, PoolDef, PoolSession, VolumeDef
from astore.backend import Context
from astore.blocks import Block, BlockPool, BlockVolume, block_session

GRAIN = 64 << 10
"""The unit in which storage is taken, in bytes."""


def failure(number: int, name: str) -> OSError:
    """Return the error of a call."""
    return OSError(number, os.strerror(number), name)


# -------------------------------------------------------------------------------------------------------- the storage


class Image:
    """A volume as the storage keeps it."""

    def __init__(self, id: int, size: int) -> None:
        self.id, self.size = id, size
        self.grains: dict[int, bytearray] = {}
        self.taken: set[int] = set()
        self.owner: object = None
        self.version = 0
        self.changed()

    def changed(self) -> None:
        self.version += 1
        self.changed_ns = time.time_ns()

    def take(self, offset: int, length: int) -> None:
        self.taken.update(range(offset // GRAIN, -(-(offset + length) // GRAIN)))
        self.changed()

    def resize(self, size: int) -> None:
        self.discard(size, max(self.size - size, 0))
        self.size = size
        self.changed()

    def read_into(self, buffer: memoryview, offset: int) -> int:
        length = max(min(len(buffer), self.size - offset), 0)
        done = 0
        while done < length:
            number, start = divmod(offset + done, GRAIN)
            some = min(GRAIN - start, length - done)
            grain = self.grains.get(number)
            buffer[done : done + some] = bytes(some) if grain is None else grain[start : start + some]
            done += some
        return length

    def write(self, data: memoryview, offset: int) -> None:
        if offset + len(data) > self.size:
            raise failure(errno.ENOSPC, "")
        done = 0
        while done < len(data):
            number, start = divmod(offset + done, GRAIN)
            some = min(GRAIN - start, len(data) - done)
            self.grains.setdefault(number, bytearray(GRAIN))[start : start + some] = data[done : done + some]
            done += some
        self.take(offset, len(data))

    def discard(self, offset: int, length: int) -> None:
        end = offset + length
        for number in [n for n in self.grains if n * GRAIN < end and offset < (n + 1) * GRAIN]:
            start, stop = max(offset - number * GRAIN, 0), min(end - number * GRAIN, GRAIN)
            self.grains[number][start:stop] = bytes(stop - start)
            if stop - start == GRAIN:
                del self.grains[number]
        whole = -(-end // GRAIN) if end >= self.size else end // GRAIN
        self.taken.difference_update(range(-(-offset // GRAIN), whole))
        self.changed()

    def next_data(self, offset: int) -> tuple[int, int] | None:
        numbers = sorted(n for n in self.grains if (n + 1) * GRAIN > offset and n * GRAIN < self.size)
        if not numbers:
            return None
        last = numbers[0]
        for number in numbers[1:]:
            if number != last + 1:
                break
            last = number
        return max(numbers[0] * GRAIN, offset), min((last + 1) * GRAIN, self.size)


class Storage:
    """All volumes of one source, which several pools may use. Any thread may call it."""

    capacity = 1 << 40
    ids = itertools.count(1)

    def __init__(self, name: str) -> None:
        self.name = name
        self.images: dict[str, Image] = {}
        self.lock = threading.RLock()
        self.broken = False

    def image(self, name: str) -> Image:
        if self.broken:
            raise failure(errno.ENOTCONN, self.name)
        if name not in self.images:
            raise failure(errno.ENOENT, name)
        return self.images[name]

    def create(self, name: str, size: int, allocation: int = 0) -> Image:
        with self.lock:
            if name in self.images:
                raise failure(errno.EEXIST, name)
            image = self.images[name] = Image(next(self.ids), size)
            image.take(0, allocation)
            return image


STORAGES: dict[str, Storage] = {}
"""The storages of this process, by source name."""


# ------------------------------------------------------------------------------------------------- by blocking calls


class MemoryVolume(BlockVolume):
    """An open volume."""

    def __init__(self, storage: Storage, image: Image) -> None:
        self.id, self.storage, self.image = image.id, storage, image

    def size(self) -> int:
        return self.image.size

    def read_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        with self.storage.lock, memoryview(buffer) as view:
            return self.image.read_into(view, offset)

    def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        with self.storage.lock, memoryview(data) as view:
            self.image.write(view, offset)

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        with self.storage.lock:
            self.image.discard(offset, length)

    def next_data(self, offset: int) -> tuple[int, int] | None:
        with self.storage.lock:
            return self.image.next_data(offset)

    def lock(self) -> bool:
        with self.storage.lock:
            self.image.owner = self.image.owner or self
            return self.image.owner is self

    def close(self) -> None:
        with self.storage.lock:
            if self.image.owner is self:
                self.image.owner = None


class MemoryPool(BlockPool):
    """A pool of a storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.device = storage, f"memory:{storage.name}"

    def key(self, name: str) -> str:
        return f"memory:{self.storage.name}/{name}"

    def list(self, known: Mapping[str, Block]) -> list[Block]:
        with self.storage.lock:
            return [self._block(name, known.get(name)) for name in self.storage.images]

    def look(self, name: str) -> Block | None:
        with self.storage.lock:
            self.sizes()
            return self._block(name, None) if name in self.storage.images else None

    def _block(self, name: str, known: Block | None) -> Block:
        image = self.storage.image(name)
        if known is not None and (known.id, known.version) == (image.id, image.version):
            return known
        taken, at = len(image.taken) * GRAIN, image.changed_ns
        return Block(name=name, id=image.id, size=image.size, allocation=taken, version=image.version, changed_ns=at)

    def open(self, name: str, write: bool) -> MemoryVolume:
        return MemoryVolume(self.storage, self.storage.image(name))

    def sizes(self) -> tuple[int, int]:
        if self.storage.broken:
            raise failure(errno.ENOTCONN, self.storage.name)
        taken = sum(len(image.taken) for image in list(self.storage.images.values()))
        return self.storage.capacity, self.storage.capacity - taken * GRAIN

    def create(self, name: str, size: int, definition: VolumeDef) -> None:
        self.storage.create(name, size, definition.allocation or 0)

    def remove(self, name: str, id: int | None = None) -> None:
        with self.storage.lock:
            if id not in (None, self.storage.image(name).id):
                raise failure(errno.EAGAIN, name)
            del self.storage.images[name]

    def resize(self, volume: MemoryVolume, size: int, allocate: bool) -> None:
        with self.storage.lock:
            image = volume.image
            before = image.size
            image.resize(size)
            if allocate and size > before:
                image.take(before, size - before)

    def rename(self, old: str, new: str) -> None:
        with self.storage.lock:
            image = self.storage.image(old)
            if new in self.storage.images:
                raise failure(errno.EEXIST, new)
            self.storage.images[new] = self.storage.images.pop(old)
            image.changed()

    def close(self) -> None:
        pass


class MemoryBackend(Backend):
    """Drive pools in memory, named by their sources."""

    type = "memory"

    def check(self, definition: PoolDef) -> PoolDef:
        if not definition.source.name:
            raise DefinitionError("a memory pool needs the name of its source", element="name")
        return definition

    def source_key(self, definition: PoolDef) -> tuple[tuple[str, str], ...]:
        return (("source name", definition.source.name or ""),)

    def pool(self, storage: Storage) -> BlockPool:
        return MemoryPool(storage)

    async def open(self, definition: PoolDef, context: Context) -> PoolSession:
        name = definition.source.name or ""
        pool = MemoryPool(STORAGES.setdefault(name, Storage(name)))
        pool.sizes()  # raises if the storage does not answer
        return block_session(self.pool(pool.storage), context)


# ----------------------------------------------------------------------------------------------------- by coroutines


class VolumeOnTheLoop(BlockVolume):
    """An open volume whose calls are coroutines. Each waits for one round of the loop, as for an answer from a network."""

    def __init__(self, volume: MemoryVolume) -> None:
        self.id, self.volume = volume.id, volume

    async def size(self) -> int:
        await asyncio.sleep(0)
        return self.volume.size()

    async def read_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        await asyncio.sleep(0)
        return self.volume.read_into(buffer, offset)

    async def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        await asyncio.sleep(0)
        self.volume.write(data, offset)

    async def flush(self) -> None:
        await asyncio.sleep(0)

    async def discard(self, offset: int, length: int) -> None:
        await asyncio.sleep(0)
        self.volume.discard(offset, length)

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        await asyncio.sleep(0)
        return self.volume.next_data(offset)

    async def lock(self) -> bool:
        await asyncio.sleep(0)
        return self.volume.lock()

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.volume.close()


class PoolOnTheLoop(BlockPool):
    """A pool whose calls are coroutines."""

    def __init__(self, pool: MemoryPool) -> None:
        self.pool, self.device = pool, pool.device

    def key(self, name: str) -> str:
        return self.pool.key(name)

    async def list(self, known: Mapping[str, Block]) -> list[Block]:
        await asyncio.sleep(0)
        return self.pool.list(known)

    async def look(self, name: str) -> Block | None:
        await asyncio.sleep(0)
        return self.pool.look(name)

    async def open(self, name: str, write: bool) -> VolumeOnTheLoop:
        await asyncio.sleep(0)
        return VolumeOnTheLoop(self.pool.open(name, write))

    async def sizes(self) -> tuple[int, int]:
        await asyncio.sleep(0)
        return self.pool.sizes()

    async def create(self, name: str, size: int, definition: VolumeDef) -> None:
        await asyncio.sleep(0)
        self.pool.create(name, size, definition)

    async def remove(self, name: str, id: int | None = None) -> None:
        await asyncio.sleep(0)
        self.pool.remove(name, id)

    async def resize(self, volume: VolumeOnTheLoop, size: int, allocate: bool) -> None:
        await asyncio.sleep(0)
        self.pool.resize(volume.volume, size, allocate)

    async def rename(self, old: str, new: str) -> None:
        await asyncio.sleep(0)
        self.pool.rename(old, new)

    async def close(self) -> None:
        await asyncio.sleep(0)


class MemoryOnTheLoopBackend(MemoryBackend):
    """Drive the same pools without threads."""

    def pool(self, storage: Storage) -> BlockPool:
        return PoolOnTheLoop(MemoryPool(storage))
