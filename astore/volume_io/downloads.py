"""Download: the bytes of an open volume in order, read ahead by threads.

A round trip from the loop to a thread costs more than reading two cached MiB. So a thread that has filled a block takes
the next one itself while there is room, and the loop is woken only for the block that it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Self

from astore.backend import Filled, ReadsBlocks, Take, VolumeFile
from astore.cancellation import shielded
from astore.volume_io.blocks import Blocks, Hole
from astore.volume_io.copying import Count, next_data

BLOCK = 2 << 20
"""Bytes per read."""

ROOM = 2
"""How many read blocks may wait, beyond those that are being read."""

STAY = 0.01
"""Seconds after which a reading thread goes back to the lane, and has to be requested again."""


async def read_blocks(file: VolumeFile, take: Take, filled: Filled) -> None:
    """Fill buffers one after the other; in one call if the file is a :class:`~astore.backend.ReadsBlocks`.

    :raises: what a read raised; ``filled`` was not called for it.
    """
    if isinstance(file, ReadsBlocks):
        await file.read_blocks(take, filled)
        return
    while (job := take()) is not None:
        filled(await file.preadinto(*job))


class _Slot:
    """A planned block. It is there once it has a ``length`` or an ``error``."""

    __slots__ = ("block", "error", "length", "offset", "wanted")

    def __init__(self, offset: int, wanted: int) -> None:
        self.offset = offset
        self.wanted = wanted
        self.block = bytearray()
        self.length = -1
        self.error: BaseException | None = None

    @property
    def there(self) -> bool:
        return self.length >= 0 or self.error is not None


class _Call:
    """One call of a file's ``read_blocks``. Its fields, except ``until``, change only under the lock of :class:`_ReadAhead`.

    :ivar until: when its thread goes back. The first block is read anyway, however long the call waited for a thread.
    :ivar slot: the block that it reads now. :ivar over: whether it gets no more blocks.
    """

    __slots__ = ("over", "slot", "until")

    def __init__(self) -> None:
        self.until: float | None = None
        self.slot: _Slot | None = None
        self.over = False


class _ReadAhead:
    """The planned and the read blocks, under one lock: the loop plans and takes them, threads fill them.

    :param in_flight: how many calls read at once. :param offset: where to begin. :param end: where to end.
    :param sparse: find data before reading; see :meth:`gap`.
    :param wake: called from a thread when the block that the loop waits for is there.
    """

    def __init__(self, in_flight: int, offset: int, end: int, sparse: bool, wake: Callable[[], object]) -> None:
        self._in_flight = in_flight
        self._most = in_flight + ROOM
        self._at = offset
        self._until = end if not sparse else offset
        self._end = end
        self._wake = wake
        self._awaited: _Slot | None = None  # the block that the loop waits for
        self._lock = threading.Lock()
        self._blocks = Blocks(BLOCK, self._most + 2)  # one more is with the consumer, one perhaps still with a thread
        self._ahead: deque[_Slot | Hole] = deque()
        self._to_read: deque[_Slot] = deque()

    # --------------------------------------------------------------------------------------------------- on the loop

    def gap(self) -> int | None:
        """Return where to look for the next data, or None if enough is planned."""
        with self._lock:
            if self._at >= self._until and self._at < self._end and len(self._ahead) < self._in_flight:
                return self._at
            return None

    def found(self, at: int, begin: int, until: int) -> None:
        """Go on from the gap ``at`` with a hole up to ``begin`` and data up to ``until``."""
        with self._lock:
            if self._at != at:
                return  # the download ended meanwhile
            if begin > at:
                self._ahead.append(Hole(begin - at))
            self._at, self._until = begin, until

    def look(self) -> tuple[_Slot | Hole | None, int]:
        """Plan blocks while there is room. Return the first one, if any, and how many calls to start.

        If the first block is not there yet, ``wake`` is called when it is.
        """
        with self._lock:
            while self._at < self._until and len(self._ahead) < self._most:
                slot = _Slot(self._at, min(BLOCK, self._until - self._at))
                self._ahead.append(slot)
                self._to_read.append(slot)
                self._at += slot.wanted
            first = self._ahead[0] if self._ahead else None
            self._awaited = first if isinstance(first, _Slot) and not first.there else None
            # while the loop does not wait, a call for only a few blocks is not worth its cost
            worth = self._awaited is not None or self._at >= self._until or len(self._to_read) >= self._most // 2
            return first, len(self._to_read) if worth else 0

    def pop(self) -> None:
        """Remove the first block or hole."""
        with self._lock:
            self._ahead.popleft()

    def give_up(self) -> None:
        """Drop all blocks and plan no more."""
        with self._lock:
            self._stop()
            self._ahead.clear()

    # --------------------------------------------------------------------------------------------------- in a thread

    def take(self, call: _Call) -> tuple[bytearray, int] | None:
        """Return the next block for a call to read; None ends the call."""
        now = time.monotonic()
        if call.until is None:
            call.until = now + STAY
        elif now > call.until:
            return None
        with self._lock:
            if call.over or not self._to_read:
                return None
            slot = call.slot = self._to_read.popleft()
            slot.block = self._blocks.take(slot.wanted)
            return slot.block, slot.offset

    def filled(self, call: _Call, length: int) -> None:
        """Record that a call has read ``length`` bytes of its block."""
        with self._lock:
            slot, call.slot = call.slot, None
            if slot is None:
                return  # too late
            if isinstance(length, int) and 0 <= length <= slot.wanted:
                slot.length = length
            else:
                slot.error = ValueError(f"a read of {slot.wanted} bytes returned {length!r}")
            if self._awaited is slot:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    self._wake()

    # ---------------------------------------------------------------------------------------------------- anywhere

    def end(self, call: _Call) -> None:
        """Record that a call returned. If its block is not there, that is an error of the file."""
        if call.slot is not None:
            self.fail(call, RuntimeError("read_blocks() took a block and never filled it"))

    def fail(self, call: _Call, error: BaseException) -> None:
        """Record that a call failed. Blocks before its own are still delivered, later ones are not."""
        if isinstance(error, (StopAsyncIteration, asyncio.CancelledError)):  # these mean something else to the consumer
            error, cause = RuntimeError(f"a file raised {type(error).__name__}"), error
            error.__cause__ = cause
        with self._lock:
            call.over = True
            slot, call.slot = call.slot, None
            if slot is None and self._to_read:  # it failed before its first block
                slot = self._to_read.popleft()
            if slot is not None:
                slot.error = error
                self._stop()

    def _stop(self) -> None:
        self._to_read.clear()
        self._at = self._until = self._end


class Download:
    """An async iterator over the blocks of a volume, read ahead; ``volume.download()`` returns one."""

    def __init__(self, file: VolumeFile, offset: int, end: int, sparse: bool, count: Count) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._end = end
        self._calls: set[asyncio.Task[None]] = set()
        self._closed = False
        self._signal = asyncio.Event()
        self._ahead = _ReadAhead(
            file.in_flight, offset, end, sparse, partial(self._loop.call_soon_threadsafe, self._signal.set)
        )

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytearray | Hole:
        # a consumer that is cancelled here (a deadline for one block) may continue, and misses nothing
        ahead = self._ahead
        while True:
            while (at := ahead.gap()) is not None:
                ahead.found(at, *(await next_data(self._file, at, self._end) or (self._end, self._end)))
            self._signal.clear()
            first, calls = ahead.look()
            there = not isinstance(first, _Slot) or first.there
            for _ in range(min(self._file.in_flight - len(self._calls), calls)):
                # no task factory: an eager task could end before it is in the set
                self._calls.add(asyncio.Task(self._read(), loop=self._loop))
            if there:
                break
            await self._signal.wait()
        if isinstance(first, _Slot) and first.error is not None:
            raise first.error
        if first is None:
            raise StopAsyncIteration
        ahead.pop()
        if isinstance(first, Hole):
            self._count.add(first.length)
            return first
        block = first.block
        if first.length < len(block):  # it was truncated meanwhile, and ends here
            self._give_up()
            if not first.length:
                raise StopAsyncIteration
            block = block[: first.length]
        self._count.add(len(block))
        return block

    async def _read(self) -> None:
        ahead, call = self._ahead, _Call()
        try:
            await read_blocks(self._file, lambda: ahead.take(call), lambda length: ahead.filled(call, length))
            ahead.end(call)
        except BaseException as error:  # plugin code may raise anything; the consumer gets it
            if self._closed and isinstance(error, asyncio.CancelledError):
                raise
            ahead.fail(call, error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._calls.discard(task)
            self._signal.set()  # there may be more to read by now

    def _give_up(self) -> None:
        self._ahead.give_up()
        self._signal.set()

    async def aclose(self) -> None:
        """Cancel the reads that are under way."""
        self._closed = True
        self._give_up()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls)
        self._calls.clear()  # including tasks that never started


@contextlib.asynccontextmanager
async def downloading(file: VolumeFile, offset: int, end: int, sparse: bool, count: Count) -> AsyncIterator[Download]:
    """Download the bytes from ``offset`` to ``end``; running reads are cancelled at the end of the block."""
    download = Download(file, offset, end, sparse, count)
    try:
        yield download
    finally:
        await shielded(download.aclose())
