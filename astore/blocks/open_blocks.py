"""OpenBlocks: a block volume, opened for use from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio

from astore.backend import Filled, Take
from astore.blocks.calls import Calls
from astore.blocks.contract import Answer, BlockPool, BlockVolume, ResizesBlocks
from astore.cancellation import SYNC_SECONDS, retrieved, shielded
from astore.errors import StorageError, VolumeBusyError, printable
from astore.model import FileStat, VolumeInfo
from astore.volume_io.open_file import CLOSE_SECONDS
from astore.volume_io.session_files import SessionFiles
from astore.volume_io.wording import worded

T = TypeVar("T")

MODE = stat.S_IFBLK | 0o600
"""What is told of volumes that have no permissions of their own."""

LOCK_TRIES = 10
"""How many times a volume that somebody is writing is asked for, 20 ms apart."""


class OpenBlocks:
    """A volume opened for random access; see :class:`astore.backend.VolumeFile`. Calls may be made side by side.

    Where the pool can resize volumes, it grows as a file does when it is written behind its end. It is closed when the last
    call is out of it, also those that were cancelled and go on in their threads.
    """

    def __init__(self, calls: Calls, pool: BlockPool, volume: BlockVolume, name: str) -> None:
        self._calls = calls
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._users = 0
        self._closing: asyncio.Task[None] | None = None
        self._over = False
        self._idle = asyncio.Event()
        self._growing = asyncio.Lock()
        self._size: int | None = None
        self._data: tuple[int, int] | None = None  # the range that was found last
        self.volume = volume
        self.name = name

    @property
    def in_flight(self) -> int:
        """How many calls at once pay for bulk data."""
        return self.volume.in_flight

    async def run(self, func: Callable[..., Answer[T]], *args: object, timeout: float | None = None) -> T:
        """Make a call that uses the volume, which stays open meanwhile. :param timeout: in seconds; None is the pool's."""
        if inspect.iscoroutinefunction(func):
            self._enter()
            try:
                return await self._calls.run(func, *args, timeout=timeout)
            finally:
                self._leave()

        def guarded() -> Answer[T]:
            self._enter()
            try:
                return func(*args)
            finally:
                self._leave()

        return await self._calls.run(guarded, timeout=timeout)

    def _enter(self) -> None:
        with self._lock:
            if self._over:
                raise OSError(errno.EBADF, "it was closed meanwhile")
            self._users += 1

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = self._over and not self._users
        if last:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self._loop.call_soon_threadsafe(self._idle.set)

    async def stat(self) -> FileStat:
        """Its size, and which volume it is."""
        size = self._size = await self.run(self.volume.size)
        return FileStat(MODE, self.volume.id, size, -(-size // 512), 0, 0, 0, 0, 0, self._pool.device or 0)

    async def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only where the volume ends."""
        buffer = bytearray(length)
        done = await self.preadinto(buffer, offset)
        return bytes(memoryview(buffer)[:done])

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; returns how many bytes there were, fewer only where the volume ends."""
        return await self.run(self.volume.read_into, buffer, offset) if len(buffer) else 0

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        """Fill buffers one after the other; see :func:`astore.volume_io.downloads.read_blocks`."""
        read = self.volume.read_into
        if inspect.iscoroutinefunction(read):
            while (job := take()) is not None:
                filled(await self.run(read, *job))
            return

        def all_blocks() -> None:  # blocking calls stay on one thread
            while (job := take()) is not None:
                answer: Any = read(*job)
                del job  # whoever is told may use the buffer again
                filled(answer)

        await self.run(all_blocks)

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; ``data`` must not change before this returns."""
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        if not length:
            return
        await self._reach(offset + length)
        self._data = None
        await self.run(self.volume.write, data, offset)

    async def _reach(self, end: int) -> None:
        """Have the volume be no smaller than this."""
        if self._size is not None and end <= self._size:
            return
        async with self._growing:
            size = (await self.stat()).size
            if end > size:
                await self._resize(end)

    async def _resize(self, size: int) -> None:
        if not isinstance(self._pool, ResizesBlocks):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await self.run(self._pool.resize, self.name, size, False)
        self._size = size

    async def truncate(self, length: int) -> None:
        """Set its size. :raises OSError: ENOSPC: it cannot have another."""
        async with self._growing:
            if (await self.stat()).size != length:
                self._data = None
                await self._resize(length)

    async def punch(self, offset: int, length: int) -> None:
        """Make a range a hole. :raises OSError: EOPNOTSUPP: this storage has none."""
        size = (await self.stat()).size if self._size is None else self._size
        end = min(offset + length, size)
        if end > offset:
            self._data = None
            await self.run(self.volume.discard, offset, end - offset)

    async def seek_data(self, offset: int) -> int | None:
        """Where data begin at or after ``offset``; None where there are none up to the end."""
        found = await self._next_data(offset)
        return None if found is None else found[0]

    async def seek_hole(self, offset: int) -> int:
        """Where a hole begins at or after ``offset``; the end of the volume at the latest."""
        known = self._data  # who asked for data asks for their end next
        found = known if known is not None and known[0] <= offset < known[1] else await self._next_data(offset)
        return offset if found is None or found[0] > offset else found[1]

    async def _next_data(self, offset: int) -> tuple[int, int] | None:
        try:
            found = await self.run(self.volume.next_data, offset)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            size = (await self.stat()).size
            found = (offset, size) if offset < size else None
        if found is not None:
            found = max(found[0], offset), found[1]
        self._data = found
        return found

    async def sync(self) -> None:
        """Wait until what was written is safe."""
        await self.run(self.volume.flush, timeout=SYNC_SECONDS)

    async def aclose(self) -> None:
        """Close it, once the last call is out of it; wait for that, but not for long. May be called twice. To be shielded.

        :raises OSError: a write that was put off failed.
        """
        with self._lock:
            begun, self._over = self._over, True
            if not self._users:
                self._idle.set()
        if begun:
            return
        closing = self._closing = self._loop.create_task(self._close_when_idle())
        closing.add_done_callback(retrieved)
        with anyio.move_on_after(CLOSE_SECONDS), contextlib.suppress(TimeoutError):
            await asyncio.shield(closing)

    async def _close_when_idle(self) -> None:
        await self._idle.wait()
        await self.close()

    async def close(self) -> None:
        """Close the volume; nobody is in it."""
        await self._calls.close(self.volume.close)


class BlockOpener:
    """Opens the volumes of a block pool; what is open ends with it.

    :param calls: makes the pool's calls.
    """

    def __init__(self, calls: Calls, pool: BlockPool) -> None:
        self._calls = calls
        self._pool = pool
        self.files = SessionFiles()

    @contextlib.asynccontextmanager
    async def volume(self, volume: VolumeInfo, *, write: bool = False, what: str = "") -> AsyncIterator[OpenBlocks]:
        """Open a volume's bytes; for writing, locked against all other writers of astore's.

        :param what: the work, for the error, where it must be the very volume also for reading.
        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: EAGAIN: another
            volume has its name than the one that was asked about.
        """
        with worded(volume.name, "open"):
            opened = await self.opened(volume.name, write)
        try:
            with self.files.keeping(opened):
                if (write or what) and opened.volume.id != volume.inode:
                    raise another(volume)
                if write:
                    with worded(volume.name, "open"):
                        await self._lock(opened)
                yield opened
        except BaseException:
            with contextlib.suppress(Exception):
                await shielded(opened.aclose())
            raise
        with worded(volume.name, "close"):
            await shielded(opened.aclose())

    async def opened(self, name: str, write: bool) -> OpenBlocks:
        """Open a volume. :raises OSError: ENOENT: it is not there."""
        volume = await self._calls.to_the_end(self._pool.open, name, write, undo=close_volume)
        return OpenBlocks(self._calls, self._pool, volume, name)

    async def _lock(self, opened: OpenBlocks) -> None:
        """Lock it; for a moment again and again, since a network may be slow to tell that the last writer has gone."""
        for _ in range(LOCK_TRIES):
            if await opened.run(opened.volume.lock):
                return
            await asyncio.sleep(0.02)
        if not await opened.run(opened.volume.lock):
            raise VolumeBusyError(f"volume {opened.name!r} is being written by somebody else", operation="write")

    async def check_unused(self, volume: VolumeInfo) -> None:
        """:raises VolumeBusyError: somebody is writing it. StorageError: EAGAIN: another volume has its name."""
        async with self.volume(volume, write=True):
            pass


def another(volume: VolumeInfo) -> StorageError:
    """The error of work on a volume whose name another has by now."""
    return StorageError(
        f"volume {printable(volume.name)!r} is another one by now; refresh it first", errno=errno.EAGAIN
    )


def close_volume(volume: BlockVolume) -> Answer[None]:
    """Close a volume that nobody took."""
    return volume.close()
