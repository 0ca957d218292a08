"""Files of a Gluster volume, read by the handles that a listing gave: their headers, and what astore noted at them."""

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
"""The errors of a name, or of a handle, whose file was removed."""


class VanishedError(FileNotFoundError):
    """The entry itself is not there, as opposed to what a link leads to."""


class GlusterReading(Reading):
    """A file of the volume, read by its handle, which leads to this one file whatever becomes of its name.

    :param entry: with a handle, which holds ``connection`` open.
    """

    __slots__ = ("_fs", "_gfapi")

    def __init__(self, tree: FileTree, entry: Entry, connection: Connection) -> None:
        super().__init__(tree, entry)
        self._fs = connection.fs
        self._gfapi = connection.gfapi

    def header(self, more: Callable[[bytes], bool]) -> bytes:
        """The beginning of the file. A file that was removed since it was listed may still be read, as its brick likes."""
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

        Asking again just to be told that a file of ``size`` bytes ends would be a round trip for each small file.
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
        """Bytes from anywhere in the file."""
        room = ctypes.create_string_buffer(length)
        count = self._gfapi.h_anonymous_read(self._fs, self.entry.handle, ctypes.addressof(room), length, offset)
        if count < 0:
            raise failure()
        return room.raw[:count]

    def made(self) -> str | None:
        """The format that astore noted at the file."""
        room = ctypes.create_string_buffer(NOTE_ROOM)
        address = ctypes.addressof(room)
        return noted(self._gfapi.h_getxattrs(self._fs, self.entry.handle, NOTE, address, NOTE_ROOM), room)

    def close(self) -> None:
        """Let go of the handle."""
        self.tree.release(self.entry)
