"""FileTree: the contract of a backend whose pools are folders of files.

A :class:`FileTree` is a dozen *blocking* calls on one folder, one level deep. :class:`astore.trees.scanning.FileTreeSession`
makes a pool's session of one.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NamedTuple

from astore.model.definitions import Permissions, VolumeType
from astore.model.records import FileStat, Place

FIRST_READ = 4096
"""Bytes that identify most images; reading whole headers of all costs more than reading twice for some."""

SETTLING_NS = 1_000_000_000
"""How recently an entry may have changed, in ns, for another change to leave its times the same."""


class Entry(NamedTuple):
    """An entry whose header is wanted. ``handle`` belongs to the tree, to read the file without looking up its name."""

    name: str
    stat: FileStat
    handle: Any


class Reading:
    """An entry's file while its header is read. This base class uses :meth:`FileTree.read_header` alone.

    :ivar entry: the entry, with the attributes of the file that is read.
    """

    __slots__ = ("entry", "tree")

    tree: FileTree

    def __init__(self, tree: FileTree, entry: Entry) -> None:
        self.tree = tree
        self.entry: Entry = entry

    def header(self, more: Callable[[bytes], bool]) -> bytes:
        """Read the beginning of the file; see :meth:`FileTree.read_header`."""
        return self.tree.read_header(self.entry, more)

    read: ClassVar[Callable[..., bytes] | None] = None
    """``read(offset, length)`` returns more of the file, fewer bytes only at its end. None: no more can be read."""

    def made(self) -> str | None:
        """Return the format that astore noted at the file, ``""`` if none is; None: this storage keeps no notes."""
        return None

    def close(self) -> None:
        """Let go of the file. Called exactly once, also after an error."""


class FileTree(abc.ABC):
    """A folder of files. Its methods block; any threads of the pool's lane call them, several at once.

    Names are ``str`` as os.fsdecode makes them (surrogates for bytes that are not UTF-8). Every method may raise OSError
    with an errno; an error of the whole tree (ENOTCONN, ESTALE, EIO on the folder itself) makes the pool inaccessible.
    """

    file_type: ClassVar[VolumeType] = VolumeType.FILE
    directory_type: ClassVar[VolumeType] = VolumeType.DIR
    readers: ClassVar[int] = 1
    """How many threads should read headers at once."""

    on_device: bool = False
    """Whether it is on a device of this machine, as last opened; see :meth:`astore.backend.Lane.turn`."""

    has_folder: ClassVar[bool] = False
    """Whether it is a folder that the kernel can tell of, see :meth:`open_folder`."""

    untold: int = 0
    """How many entries of the last listing may change without a notice of the folder: links, and files with other names."""

    @abc.abstractmethod
    def key(self, name: str) -> str:
        """Return the volume key (= path) of an entry: an absolute path or a URL."""

    def work(self) -> AbstractContextManager[None]:
        """Surround a refresh, or another piece of work of several calls. A tree may keep its folder open meanwhile."""
        return contextlib.nullcontext()

    @abc.abstractmethod
    def scan(self, want: Callable[[str, FileStat], bool]) -> Iterator[Entry | tuple[str, OSError]]:
        """List the folder: call ``want`` for every entry, and yield the entries for which it returns True.

        ``.``, ``..`` and vanished entries are left out. An entry whose attributes cannot be read is yielded as
        ``(name, error)``: a dangling link with ENOENT, a link loop with ELOOP. The receiver of an Entry passes it to
        :meth:`read_header` or :meth:`release`, once, perhaps on another thread.
        """

    @abc.abstractmethod
    def read_header(self, entry: Entry, more: Callable[[bytes], bool]) -> bytes:
        """Read the beginning of a regular file, and release the entry, also after an error.

        Reads FIRST_READ bytes and, if ``more`` returns True for them, HEADER_SIZE bytes (fewer only at the end of the
        file). It must not hang on anything but a regular file (O_NONBLOCK), and should leave the access time alone. ENOENT
        says that the entry's file is gone; then the caller looks the name up again, so that no record has the FileStat of
        one file and the header of another.
        """

    def reading(self, entry: Entry, *, thorough: bool = False) -> Reading:
        """Open the entry's file to read its header. A tree that can read more than headers overrides this.

        :param thorough: have the attributes be those of the opened file, even if it is opened by its name.
        """
        return Reading(self, entry)

    def has_notes(self) -> bool:
        """Return whether files of the folder may have notes; if not, :meth:`Reading.made` is not called for every image."""
        return False

    def names_changed_ns(self) -> int | None:
        """Return when a name in the folder changed last, in ns since the epoch.

        None: that is not known, or not needed because entries are read by handles.
        """
        return None

    def release(self, entry: Entry) -> None:
        """Let go of an entry that will not be read."""

    def name_of(self, location: str) -> str | None:
        """Return the name of the folder's entry that a path or URL means by its text alone, or None."""
        name = location.rpartition("/")[2]
        return name if name and self.key(name) == location else None

    def place_of(self, location: str) -> Place | None:
        """Return where a location that is not a local path leads; None: not known."""
        return None

    def folder_place(self) -> Place | None:
        """Return where the folder itself is; None: not known."""
        return None

    @abc.abstractmethod
    def lookup(self, name: str) -> Entry | None:
        """Return one entry, or None if there is none (or a dangling link)."""

    @abc.abstractmethod
    def statvfs(self) -> tuple[int, int]:
        """Return the total bytes (f_frsize × f_blocks) and the free bytes (f_frsize × f_bfree)."""

    def check(self) -> None:
        """Check that the tree answers, after an error of one entry. :raises OSError: it does not."""
        self.statvfs()

    def permissions(self) -> Permissions | None:
        """Return the folder's permissions; None if it has no local path."""
        return None

    def open_folder(self) -> int:
        """Return a new descriptor of the folder, which the kernel tells of. Only if ``has_folder``. Blocks."""
        raise NotImplementedError

    def not_told(self) -> tuple[str, float]:
        """Return why the kernel does not tell all changes ("" if it does), and how old a listing may be, in seconds. Blocks."""
        return "", 0.0

    def is_folder(self, identity: tuple[int, int]) -> bool:
        """Return whether the tree is still the folder of this device and inode. Only if ``has_folder``. Blocks."""
        raise NotImplementedError

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. May be called twice, and while other threads' calls are running."""
