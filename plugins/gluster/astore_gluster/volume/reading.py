"""Read files of a Gluster volume by the handles from a listing: their headers, and astore's note.

A header costs one anonymous read. A file that its brick may not open for writing is opened for reading instead.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

from astore.images import HEADER_SIZE
from astore.trees.tree import FIRST_READ, Entry, FileTree, Reading
from astore_gluster.libgfapi import failure, scratch
from astore_gluster.volume.connection import Connection
from astore_gluster.volume.notes import NOTE, NOTE_ROOM, noted

GONE = frozenset({errno.ENOENT, errno.ESTALE})
"""The errors of a name, or a handle, whose file was removed."""


NOT_TO_WRITE = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ETXTBSY})
"""The errors of a file that its brick may only open for reading: a brick opens a file for reading and writing to serve an
anonymous read (posix-helpers.c)."""


class VanishedError(FileNotFoundError):
    """The entry itself is gone, as opposed to the target of a link."""


class GlusterReading(Reading):
    """A file of the volume, read by its handle: always the same file, even if its name changes.

    :param entry: with a handle, which holds ``connection`` open.
    """

    __slots__ = ("_fd", "_fs", "_gfapi")

    def __init__(self, tree: FileTree, entry: Entry, connection: Connection) -> None:
        super().__init__(tree, entry)
        self._fs = connection.fs
        self._gfapi = connection.gfapi
        self._fd: int | None = None  # where the brick cannot serve anonymous reads

    def header(self, more: Callable[[bytes], bool]) -> bytes:
        """Read the beginning of the file. Whether a file removed since the listing can be read is up to its brick."""
        size = self.entry.stat.size
        room = scratch(HEADER_SIZE)
        address = ctypes.addressof(room)
        try:
            done = self._fill(address, 0, FIRST_READ, size)
            if done == FIRST_READ < size and more(ctypes.string_at(address, done)):
                done = self._fill(address, done, HEADER_SIZE, size)
        except OSError as error:
            if error.errno in GONE:
                raise VanishedError(errno.ENOENT, os.strerror(errno.ENOENT), self.entry.name) from error
            raise
        return ctypes.string_at(address, done)

    def _fill(self, address: int, done: int, length: int, size: int) -> int:
        """Fill the buffer at ``address`` from ``done`` up to ``length`` bytes; return how far it is filled.

        A file of ``size`` bytes is not read past its end: that would be another round trip for each small file.
        """
        end = min(length, size)
        while done < end:
            count = self._read(address + done, length - done, done)
            if count == 0:
                break
            done += count
        return done

    def _read(self, address: int, length: int, offset: int) -> int:
        """Read into the memory at ``address``; return how many bytes were read."""
        if self._fd is None:
            count = self._gfapi.h_anonymous_read(self._fs, self.entry.handle, address, length, offset)
            if count >= 0:
                return count
            error = failure()
            if error.errno not in NOT_TO_WRITE:
                raise error
            self._fd = self._gfapi.h_open(self._fs, self.entry.handle, os.O_RDONLY)
            if self._fd is None:
                raise failure() from error
        count = self._gfapi.pread(self._fd, address, length, offset, 0, None)
        if count < 0:
            raise failure()
        return count

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes anywhere in the file, fewer only at its end."""
        room, done = ctypes.create_string_buffer(length), 0
        while done < length and (count := self._read(ctypes.addressof(room) + done, length - done, offset + done)):
            done += count
        return room.raw[:done]

    def made(self) -> str | None:
        room = ctypes.create_string_buffer(NOTE_ROOM)
        address = ctypes.addressof(room)
        return noted(self._gfapi.h_getxattrs(self._fs, self.entry.handle, NOTE, address, NOTE_ROOM), room)

    def close(self) -> None:
        if self._fd is not None:
            self._gfapi.close(self._fd)
        self.tree.release(self.entry)
