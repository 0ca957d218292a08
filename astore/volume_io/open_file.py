"""OpenFile: an open file of a tree, for use from asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio

from astore.backend import Filled, Lane, ReadsBlocks, Take, VolumeFile
from astore.cancellation import SYNC_SECONDS, in_a_thread
from astore.model import FileStat
from astore.volume_io.blocking_file import TreeFile

T = TypeVar("T")

CLOSE_SECONDS = 2.0
"""Seconds that closing may block its caller; a file that hangs is closed by the thread that hangs in it."""


class OpenFile(VolumeFile, ReadsBlocks):
    """A volume opened for random access. Calls may run concurrently.

    A cancelled call goes on in its thread. The thread of the last call closes the file, so that a descriptor's number is
    never given to another file while a call uses it.

    :ivar lane: the lane whose threads make its calls. :ivar file: the file itself, for blocking calls through :meth:`run`.
    """

    def __init__(self, lane: Lane, file: TreeFile, note_folder: Callable[[], object] | None = None) -> None:
        self.lane = lane
        self.file = file
        self._note_folder = note_folder
        self._lock = threading.Lock()
        self._users = 0
        self._closing = False
        self._closed = False
        self._told: Callable[[], object] | None = None  # called when the last call has closed the file

    @property
    def in_flight(self) -> int:
        return self.file.in_flight

    async def run(self, func: Callable[..., T], *args: object, timeout: float | None = None) -> T:
        """Call ``func(*args)``, which uses the file, on a thread of the lane.

        :param timeout: seconds; None is the lane's deadline.
        """
        return await self.lane.run(self.guarded, func, *args, timeout=timeout)

    def guarded(self, func: Callable[..., T], *args: object) -> T:
        """Call ``func(*args)`` on this thread; the file stays open meanwhile."""
        with self._lock:
            if self._closing:
                raise OSError(errno.EBADF, "the volume was closed")
            self._users += 1
        try:
            return func(*args)
        finally:
            with self._lock:
                self._users -= 1
                last = self._closing and not self._users
            if last:
                with contextlib.suppress(OSError):  # the caller of aclose() gets no errors of a late close
                    self._close_once()
                if self._told is not None:
                    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                        self._told()

    async def stat(self) -> FileStat:
        return await self.run(self.file.stat)

    async def pread(self, length: int, offset: int) -> bytes:
        return await self.run(self.file.pread, length, offset)

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        return await self.run(self.file.preadinto, buffer, offset)

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        await self.run(_read_blocks, self.file, take, filled)

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        await self.run(self.file.pwrite, data, offset)

    async def truncate(self, length: int) -> None:
        await self.run(self.file.truncate, length)

    async def punch(self, offset: int, length: int) -> None:
        await self.run(self.file.punch, offset, length)

    async def seek_data(self, offset: int) -> int | None:
        return await self.run(self.file.seek_data, offset)

    async def seek_hole(self, offset: int) -> int:
        return await self.run(self.file.seek_hole, offset)

    async def note_format(self, format: str | None) -> bool:
        """Note the format that the volume was made in, or remove the note (None); False: this storage keeps no notes."""
        return await self.run(self._note_format, format)

    def _note_format(self, format: str | None) -> bool:
        if not self.file.note_format(format):
            return False
        if format is not None and self._note_folder is not None:
            self._note_folder()
        return True

    async def sync(self) -> None:
        await self.run(self.file.sync, timeout=SYNC_SECONDS)

    async def aclose(self) -> None:
        """Close the file after its last call. The wait for that is bounded. May be called twice; shield it.

        :raises OSError: a delayed write failed.
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
                await (self.lane.run(self._close_once) if idle else closed.wait())
        finally:
            if idle and not self._closed:  # the lane has no free thread: close it on an own one
                in_a_thread(self._close_once)

    def _close_once(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._close()

    def _close(self) -> None:
        """Close the file. Blocks."""
        self.file.close()


def _read_blocks(file: TreeFile, take: Take, filled: Filled) -> None:
    while (job := take()) is not None:
        block, offset = job
        del job
        length = file.preadinto(block, offset)
        del block  # so that filled() may reuse it
        filled(length)
