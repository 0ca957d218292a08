"""An open file of a Gluster volume: positioned reads and writes, space, holes, and copies made by the server."""

from __future__ import annotations

import ctypes
import errno
import os

from astore.files import FileStat
from astore_gluster.connection import Connection
from astore_gluster.layout import decode_stat
from astore_gluster.libgfapi import failure, scratch


class GlusterFile:
    """A file that :meth:`GlusterTree.open` or :meth:`GlusterTree.create` opened. Offsets and lengths are in bytes.

    All calls block, any thread may make them, and several at once; each may raise OSError. :meth:`close` must not be called
    while others are in progress.
    """

    __slots__ = ("_connection", "_fd", "_gfapi", "path")

    def __init__(self, connection: Connection, fd: int, path: str) -> None:
        self._connection = connection
        self._gfapi = connection.gfapi
        self._fd: int | None = fd
        self.path = path

    def __repr__(self) -> str:
        return f"<GlusterFile {self.path}{' closed' if self._fd is None else ''}>"

    @property
    def _open_fd(self) -> int:
        if self._fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return self._fd

    def _checked(self, result: int) -> int:
        if result < 0:
            raise failure(self.path)
        return result

    def stat(self) -> FileStat:
        """The file's attributes."""
        layout = self._gfapi.layout
        data = ctypes.create_string_buffer(layout.size)
        self._checked(self._gfapi.fstat(self._open_fd, ctypes.addressof(data)))
        return decode_stat(layout, data.raw)

    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only where the file ends."""
        address = scratch(length)
        done = 0
        while done < length:
            count = self._checked(
                self._gfapi.pread(self._open_fd, address + done, length - done, offset + done, 0, None)
            )
            if count == 0:
                break
            done += count
        return ctypes.string_at(address, done)

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        if length == 0:
            return
        view = memoryview(data)
        if not isinstance(data, bytes) and not view.readonly and view.contiguous:
            # no copy: the call gets the address of the caller's own memory
            buffer = (ctypes.c_char * length).from_buffer(view)
            self._write(ctypes.addressof(buffer), length, offset)
        else:
            copy = data if isinstance(data, bytes) else bytes(data)
            self._write(ctypes.cast(ctypes.c_char_p(copy), ctypes.c_void_p).value or 0, length, offset)

    def _write(self, address: int, length: int, offset: int) -> None:
        done = 0
        while done < length:
            count = self._checked(
                self._gfapi.pwrite(self._open_fd, address + done, length - done, offset + done, 0, None, None)
            )
            if count == 0:
                raise OSError(errno.EIO, "nothing was written", self.path)
            done += count

    def truncate(self, length: int) -> None:
        """Set the file's size; what it gains is a hole."""
        self._checked(self._gfapi.ftruncate(self._open_fd, length, None, None))

    def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """Take space for a range now; the file grows to hold it unless ``keep_size``."""
        self._checked(self._gfapi.fallocate(self._open_fd, int(keep_size), offset, length))

    def punch(self, offset: int, length: int) -> None:
        """Make a range a hole; the size stays."""
        self._checked(self._gfapi.discard(self._open_fd, offset, length))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, allocated; the file grows to hold it."""
        self._checked(self._gfapi.zerofill(self._open_fd, offset, length))

    def seek_data(self, offset: int) -> int | None:
        """Where data begin at or after ``offset``; None where there is nothing but a hole up to the end."""
        result = self._gfapi.lseek(self._open_fd, offset, os.SEEK_DATA)
        if result < 0 and ctypes.get_errno() == errno.ENXIO:
            return None
        return self._checked(result)

    def seek_hole(self, offset: int) -> int:
        """Where a hole begins at or after ``offset``: at the end of the file at the latest."""
        return self._checked(self._gfapi.lseek(self._open_fd, offset, os.SEEK_HOLE))

    def copy_range(self, offset: int, target: GlusterFile, target_offset: int, length: int) -> int:
        """Have the server copy a range of this file into another of the same volume; returns how much it did."""
        source_at, target_at = ctypes.c_int64(offset), ctypes.c_int64(target_offset)
        return self._checked(
            self._gfapi.copy_file_range(
                self._open_fd,
                ctypes.addressof(source_at),
                target._open_fd,
                ctypes.addressof(target_at),
                length,
                0,
                None,
                None,
                None,
            )
        )

    def chmod(self, mode: int) -> None:
        """Set the permission bits."""
        self._checked(self._gfapi.fchmod(self._open_fd, mode))

    def chown(self, uid: int = -1, gid: int = -1) -> None:
        """Set owner and group; -1 leaves one as it is."""
        self._checked(self._gfapi.fchown(self._open_fd, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF))

    def sync(self) -> None:
        """Wait until what was written is on the bricks' disks."""
        self._checked(self._gfapi.fsync(self._open_fd, None, None))

    def close(self) -> None:
        """Close the file. May be called twice. :raises OSError: a write that was put off failed."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            self._checked(self._gfapi.close(fd))
        finally:
            self._connection.drop()
