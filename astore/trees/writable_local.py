"""WritableLocalTree: volume work in a directory that the kernel shows us, mounted or not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import stat
import struct
from functools import cache
from typing import Any, ClassVar

from astore.model import FileStat
from astore.trees.local import Folder, LocalTree, note_format, noted_format
from astore.trees.ordering import keeps_order
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile

LOCK_OFFSET = 0x6173_746F_7265_0000
"""Which byte of a file its writers lock: far from those that QEMU locks (100 to 203), and from any data."""

FICLONE = 0x40049409
"""linux/fs.h: _IOW(0x94, 9, int); see ioctl_ficlone(2)."""

FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_NOCOW_FL = 0x80086601, 0x40086602, 0x00800000
"""linux/fs.h; see ioctl_iflags(2). The numbers are those of 64-bit machines."""

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_RENAME_NOREPLACE = 1  # linux/fs.h
_RESOLVE_BENEATH, _RESOLVE_NO_MAGICLINKS = 0x08, 0x02  # linux/openat2.h
_OPENAT2 = 437  # on all architectures
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347}
FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit machines (bits/fcntl.h): type, whence, start, length, pid
_FLAGS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_QEMU_READ, _QEMU_WRITE, _QEMU_RESIZE = 0, 1, 3
"""Rights on an image, as QEMU numbers them (BLK_PERM_CONSISTENT_READ … in its include/block/block-common.h)."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


class LocalFile(TreeFile):
    """An open file by its descriptor."""

    __slots__ = ("_fd", "_locked", "path")

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._locked = False
        self.path = path

    def __repr__(self) -> str:
        return f"<LocalFile {self.path}{' closed' if self._fd < 0 else ''}>"

    def fileno(self) -> int:
        """The descriptor. :raises OSError: EBADF: it is closed."""
        if self._fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return self._fd

    def stat(self) -> FileStat:
        """The file's attributes."""
        st = os.fstat(self.fileno())
        times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        size = st.st_size
        if stat.S_ISBLK(st.st_mode):
            size = os.lseek(self.fileno(), 0, os.SEEK_END)
        return FileStat(st.st_mode, st.st_ino, size, st.st_blocks, st.st_uid, st.st_gid, *times, st.st_dev)

    def pread(self, length: int, offset: int) -> bytes:
        """``length`` bytes from ``offset`` on; fewer only where the file ends."""
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
        """Fill ``buffer`` from ``offset`` on; fewer bytes only where the file ends."""
        fd = self.fileno()
        done = os.preadv(fd, [buffer], offset)
        if 0 < done < len(buffer):
            with memoryview(buffer) as view:
                while done < len(view) and (more := os.preadv(fd, [view[done:]], offset + done)):
                    done += more
        return done

    def pwrite(self, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of ``data`` at ``offset``."""
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
        """Set the file's size."""
        os.ftruncate(self.fileno(), length)

    def allocate(self, offset: int, length: int) -> None:
        """Take space for a range now."""
        if length > 0:
            os.posix_fallocate(self.fileno(), offset, length)

    def punch(self, offset: int, length: int) -> None:
        """Make a range a hole; the size stays."""
        if length <= 0:
            return
        libc = _libc()
        if libc.fallocate(self.fileno(), _PUNCH_HOLE | _KEEP_SIZE, offset, length) != 0:
            raise _failure(self.path)

    def seek_data(self, offset: int) -> int | None:
        """Where data begin at or after ``offset``."""
        try:
            return os.lseek(self.fileno(), offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return None
            raise

    def seek_hole(self, offset: int) -> int:
        """Where a hole begins at or after ``offset``."""
        try:
            return os.lseek(self.fileno(), offset, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # it was cut meanwhile
                return offset
            raise

    def copy_range(self, offset: int, target: Any, target_offset: int, length: int) -> int:
        """Have the kernel copy a range: shared blocks, a copy by the server, or within the kernel; see copy_file_range(2)."""
        return os.copy_file_range(self.fileno(), target.fileno(), length, offset, target_offset)

    def clone(self, target: Any) -> None:
        """Share all blocks with ``target``; see ioctl_ficlone(2)."""
        fcntl.ioctl(target.fileno(), FICLONE, self.fileno())

    def set_nocow(self) -> None:
        """Have the file system not copy this (empty) file's blocks on writing. :raises OSError: it does not know how."""
        fd = self.fileno()
        flags = struct.unpack("l", fcntl.ioctl(fd, FS_IOC_GETFLAGS, struct.pack("l", 0)))[0]
        fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", flags | FS_NOCOW_FL))

    in_kernel = True

    def open_again(self) -> int:
        """A descriptor of the very same file, whatever its name leads to by now (proc(5), /proc/self/fd)."""
        fd = self.fileno()
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        return os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)

    def noted_format(self) -> str | None:
        """The format that is noted at the file."""
        return noted_format(self.fileno())

    def note_format(self, format: str | None) -> bool:
        """Note which format the file was made in, or (None) take that back."""
        return note_format(self.fileno(), format)

    def begin_as_qemu(self, *, write: bool) -> bool:
        """Take the locks that QEMU's file driver would (block/file-posix.c): which rights it uses, and which it shares not.

        Locked bytes say so: from 100 on the rights in use, from 200 on those that nobody else may use.
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
        """Set the permission bits."""
        os.fchmod(self.fileno(), mode)

    def chown(self, uid: int = -1, gid: int = -1) -> None:
        """Set owner and group."""
        os.fchown(self.fileno(), uid, gid)

    def sync(self) -> None:
        """Wait until what was written is safe."""
        os.fsync(self.fileno())

    def lock(self) -> bool:
        """Take the lock of open file descriptions (fcntl(2), F_OFD_SETLK), which goes with the file."""
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
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._locked:
                # by a call of its own: over FUSE, closing alone gives the lock back some time later, when others have been told
                # already that the volume is being written (seen)
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, LOCK_OFFSET, 1, 0))
            os.close(fd)


class _Held:
    """The folder, open for as long as a call is in it: not a moment longer, not even where an error keeps its frame."""

    __slots__ = ("_folder",)

    def __init__(self, folder: Folder) -> None:
        self._folder: Folder | None = folder

    def __enter__(self) -> int:
        assert self._folder is not None
        return self._folder.fd

    def __exit__(self, *error: object) -> None:
        self._folder = None


class WritableLocalTree(LocalTree, WritableTree):
    """The entries of one directory, to be made and changed too. Each call proves the directory first (see ``verify``)."""

    makers: ClassVar[int] = 1  # each computes more than it waits
    _order: tuple[int, bool] = (-1, False)  # of which device it was seen

    def open(self, name: str, *, write: bool = False) -> LocalFile:
        """Open a regular file or a block device; links are followed within the directory only (openat2(2), RESOLVE_BENEATH)."""
        self._check_name(name)
        with self._held() as folder:
            fd = _open_beneath(folder, name, (os.O_RDWR if write else os.O_RDONLY) | _FLAGS)
        try:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "it is not a regular file", name)
        except BaseException:
            os.close(fd)
            raise
        return LocalFile(fd, self.key(name))

    def create(self, name: str, mode: int = 0o600) -> LocalFile:
        """Make a new regular file and open it for writing; ``mode`` whatever the umask."""
        self._check_name(name)
        with self._held() as folder:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | _FLAGS, mode, dir_fd=folder)
            file = LocalFile(fd, self.key(name))
            try:
                if stat.S_IMODE(os.fstat(fd).st_mode) != mode:
                    os.fchmod(fd, mode)
            except BaseException:
                file.close()
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise
        return file

    def stat(self, name: str, *, follow: bool = True) -> FileStat:
        """An entry's attributes."""
        self._check_name(name)
        with self._held() as folder:
            st = os.stat(name, dir_fd=folder, follow_symlinks=follow)
        times = (st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns)
        return FileStat(st.st_mode, st.st_ino, st.st_size, st.st_blocks, st.st_uid, st.st_gid, *times, st.st_dev)

    def link(self, file: Any, name: str) -> None:
        """Give an open file a second name: by its descriptor (proc(5), /proc/self/fd), so that it is this very file."""
        self._check_name(name)
        with self._held() as folder:
            os.link(f"/proc/self/fd/{file.fileno()}", name, dst_dir_fd=folder, follow_symlinks=True)

    def rename(self, old: str, new: str) -> None:
        """Give an entry another name that nobody has (renameat2(2), RENAME_NOREPLACE)."""
        self._check_name(old)
        self._check_name(new)
        with self._held() as folder:
            number = _RENAMEAT2.get(platform.machine())
            if number is not None:
                if _syscall(number, folder, os.fsencode(old), folder, os.fsencode(new), _RENAME_NOREPLACE) == 0:
                    return
                error = _failure(old)
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise error
            _rename_without_kernel(folder, old, new)

    def unlink(self, name: str) -> None:
        """Remove a file, or a link."""
        self._check_name(name)
        with self._held() as folder:
            os.unlink(name, dir_fd=folder)

    def mkdir(self, name: str, mode: int = 0o711, uid: int = -1, gid: int = -1) -> None:
        """Make a directory; ``mode`` whatever the umask."""
        self._check_name(name)
        with self._held() as folder:
            os.mkdir(name, 0o700, dir_fd=folder)  # so that it can be opened, whatever it is to be
            made = os.stat(name, dir_fd=folder, follow_symlinks=False)
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            try:
                if not os.path.samestat(made, os.fstat(fd)):
                    raise FileExistsError(errno.EEXIST, "another directory took its name", name)
                try:
                    if uid != -1 or gid != -1:
                        os.fchown(fd, uid, gid)
                    if stat.S_IMODE(made.st_mode) != mode or uid != -1 or gid != -1:
                        os.fchmod(fd, mode)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.rmdir(name, dir_fd=folder)
                    raise
            finally:
                os.close(fd)

    def rmdir(self, name: str) -> None:
        """Remove an empty directory."""
        self._check_name(name)
        with self._held() as folder:
            os.rmdir(name, dir_fd=folder)

    _noted = (-1, -1)  # the directory at which it was noted

    def note_folder(self) -> None:
        """Note at the directory that something is noted at files of it."""
        with self._held() as folder:
            st = os.fstat(folder)
            if self._noted != (st.st_dev, st.st_ino) and note_format(folder, "yes"):
                self._noted = (st.st_dev, st.st_ino)

    def sync_folder(self) -> None:
        """Wait until the names that were made and removed are safe."""
        try:
            with self._held() as folder:
                os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # CIFS cannot
                raise

    @property
    def ordered(self) -> bool:
        """Whether the file system is known for it; see :mod:`astore.trees.ordering`."""
        folder = self._current()
        device, ordered = self._order
        if device != folder.identity[0]:
            ordered = keeps_order(folder.fd)
            self._order = folder.identity[0], ordered
        return ordered

    def _held(self) -> _Held:
        return _Held(self._current())

    def _check_name(self, name: str) -> None:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise OSError(errno.EINVAL, "it is not the name of an entry", name)


def _rename_without_kernel(folder: int, old: str, new: str) -> None:
    """This file system cannot: a second name for a file, which is never replaced either, and then no first."""
    if stat.S_ISDIR(os.stat(old, dir_fd=folder, follow_symlinks=False).st_mode):
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=folder, follow_symlinks=False)
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)  # replaces an empty directory at the worst
        return
    os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    try:
        os.unlink(old, dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise


class _OpenHow(ctypes.Structure):
    """struct open_how (linux/openat2.h)."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    libc.syscall.restype = ctypes.c_long
    return libc


def _syscall(number: int, *arguments: Any) -> int:
    """syscall(2). Numbers go as long, as the kernel takes them: -1 and the error in errno."""
    wide = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    result: int = _libc().syscall(ctypes.c_long(number), *wide)
    return result


def _failure(name: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)


def _open_beneath(folder: int, name: str, flags: int) -> int:
    """Open an entry, following links within the folder only. :raises OSError: EXDEV: it is a link that leads out."""
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    fd = _syscall(_OPENAT2, folder, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
    if fd >= 0:
        return fd
    error = _failure(name)
    if error.errno == errno.EXDEV:
        raise OSError(errno.EXDEV, "it is a link that leads out of the pool's directory", name)
    if error.errno == errno.ENXIO:
        raise OSError(errno.EINVAL, "it is a socket, or nothing behind a device", name)
    if error.errno not in (errno.ENOSYS, errno.EPERM):  # EPERM: a seccomp filter that does not know the call
        raise error
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as refused:
        if refused.errno == errno.ELOOP:
            raise OSError(errno.EXDEV, "it is a link, which this kernel cannot be told to keep in", name) from None
        if refused.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "it is a socket, or nothing behind a device", name) from None
        raise
