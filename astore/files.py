"""FileTree, the contract of a backend whose pools are folders of files, and the session made from one.

A :class:`FileTree` is a dozen *blocking* calls on one folder, one level deep. :class:`FileTreeSession` runs them on the
pool's lane and does everything that is common: incremental scanning, reading and probing headers on several threads,
records, and errors by entry.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

from astore.model import VolumeType

HEADER_SIZE = 33_280
"""Bytes that tell every image format (libvirt's STORAGE_MAX_HEADER × 1: ISO 9660's magic is at 32,769)."""


class FileStat(NamedTuple):
    """What a scan knows of an entry; symlinks are followed. Sizes in bytes, times in ns, ``blocks`` of 512 bytes."""

    mode: int
    inode: int
    size: int
    blocks: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Entry(NamedTuple):
    """An entry whose header is wanted. ``handle`` is the tree's own and lets it read without looking the name up."""

    name: str
    stat: FileStat
    handle: Any


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

        ``.`` and ``..`` and what vanished meanwhile are left out; dangling links and link loops too. An entry that
        cannot be looked at is yielded as ``(name, error)``. Who takes an Entry calls :meth:`read_header` or
        :meth:`release` on it, once, perhaps on another thread.
        """

    @abc.abstractmethod
    def read_header(self, entry: Entry, size: int) -> bytes:
        """The first ``size`` bytes of a regular file (fewer only where it ends), and release the entry.

        Never hangs on what is not a regular file (O_NONBLOCK), never changes the access time where that can be helped.
        """

    def release(self, entry: Entry) -> None:
        """Let go of an entry that will not be read."""

    @abc.abstractmethod
    def lookup(self, name: str) -> Entry | None:
        """One entry, or None where there is none (or a dangling link)."""

    @abc.abstractmethod
    def statvfs(self) -> tuple[int, int]:
        """Bytes in all (f_frsize × f_blocks) and bytes free (f_frsize × f_bfree)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything. May be called twice. Calls of other threads may still be running."""
