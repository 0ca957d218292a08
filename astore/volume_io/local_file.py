"""LocalFile: an open local file."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from functools import cache
from typing import Any

from astore.model import FileStat
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.notes import note_format, noted_format

LOCK_OFFSET = 0x6173_746F_7265_0000
"""The byte of a file that its writers lock, far from the bytes that QEMU locks (100 to 203) and from any data."""

FICLONE = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int); see ioctl_ficlone(2)."""

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000
"""linux/fs.h; see ioctl_iflags(2). The numbers are those of 64-bit machines."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit machines (bits/fcntl.h): type, whence, start, length, pid
OPEN_FLAGS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_QEMU_READ, _QEMU_WRITE, _QEMU_RESIZE = 0, 1, 3
"""QEMU's numbers of the rights on an image (BLK_PERM_CONSISTENT_READ … in its include/block/block-common.h)."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class LocalFile(TreeFile):
    """A :class:`~astore.volume_io.blocking_file.TreeFile` over a descriptor."""

    __slots__ = ("_fd", "_locked", "path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._locked = False
        self.path: str = path

    def __repr__(self) -> str:
        return f"<LocalFile {self.path}{' closed' if self._fd < 0 else ''}>"

    def fileno(self) -> int:
        """Return the descriptor. :raises OSError: EBADF: the file is closed."""
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return self._fd

    def stat(self) -> FileStat:
        found = file_stat(os.fstat(self.fileno()))
        return found.sized(os.lseek(self.fileno(), 0, os.SEEK_END)) if stat.S_ISBLK(found.mode) else found

    def pread(self, length: int, offset: int) -> bytes:
        fd = self.fileno()
        data = os.pread(fd, length, offset)
        if not data or len(data) == length:
            return data
        parts = [data]
        done = len(data)
        while done < length and (more := os.pread(fd, length - done, offset + done)):
            parts.append(more)
            done += len(more)
        return b"".join(parts)

    def preadinto(self, buffer: bytearray | memoryview, offset: int) -> int:
        fd = self.fileno()
        done = os.preadv(fd, [buffer], offset)
        if 0 < done < len(buffer):
            with memoryview(buffer) as view:
                while done < len(view) and (more := os.preadv(fd, [view[done:]], offset + done)):
                    done += more
        return done

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        fd = self.fileno()
        done = os.pwrite(fd, data, offset)
        length = data.nbytes if isinstance(data, memoryview) else len(data)
        if done < length:
            view = memoryview(data).cast("B")
            while done < length:
                count = os.pwrite(fd, view[done:], offset + done)
                if count == 0:
                    raise OSError(errno.EIO, "nothing was written", self.path)
                done += count

    def truncate(self, length: int) -> None:
        os.ftruncate(self.fileno(), length)

    def allocate(self, offset: int, length: int) -> None:
        if length > 0:
            os.posix_fallocate(self.fileno(), offset, length)

    def punch(self, offset: int, length: int) -> None:
        if length <= 0:
            return
        if libc().fallocate(self.fileno(), _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
            raise last_failure(self.path)

    def seek_data(self, offset: int) -> int | None:
        try:
            return os.lseek(self.fileno(), offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def seek_hole(self, offset: int) -> int:
        try:
            return os.lseek(self.fileno(), offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # it was truncated meanwhile
                return offset
            raise

    def copy_range(self, offset: int, target: Any, target_offset: int, length: int) -> int:
        """Have the kernel or the file server copy a range, or share its blocks; see copy_file_range(2)."""
        return os.copy_file_range(self.fileno(), target.fileno(), length, offset, target_offset)

    def clone(self, target: Any) -> None:
        """Share all blocks with ``target``; see ioctl_ficlone(2)."""
        fcntl.ioctl(target.fileno(), FICLONE, self.fileno())

    def set_nocow(self) -> None:
        """Turn off copy-on-write for this empty file. :raises OSError: the file system cannot."""
        fd = self.fileno()
        flags = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("l", 0)))[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flags | FS_NOCOW_FL))

    in_kernel = True

    def open_again(self) -> int:
        """Open this very file again, whatever its name leads to by now (proc(5), /proc/self/fd); return the descriptor."""
        fd = self.fileno()
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)

    def noted_format(self) -> str | None:
        return noted_format(self.fileno())

    def note_format(self, format: str | None) -> bool:
        return note_format(self.fileno(), format)

    def begin_as_qemu(self, *, write: bool) -> bool:
        """Take the locks that QEMU's file driver would take (block/file-posix.c).

        A locked byte from 100 on is a right in use; a locked byte from 200 on is a right that no other user may have.
        """
        fd = self.fileno()
        used = (_QEMU_READ, _QEMU_WRITE, _QEMU_RESIZE) if write else (_QEMU_READ,)
        kept = (_QEMU_WRITE, _QEMU_RESIZE)
        try:
            for byte in (*(100 + right for right in used), *(200 + right for right in kept)):
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0))
            for byte in (*(200 + right for right in used), *(100 + right for right in kept)):
                asked = FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
                if FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
                    return False
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in NO_LOCKS:
                raise
        return True

    def chmod(self, mode: int) -> None:
        os.fchmod(self.fileno(), mode)

    def chown(self, uid: int = -1, gid: int = -1) -> None:
        os.fchown(self.fileno(), uid, gid)

    def sync(self) -> None:
        os.fsync(self.fileno())

    def lock(self) -> bool:
        """Take an open file description lock (fcntl(2), F_OFD_SETLK), which ends with the file."""
        try:
            fcntl.fcntl(self.fileno(), fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, LOCK_OFFSET, 1, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in NO_LOCKS:
                raise
        else:
            self._locked = True
        return True

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._locked:
                # unlock first: over FUSE, a close releases the lock only later (seen), and until then others get "busy"
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, LOCK_OFFSET, 1, 0))
            os.close(fd)


@cache
def libc() -> ctypes.CDLL:
    """Return the C library, for calls that Python does not have."""
    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.syscall.restype = ctypes.c_long
    return library


def last_failure(name: str) -> OSError:
    """Return the error of this thread's last call of the C library."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def file_stat(st: os.stat_result) -> FileStat:
    """Convert a stat(2) result."""
    times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
    return FileStat(st.st_mode, st.st_ino, st.st_size, st.st_blocks, st.st_uid, st.st_gid, *times, st.st_dev)
