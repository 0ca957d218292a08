"""Export: presents an open file as a disk of a fixed size, as the NBD protocol needs it."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from astore.backend import VolumeFile
from astore.volume_io.copying import CANNOT, next_data

T = TypeVar("T")

LARGEST = 4 << 20
"""The most bytes that one request may read or write."""

SECTOR = 512
"""Writes are multiples of this: some QEMU drivers cannot read the end of a file that ends within a sector."""

MOST_EXTENTS = 32
"""The most extents in one reply."""


class Export:
    """Serves NBD requests from a file: reads and, with ``write``, writes.

    :param size: bytes of the disk. Beyond the end of the file it reads as zeros, and a write there makes the file grow.
    :param stored: bytes of the file.
    :param head: the first bytes, served instead of the file's. They were checked, so that nobody can change them
        afterwards. Writes through the export change them.
    :param on_bytes: called with the bytes of each read or write.
    :ivar end: the end of the file at first; later the end of what was written or zeroed, if that is greater.
    :ivar error: the first error of the storage.
    """

    def __init__(
        self,
        file: VolumeFile,
        size: int,
        stored: int,
        *,
        write: bool = False,
        head: bytes = b"",
        on_bytes: Callable[[int], None] | None = None,
    ) -> None:
        self._file = file
        self._stored = stored  # the file's own size
        self._head = bytearray(head)
        self._on_bytes = on_bytes or (lambda count: None)
        self.size = size
        self.write = write
        self.end: int = stored
        self.error: OSError | None = None

    @property
    def in_flight(self) -> int:
        """How many requests should run at once."""
        return max(2, self._file.in_flight)

    @property
    def sector(self) -> int:
        """Requests are multiples of this many bytes."""
        return SECTOR if self.write else 1

    async def read(self, length: int, offset: int) -> bytes:
        """Read exactly ``length`` bytes. :raises OSError: EINVAL: they reach beyond the end."""
        self._check(offset, length, most=LARGEST)
        data = await self._asked(self._file.pread(length, offset))
        if offset < len(self._head):
            head = bytes(self._head[offset : offset + length])
            data = head + data[len(head) :]
        self._on_bytes(length)
        return data if len(data) == length else data.ljust(length, b"\0")

    async def write_at(self, data: bytes | bytearray, offset: int) -> None:
        """Write all of ``data``. :raises OSError: ENOSPC: it reaches beyond the end; EPERM: the export is read-only."""
        length = len(data)
        self._check(offset, length, most=LARGEST, write=True)
        self._stored = max(self._stored, offset + length)
        self.end = max(self.end, offset + length)
        self._note_head(data, offset)
        await self._asked(self._file.pwrite(data, offset))
        self._on_bytes(length)

    async def zero(self, offset: int, length: int, *, hole: bool) -> None:
        """Write zeros to a range; with ``hole``, by a hole if possible."""
        self._check(offset, length, write=True)
        self.end = max(self.end, offset + length)
        self._note_head(bytes(max(0, min(length, len(self._head) - offset))), offset)
        until = offset + length if not hole else min(offset + length, self._stored)
        if until <= offset:
            return
        if hole and await self._punched(offset, until - offset):
            return
        self._stored = max(self._stored, until)
        zeros = bytes(min(until - offset, LARGEST))
        for at in range(offset, until, LARGEST):
            await self._asked(self._file.pwrite(zeros[: until - at], at))

    async def trim(self, offset: int, length: int) -> None:
        """Discard a range."""
        self._check(offset, length, write=True)
        until = min(offset + length, self._stored)
        if until > offset:
            await self._punched(offset, until - offset)

    async def flush(self) -> None:
        """Wait until written data is safe."""
        if self.write:
            await self._asked(self._file.sync())

    async def extents(self, offset: int, length: int, *, one: bool) -> list[tuple[int, bool]]:
        """Return the extents of a range from its start, as far as the storage tells: (length, whether it is a hole)."""
        self._check(offset, length)
        end = offset + length
        told: list[tuple[int, bool]] = []
        at = offset
        while at < end and len(told) < (1 if one else MOST_EXTENTS):
            data = await self._asked(next_data(self._file, at, end))
            begin, until = data or (end, end)
            if begin > at:
                told.append((begin - at, True))
            if until > begin and not (one and told):
                told.append((until - begin, False))
            at = until
        return told

    async def _punched(self, offset: int, length: int) -> bool:
        try:
            await self._file.punch(offset, length)
        except OSError as error:
            if error.errno not in CANNOT:
                self._note(error)
                raise
            return False
        return True

    async def _asked(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except OSError as error:
            self._note(error)
            raise

    def _note_head(self, data: bytes | bytearray, offset: int) -> None:
        """Update the first bytes by a write."""
        room = len(self._head) - offset
        if room > 0:
            self._head[offset : offset + len(data)] = data[:room]

    def _note(self, error: OSError) -> None:
        if self.error is None:
            self.error = error

    def _check(self, offset: int, length: int, *, most: int | None = None, write: bool = False) -> None:
        if write and not self.write:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        if length <= 0 or (most is not None and length > most):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if offset + length > self.size:
            number = errno.ENOSPC if write else errno.EINVAL
            raise OSError(number, os.strerror(number))


def whole_sectors(size: int) -> int:
    """Round a size up to whole sectors."""
    return (size + SECTOR - 1) // SECTOR * SECTOR
