"""OpenBlocks: an open block volume, for use from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import os
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import anyio

from astore.backend import Filled, ReadsBlocks, Take, VolumeFile
from astore.blocks.calls import Calls
from astore.blocks.contract import Answer, BlockPool, BlockVolume, ResizesBlocks
from astore.cancellation import SYNC_SECONDS, retrieved
from astore.model import FileStat, VolumeInfo
from astore.volume_io.open_file import CLOSE_SECONDS
from astore.volume_io.session_files import LOCK_PAUSE, LOCK_TRIES, SessionFiles
from astore.volume_io.wording import being_written, replaced, worded

T = TypeVar("T")

MODE = stat.S_IFBLK | 0o600
"""The reported mode of volumes, which have no permissions of their own."""


class OpenBlocks(VolumeFile, ReadsBlocks):
    """A volume opened for random access. Calls may run concurrently.

    If the pool can resize volumes, a write beyond the end makes the volume grow, as with a file. The volume is closed after its
    last call, including cancelled calls that go on in their threads.
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
        return self.volume.in_flight

    async def run(self, func: Callable[..., Answer[T]], *args: object, timeout: float | None = None) -> T:
        """Make a call that uses the volume, and keep it open meanwhile. :param timeout: in seconds; None is the pool's."""

        def guarded() -> Answer[T]:  # its thread may outlast the caller
            with self._used():
                return func(*args)

        with self._used():
            if inspect.iscoroutinefunction(func):
                return await self._calls.run(func, *args, timeout=timeout)
            return await self._calls.run(guarded, timeout=timeout)

    @contextlib.contextmanager
    def _used(self) -> Iterator[None]:
        """Keep the volume open. :raises OSError: EBADF: it was closed."""
        with self._lock:
            if self._over:
                raise OSError(errno.EBADF, "the volume was closed")
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                last = self._over and not self._users
            if last:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    self._loop.call_soon_threadsafe(self._idle.set)

    async def stat(self) -> FileStat:
        """Return the volume's size and identity; other attributes are made up."""
        size = await self.run(self.volume.size)
        return FileStat(MODE, self.volume.id, size, -(-size // 512), 0, 0, 0, 0, 0, self._pool.device or 0)

    async def pread(self, length: int, offset: int) -> bytes:
        buffer = bytearray(length)
        done = await self.preadinto(buffer, offset)
        return bytes(memoryview(buffer)[:done])

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        if not len(buffer):
            return 0
        return await self._checked(buffer, offset, await self.run(self.volume.read_into, buffer, offset))

    async def _checked(self, buffer: bytearray | memoryview, offset: int, length: int, *, again: bool = True) -> int:
        """Check the length that a read returned. A read that is too short is made again: the volume may have grown.

        :raises OSError: EIO: the volume returned nonsense.
        """
        if not (isinstance(length, int) and 0 <= length <= len(buffer)):
            raise OSError(errno.EIO, f"a read of {len(buffer)} bytes returned {length!r}")
        if length == len(buffer) or offset + length >= (await self.stat()).size:
            return length
        if not again:
            raise OSError(errno.EIO, f"a read of {len(buffer)} bytes returned {length}, before the end of the volume")
        length = await self.run(self.volume.read_into, buffer, offset)
        return await self._checked(buffer, offset, length, again=False)

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        read = self.volume.read_into
        if inspect.iscoroutinefunction(read):
            while (job := take()) is not None:
                filled(await self.preadinto(*job))
            return

        def whole_blocks() -> tuple[bytearray, int, Answer[int]] | None:
            """Fill buffers on this thread; return the first that was not filled, and what the read returned."""
            while (job := take()) is not None:
                answer = read(*job)
                if answer != len(job[0]):
                    return *job, answer
                del job  # so that filled() may reuse the buffer
                filled(answer)
            return None

        with self._used():
            while (odd := await self.run(whole_blocks)) is not None:
                buffer, offset, answer = odd
                filled(await self._checked(buffer, offset, await self._calls.settled(answer)))
                del odd, buffer

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        if not length:
            return
        await self._reach(offset + length)
        self._data = None
        await self.run(self.volume.write, data, offset)

    async def _reach(self, end: int) -> None:
        """Grow the volume to at least ``end`` bytes."""
        if self._size is not None and end <= self._size:
            return
        async with self._growing:
            size = self._size = (await self.stat()).size
            if end > size:
                await self._resize(end)

    async def _resize(self, size: int) -> None:
        if not isinstance(self._pool, ResizesBlocks):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await self.run(self._pool.resize, self.volume, size, False)
        self._size = size

    async def truncate(self, length: int) -> None:
        """Set the volume's size. :raises OSError: ENOSPC: the pool cannot resize volumes."""
        async with self._growing:
            if (await self.stat()).size != length:
                self._data = None
                await self._resize(length)

    async def punch(self, offset: int, length: int) -> None:
        async with self._growing:
            if self._size is None:
                self._size = (await self.stat()).size
            end = min(offset + length, self._size)
        if end > offset:
            self._data = None
            await self.run(self.volume.discard, offset, end - offset)

    async def seek_data(self, offset: int) -> int | None:
        found = await self._next_data(offset)
        return None if found is None else found[0]

    async def seek_hole(self, offset: int) -> int:
        known = self._data  # a caller of seek_data() looks for the end of this range next
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

    async def lock(self) -> bool:
        """Lock the volume; return False if it is locked already. A storage without locks lets everybody write."""
        try:
            return await self.run(self.volume.lock)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return True

    async def sync(self) -> None:
        await self.run(self.volume.flush, timeout=SYNC_SECONDS)

    async def aclose(self) -> None:
        """Close the volume after its last call. The wait for that is bounded. May be called twice; shield it.

        :raises OSError: a delayed write failed.
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
        """Close the volume, which no call uses any more."""
        await self._calls.close(self.volume.close)


class BlockOpener:
    """Opens the volumes of a block pool, and closes them when the session ends.

    :param calls: makes the pool's calls.
    """

    def __init__(self, calls: Calls, pool: BlockPool) -> None:
        self._calls = calls
        self._pool = pool
        self.files: SessionFiles = SessionFiles()

    @contextlib.asynccontextmanager
    async def volume(self, volume: VolumeInfo, *, write: bool = False, what: str = "") -> AsyncIterator[OpenBlocks]:
        """Open a volume's bytes; for writing, locked against all other astore writers.

        :param what: the operation, for the error, if it must be the volume of the record even for reading.
        :raises VolumeNotFoundError: it does not exist. VolumeBusyError: another writer has it open. StorageError: EAGAIN: its
            name leads to another volume than ``volume`` describes.
        """
        with worded(volume.name, "open"):
            opened = await self.opened(volume.name, write)
        async with self.files.using(opened, volume.name):
            if (write or what) and opened.volume.id != volume.inode:
                raise replaced(volume.name, "volume")
            if write:
                with worded(volume.name, "open"):
                    await self._lock(opened)
            yield opened

    async def opened(self, name: str, write: bool) -> OpenBlocks:
        """Open a volume. :raises OSError: ENOENT: it does not exist."""
        volume = await self._calls.to_the_end(self._pool.open, name, write, undo=close_volume)
        return OpenBlocks(self._calls, self._pool, volume, name)

    async def _lock(self, opened: OpenBlocks) -> None:
        """Lock a volume, with a few retries: a network may be slow to report that the last writer has gone."""
        for _ in range(LOCK_TRIES):
            if await opened.lock():
                return
            await asyncio.sleep(LOCK_PAUSE)
        if not await opened.lock():
            raise being_written(opened.name)


def close_volume(volume: BlockVolume) -> Answer[None]:
    """Close a volume whose caller was cancelled."""
    return volume.close()
