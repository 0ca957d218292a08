"""WritableLocalTree: a :class:`~astore.trees.writable.WritableTree` over a local directory, mounted or not."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import stat
from typing import Any, ClassVar

from astore.model import FileStat
from astore.trees.local import Held, LocalTree
from astore.trees.ordering import keeps_order
from astore.trees.writable import WritableTree
from astore.volume_io.local_file import OPEN_FLAGS, LocalFile, file_stat, last_failure, libc
from astore.volume_io.notes import note_format

_RENAME_NOREPLACE = 1  # linux/fs.h
_RESOLVE_BENEATH, _RESOLVE_NO_MAGICLINKS = 0x08, 0x02  # linux/openat2.h
_OPENAT2 = 437  # on all architectures
_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "riscv64": 276, "ppc64le": 357, "s390x": 347}


class WritableLocalTree(LocalTree, WritableTree):
    """A writable tree over one directory. Each call verifies the directory first (see ``verify``)."""

    makers: ClassVar[int] = 1  # each computes more than it waits
    _order: tuple[int, bool] = (-1, False)  # the device, and whether it keeps the order

    def open(self, name: str, *, write: bool = False) -> LocalFile:
        """Open a regular file or a block device; links are followed within the directory only (openat2(2), RESOLVE_BENEATH)."""
        with self._held(name) as folder:
            fd = _open_beneath(folder, name, (os.O_RDWR if write else os.O_RDONLY) | OPEN_FLAGS)
        try:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
                raise OSError(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, "not a regular file", name)
        except BaseException:
            os.close(fd)
            raise
        return LocalFile(fd, self.key(name))

    def create(self, name: str, mode: int = 0o600) -> LocalFile:
        """Create a regular file with this exact mode, regardless of the umask, and open it for writing."""
        with self._held(name) as folder:
            fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | OPEN_FLAGS, mode, dir_fd=folder)
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
        with self._held(name) as folder:
            return file_stat(os.stat(name, dir_fd=folder, follow_symlinks=follow))

    def link(self, file: Any, name: str) -> None:
        """Give an open file a second name, by its descriptor (proc(5), /proc/self/fd)."""
        with self._held(name) as folder:
            os.link(f"/proc/self/fd/{file.fileno()}", name, dst_dir_fd=folder, follow_symlinks=True)

    def rename(self, old: str, new: str) -> None:
        """Give an entry another, unused name (renameat2(2), RENAME_NOREPLACE)."""
        with self._held(old, new) as folder:
            number = _RENAMEAT2.get(platform.machine())
            if number is not None:
                if _syscall(number, folder, os.fsencode(old), folder, os.fsencode(new), _RENAME_NOREPLACE) == 0:
                    return
                error = last_failure(old)
                if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                    raise error
            _rename_without_kernel(folder, old, new)

    def unlink(self, name: str) -> None:
        with self._held(name) as folder:
            os.unlink(name, dir_fd=folder)

    def mkdir(self, name: str, mode: int = 0o711, uid: int = -1, gid: int = -1) -> None:
        """Create a directory with this exact mode, regardless of the umask."""
        with self._held(name) as folder:
            os.mkdir(name, 0o700, dir_fd=folder)  # a mode that lets it be opened; the real one follows
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
        with self._held(name) as folder:
            os.rmdir(name, dir_fd=folder)

    _noted = (-1, -1)  # the directory at which it was noted

    def note_folder(self) -> None:
        with self._held() as folder:
            st = os.fstat(folder)
            if self._noted != (st.st_dev, st.st_ino) and note_format(folder, "yes"):
                self._noted = (st.st_dev, st.st_ino)

    def sync_folder(self) -> None:
        try:
            with self._held() as folder:
                os.fsync(folder)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # CIFS cannot
                raise

    @property
    def ordered(self) -> bool:
        """Whether the file system is known to keep the order; see :mod:`astore.trees.ordering`."""
        folder = self._current()
        device = folder.identity[0]
        if self._order[0] != device:
            with Held(folder, self.path) as fd:
                del folder  # see Held
                self._order = device, keeps_order(fd)
        return self._order[1]

    def _held(self, *names: str) -> Held:
        """Return the verified directory for a call about entries of these names. :raises OSError: EINVAL: no entry has one."""
        for name in names:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise OSError(errno.EINVAL, "not the name of an entry", name)
        return Held(self._current(), self.path)


def _rename_without_kernel(folder: int, old: str, new: str) -> None:
    """Rename on a file system without RENAME_NOREPLACE: link a file to its new name, then unlink the old one."""
    if stat.S_ISDIR(os.stat(old, dir_fd=folder, follow_symlinks=False).st_mode):
        with contextlib.suppress(FileNotFoundError):
            os.stat(new, dir_fd=folder, follow_symlinks=False)
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), new)
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)  # at worst it replaces an empty directory
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


def _syscall(number: int, *arguments: Any) -> int:
    """Make a system call, with integers passed as long; return -1 and set errno if it fails (syscall(2))."""
    wide = (ctypes.c_long(one) if isinstance(one, int) else one for one in arguments)
    result: int = libc().syscall(ctypes.c_long(number), *wide)
    return result


def _open_beneath(folder: int, name: str, flags: int) -> int:
    """Open an entry, following links within the folder only. :raises OSError: EXDEV: it is a link out of the folder."""
    how = _OpenHow(flags, 0, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    fd = _syscall(_OPENAT2, folder, os.fsencode(name), ctypes.byref(how), ctypes.sizeof(how))
    if fd >= 0:
        return fd
    error = last_failure(name)
    if error.errno == errno.EXDEV:
        raise OSError(errno.EXDEV, "a link out of the pool's directory", name)
    if error.errno == errno.ENXIO:
        raise OSError(errno.EINVAL, "a socket, or a device file without a device", name)
    if error.errno not in (errno.ENOSYS, errno.EPERM):  # EPERM: a seccomp filter that does not know the call
        raise error
    try:
        return os.open(name, flags | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as refused:
        if refused.errno == errno.ELOOP:
            raise OSError(errno.EXDEV, "a link, which this kernel cannot confine to the directory", name) from None
        if refused.errno == errno.ENXIO:
            raise OSError(errno.EINVAL, "a socket, or a device file without a device", name) from None
        raise
