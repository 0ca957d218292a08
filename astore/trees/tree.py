"""FileTree: the contract of a backend whose pools are folders of files.

A :class:`FileTree` is a dozen *blocking* calls on one folder, one level deep. :class:`astore.trees.scanning.FileTreeSession`
makes a pool's session of one.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from astore.model.definitions import Permissions, VolumeType
from astore.model.records import FileStat, Place

FIRST_READ = 4096
"""Bytes that tell most images; reading the rest for all would cost more than reading twice for some."""

SETTLING_NS = 1_000_000_000
"""An entry that changed this shortly before it was read may change again without its times showing it."""


class Entry(NamedTuple):
    """An entry whose header is wanted. ``handle`` is the tree's own and lets it read without looking the name up."""

    name: str
    stat: FileStat
    handle: Any


class Reading:
    """An entry's file, for as long as its header is read. This one knows no more than :meth:`FileTree.read_header`.

    :ivar entry: with the attributes of the file that is read.
    """

    __slots__ = ("entry", "tree")

    tree: FileTree

    def __init__(self, tree: FileTree, entry: Entry) -> None:
        self.tree = tree
        self.entry = entry

    def header(self, more: Callable[[bytes], bool]) -> bytes:
        """The beginning of the file; see :meth:`FileTree.read_header`."""
        return self.tree.read_header(self.entry, more)

    read: ClassVar[Callable[..., bytes] | None] = None
    """``read(offset, length)`` gives more of the file, if it can be read further: fewer bytes only where it ends."""

    def made(self) -> str | None:
        """The format that astore made the file in, ``""`` if that is not noted at it; None: this storage keeps no notes."""
        return None

    def close(self) -> None:
        """Let go of the file. Called once, whatever happened."""


class FileTree(abc.ABC):
    """A folder of files, by blocking calls, each from any thread of the pool's lane and several at once.

    Names are ``str`` as os.fsdecode makes them (surrogates for what is not UTF-8). Every method may raise OSError
    with an errno; one that is about the whole tree (ENOTCONN, ESTALE, EIO on the folder itself) makes the pool
    inaccessible.
    """

    file_type: ClassVar[VolumeType] = VolumeType.FILE
    directory_type: ClassVar[VolumeType] = VolumeType.DIR
    readers: ClassVar[int] = 1
    """How many threads reading headers at once pay here."""

    @abc.abstractmethod
    def key(self, name: str) -> str:
        """The volume key (= path) of an entry: an absolute path or a URL."""

    @abc.abstractmethod
    def scan(self, want: Callable[[str, FileStat], bool]) -> Iterator[Entry | tuple[str, OSError]]:
        """List the folder: call ``want`` for every entry, and yield those for which it says True.

        ``.`` and ``..`` and what vanished meanwhile are left out. An entry that cannot be looked at is yielded as
        ``(name, error)``: a dangling link with ENOENT, a link loop with ELOOP. Who takes an Entry calls
        :meth:`read_header` or :meth:`release` on it, once, perhaps on another thread.
        """

    @abc.abstractmethod
    def read_header(self, entry: Entry, more: Callable[[bytes], bool]) -> bytes:
        """The beginning of a regular file, and release the entry, whatever happens.

        Reads FIRST_READ bytes and, if ``more`` says of them that they do not tell, HEADER_SIZE bytes (fewer only
        where the file ends). Never hangs on what is not a regular file (O_NONBLOCK), and leaves the access time
        alone where that can be helped. ENOENT says that the entry's file is gone; the name is looked up again
        then, so that no record has the FileStat of one file and the header of another.
        """

    def reading(self, entry: Entry, *, thorough: bool = False) -> Reading:
        """The entry's file, for its header to be read. A tree that can say more of the file it reads overrides it.

        :param thorough: see that the attributes are those of the file that is read, where it is not read by a handle.
        """
        return Reading(self, entry)

    def has_notes(self) -> bool:
        """Whether formats may be noted at files of the folder (:meth:`Reading.made`): if not, they are not asked for."""
        return False

    def names_changed_ns(self) -> int | None:
        """When names of the folder changed last, in ns since the epoch.

        None where that need not be known, since entries are read by handles, or cannot be told.
        """
        return None

    def release(self, entry: Entry) -> None:
        """Let go of an entry that will not be read."""

    def name_of(self, location: str) -> str | None:
        """The name of an entry of the folder that a path or URL means by its text alone, or None."""
        name = location.rpartition("/")[2]
        return name if name and self.key(name) == location else None

    def place_of(self, location: str) -> Place | None:
        """Where a location of this storage leads that is no path of this machine; None: that cannot be told here."""
        return None

    def folder_place(self) -> Place | None:
        """Where the folder itself is; None where that cannot be told."""
        return None

    @abc.abstractmethod
    def lookup(self, name: str) -> Entry | None:
        """One entry, or None where there is none (or a dangling link)."""

    @abc.abstractmethod
    def statvfs(self) -> tuple[int, int]:
        """Bytes in all (f_frsize × f_blocks) and bytes free (f_frsize × f_bfree)."""

    def permissions(self) -> Permissions | None:
        """The folder's own, where it has a path on this machine."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. May be called twice. Calls of other threads may still be running."""
