"""The records of what a refresh finds in a pool: volumes, the files that they refer to, and entries that failed.

Import them from :mod:`astore.model`.
"""

from __future__ import annotations

from enum import StrEnum
from errno import EACCES, EINVAL, EPERM
from typing import NamedTuple

import msgspec

from astore.model.definitions import VolumeType
from astore.model.record import Record


class ReferenceKind(StrEnum):
    """How an image uses a file that its header names."""

    BACKING = "backing"
    """The backing file: it supplies what the image itself does not hold (qcow2, qcow, QED, cow; the parent of a VMDK)."""

    DATA = "data"
    """The external data file of a qcow2 image: it holds all of the image's data."""

    EXTENT = "extent"
    """An extent of a VMDK with a separate descriptor: it holds data of the image."""

    PARENT = "parent"
    """The parent of a differencing VHD or VHDX, which QEMU does not read."""


class Place(Record, frozen=True, gc=False):
    """The place that a location leads to, as the kernel or the storage resolves it.

    :ivar path: the canonical path: without links, ``.`` and ``..``. It begins with a slash only in a local file system.
    :ivar device: with ``inode`` the identity of the file; None if the file does not exist, or was not looked at.
    :ivar through: the identities of the folders on the way, including those that ``..`` leaves again.
    :ivar beside: the identity of the folder that holds the location's last part, which may be a link to the file.
    """

    path: str
    device: int | str | None = None
    inode: int | None = None
    through: tuple[tuple[int | str, int], ...] = ()
    beside: tuple[int | str, int] | None = None

    @property
    def identity(self) -> tuple[int | str, int] | None:
        """Device and inode of the file, or None."""
        return None if self.device is None or self.inode is None else (self.device, self.inode)


class Reference(Record, frozen=True, gc=False):
    """A file that an image's header names.

    :ivar name: the file's name in the header. :ivar format: the format in the header, in libvirt's words; None if the header
        has none, so that QEMU would guess.
    :ivar location: the absolute path or URL that QEMU would open; None if it is unknown.
    :ivar doubt: why nothing is read through it, in words that follow "its backing file …": the header has more than a
        location and a format, or cannot be understood.
    :ivar place: the place that the location leads to; None if it is unknown (another machine's storage).
    """

    kind: ReferenceKind
    name: str
    format: str | None = None
    location: str | None = None
    doubt: str | None = None
    place: Place | None = None


def first_of(references: tuple[Reference, ...], kind: ReferenceKind) -> Reference | None:
    """Return the first reference of a kind, or None."""
    for reference in references:
        if reference.kind is kind:
            return reference
    return None


class _Referring:
    """A record with ``references``: what it says about the first of each kind."""

    __slots__ = ()

    references: tuple[Reference, ...]

    @property
    def backing(self) -> str | None:
        """The name of the backing file in its header."""
        found = first_of(self.references, ReferenceKind.BACKING) if self.references else None
        return None if found is None else found.name

    @property
    def backing_format(self) -> str | None:
        """The format of the backing file in its header."""
        found = first_of(self.references, ReferenceKind.BACKING)
        return None if found is None else found.format

    @property
    def data_file(self) -> str | None:
        """The name of the external data file in its header (qcow2)."""
        found = first_of(self.references, ReferenceKind.DATA) if self.references else None
        return None if found is None else found.name


class ImageInfo(_Referring, Record, frozen=True, gc=False):
    """The contents of an image's header. ``capacity`` is None if the file's own size is the capacity.

    ``references`` are the files that the header names. ``features`` are libvirt's names in sorted order; ``encryption`` is
    ``aes``, ``luks`` or None. ``extras`` names what the image has besides its disk, which conversions leave out. ``before`` is
    the number of bytes that precede the disk's in the file, if the file's size tells the capacity (LUKS).
    """

    format: str
    capacity: int | None = None
    references: tuple[Reference, ...] = ()
    compat: str | None = None
    features: tuple[str, ...] = ()
    encryption: str | None = None
    cluster_size: int | None = None
    before: int = 0
    extras: tuple[str, ...] = ()


class VolumeInfo(_Referring, Record, frozen=True, gc=False):
    """A volume as the last refresh found it. ``key`` and ``path`` are the same object if they are equal.

    ``physical`` is st_size, ``allocation`` st_blocks × 512 (both 0 for a ``dir``), ``mode`` the whole st_mode.
    ``references`` are the files that its header names. ``device`` and ``inode`` identify its file, with links followed.
    ``extras`` names what an image has besides its disk, which conversions leave out: ``internal snapshots``, ``bitmaps``.

    ``made`` is ``raw`` if the volume is known to have been made raw. It then stays raw for all work, because its guest may
    have written any header; ``header_format`` is the format of that header.
    """

    name: str
    type: VolumeType
    key: str
    path: str
    capacity: int
    allocation: int
    physical: int
    format: str | None
    mode: int
    uid: int
    gid: int
    inode: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    references: tuple[Reference, ...] = ()
    compat: str | None = None
    features: tuple[str, ...] = ()
    encryption: str | None = None
    cluster_size: int | None = None
    device: int | str = 0
    made: str | None = None
    header_format: str | None = None
    extras: tuple[str, ...] = ()

    @property
    def backing_path(self) -> str | None:
        """The absolute path or URL of its backing file; None if it has none, or the path is unknown."""
        found = first_of(self.references, ReferenceKind.BACKING)
        return None if found is None else found.location

    @property
    def identity(self) -> tuple[int | str, int] | None:
        """Device and inode of its file; None if the storage does not tell them."""
        return (self.device, self.inode) if self.device else None

    def same_as(self, other: VolumeInfo) -> bool:
        """Return whether only the access time and the identities of files differ. (Mounting anew changes those.)"""
        return self == other or _lasting(self) == _lasting(other)


def _lasting(info: VolumeInfo) -> VolumeInfo:
    references = tuple(msgspec.structs.replace(one, place=None) for one in info.references)
    return msgspec.structs.replace(info, atime_ns=0, device=0, made=None, references=references)


class EntryError(Record, frozen=True, gc=False):
    """An entry of a pool that is no volume, and why. ``name`` is printable, whatever the storage has.

    ``skipped`` marks entries that are no failures: a FIFO, a dangling link, a name with control characters, a file that may
    not be opened. libvirt leaves them out silently. Other entries degrade the pool. With the ``errno`` of the storage the
    entry is :attr:`unreadable`.
    """

    name: str
    message: str
    errno: int | None = None
    skipped: bool = False

    @property
    def unreadable(self) -> bool:
        """Whether the entry is there and the storage did not let it be read. Then a volume keeps its last record.

        Without an errno, or with EINVAL, it was read and is malformed: its last record describes it no more.
        """
        return self.errno in (EACCES, EPERM) or (not self.skipped and self.errno not in (None, EINVAL))


class FileStat(NamedTuple):
    """The attributes of an entry, with links followed. Sizes in bytes, times in ns, ``blocks`` of 512 bytes.

    ``device`` and ``inode`` together identify a file among all files of all pools; a device of 0 is unknown.
    """

    mode: int
    inode: int
    size: int
    blocks: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    device: int | str = 0

    def sized(self, size: int, blocks: int | None = None) -> FileStat:
        """Return these attributes with another size in bytes and, unless it is None, another number of blocks."""
        return self._replace(size=size, blocks=self.blocks if blocks is None else blocks)
