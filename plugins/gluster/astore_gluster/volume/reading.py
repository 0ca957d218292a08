"""Read files of a Gluster volume by the handles from a listing: their headers, and astore's note."""

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


class VanishedError(FileNotFoundError):
    """The entry itself is gone, as opposed to the target of a link."""


class GlusterReading(Reading):
    """A file of the volume, read by its handle: always the same file, even if its name changes.

    :param entry: with a handle, which holds ``connection`` open.
    """

    __slots__ = ("_fs", "_gfapi")

    def __init__(self, tree: FileTree, entry: Entry, connection: Connection) -> None:
        super().__init__(tree, entry)
        self._fs = connection.fs
        self._gfapi = connection.gfapi

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
        read, fs, handle = self._gfapi.h_anonymous_read, self._fs, self.entry.handle
        end = min(length, size)
        while done < end:
            count = read(fs, handle, address + done, length - done, done)
            if count < 0:
                raise failure()
            if count == 0:
                break
            done += count
        return done

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes anywhere in the file."""
        room = ctypes.create_string_buffer(length)
        count = self._gfapi.h_anonymous_read(self._fs, self.entry.handle, ctypes.addressof(room), length, offset)
        if count < 0:
            raise failure()
        return room.raw[:count]

    def made(self) -> str | None:
        room = ctypes.create_string_buffer(NOTE_ROOM)
        address = ctypes.addressof(room)
        return noted(self._gfapi.h_getxattrs(self._fs, self.entry.handle, NOTE, address, NOTE_ROOM), room)

    def close(self) -> None:
        self.tree.release(self.entry)
