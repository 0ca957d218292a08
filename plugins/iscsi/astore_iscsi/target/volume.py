"""UnitVolume: the open volume that a logical unit is. All its calls are coroutines."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine, Iterator
from typing import Any, ClassVar, Final

from astore.blocks import BlockVolume
from astore.cancellation import TaskGroup
from astore_iscsi import scsi
from astore_iscsi.libiscsi import Memory, memory_of
from astore_iscsi.scsi import Capacity, Limits, UnitError
from astore_iscsi.target.client import Client, Unit

PIECE: Final = 256 << 10
"""The most bytes of a read or write command; a longer call is several commands at once. It is one burst, as targets ask for."""

UNMAPPED_AT_ONCE: Final = 1 << 30
"""The most bytes that one command unmaps, if the unit tells no limit."""

_WRITTEN: Final[set[tuple[str, int]]] = set()
"""The targets and ids of the units that this process has open for writing."""

STATES: Final = 64
"""How many ranges one question for unmapped blocks returns at most."""


class UnitVolume(BlockVolume):
    """An open unit. Bytes that are no whole blocks are read, and written after reading the rest of their blocks."""

    in_flight: ClassVar[int] = 2  # of many commands each: more would only lengthen the target's queue

    def __init__(self, client: Client, unit: Unit, id: int, capacity: Capacity, limits: Limits) -> None:
        self.id = id
        self._client = client
        self._unit = unit
        self._capacity = capacity
        self._limits = limits
        self._block = capacity.block
        most = limits.transfer * self._block or PIECE
        self._piece = max(min(most, PIECE) // self._block, 1) * self._block
        self._partial = asyncio.Lock()
        grains = not 0 < limits.unmap < limits.grain  # else nothing that it unmaps need be unmapped
        self._discards = limits.unmaps_same or (limits.unmaps and capacity.zeros and grains)
        self._lock: tuple[str, int] | None = None
        self._tells_holes = capacity.thin and capacity.zeros

    async def size(self) -> int:
        self._capacity = await self._client.capacity(self._unit)
        if self._capacity.block != self._block:
            raise OSError(errno.ESTALE, "its blocks have another size now")
        return self._capacity.size

    # ------------------------------------------------------------------------------------------------ reading, writing

    async def read_into(self, buffer: bytearray | memoryview, offset: int) -> int:
        memory = memory_of(buffer)
        end = offset + memory.length
        if end > self._capacity.size:
            end = max(min(end, await self.size()), offset)

        async def read(start: int, stop: int) -> None:
            first, last = self._around(start, stop)
            if (first, last) == (start, stop):
                await self._read(memory.part(start - offset, stop - offset), start)
                return
            room = bytearray(last - first)
            await self._read(memory_of(room), first)
            with memoryview(buffer) as view:
                view[start - offset : stop - offset] = room[start - first : stop - first]

        await _together([read(*piece) for piece in self._pieces(offset, end)])
        return end - offset

    async def write(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        memory = memory_of(data)

        async def write(start: int, stop: int) -> None:
            first, last = self._around(start, stop)
            if (first, last) == (start, stop):
                await self._write(memory.part(start - offset, stop - offset), start)
                return
            async with self._partial:  # two writes of parts of one block
                room = bytearray(last - first)
                await self._read(memory_of(room), first)
                with memoryview(data) as view:
                    room[start - first : stop - first] = view[start - offset : stop - offset]
                await self._write(memory_of(room), first)

        await _together([write(*piece) for piece in self._pieces(offset, offset + memory.length)])

    async def flush(self) -> None:
        try:
            await self._client.run(self._unit, scsi.synchronize_cache())
        except UnitError as error:
            if error.errno != errno.EOPNOTSUPP:  # a unit without a cache
                raise

    async def _read(self, memory: Memory, start: int) -> None:
        cdb = scsi.read(start // self._block, memory.length // self._block)
        if short := await self._client.run(self._unit, cdb, into=memory):
            raise OSError(errno.EIO, f"a read of {memory.length} bytes is {short} bytes short")

    async def _write(self, memory: Memory, start: int) -> None:
        cdb = scsi.write(start // self._block, memory.length // self._block)
        if short := await self._client.run(self._unit, cdb, data=memory):
            raise OSError(errno.EIO, f"a write of {memory.length} bytes is {short} bytes short")

    def _around(self, start: int, stop: int) -> tuple[int, int]:
        """Return the range of whole blocks around a range of bytes."""
        return start // self._block * self._block, -(-stop // self._block) * self._block

    def _pieces(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Divide a range of bytes into commands. Only the first and the last piece may be parts of blocks."""
        while start < stop:
            within = start % self._block
            end = start - within + (self._block if within else self._piece)
            if end > stop > start - within + self._block and stop % self._block:
                end = stop - stop % self._block  # whole blocks, and then the rest
            end = min(end, stop)
            yield start, end
            start = end

    # ----------------------------------------------------------------------------------------------------------- holes

    async def discard(self, offset: int, length: int) -> None:
        if not self._discards:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        end = offset + length
        grain = self._block if self._limits.unmaps_same else max(self._limits.grain, 1) * self._block
        origin = 0 if self._limits.unmaps_same else self._limits.aligned * self._block
        first = min(-(-(offset - origin) // grain) * grain + origin, end)
        last = max((end - origin) // grain * grain + origin, first)
        try:
            await self._unmap(first, last)
        except UnitError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._discards = False
            raise
        await self._zero(offset, first)
        await self._zero(last, end)

    async def _unmap(self, start: int, stop: int) -> None:
        limits, block = self._limits, self._block
        most = (limits.same if limits.unmaps_same else limits.unmap) or UNMAPPED_AT_ONCE // block
        most = min(most, UNMAPPED_AT_ONCE // block)
        if not limits.unmaps_same and limits.grain:  # a grain that is unmapped in two parts may stay
            most = max(most // limits.grain, 1) * limits.grain
        for at in range(start // block, stop // block, most):
            count = min(most, stop // block - at)
            if limits.unmaps_same:
                await self._client.run(self._unit, scsi.write_same_unmapped(at, count), data=memory_of(bytes(block)))
            else:
                ranges = memory_of(scsi.unmap_list([(at, count)]))
                await self._client.run(self._unit, scsi.unmap(1), data=ranges)

    async def _zero(self, start: int, stop: int) -> None:
        for at in range(start, stop, self._piece):
            await self.write(bytes(min(self._piece, stop - at)), at)

    async def next_data(self, offset: int) -> tuple[int, int] | None:
        if not self._tells_holes:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        end = self._capacity.blocks
        at = offset // self._block
        found: int | None = None
        while at < end:
            for first, count, state in await self._states(at):
                if state not in scsi.HOLES and found is None:
                    found = max(first, offset // self._block)
                elif state in scsi.HOLES and found is not None:
                    return found * self._block, first * self._block
                at = first + count
        return None if found is None else (found * self._block, end * self._block)

    async def _states(self, block: int) -> list[tuple[int, int, int]]:
        """Return the states of the ranges of blocks from ``block`` on. :raises OSError: EOPNOTSUPP: the unit does not tell."""
        room = bytearray(8 + 16 * STATES)
        try:
            await self._client.run(self._unit, scsi.get_lba_status(block, len(room)), into=memory_of(room))
        except UnitError as error:
            if error.errno == errno.EOPNOTSUPP:
                self._tells_holes = False
            raise
        states = scsi.parse_lba_status(room)
        at = block
        for first, count, _ in states:
            if first > at or first + count <= at:
                raise OSError(errno.EIO, "the unit tells nonsense about its holes")
            at = first + count
        if at == block:
            raise OSError(errno.EIO, "the unit tells nothing about its holes")
        return states

    async def lock(self) -> bool:
        """Lock the unit within this process: pools may have some of their portals in common, and all of their units."""
        wanted = self._client.target, self.id
        if wanted in _WRITTEN:
            return self._lock is not None
        _WRITTEN.add(wanted)
        self._lock = wanted
        return True

    async def close(self) -> None:
        """Wait for the commands of callers that were cancelled: they may still write."""
        try:
            await self._unit.idle()
        finally:
            if self._unit.busy:
                self._unit.left = self._unlock
            else:
                self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            _WRITTEN.discard(self._lock)


async def _together(calls: list[Coroutine[Any, Any, None]]) -> None:
    """Run calls at once. If one fails, the others are cancelled."""
    if len(calls) == 1:
        await calls[0]
        return
    try:
        async with TaskGroup() as group:
            for call in calls:
                group.create_task(call)
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several.exceptions[0].__cause__
