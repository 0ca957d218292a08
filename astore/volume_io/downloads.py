"""Download: the bytes of an open volume in turn, read ahead by threads that stay at it.

A call from the loop to a thread and back costs more than reading two MiB that are cached. So a thread that has filled a block
takes the next one itself, as long as there is room, and the loop is woken only for the block that it waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from typing import Self

from astore.backend import VolumeFile
from astore.cancellation import shielded
from astore.volume_io.blocks import Blocks, Filled, Hole, Take
from astore.volume_io.copying import Count, next_data

BLOCK = 2 << 20
"""Bytes that are read at once."""

ROOM = 2
"""How many blocks may lie there, read, beyond those that are being read."""

STAY = 0.01
"""Seconds after which a thread that reads is given back, and has to be asked for again."""


async def read_blocks(file: VolumeFile, take: Take, filled: Filled) -> None:
    """Fill buffers one after the other; in a thread, where the file has ``read_blocks`` of its own.

    :raises: whatever a read raised; ``filled`` was not called for that one.
    """
    own = getattr(file, "read_blocks", None)
    if own is not None:
        await own(take, filled)
        return
    while (job := take()) is not None:
        filled(await file.preadinto(*job))


class _Slot:
    """A block in its place among those to come: not there before it has a ``length`` or an ``error``."""

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


class _Reader:
    """What one call reads. All but :meth:`fail` is called in its thread."""

    def __init__(self, download: Download) -> None:
        self._download = download
        self._until: float | None = (
            None  # the call's first block is read in any case, however long it waited for a thread
        )
        self._over = False
        self._slot: _Slot | None = None  # changed with the lock held

    def take(self) -> tuple[bytearray, int] | None:
        download = self._download
        now = time.monotonic()
        if self._until is None:
            self._until = now + STAY
        elif now > self._until:
            return None
        with download._lock:
            if self._over or not download._to_read:
                return None
            slot = self._slot = download._to_read.popleft()
            slot.block = download._blocks.take(slot.wanted)
            return slot.block, slot.offset

    def filled(self, length: int) -> None:
        download = self._download
        with download._lock:
            slot, self._slot = self._slot, None
            if slot is None:
                return  # it came too late
            if 0 <= length <= slot.wanted:
                slot.length = length
            else:
                slot.error = ValueError(f"a file says that it has read {length} of {slot.wanted} bytes")
            if download._waiting is not None and download._ahead and download._ahead[0] is slot:
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    download._loop.call_soon_threadsafe(download._look_again)

    def end(self) -> None:
        """The call returned. If it had taken a block, that is there."""
        if self._slot is not None:
            self.fail(RuntimeError("a file took a block to read, and did not say that it had"))

    def fail(self, error: BaseException) -> None:
        """The call failed, or hangs. What comes before is given yet, and nothing after it."""
        download = self._download
        if isinstance(
            error, (StopAsyncIteration, asyncio.CancelledError)
        ):  # which would say something else to who waits
            error, cause = RuntimeError(f"a file raised {type(error).__name__}"), error
            error.__cause__ = cause
        with download._lock:
            self._over = True
            slot, self._slot = self._slot, None
            if slot is None and download._to_read:  # it could not even begin
                slot = download._to_read.popleft()
            if slot is not None:
                slot.error = error
                download._to_read.clear()
                download._at = download._until = download._end


class Download:
    """The blocks of a volume in turn, read ahead: an async iterator, given by ``volume.download()``."""

    def __init__(self, file: VolumeFile, offset: int, end: int, sparse: bool, count: Count) -> None:
        self._file = file
        self._loop = asyncio.get_running_loop()
        self._count = count
        self._at = offset
        self._until = end if not sparse else offset
        self._end = end
        self._most = file.in_flight + ROOM
        self._readers: set[asyncio.Task[None]] = set()
        self._closed = False
        self._waiting: asyncio.Future[None] | None = None
        # used by threads too, with the lock held
        self._lock = threading.Lock()
        self._blocks = Blocks(BLOCK, self._most + 2)  # one more is with whoever asks, one perhaps still with a thread
        self._ahead: deque[_Slot | Hole] = deque()
        self._to_read: deque[_Slot] = deque()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytearray | Hole:
        # whoever is cancelled here (a deadline for one block) may ask again, and misses nothing
        while True:
            while self._at >= self._until and self._at < self._end and len(self._ahead) < self._file.in_flight:
                await self._find_data()
            with self._lock:
                self._plan()
                first = self._ahead[0] if self._ahead else None
                there = not isinstance(first, _Slot) or first.there
                self._send_readers(soon=not there)
                if not there:
                    waiting = self._waiting = self._loop.create_future()
            if there:
                break
            await waiting
        if isinstance(first, _Slot) and first.error is not None:
            raise first.error
        if first is None:
            raise StopAsyncIteration
        self._ahead.popleft()
        if isinstance(first, Hole):
            self._count.add(first.length)
            return first
        block = first.block
        if first.length < len(block):  # it was cut meanwhile, and ends here
            self._give_up()
            if not first.length:
                raise StopAsyncIteration
            block = block[: first.length]
        self._count.add(len(block))
        return block

    async def _find_data(self) -> None:
        """Find out where the next data are, and the hole before them."""
        at = self._at
        begin, until = await next_data(self._file, at, self._end) or (self._end, self._end)
        with self._lock:
            if self._at != at:
                return  # it came to an end meanwhile
            if begin > at:
                self._ahead.append(Hole(begin - at))
            self._at, self._until = begin, until

    def _plan(self) -> None:
        """Say what is to be read, as far as there is room."""
        while self._at < self._until and len(self._ahead) < self._most:
            slot = _Slot(self._at, min(BLOCK, self._until - self._at))
            self._ahead.append(slot)
            self._to_read.append(slot)
            self._at += slot.wanted

    def _send_readers(self, soon: bool) -> None:
        """Have threads read. :param soon: also if there is little for them to do."""
        if soon or self._at >= self._until or len(self._to_read) >= self._most // 2:
            for _ in range(min(self._file.in_flight - len(self._readers), len(self._to_read))):
                # not by way of a task factory: an eager task would run at once, and the lock is held
                self._readers.add(asyncio.Task(self._read(), loop=self._loop))

    async def _read(self) -> None:
        reader = _Reader(self)
        try:
            await read_blocks(self._file, reader.take, reader.filled)
            reader.end()
        except BaseException as error:  # plugin code: it may raise anything, and whoever waits is to hear of it
            if self._closed and isinstance(error, asyncio.CancelledError):
                raise
            reader.fail(error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._readers.discard(task)
            self._look_again()  # there may be more to read by now

    def _look_again(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def _give_up(self) -> None:
        with self._lock:
            self._at = self._until = self._end
            self._to_read.clear()
            self._ahead.clear()
        self._look_again()

    async def aclose(self) -> None:
        """Give up what is being read ahead."""
        self._closed = True
        self._give_up()
        readers = list(self._readers)
        for reader in readers:
            reader.cancel()
        if readers:
            await asyncio.wait(readers)
        self._readers.clear()  # those that had not begun too


@contextlib.asynccontextmanager
async def downloading(file: VolumeFile, offset: int, end: int, sparse: bool, count: Count) -> AsyncIterator[Download]:
    """A :class:`Download` of the bytes from ``offset`` to ``end``; reads that are under way end with it."""
    download = Download(file, offset, end, sparse, count)
    try:
        yield download
    finally:
        await shielded(download.aclose())
