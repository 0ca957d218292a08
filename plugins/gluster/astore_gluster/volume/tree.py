"""A folder of a Gluster volume, to read and write: a :class:`~astore.trees.writable.WritableTree`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat as modes
import time
from collections.abc import Callable
from typing import Any

from astore.model import FileStat
from astore.trees.writable import WritableTree
from astore_gluster.layout import decode_stat
from astore_gluster.libgfapi import failure
from astore_gluster.volume.file import GlusterFile
from astore_gluster.volume.folder import GlusterFolder
from astore_gluster.volume.notes import NOTE
from astore_gluster.volume.reading import GONE

STALE_WAITS = (0.0, 0.02, 0.1, 0.3, 0.7)
"""Seconds between attempts to open a file that a lookup found, and that its brick says is gone."""


class GlusterTree(GlusterFolder, WritableTree):
    """A folder of a volume, to read and write; made like :class:`~astore_gluster.volume.folder.GlusterFolder`."""

    makers = 4

    def stat(self, name: str, *, follow: bool = True) -> FileStat:
        path = self.path(name)
        with self._using() as fs:
            if follow:
                handle, stat = self._resolve(fs, path)
                self._gfapi.h_close(handle)
                return stat
            data = ctypes.create_string_buffer(self._gfapi.layout.size)
            self._check(self._gfapi.lstat(fs, path, ctypes.addressof(data)), path)
            return decode_stat(self._gfapi.layout, data.raw, self.connection.device)

    def open(self, name: str, *, write: bool = False) -> GlusterFile:
        """Open a regular file; links are followed only within the folder.

        :raises OSError: EISDIR, EINVAL: it is not a regular file (a FIFO is not even opened). EXDEV: a link out of the
            folder.
        """
        for wait in STALE_WAITS:
            try:
                return self._open(name, write)
            except _StaleError:
                time.sleep(wait)
        return self._open(name, write)

    def _open(self, name: str, write: bool) -> GlusterFile:
        path = self.path(name)
        with self._using() as fs:
            handle, stat = self._resolve(fs, path, within=self._prefix)
            try:
                if not modes.S_ISREG(stat.mode):
                    kind = errno.EISDIR if modes.S_ISDIR(stat.mode) else errno.EINVAL
                    raise OSError(kind, "it is not a regular file", name)
                # by its handle: the path may be another file's by now
                fd = self._gfapi.h_open(fs, handle, os.O_RDWR if write else os.O_RDONLY)
                if fd is None and ctypes.get_errno() in GONE:
                    raise _StaleError(*failure(path).args)
                return self._opened(fd, path, write=write)
            finally:
                self._gfapi.h_close(handle)

    def create(self, name: str, mode: int = 0o600) -> GlusterFile:
        path = self.path(name)
        with self._using() as fs:
            return self._opened(self._gfapi.creat(fs, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode), path)

    def _opened(self, fd: int | None, path: bytes, *, write: bool = True) -> GlusterFile:
        if fd is None:
            raise failure(path)
        self.connection.hold()
        return GlusterFile(self.connection, fd, os.fsdecode(path), write=write)

    def _call(self, function: Callable[..., int], name: str, *arguments: Any) -> None:
        path = self.path(name)
        with self._using() as fs:
            self._check(function(fs, path, *arguments), path)

    def rename(self, old: str, new: str) -> None:
        """Rename an entry to an unused name. :raises OSError: EEXIST: the name is taken.

        A file first gets the second name as a hard link, which never replaces anything, and then loses the first. A
        directory cannot have two names: an empty directory that takes the name at this very moment is replaced.
        """
        if modes.S_ISDIR(self.stat(old, follow=False).mode):
            try:
                self.stat(new, follow=False)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise
            else:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), new)
            self._call(self._gfapi.rename, old, self.path(new))
            return
        self._call(self._gfapi.link, old, self.path(new))
        self.unlink(old)

    def link(self, file: GlusterFile, name: str) -> None:
        """Give an open file a second name. :raises OSError: EEXIST: the name is taken; ENOENT: the file lost its first."""
        path, new = os.fsencode(file.path), self.path(name)
        with self._using() as fs:
            data = ctypes.create_string_buffer(self._gfapi.layout.size)
            handle = self._gfapi.h_lookupat(fs, None, path, ctypes.addressof(data), 0)
            if handle is None:
                raise failure(path)
            folder = None
            try:
                if decode_stat(self._gfapi.layout, data.raw).inode != file.stat().inode:
                    raise OSError(errno.ENOENT, "another file has its name", name)
                folder = self._gfapi.h_lookupat(fs, None, self._directory, ctypes.addressof(data), 0)
                if folder is None:
                    raise failure(self._directory)
                # by their handles: the names may be others' by now
                if self._gfapi.h_link(fs, handle, folder, new.rpartition(b"/")[2]) < 0:
                    error = failure(new)
                    if error.errno == errno.ESTALE:  # the error for a taken name (seen)
                        self.stat(name, follow=False)
                        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from error
                    raise error
            finally:
                for one in (handle, folder):
                    if one is not None:
                        self._gfapi.h_close(one)

    def unlink(self, name: str) -> None:
        self._call(self._gfapi.unlink, name)

    def mkdir(self, name: str, mode: int = 0o711, uid: int = -1, gid: int = -1) -> None:
        self._call(self._gfapi.mkdir, name, mode)
        if uid != -1 or gid != -1:
            try:
                self.set_owner(name, uid, gid)
            except BaseException:
                with contextlib.suppress(OSError):
                    self.rmdir(name)
                raise

    def rmdir(self, name: str) -> None:
        self._call(self._gfapi.rmdir, name)

    def chmod(self, name: str, mode: int) -> None:
        """Set an entry's permission bits."""
        self._call(self._gfapi.chmod, name, mode)

    def set_owner(self, name: str, uid: int = -1, gid: int = -1) -> None:
        """Set an entry's owner and group; -1 leaves one unchanged."""
        self._call(self._gfapi.chown, name, uid & 0xFFFFFFFF, gid & 0xFFFFFFFF)

    _folder_noted = False

    def note_folder(self) -> None:
        if not self._folder_noted:
            with self._using() as fs:
                self._folder_noted = self._gfapi.setxattr(fs, self._directory, NOTE, b"yes", 3, 0) >= 0

    def sync_folder(self) -> None:
        """Do nothing: libgfapi has no call for it, and the bricks' own call for directories does nothing."""


class _StaleError(FileNotFoundError):
    """The client's cache knows the name, but its file is gone; another file may have taken the name."""
