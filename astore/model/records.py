"""What a refresh finds in a pool: the records of volumes, of entries that are none, and the snapshot of them all.

A part of :mod:`astore.model`, which has all names that are defined here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

import msgspec

from astore.model.definitions import VolumeType


class ReferenceKind(StrEnum):
    """How an image uses a file that its header names."""

    BACKING = "backing"
    """What the image itself does not hold is read from it (qcow2, qcow, QED and cow; the parent of a VMDK)."""

    DATA = "data"
    """qcow2's external data file: it holds all of the image's data."""

    EXTENT = "extent"
    """A part of a VMDK whose descriptor is another file: it holds data of the image."""

    PARENT = "parent"
    """The parent of a differencing VHD or VHDX, which QEMU does not read."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where a location leads, as the kernel or the storage resolves it.

    :ivar path: the canonical path: without links, ``.`` and ``..``. What begins with no slash is in no local file system.
    :ivar device: with ``inode`` the identity of the file; None where there is no such file, or it was not looked at.
    :ivar through: the identities of the folders on the way, also of those that ``..`` leaves again.
    :ivar beside: the identity of the folder that has the last part of the location: not the file's own if that part is a link.
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


class Reference(msgspec.Struct, frozen=True, gc=False):
    """A file that an image's header names.

    :ivar name: as the header has it. :ivar format: the format that the header gives the file, in libvirt's words; None where
        it gives none, so that QEMU would guess.
    :ivar location: what QEMU would open: an absolute path or a URL. None where that cannot be told.
    :ivar doubt: why nothing is read through it, in words that follow "its backing file …": the header says more than a
        location and a format, or something that cannot be told.
    :ivar place: where the location leads; None where that is not known (another machine's storage).
    """

    kind: ReferenceKind
    name: str
    format: str | None = None
    location: str | None = None
    doubt: str | None = None
    place: Place | None = None


class ImageInfo(msgspec.Struct, frozen=True, gc=False):
    """What an image's header says. ``capacity`` is None where the file's own size is the capacity.

    ``references`` are the files that the header names. ``features`` are libvirt's names in sorted order; ``encryption`` is
    ``aes``, ``luks`` or None. ``extras`` names what the image has beside its disk, which conversions leave out. ``before`` is
    how many bytes of the file come before the disk's, where the file's size tells the capacity (LUKS).
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

    @property
    def backing(self) -> str | None:
        """The name of the backing file, as the header has it."""
        return name_of(self.references, ReferenceKind.BACKING)

    @property
    def backing_format(self) -> str | None:
        """The format that the header gives the backing file."""
        found = first_of(self.references, ReferenceKind.BACKING)
        return None if found is None else found.format

    @property
    def data_file(self) -> str | None:
        """The name of the external data file, as the header has it."""
        return name_of(self.references, ReferenceKind.DATA)


def first_of(references: tuple[Reference, ...], kind: ReferenceKind) -> Reference | None:
    """The first reference of a kind, or None."""
    for reference in references:
        if reference.kind is kind:
            return reference
    return None


def name_of(references: tuple[Reference, ...], kind: ReferenceKind) -> str | None:
    """The name in the first reference of a kind, or None."""
    found = first_of(references, kind)
    return None if found is None else found.name


class VolumeInfo(msgspec.Struct, frozen=True, gc=False):
    """A volume as the last refresh found it. ``key`` and ``path`` are the same object wherever they are equal.

    ``physical`` is st_size, ``allocation`` st_blocks × 512 (both 0 of a ``dir``), ``mode`` the whole st_mode.
    ``references`` are the files that its header names. ``device`` and ``inode`` identify its file, behind a link if it is one.
    ``extras`` names what an image has beside its disk, which conversions leave out: ``internal snapshots``, ``bitmaps``.

    ``made`` is ``raw`` where it is known that the volume was made raw. Such a volume is raw for all work, whatever its content
    says, for its guest may have written that; ``header_format`` is then what its content says.
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
    def backing(self) -> str | None:
        """The name of its backing file, as the header has it."""
        return name_of(self.references, ReferenceKind.BACKING) if self.references else None

    @property
    def backing_path(self) -> str | None:
        """Where its backing file is, an absolute path or a URL; None where that cannot be told."""
        found = first_of(self.references, ReferenceKind.BACKING)
        return None if found is None else found.location

    @property
    def backing_format(self) -> str | None:
        """The format that its header gives the backing file."""
        found = first_of(self.references, ReferenceKind.BACKING)
        return None if found is None else found.format

    @property
    def data_file(self) -> str | None:
        """The name of the external data file, as its header has it (qcow2)."""
        return name_of(self.references, ReferenceKind.DATA) if self.references else None

    @property
    def identity(self) -> tuple[int | str, int] | None:
        """Device and inode of its file; None where the storage does not tell them."""
        return (self.device, self.inode) if self.device else None

    def same_as(self, other: VolumeInfo) -> bool:
        """Whether nothing differs but the time of last access, and how files are identified (mounting anew changes that)."""
        return self == other or _lasting(self) == _lasting(other)


def _lasting(info: VolumeInfo) -> VolumeInfo:
    references = tuple(msgspec.structs.replace(one, place=None) for one in info.references)
    return msgspec.structs.replace(info, atime_ns=0, device=0, made=None, references=references)


class EntryError(msgspec.Struct, frozen=True, gc=False):
    """An entry of a pool that could not become a volume, and why. ``name`` is printable whatever the disk held.

    ``skipped`` marks what is no volume and no failure either: a FIFO, a dangling link, a name with control
    characters, a file that may not be opened. libvirt leaves those out without a word; the others degrade the pool.
    """

    name: str
    message: str
    errno: int | None = None
    skipped: bool = False


class FileStat(NamedTuple):
    """What a scan knows of an entry; symlinks are followed. Sizes in bytes, times in ns, ``blocks`` of 512 bytes.

    ``device`` and ``inode`` together identify a file among all files of all pools; a device of 0 is not known.
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
        """The same with another size in bytes and, unless it is None, another number of blocks."""
        return self._replace(size=size, blocks=self.blocks if blocks is None else blocks)
