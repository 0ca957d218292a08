"""OpenFile: a file of a tree, opened for use from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio

from astore.backend import Filled, Lane, Take
from astore.cancellation import SYNC_SECONDS, in_a_thread
from astore.model import FileStat
from astore.volume_io.blocking_file import TreeFile

T = TypeVar("T")

CLOSE_SECONDS = 2.0
"""How long closing may hold its caller up; a file that hangs is closed by the thread that hangs in it."""


class OpenFile:
    """A volume opened for random access; see :class:`astore.backend.VolumeFile`. Calls may be made side by side.

    A call that was cancelled goes on in its thread. The file is closed when the last call is out of it, by whoever made
    that call, so that no number is closed, and given to another file, under a call.
    """

    def __init__(self, lane: Lane, file: TreeFile, note_folder: Callable[[], object] | None = None) -> None:
        self._lane = lane
        self._file = file
        self._note_folder = note_folder
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False
        self._closed = False
        self._told: Callable[[], object] | None = None  # called when it is closed by the last call

    @property
    def in_flight(self) -> int:
        """How many calls at once pay for bulk data."""
        return self._file.in_flight

    @property
    def lane(self) -> Lane:
        """Whose threads make its calls."""
        return self._lane

    @property
    def file(self) -> TreeFile:
        """The file itself, for blocking calls that are made through :meth:`run`."""
        return self._file

    async def run(self, func: Callable[..., T], *args: object, timeout: float | None = None) -> T:
        """Call ``func(*args)``, which uses the file, on a thread of the lane.

        :param timeout: seconds; None is the lane's deadline.
        """
        return await self._lane.run(self.guarded, func, *args, timeout=timeout)

    def guarded(self, func: Callable[..., T], *args: object) -> T:
        """Call ``func(*args)`` on this thread; the file stays open meanwhile."""
        with self._lock:
            if self._closing:
                raise OSError(errno.EBADF, "it was closed meanwhile")
            self._users += 1
        try:
            return func(*args)
        finally:
            with self._lock:
                self._users -= 1
                last = self._closing and not self._users
            if last:
                with contextlib.suppress(OSError):  # whoever closed it does not wait for what this says
                    self._close_once()
                if self._told is not None:
                    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                        self._told()

    async def stat(self) -> FileStat:
        """Its attributes."""
        return await self.run(self._file.stat)

    async def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only where the volume ends."""
        return await self.run(self._file.pread, length, offset)

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; returns how many bytes there were, fewer only where the volume ends.

        If this is cancelled the buffer may still be filled, until the thread lets go of it.
        """
        return await self.run(self._file.preadinto, buffer, offset)

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        """Fill buffers one after the other, on one thread; see :func:`astore.volume_io.downloads.read_blocks`."""
        await self.run(_read_blocks, self._file, take, filled)

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; ``data`` must not change before this returns."""
        await self.run(self._file.pwrite, data, offset)

    async def truncate(self, length: int) -> None:
        """Set the size of the file; what it gains is a hole."""
        await self.run(self._file.truncate, length)

    async def punch(self, offset: int, length: int) -> None:
        """Make a range a hole."""
        await self.run(self._file.punch, offset, length)

    async def seek_data(self, offset: int) -> int | None:
        """Where data begin at or after ``offset``; None where there are none up to the end."""
        return await self.run(self._file.seek_data, offset)

    async def seek_hole(self, offset: int) -> int:
        """Where a hole begins at or after ``offset``; the end of the file at the latest."""
        return await self.run(self._file.seek_hole, offset)

    async def note_format(self, format: str | None) -> bool:
        """Note which format it was made in, or (None) take that back; False: this storage keeps no notes."""
        return await self.run(self._note_format, format)

    def _note_format(self, format: str | None) -> bool:
        if not self._file.note_format(format):
            return False
        if format is not None and self._note_folder is not None:
            self._note_folder()
        return True

    async def sync(self) -> None:
        """Wait until what was written is safe."""
        await self.run(self._file.sync, timeout=SYNC_SECONDS)

    async def aclose(self) -> None:
        """Close it, once the last call is out of it; wait for that, but not for long. May be called twice. To be shielded.

        :raises OSError: a write that was put off failed.
        """
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()
        with self._lock:
            if self._closing:
                return
            self._closing = True
            idle = not self._users
            if not idle:
                self._told = lambda: loop.call_soon_threadsafe(closed.set)
        try:
            with anyio.move_on_after(CLOSE_SECONDS), contextlib.suppress(TimeoutError):
                await (self._lane.run(self._close_once) if idle else closed.wait())
        finally:
            if idle and not self._closed:  # the lane has no thread for it, which is no reason to keep it
                in_a_thread(self._close_once)

    def _close_once(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._close()

    def _close(self) -> None:
        """Close the file; in a thread."""
        self._file.close()


def _read_blocks(file: TreeFile, take: Take, filled: Filled) -> None:
    while (job := take()) is not None:
        block, offset = job
        del job
        length = file.preadinto(block, offset)
        del block  # whoever is told may use it again
        filled(length)
