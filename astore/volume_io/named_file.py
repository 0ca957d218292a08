"""NamedFile: an open volume whose errors name its pool and volume; the core hands it out."""

from __future__ import annotations

import errno
from collections.abc import Awaitable
from typing import TypeVar

from astore.backend import Filled, ReadsBlocks, Take, VolumeFile
from astore.errors import StorageError, printable, reason
from astore.model import FileStat
from astore.volume_io.downloads import read_blocks

T = TypeVar("T")


class NamedFile(VolumeFile, ReadsBlocks):
    """A volume opened for random access. Calls may run concurrently.

    Every call raises StorageError with an errno if the storage fails, and LaneTimeoutError if it does not answer.
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
        return self._file.in_flight

    async def stat(self) -> FileStat:
        return await self._named(self._file.stat())

    async def pread(self, length: int, offset: int) -> bytes:
        return await self._named(self._file.pread(length, offset))

    async def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        if isinstance(buffer, memoryview) and (buffer.format != "B" or buffer.ndim != 1):
            buffer = buffer.cast("B")
        return await self._named(self._file.preadinto(buffer, offset))

    async def read_blocks(self, take: Take, filled: Filled) -> None:
        await self._named(read_blocks(self._file, take, filled))

    async def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._check_write()
        await self._named(self._file.pwrite(data, offset))

    async def truncate(self, length: int) -> None:
        self._check_write()
        await self._named(self._file.truncate(length))

    async def seek_data(self, offset: int) -> int | None:
        return await self._named(self._file.seek_data(offset))

    async def seek_hole(self, offset: int) -> int:
        return await self._named(self._file.seek_hole(offset))

    async def punch(self, offset: int, length: int) -> None:
        self._check_write()
        await self._named(self._file.punch(offset, length))

    async def note_format(self, format: str | None) -> bool:
        """Note the format that the volume was made in, or remove the note (None); False: its storage keeps no notes."""
        self._check_write()
        note = getattr(self._file, "note_format", None)
        return False if note is None else await self._named(note(format))

    async def sync(self) -> None:
        await self._named(self._file.sync())

    def _check_write(self) -> None:
        # checked here: a client that delays writes may fail only later, when nobody sees the error
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
