"""NamedFile: an open volume as the core hands it out, whose errors name pool and volume."""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import TypeVar

from astore.backend import Filled, Take, VolumeFile
from astore.errors import StorageError, printable, reason
from astore.model import FileStat
from astore.volume_io.downloads import read_blocks

T = TypeVar("T")


class NamedFile:
    """A volume opened for random access; see :class:`astore.backend.VolumeFile`. Calls may be made side by side.

    Every call raises StorageError, with the errno, where the storage says no, and LaneTimeoutError where it says nothing.
    """

    def __init__(self, file: VolumeFile, pool: str, volume: str, *, write: bool = True) -> None:
        self._file = file
        self._write = write
        self._pool = pool
        self._volume = volume

    def __repr__(self) -> str:
        return f"<NamedFile of volume {self._volume!r} of pool {self._pool!r}>"

    @property
    def in_flight(self) -> int:
        """How many calls at once pay for bulk data."""
        return self._file.in_flight

    async def stat(self) -> FileStat:
        """Its attributes."""
        return await self._named(self._file.stat())

    async def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only where the volume ends."""
        return await self._named(self._file.pread(length, offset))

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        """Fill ``buffer`` from ``offset`` on; returns how many bytes there were, fewer only where the volume ends.

        If this is cancelled the buffer may still be filled, until the thread lets go of it.
        """
        if isinstance(buffer, memoryview) and (buffer.format != "B" or buffer.ndim != 1):
            buffer = buffer.cast("B")
        return await self._named(self._file.preadinto(buffer, offset))

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        """Fill buffers one after the other; see :func:`astore.volume_io.downloads.read_blocks`."""
        await self._named(read_blocks(self._file, take, filled))

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``; ``data`` must not change before this returns."""
        self._check_write()
        await self._named(self._file.pwrite(data, offset))

    async def truncate(self, length: int) -> None:
        """Set the size of the file; what it gains is a hole."""
        self._check_write()
        await self._named(self._file.truncate(length))

    async def seek_data(self, offset: int) -> int | None:
        """Where data begin at or after ``offset``; None where there are none up to the end."""
        return await self._named(self._file.seek_data(offset))

    async def seek_hole(self, offset: int) -> int:
        """Where a hole begins at or after ``offset``; the end of the volume at the latest."""
        return await self._named(self._file.seek_hole(offset))

    async def punch(self, offset: int, length: int) -> None:
        """Make a range a hole; the size stays."""
        self._check_write()
        await self._named(self._file.punch(offset, length))

    async def note_format(self, format: str | None) -> bool:
        """Note which format the volume was made in, or (None) take that back; False: its storage keeps no notes."""
        self._check_write()
        note = getattr(self._file, "note_format", None)
        return False if note is None else await self._named(note(format))

    async def sync(self) -> None:
        """Wait until what was written is safe."""
        await self._named(self._file.sync())

    def _check_write(self) -> None:
        # not all storage says so, or says so at once: a client that puts writes off may only fail later, and to nobody
        if not self._write:
            raise StorageError(
                f"pool {self._pool!r}: volume {printable(self._volume)!r} was opened for reading",
                errno=errno.EBADF,
                pool=self._pool,
            )

    async def _named(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except TimeoutError:
            raise
        except OSError as error:
            if isinstance(error, StorageError) and error.pool is not None:
                raise
            raise StorageError(
                f"pool {self._pool!r}: volume {printable(self._volume)!r}: {reason(error)}",
                errno=error.errno,
                pool=self._pool,
            ) from error
