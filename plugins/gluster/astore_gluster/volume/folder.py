"""A folder of a Gluster volume as a :class:`~astore.trees.tree.FileTree`, without a mount.

A scan is one listing, with the attributes of each entry (``glfs_xreaddirplus_r``). A header is one anonymous read by
the handle from the listing. Only symbolic links take more round trips: they are followed one by one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat as modes
import threading
from collections.abc import Callable, Iterator
from urllib.parse import unquote

from astore.model import FileStat, Place, VolumeType
from astore.places import MOST_LINKS
from astore.trees.tree import Entry, FileTree, Reading
from astore_gluster import libgfapi
from astore_gluster.layout import DIRENT_NAME, DIRENT_ROOM, NAME_ROOM, STATVFS_ROOM, decode_stat, decode_statvfs
from astore_gluster.libgfapi import failure, scratch
from astore_gluster.servers import quote_path
from astore_gluster.uri import parts_in
from astore_gluster.volume.connection import Connection
from astore_gluster.volume.notes import NOTE, NOTE_ROOM
from astore_gluster.volume.reading import GONE, GlusterReading, VanishedError
from astore_gluster.volume.upcalls import KnownHandles, Listener

_SECOND = 1_000_000_000


class GlusterFolder(FileTree):
    """A folder of a volume, to read.

    :ivar connection: to the volume; the tree takes over one hold, and drops it in :meth:`close`.
    :param directory: the folder's path in the volume, from its root ``/``.
    :param url: the text before and after a quoted name in a file's URL.
    """

    file_type = VolumeType.NETWORK
    directory_type = VolumeType.NETDIR
    readers = 8

    def __init__(self, connection: Connection, directory: str, url: tuple[str, str]) -> None:
        self.connection = connection
        self._gfapi = connection.gfapi
        self._fs = connection.fs
        self._directory = os.fsencode(directory)
        self._prefix = self._directory.rstrip(b"/") + b"/"
        self._before, self._after = url
        self._lock = threading.Lock()
        self._closed = False
        self._folder: Place | None = None
        self._known: KnownHandles | None = None  # while somebody listens, or did

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._before}{self._after}>"

    def key(self, name: str) -> str:
        """Return the URL of an entry: ``gluster://host[:port]/volume/dir/name``, escaped as by libvirt."""
        return f"{self._before}{quote_path(name)}{self._after}"

    def path(self, name: str) -> bytes:
        """Return an entry's path in the volume. :raises OSError: EINVAL: not a name of an entry."""
        try:
            raw = os.fsencode(name)
        except UnicodeEncodeError:  # not a name from os.fsdecode()
            raw = b""
        if not raw or b"/" in raw or b"\0" in raw or raw in (b".", b".."):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), name)
        if len(raw) >= NAME_ROOM:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        return self._prefix + raw

    @contextlib.contextmanager
    def _using(self) -> Iterator[int]:
        """Hold the connection and yield the ``glfs_t``, which stays open even if the tree is closed."""
        self._hold()
        try:
            yield self._fs
        finally:
            self.connection.drop()

    def _hold(self) -> None:
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the pool was closed")
            self.connection.hold()

    # ------------------------------------------------------------------------------------------------------ scanning

    def scan(self, want: Callable[[str, FileStat], bool]) -> Iterator[Entry | tuple[str, OSError]]:
        """List the folder, see :meth:`astore.trees.tree.FileTree.scan`. :raises OSError: the folder cannot be listed."""
        with self._using() as fs:
            listing = self._gfapi.opendir(fs, self._directory)
            if listing is None:
                raise self._folder_failure()
            try:
                yield from self._entries(listing, want)
            finally:
                self._gfapi.closedir(listing)

    def _entries(self, listing: int, want: Callable[[str, FileStat], bool]) -> Iterator[Entry | tuple[str, OSError]]:
        # The loop runs for every entry, changed or not: hence the local names, and one unpacking.
        gfapi = self._gfapi
        read, get_stat, free = gfapi.xreaddirplus_r, gfapi.xreaddirplus_get_stat, gfapi.free
        string_at = ctypes.string_at
        unpack, size = gfapi.layout.members.unpack, gfapi.layout.members.size
        make_stat, stat_type, device = tuple.__new__, FileStat, self.connection.device
        flags = libgfapi.XREADDIRP_STAT | libgfapi.XREADDIRP_HANDLE
        room = ctypes.create_string_buffer(DIRENT_ROOM)
        name_room = (ctypes.c_char * NAME_ROOM).from_buffer(room, DIRENT_NAME)
        extra, cursor = ctypes.c_void_p(), ctypes.c_void_p()
        at_extra, at_room, at_cursor = ctypes.addressof(extra), ctypes.addressof(room), ctypes.addressof(cursor)
        listed = set[int]()
        known = None if self._known is None or self._known.closed else self._known
        while True:
            if read(listing, flags, at_extra, at_room, at_cursor) < 0:
                raise self._folder_failure()
            if cursor.value is None:
                if known is not None:
                    known.keep_only(listed)
                return
            item = extra.value
            try:
                raw: bytes = name_room.value
                if raw[:1] == b"." and raw in (b".", b".."):
                    continue
                name = raw.decode("utf-8", "surrogateescape")
                address = get_stat(item)
                if address:
                    inode, mode, uid, gid, length, blocks, a, a_ns, m, m_ns, c, c_ns = unpack(string_at(address, size))
                else:
                    mode = inode = 0
                kind = mode & 0o170000
                if known is not None:
                    listed.add(inode)
                    if inode not in known:
                        self._know(known, name, inode, item)
                if kind == 0 or kind == modes.S_IFLNK:
                    # a link, or no attributes, as the server may send for entries of another brick
                    found = self._look(name, want)
                else:
                    times = (a * _SECOND + a_ns, m * _SECOND + m_ns, c * _SECOND + c_ns)
                    stat = make_stat(stat_type, (mode, inode, length, blocks, uid, gid, *times, device))
                    if not want(name, stat):
                        continue
                    found = Entry(name, stat, self._keep(item) if kind == modes.S_IFREG else None)
            finally:
                free(item)
            if found is not None:
                yield found

    def _know(self, known: KnownHandles, name: str, inode: int, item: int | None) -> None:
        """Keep a handle of an entry, to be told of it. ``item`` is where it was listed; folders are without a handle."""
        handle = self._gfapi.xreaddirplus_get_object(item)
        if handle:
            known.keep(inode, handle)
            return
        data = ctypes.create_string_buffer(self._gfapi.layout.size)
        handle = self._gfapi.h_lookupat(self._fs, None, self.path(name), ctypes.addressof(data), 0)
        if handle:
            known.keep(decode_stat(self._gfapi.layout, data.raw).inode, handle)
            self._gfapi.h_close(handle)

    def _keep(self, item: int | None) -> int | None:
        """Return a handle of the entry just listed, to read it by; None if the server sent none."""
        handle = self._gfapi.xreaddirplus_get_object(item)
        kept = self._gfapi.object_copy(handle) if handle else None
        if kept:
            self.connection.hold()
        return kept

    def _look(self, name: str, want: Callable[[str, FileStat], bool]) -> Entry | tuple[str, OSError] | None:
        """Look up the entry ``name``; None if it is gone or not wanted."""
        try:
            entry = self._find(name)
        except VanishedError:
            return None
        except OSError as error:
            return name, error
        wanted = False
        try:
            wanted = want(name, entry.stat)
        finally:
            if not wanted:
                self.release(entry)
        return entry if wanted else None

    def lookup(self, name: str) -> Entry | None:
        """Look up one entry, following links; None if there is none, or a link leads nowhere.

        :raises OSError: ELOOP: links form a circle; ENOENT: the folder is gone; or another error of the volume.
        """
        try:
            entry = self._find(name)
            if self._known is not None:
                self._known.keep(entry.stat.inode, entry.handle)
            return entry
        except OSError as error:
            if error.errno == errno.ENOENT:
                self.check_folder()
            elif error.errno != errno.EINVAL:
                raise
            return None

    def _find(self, name: str) -> Entry:
        path = self.path(name)
        with self._using() as fs:
            handle, stat = self._resolve(fs, path)
            if modes.S_ISREG(stat.mode):
                self.connection.hold()
                return Entry(name, stat, handle)
            self._gfapi.h_close(handle)
            return Entry(name, stat, None)

    def _resolve(self, fs: int, path: bytes, within: bytes | None = None) -> tuple[int, FileStat]:
        """Return the handle and attributes of the file at the end of a path.

        :param within: the folder, with a slash, to which links may lead; they may name only its entries.

        libgfapi can follow links by itself, but goes around a loop 2,000 times, which takes 0.3 s: a refresh of a
        folder of such links would never end.
        """
        gfapi = self._gfapi
        data = ctypes.create_string_buffer(gfapi.layout.size)
        seen = {path}
        while True:
            handle = gfapi.h_lookupat(fs, None, path, ctypes.addressof(data), 0)
            if handle is None:
                error = failure(path)
                raise VanishedError(*error.args) if error.errno in GONE and len(seen) == 1 else error
            stat = decode_stat(gfapi.layout, data.raw, self.connection.device)
            if not modes.S_ISLNK(stat.mode):
                return handle, stat
            gfapi.h_close(handle)
            target = self._readlink(fs, path)
            target = target.rstrip(b"/") or b"/"
            path = target if target.startswith(b"/") else path[: path.rindex(b"/") + 1] + target
            if within is not None and (not path.startswith(within) or b"/" in path[len(within) :]):
                raise OSError(errno.EXDEV, "it is a link that leads out of the pool's directory", path)
            if path in seen or len(seen) > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if len(path) > 4096:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
            seen.add(path)

    def _readlink(self, fs: int, path: bytes) -> bytes:
        room = scratch(4096)
        length = self._gfapi.readlink(fs, path, ctypes.addressof(room), 4096)
        if length < 0:
            raise failure(path)
        return ctypes.string_at(room, length)

    # ------------------------------------------------------------------------------------------------------- headers

    def read_header(self, entry: Entry, more: Callable[[bytes], bool]) -> bytes:
        """Read the beginning of a regular file without opening it; see :meth:`astore.trees.tree.FileTree.read_header`.

        It reads the listed file, never another one that has taken its name.

        :raises OSError: ENOENT: the file is gone; EINVAL: it is not a regular file.
        """
        reading = self.reading(entry)
        try:
            return reading.header(more)
        finally:
            reading.close()

    def reading(self, entry: Entry, *, thorough: bool = False) -> Reading:
        """Return the entry's file, to read its header by its handle; an entry listed without one is looked up."""
        return GlusterReading(self, entry if entry.handle is not None else self._find_again(entry), self.connection)

    def name_of(self, location: str) -> str | None:
        name = unquote(location.partition("?")[0].rpartition("/")[2], errors="surrogateescape")
        return name if name and self.key(name) == location else None

    def has_notes(self) -> bool:
        """Return whether the folder has astore's note."""
        room = ctypes.create_string_buffer(NOTE_ROOM)
        with self._using() as fs:
            return self._gfapi.getxattr(fs, self._directory, NOTE, ctypes.addressof(room), NOTE_ROOM) >= 0

    def place_of(self, location: str) -> Place | None:
        """Return where a URL of this volume leads, on any of its servers; None for another URL."""
        key = self.connection.key
        parts = parts_in(location, key.volume, {server.host for server in key.servers})
        return None if parts is None else self._place("/" + "/".join(parts))

    def folder_place(self) -> Place | None:
        if self._folder is None:
            self._folder = self._place(os.fsdecode(self._directory))
        return self._folder

    def _place(self, path: str) -> Place | None:
        device = self.connection.device
        name = f"{device}{path}".rstrip("/")
        try:
            with self._using() as fs:
                handle, stat = self._resolve(fs, os.fsencode(path))
                self._gfapi.h_close(handle)
        except OSError as error:
            return Place(name) if error.errno == errno.ENOENT else None
        return Place(name, device, stat.inode)

    def listen(self, listener: Listener) -> int:
        """Have a listener told of what others do; return the folder's inode. Blocks.

        :raises OSError: the volume does not answer.
        """
        with self._using() as fs:
            self.connection.upcalls.listen(listener)
            self._known = listener.known
            handle, stat = self._resolve(fs, self._directory)
            listener.known.folder = stat.inode
            listener.known.keep(stat.inode, handle)
            self._gfapi.h_close(handle)
        return stat.inode

    def _find_again(self, entry: Entry) -> Entry:
        """Look up a handle for an entry that was listed without one."""
        found = self._find(entry.name)
        if found.stat.inode != entry.stat.inode:
            self.release(found)
            raise VanishedError(errno.ENOENT, os.strerror(errno.ENOENT), entry.name)
        if found.handle is None:
            raise OSError(errno.EINVAL, "it is not a regular file", entry.name)
        return found

    def release(self, entry: Entry) -> None:
        if entry.handle is not None:
            self._gfapi.h_close(entry.handle)
            self.connection.drop()

    # ------------------------------------------------------------------------------------------------ the whole tree

    def statvfs(self) -> tuple[int, int]:
        """Return the volume's size and free space, in bytes."""
        room = scratch(STATVFS_ROOM)
        with self._using() as fs:
            if self._gfapi.statvfs(fs, self._directory, ctypes.addressof(room)) < 0:
                raise self._folder_failure()
            return decode_statvfs(ctypes.string_at(room, STATVFS_ROOM))

    def check(self) -> None:
        self.check_folder()
        self.statvfs()

    def _folder_failure(self) -> OSError:
        """Return the error of the call on the folder that failed just now."""
        return self._about_folder(failure(self._directory))

    def _about_folder(self, error: OSError) -> OSError:
        if error.errno == errno.ENOTDIR and self._directory == b"/":
            # the root is a folder; this is what libgfapi says of it while too few bricks answer (10.3, seen)
            error = OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        if error.errno == errno.ENOTCONN:
            return OSError(error.errno, f"{self.connection.key}: too few of its bricks answer: {error.strerror}")
        return error

    def check_folder(self) -> None:
        """Check that the folder exists. :raises OSError: ENOENT; ENOTDIR: it is not a folder; or another error."""
        data = ctypes.create_string_buffer(self._gfapi.layout.size)
        with self._using() as fs:
            if self._gfapi.stat(fs, self._directory, ctypes.addressof(data)) < 0:
                raise self._folder_failure()
        if not modes.S_ISDIR(decode_stat(self._gfapi.layout, data.raw).mode):
            raise self._about_folder(OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), self._directory))

    def close(self) -> None:
        """Drop the connection; it stays open for calls in progress and kept handles."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self.connection.drop()

    def _check(self, result: int, path: bytes) -> None:
        if result < 0:
            raise failure(path)
