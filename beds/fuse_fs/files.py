"""The file system itself: a folder passed through, and generated files beside it. Part of the server.

Every call meets the rules first. A file that the kernel knows is held by an ``O_PATH`` descriptor until the kernel
forgets it, so that renamed and removed files are found as on any file system.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyfuse3

from beds.fuse_fs.generated import Generated
from beds.fuse_fs.rules import Rules

T = TypeVar("T")

_ROOT = 1
_FIRST_GENERATED = 1 << 48
_RENAME_NOREPLACE = 1  # linux/fs.h
_STAT = ("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blocks", "st_blksize")
_TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")
_STATVFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")


def _call(method: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Report the system's error, if any, as the call's answer."""

    @functools.wraps(method)
    async def answer(*args: Any) -> T:
        try:
            return await method(*args)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno) from None

    return answer


@dataclass
class _Node:
    """A file that the kernel knows: its descriptor, its name, and how often the kernel looked it up."""

    fd: int
    name: str
    lookups: int = 0


@dataclass
class _Listing:
    """An open folder: its files when it was opened, and the position before which all entries have met the rules."""

    inode: int
    names: list[str]
    met: int = 0
    hiding: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.hiding = set(self.names)


class Files(pyfuse3.Operations):  # type: ignore[misc]
    """The operations of pyfuse3, which says what each is.

    :param folder: the folder that is passed through.
    """

    def __init__(self, folder: str, rules: Rules, settings: dict[str, Any]) -> None:
        super().__init__()
        self.enable_writeback_cache = settings["writeback"]  # pyfuse3 asks for it
        self._rules = rules
        self._cache: float = settings["cache"]
        self._generated = Generated(settings)
        self._nodes = {_ROOT: _Node(os.open(folder, os.O_PATH | os.O_DIRECTORY), ".", 1)}
        self._opened: dict[int, int] = {}  # inodes by descriptor
        self._writeback: bool = settings["writeback"]
        self._listings: dict[int, _Listing] = {}
        self._listings_made = 0

    # ------------------------------------------------------------------------------------------- nodes

    def _name(self, inode: int) -> str:
        if inode >= _FIRST_GENERATED:
            return self._generated.name(inode - _FIRST_GENERATED)
        return self._nodes[inode].name

    def _fd(self, inode: int) -> int:
        """Return the descriptor of a file that can be changed. :raises OSError: EROFS, it is generated."""
        if inode >= _FIRST_GENERATED:
            raise OSError(errno.EROFS, "generated")
        return self._nodes[inode].fd

    def _path(self, inode: int) -> str:
        return f"/proc/self/fd/{self._fd(inode)}"

    def _find(self, parent: int, name: str) -> tuple[Any, int]:
        """Return a name's attributes and a new descriptor, or -1 for a generated file.

        :raises OSError: there is no such file.
        """
        try:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=self._fd(parent))
        except FileNotFoundError:
            index = self._generated.index(name) if parent == _ROOT else -1
            if index < 0:
                raise
            return self._attributes(_FIRST_GENERATED + index), -1
        return self._attributes_of(os.fstat(fd)), fd

    def _known(self, attributes: Any, fd: int, name: str) -> Any:
        """Count a lookup of the kernel; takes over the descriptor."""
        if fd >= 0:
            node = self._nodes.get(attributes.st_ino)
            if node is None:
                node = self._nodes[attributes.st_ino] = _Node(fd, name)
            else:
                os.close(fd)
            node.lookups += 1
            node.name = name
        return attributes

    def _look_up(self, parent: int, name: str) -> Any:
        attributes, fd = self._find(parent, name)
        return self._known(attributes, fd, name)

    def _attributes(self, inode: int) -> Any:
        if inode < _FIRST_GENERATED:
            found = self._attributes_of(os.fstat(self._nodes[inode].fd))
            found.st_ino = inode
            return found
        made = pyfuse3.EntryAttributes()
        self._generated.fill(made)
        made.st_ino = inode
        made.attr_timeout = made.entry_timeout = self._cache
        return made

    def _attributes_of(self, found: os.stat_result) -> Any:
        made = pyfuse3.EntryAttributes()
        for what in _STAT + _TIMES:
            setattr(made, what, getattr(found, what))
        made.attr_timeout = made.entry_timeout = self._cache
        return made

    @_call
    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> Any:
        await self._rules.meet("lookup", os.fsdecode(name))
        return self._look_up(parent, os.fsdecode(name))

    async def forget(self, inodes: Sequence[tuple[int, int]]) -> None:
        for inode, lookups in inodes:
            if inode < _FIRST_GENERATED:
                node = self._nodes[inode]
                node.lookups -= lookups
                if not node.lookups:
                    del self._nodes[inode]
                    os.close(node.fd)

    @_call
    async def getattr(self, inode: int, ctx: object = None) -> Any:
        await self._rules.meet("getattr", self._name(inode))
        return self._attributes(inode)

    @_call
    async def setattr(self, inode: int, wanted: Any, fields: Any, fh: int | None, ctx: object) -> Any:
        await self._rules.meet("setattr", self._name(inode))
        path = self._path(inode)
        if fields.update_size:
            os.truncate(path if fh is None else fh, wanted.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(wanted.st_mode))
        if fields.update_uid or fields.update_gid:
            os.chown(path, wanted.st_uid if fields.update_uid else -1, wanted.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            now = os.stat(path)
            accessed = wanted.st_atime_ns if fields.update_atime else now.st_atime_ns
            os.utime(path, ns=(accessed, wanted.st_mtime_ns if fields.update_mtime else now.st_mtime_ns))
        return self._attributes(inode)

    @_call
    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        await self._rules.meet("getxattr", self._name(inode))
        # Not ENOSYS: the kernel would answer for the server then, also for one that was killed.
        raise OSError(errno.ENODATA, "no attributes")

    @_call
    async def statfs(self, ctx: object) -> Any:
        await self._rules.meet("statfs", ".")
        found, made = os.statvfs(self._nodes[_ROOT].fd), pyfuse3.StatvfsData()
        for what in _STATVFS:
            setattr(made, what, getattr(found, what))
        if self._rules.room is not None:
            made.f_bfree = made.f_bavail = self._rules.room // found.f_frsize
        return made

    # ------------------------------------------------------------------------------------------- listing

    @_call
    async def opendir(self, inode: int, ctx: object) -> int:
        await self._rules.meet("opendir", self._name(inode))
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd(inode))
        try:
            listing = _Listing(inode, os.listdir(fd))
        finally:
            os.close(fd)
        self._listings_made += 1
        self._listings[self._listings_made] = listing
        return self._listings_made

    @_call
    async def readdir(self, fh: int, start: int, token: object) -> None:
        listing = self._listings[fh]
        for position in range(start, len(listing.names)):
            name = listing.names[position]
            await self._meet_entry(listing, position, name)
            try:
                attributes, fd = self._find(listing.inode, name)
            except FileNotFoundError:
                continue  # removed since
            if not pyfuse3.readdir_reply(token, os.fsencode(name), attributes, position + 1):
                os.close(fd)
                return
            self._known(attributes, fd, name)
        if listing.inode == _ROOT:
            await self._read_generated(listing, max(start, len(listing.names)), token)

    async def _read_generated(self, listing: _Listing, start: int, token: object) -> None:
        attributes = self._attributes(_FIRST_GENERATED)
        before = len(listing.names)
        for position in range(start, before + self._generated.count):
            name = self._generated.name(position - before)
            if name in listing.hiding:
                continue
            await self._meet_entry(listing, position, name)
            attributes.st_ino = _FIRST_GENERATED + position - before
            if not pyfuse3.readdir_reply(token, name.encode(), attributes, position + 1):
                return

    async def _meet_entry(self, listing: _Listing, position: int, name: str) -> None:
        if position >= listing.met:  # else it did not fit into the answer before
            listing.met = position + 1
            await self._rules.meet("readdir", name)

    @_call
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._rules.meet("fsyncdir", self._name(self._listings[fh].inode))

    @_call
    async def releasedir(self, fh: int) -> None:
        await self._rules.meet("releasedir", self._name(self._listings[fh].inode))
        del self._listings[fh]

    # ------------------------------------------------------------------------------------------- names

    @_call
    async def unlink(self, parent: int, name: bytes, ctx: object) -> None:
        await self._rules.meet("unlink", os.fsdecode(name))
        self._require_real(parent, name)
        os.unlink(name, dir_fd=self._fd(parent))

    @_call
    async def rmdir(self, parent: int, name: bytes, ctx: object) -> None:
        await self._rules.meet("rmdir", os.fsdecode(name))
        os.rmdir(name, dir_fd=self._fd(parent))

    @_call
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: object) -> Any:
        await self._rules.meet("mkdir", os.fsdecode(name))
        os.mkdir(name, stat.S_IMODE(mode), dir_fd=self._fd(parent))
        return self._look_up(parent, os.fsdecode(name))

    @_call
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: object) -> Any:
        await self._rules.meet("symlink", os.fsdecode(name))
        os.symlink(target, name, dir_fd=self._fd(parent))
        return self._look_up(parent, os.fsdecode(name))

    @_call
    async def readlink(self, inode: int, ctx: object) -> bytes:
        await self._rules.meet("readlink", self._name(inode))
        return os.readlink(b"", dir_fd=self._fd(inode))

    @_call
    async def link(self, inode: int, parent: int, name: bytes, ctx: object) -> Any:
        await self._rules.meet("link", self._name(inode))
        os.link(self._path(inode), name, dst_dir_fd=self._fd(parent))
        return self._look_up(parent, os.fsdecode(name))

    @_call
    async def rename(self, parent: int, name: bytes, to_parent: int, to: bytes, flags: int, ctx: object) -> None:
        await self._rules.meet("rename", os.fsdecode(name))
        self._require_real(parent, name)
        if flags & ~_RENAME_NOREPLACE:
            raise OSError(errno.EINVAL, "flags")
        if flags and self._exists(to_parent, to):
            raise OSError(errno.EEXIST, "exists")
        os.rename(name, to, src_dir_fd=self._fd(parent), dst_dir_fd=self._fd(to_parent))
        moved = os.stat(to, dir_fd=self._fd(to_parent), follow_symlinks=False)
        if (node := self._nodes.get(moved.st_ino)) is not None:
            node.name = os.fsdecode(to)

    def _exists(self, parent: int, name: bytes) -> bool:
        try:
            fd = self._find(parent, os.fsdecode(name))[1]
        except FileNotFoundError:
            return False
        if fd >= 0:
            os.close(fd)
        return True

    def _require_real(self, parent: int, name: bytes) -> None:
        fd = self._find(parent, os.fsdecode(name))[1]
        if fd < 0:
            raise OSError(errno.EROFS, "generated")
        os.close(fd)

    # ------------------------------------------------------------------------------------------- content

    @_call
    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: object) -> tuple[Any, Any]:
        await self._rules.meet("create", os.fsdecode(name))
        how = self._flags(flags) | os.O_CREAT | (flags & os.O_EXCL)
        fd = os.open(name, how, stat.S_IMODE(mode), dir_fd=self._fd(parent))
        attributes = self._look_up(parent, os.fsdecode(name))
        self._opened[fd] = attributes.st_ino
        return self._handle(fd), attributes

    @_call
    async def open(self, inode: int, flags: int, ctx: object) -> Any:
        await self._rules.meet("open", self._name(inode))
        if inode >= _FIRST_GENERATED and flags & os.O_ACCMODE == os.O_RDONLY:
            fd = os.open("/dev/null", os.O_RDONLY)
        else:
            fd = os.open(self._path(inode), self._flags(flags))
        self._opened[fd] = inode
        return self._handle(fd)

    def _handle(self, fd: int) -> Any:
        return pyfuse3.FileInfo(fh=fd, keep_cache=self._writeback or self._cache > 0)

    def _flags(self, flags: int) -> int:
        """Return the flags for the file behind. With write-back the kernel reads, and finds the end itself."""
        kept = flags & (os.O_ACCMODE | os.O_TRUNC | os.O_APPEND)
        if not self._writeback:
            return kept
        if kept & os.O_ACCMODE == os.O_WRONLY:
            kept ^= os.O_WRONLY | os.O_RDWR
        return kept & ~os.O_APPEND

    @_call
    async def read(self, fh: int, offset: int, length: int) -> bytes:
        inode = self._opened[fh]
        await self._rules.meet("read", self._name(inode))
        if inode >= _FIRST_GENERATED:
            return self._generated.read(offset, length)
        return os.pread(fh, length, offset)

    @_call
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        await self._rules.meet("write", self._name(self._opened[fh]))
        length = self._rules.take_room(len(data), whole=self._writeback)
        return os.pwrite(fh, data[:length], offset)

    @_call
    async def flush(self, fh: int) -> None:
        await self._rules.meet("flush", self._name(self._opened[fh]))

    @_call
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._rules.meet("fsync", self._name(self._opened[fh]))
        os.fsync(fh)

    @_call
    async def release(self, fh: int) -> None:
        try:
            await self._rules.meet("release", self._name(self._opened[fh]))
        finally:
            del self._opened[fh]
            os.close(fh)
