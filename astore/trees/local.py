"""LocalTree: a :class:`~astore.trees.tree.FileTree` over a directory that the kernel shows us, mounted or not.

Everything goes through a descriptor of the directory, so that a directory renamed or mounted over halfway through a
scan cannot mix two places up. What a scan costs is the cost of one ``stat`` an entry: the loop in :meth:`LocalTree.scan`
is written for that and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator

from astore.images import HEADER_SIZE
from astore.model import FileStat, Permissions, Place
from astore.places import place_of
from astore.trees.tree import FIRST_READ, Entry, FileTree, Reading
from astore.volume_io.notes import NO_NOTES, NOTE, noted_format

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: opening what became a FIFO must not wait for a writer; O_NOCTTY: nor make a terminal ours (open(2))
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC

_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})
"""What calls on a FUSE mount say when its server is gone (ENOTCONN) or was cut off (ECONNABORTED)."""


class Folder:
    """A descriptor of a directory, closed when the last call that uses it is done.

    Whoever uses ``fd`` holds a reference to this object meanwhile: closing on the last reference rather than on request
    means that a number is never closed, and given to another file, under a call that another thread is in.
    """

    __slots__ = ("fd", "identity")

    def __init__(self, path: str) -> None:
        self.fd = -1
        self.fd = os.open(path, _FOLDER)
        st = os.fstat(self.fd)
        self.identity = (st.st_dev, st.st_ino)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class LocalTree(FileTree):
    """The entries of one directory. Symbolic links are followed, out of the directory too, as libvirt follows them.

    :param path: the directory, absolute; opened here, which may block.
    :param readers: how many threads reading headers at once pay. From a warm page cache one is fastest; from a cold
        local disk four read 10,000 heads in half the time, and over a network more than that.
    :param verify: called with the directory's descriptor whenever it was opened after this, and before every scan and
        lookup, on the calling thread; raises OSError where the directory is not the one that it should be.
    :raises OSError: the directory cannot be opened: ENOENT, ENOTDIR, EACCES …
    """

    def __init__(self, path: str, *, readers: int = 1, verify: Callable[[int], None] | None = None) -> None:
        self.path = path
        self._prefix = path if path.endswith("/") else path + "/"
        vars(self)["readers"] = readers  # the class has it for all its trees; this is one tree's own
        self._verify = verify
        self._lock = threading.Lock()
        self._closed = False
        self._place: Place | None = None
        self._folder: Folder | None = Folder(path)

    def __repr__(self) -> str:
        return f"<LocalTree {self.path!r}{' closed' if self._closed else ''}>"

    def key(self, name: str) -> str:
        """The entry's path."""
        return self._prefix + name

    # ------------------------------------------------------------------------------------------- the directory

    def detach(self) -> None:
        """Let go of the directory, so that it may be unmounted; the next call opens it again, by its path.

        Calls under way keep the directory that they began with until they are done.
        """
        with self._lock:
            self._folder = None

    def _opened(self) -> Folder:
        """The directory as it was last opened."""
        return self._folder or self._open()

    def _open(self) -> Folder:
        self._check_open()
        folder = Folder(self.path)
        if self._verify is not None:
            self._verify(folder.fd)
        with self._lock:
            self._check_open()
            self._folder = folder
        return folder

    def _check_open(self) -> None:
        if self._closed:
            raise OSError(errno.EBADF, "the tree is closed", self.path)

    def _current(self) -> Folder:
        """The directory that has the path now, which need not be the one that had it before, verified."""
        folder = self._folder
        if folder is None:
            return self._open()
        st = os.stat(self.path)
        if (st.st_dev, st.st_ino) != folder.identity:
            return self._open()
        if self._verify is not None:
            self._verify(folder.fd)
        return folder

    # --------------------------------------------------------------------------------------------- its entries

    def scan(self, want: Callable[[str, FileStat], bool]) -> Iterator[Entry | tuple[str, OSError]]:
        """List the directory; see :meth:`astore.trees.tree.FileTree.scan`.

        :raises OSError: it cannot be read, or ``verify`` says that it is the wrong one.
        """
        folder = self._current()
        # a description of its own: os.scandir(fd) shares its position with every other user of fd
        fd = os.open(".", _FOLDER, dir_fd=folder.fd)
        try:
            with os.scandir(fd) as listing:
                yield from self._entries(listing, fd, want, folder)
        finally:
            os.close(fd)
            del folder  # which an error would keep open with this frame

    def _entries(
        self, listing: Iterator[os.DirEntry[str]], fd: int, want: Callable[[str, FileStat], bool], folder: Folder
    ) -> Iterator[Entry | tuple[str, OSError]]:
        # The hottest loop of a refresh: 10,000 entries in 20 ms, 15 of them in the kernel. os.stat(), not DirEntry.stat(),
        # which does not follow what became a link after it was listed; tuple.__new__, since the records' own is Python.
        os_stat, new = os.stat, tuple.__new__
        for listed in listing:
            name = listed.name
            try:
                st = os_stat(name, dir_fd=fd)
            except OSError as error:
                if self._closed or error.errno in _DEAD:
                    del folder  # see scan()
                    raise  # it would be said of every entry, and on a hung mount each would take its time
                if error.errno != errno.ENOENT or _is_there(name, fd):
                    yield name, error
                continue
            found = new(
                FileStat,
                (
                    st.st_mode,
                    st.st_ino,
                    st.st_size,
                    st.st_blocks,
                    st.st_uid,
                    st.st_gid,
                    st.st_atime_ns,
                    st.st_mtime_ns,
                    st.st_ctime_ns,
                    st.st_dev,
                ),
            )
            if stat.S_ISBLK(found[0]):
                found = found.sized(_device_size(name, fd))
            if want(name, found):
                yield new(Entry, (name, found, folder))

    def lookup(self, name: str) -> Entry | None:
        """One entry, or None where there is none (or a dangling link, or a name that no entry can have)."""
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            return None
        folder = self._current()
        try:
            found = os.stat(name, dir_fd=folder.fd)
        except (FileNotFoundError, UnicodeEncodeError):  # the latter: no bytes could be its name
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise
        return Entry(name, _file_stat(found, name, folder.fd), folder)

    def read_header(self, entry: Entry, more: Callable[[bytes], bool]) -> bytes:
        """The beginning of a file; see :meth:`astore.trees.tree.FileTree.read_header`.

        :raises OSError: it cannot be read; ESPIPE if it is no regular file or block device any more.
        """
        reading = self.reading(entry)
        try:
            return reading.header(more)
        finally:
            reading.close()

    def reading(self, entry: Entry, *, thorough: bool = False) -> LocalReading:
        """The entry's file, opened for its header to be read."""
        if self._closed:
            self._check_open()
        return LocalReading(self, entry, thorough)

    def has_notes(self) -> bool:
        """Whether the directory says so; of one where not everybody may note it (xattr(7)) it is not known."""
        folder = self._opened()
        try:
            return NOTE in os.listxattr(folder.fd) or bool(os.fstat(folder.fd).st_mode & stat.S_ISVTX)
        except OSError as error:
            if error.errno in NO_NOTES:
                return False
            raise

    def names_changed_ns(self) -> int | None:
        """When names of the directory changed last."""
        folder = self._opened()
        return os.fstat(folder.fd).st_mtime_ns

    def folder_place(self) -> Place | None:
        """Where the folder is."""
        folder = self._opened()
        known = self._place
        if known is None or known.identity != folder.identity:
            known = self._place = place_of(self.path, {})  # a mount on its way may be touched: whoever asks is in it
        return known

    def statvfs(self) -> tuple[int, int]:
        """Bytes in all and bytes free of the file system that the directory is on."""
        folder = self._opened()
        vfs = os.fstatvfs(folder.fd)
        return vfs.f_frsize * vfs.f_blocks, vfs.f_frsize * vfs.f_bfree

    def permissions(self) -> Permissions:
        """The directory's."""
        folder = self._opened()
        st = os.fstat(folder.fd)
        return Permissions(stat.S_IMODE(st.st_mode) & 0o777, st.st_uid, st.st_gid)

    def close(self) -> None:
        """Let go of the directory. May be called twice, and while calls of other threads are still running."""
        with self._lock:
            self._closed = True
            self._folder = None


class LocalReading(Reading):
    """An entry's file, open for its header to be read."""

    __slots__ = ("_fd",)

    def __init__(self, tree: LocalTree, entry: Entry, thorough: bool) -> None:
        self.tree = tree
        self.entry = entry
        fd = self._fd = _open_quietly(entry[0], entry[2].fd)
        if thorough:
            st = os.fstat(fd)
            if st.st_ino != entry[1][1] or st.st_dev != entry[1][9]:
                self.entry = Entry(entry[0], _stat_of(st), entry[2])  # another file took its name

    def header(self, more: Callable[[bytes], bool]) -> bytes:
        """The beginning of the file."""
        # What became a FIFO or a socket since it was listed has no offset: ESPIPE.
        fd = self._fd
        head = os.pread(fd, FIRST_READ, 0)
        if len(head) < FIRST_READ:
            head = _fill(fd, head, FIRST_READ)
            if len(head) < FIRST_READ:
                return head
        return _fill(fd, head, HEADER_SIZE) if more(head) else head

    def read(self, offset: int, length: int) -> bytes:
        """Bytes from anywhere in the file."""
        return os.pread(self._fd, length, offset)

    def made(self) -> str | None:
        """The format that astore noted at the file."""
        return noted_format(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


# ------------------------------------------------------------------------------------------------------ single calls


def _file_stat(st: os.stat_result, name: str, fd: int) -> FileStat:
    found = _stat_of(st)
    return found.sized(_device_size(name, fd)) if stat.S_ISBLK(st.st_mode) else found


def _stat_of(st: os.stat_result) -> FileStat:
    return FileStat(
        st.st_mode,
        st.st_ino,
        st.st_size,
        st.st_blocks,
        st.st_uid,
        st.st_gid,
        st.st_atime_ns,
        st.st_mtime_ns,
        st.st_ctime_ns,
        st.st_dev,
    )


def _is_there(name: str, fd: int) -> bool:
    """Whether a name that leads nowhere still exists: a dangling link does, what vanished does not."""
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def _device_size(name: str, fd: int) -> int:
    """The size of a block device, which stat(2) does not tell; 0 where it may not be opened."""
    with contextlib.suppress(OSError):
        device = os.open(name, _FILE, dir_fd=fd)
        try:
            return os.lseek(device, 0, os.SEEK_END)
        finally:
            os.close(device)
    return 0


def _open_quietly(name: str, folder: int) -> int:
    """Open for reading without leaving a trace in the access time, where we may: O_NOATIME is for owners (open(2))."""
    try:
        return os.open(name, _FILE | os.O_NOATIME, dir_fd=folder)
    except PermissionError as error:
        if error.errno != errno.EPERM:
            raise
        return os.open(name, _FILE, dir_fd=folder)


def _fill(fd: int, head: bytes, size: int) -> bytes:
    """Read on until there are ``size`` bytes or the file ends: a network file system may give fewer than asked."""
    while len(head) < size:
        rest = os.pread(fd, size - len(head), len(head))
        if not rest:
            break
        head += rest
    return head
