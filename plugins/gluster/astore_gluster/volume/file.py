"""An open file of a Gluster volume: positioned reads and writes, space, and holes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
from typing import Any, ClassVar

from astore.model import FileStat
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.local_file import FLOCK, LOCK_OFFSET, NO_LOCKS
from astore.volume_io.notes import NO_NOTES
from astore_gluster.layout import decode_stat
from astore_gluster.libgfapi import failure
from astore_gluster.volume.connection import Connection
from astore_gluster.volume.notes import NOTE, NOTE_ROOM, noted

# Uninitialised bytes, filled before anybody else sees them: reads go straight into the result. (C API, bytes objects:
# the content is uninitialized where the first argument is NULL.)
_new_bytes = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)
_address_of = ctypes.pythonapi.PyBytes_AsString
_address_of.restype, _address_of.argtypes = ctypes.c_void_p, (ctypes.py_object,)


_LAST = 2**63 - 1
"""The largest ``off_t``."""


class GlusterFile(TreeFile):
    """A file that :meth:`GlusterTree.open` or :meth:`GlusterTree.create` opened.

    A method without a docstring does what :class:`~astore.volume_io.blocking_file.TreeFile` says; so in the other classes
    of this package, with their bases. Offsets and lengths are in bytes.

    All calls block, and may raise OSError. Any thread may make them, several at once, except :meth:`close`: no other
    call may be in progress then.
    """

    in_flight: ClassVar[int] = 4

    __slots__ = ("_connection", "_fd", "_gfapi", "_write", "path")

    def __init__(self, connection: Connection, fd: int, path: str, *, write: bool = True) -> None:
        self._connection = connection
        self._gfapi = connection.gfapi
        self._fd: int | None = fd
        self._write = write
        self.path: str = path

    def __repr__(self) -> str:
        return f"<GlusterFile {self.path}{' closed' if self._fd is None else ''}>"

    @property
    def _open_fd(self) -> int:
        if self._fd is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        self._connection.check()
        return self._fd

    @property
    def _fd_to_write(self) -> int:
        # libgfapi accepts writes to a file open for reading, and loses them later without an error (seen)
        if not self._write:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return self._open_fd

    def _check_range(self, offset: int, length: int = 0) -> None:
        # ctypes would take a large number modulo 2⁶⁴, and the library a negative length for a huge one
        if offset < 0 or length < 0 or offset + length > _LAST:
            raise OSError(errno.EINVAL, f"no file has bytes {offset} to {offset + length}", self.path)

    def _checked(self, result: int) -> int:
        if result < 0:
            raise failure(self.path)
        return result

    def stat(self) -> FileStat:
        layout = self._gfapi.layout
        data = ctypes.create_string_buffer(layout.size)
        self._checked(self._gfapi.fstat(self._open_fd, ctypes.addressof(data)))
        return decode_stat(layout, data.raw, self._connection.device)

    def pread(self, length: int, offset: int) -> bytes:
        self._check_range(offset, length)
        data: bytes = _new_bytes(None, length)
        done = self._read_all(_address_of(data), length, offset)
        return data if done == length else data[:done]

    def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        length = len(buffer)
        self._check_range(offset, length)
        memory = (ctypes.c_char * length).from_buffer(buffer)
        return self._read_all(ctypes.addressof(memory), length, offset)

    def _read_all(self, address: int, length: int, offset: int) -> int:
        done = 0
        while done < length:
            count = self._checked(
                self._gfapi.pread(self._open_fd, address + done, length - done, offset + done, 0, None)
            )
            if count == 0:
                break
            done += count
        return done

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        self._check_range(offset, length)
        if length == 0:
            return
        view = memoryview(data)
        if not isinstance(data, bytes) and not view.readonly and view.c_contiguous:
            # no copy: the call gets the address of the caller's memory
            buffer = (ctypes.c_char * length).from_buffer(view)
            self._write_all(ctypes.addressof(buffer), length, offset)
        else:
            copy = data if isinstance(data, bytes) else bytes(data)
            self._write_all(ctypes.cast(ctypes.c_char_p(copy), ctypes.c_void_p).value or 0, length, offset)

    def _write_all(self, address: int, length: int, offset: int) -> None:
        done = 0
        while done < length:
            count = self._checked(
                self._gfapi.pwrite(self._fd_to_write, address + done, length - done, offset + done, 0, None, None)
            )
            if count == 0:
                raise OSError(errno.EIO, "nothing was written", self.path)
            done += count

    def truncate(self, length: int) -> None:
        self._check_range(length)
        self._checked(self._gfapi.ftruncate(self._fd_to_write, length, None, None))

    def allocate(self, offset: int, length: int, *, keep_size: bool = False) -> None:
        """Allocate space for a range; the file grows to hold it unless ``keep_size``."""
        self._check_range(offset, length)
        self._checked(self._gfapi.fallocate(self._fd_to_write, int(keep_size), offset, length))

    def punch(self, offset: int, length: int) -> None:
        self._check_range(offset, length)
        self._checked(self._gfapi.discard(self._fd_to_write, offset, length))

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeros, allocated; the file grows to hold it."""
        self._check_range(offset, length)
        self._checked(self._gfapi.zerofill(self._fd_to_write, offset, length))

    def seek_data(self, offset: int) -> int | None:
        self._check_range(offset)
        result = self._gfapi.lseek(self._open_fd, offset, os.SEEK_DATA)
        if result < 0 and ctypes.get_errno() == errno.ENXIO:
            return None
        return self._checked(result)

    def seek_hole(self, offset: int) -> int:
        self._check_range(offset)
        return self._checked(self._gfapi.lseek(self._open_fd, offset, os.SEEK_HOLE))

    def copy_range(self, offset: int, target: Any, target_offset: int, length: int) -> int:
        """Raise EXDEV: the caller must copy by hand.

        ``glfs_copy_file_range`` of GlusterFS 10.3 copies a file's first bytes whatever the offset, reports a full copy
        past the end of the file, and fails at random while the open is delayed (all seen). Parts of the client ignore
        it, so it may miss recent writes (https://github.com/gluster/glusterfs/issues/4045, open).

        :raises OSError: EXDEV.
        """
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), self.path, None, target.path)

    def noted_format(self) -> str | None:
        room = ctypes.create_string_buffer(NOTE_ROOM)
        return noted(self._gfapi.fgetxattr(self._open_fd, NOTE, ctypes.addressof(room), NOTE_ROOM), room)

    def note_format(self, format: str | None) -> bool:
        if format is not None:
            value = format.encode()
            result = self._gfapi.fsetxattr(self._open_fd, NOTE, value, len(value), 0)
        else:
            result = self._gfapi.fremovexattr(self._open_fd, NOTE)
        if result < 0 and ctypes.get_errno() not in (errno.ENODATA, *NO_NOTES):
            raise failure(self.path)
        return result >= 0 or ctypes.get_errno() == errno.ENODATA

    def chmod(self, mode: int) -> None:
        self._checked(self._gfapi.fchmod(self._open_fd, mode))

    def chown(self, uid: int = -1, gid: int = -1) -> None:
        self._checked(self._gfapi.fchown(self._open_fd, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF))

    def sync(self) -> None:
        """Wait until all writes are on the bricks' disks."""
        self._checked(self._gfapi.fsync(self._open_fd, None, None))

    def lock(self) -> bool:
        """Take an advisory lock (fcntl(2)); the bricks hold it, and release it when this client is gone.

        Its owner is this file object. libgfapi's default owner is the process, which two of its files would share.
        """
        owner = ctypes.create_string_buffer(secrets.token_bytes(16), 16)
        self._checked(self._gfapi.fd_set_lkowner(self._open_fd, ctypes.addressof(owner), 16))
        wanted = ctypes.create_string_buffer(FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCK_OFFSET, 1, 0), FLOCK.size)
        if self._gfapi.posix_lock(self._open_fd, fcntl.F_SETLK, ctypes.addressof(wanted)) < 0:
            number = ctypes.get_errno()
            if number in (errno.EAGAIN, errno.EACCES):
                return False
            if number not in NO_LOCKS:
                raise failure(self.path)
        return True

    def close(self) -> None:
        """Close the file. May be called twice. :raises OSError: a delayed write failed."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        self._connection.check()
        try:
            self._checked(self._gfapi.close(fd))
        finally:
            self._connection.drop()
