"""What a refresh finds in a pool: the records of volumes, of entries that are none, and the snapshot of them all.

A part of :mod:`astore.model`, which has all names that are defined here.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar

import msgspec

from astore.definitions import Permissions, VolumeType


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
        return self == other or self._lasting() == other._lasting()

    def _lasting(self) -> VolumeInfo:
        references = tuple(msgspec.structs.replace(one, place=None) for one in self.references)
        return msgspec.structs.replace(self, atime_ns=0, device=0, made=None, references=references)


class EntryError(msgspec.Struct, frozen=True, gc=False):
    """An entry of a pool that could not become a volume, and why. ``name`` is printable whatever the disk held.

    ``skipped`` marks what is no volume and no failure either: a FIFO, a dangling link, a name with control
    characters, a file that may not be opened. libvirt leaves those out without a word; the others degrade the pool.
    """

    name: str
    message: str
    errno: int | None = None
    skipped: bool = False


class Changes(msgspec.Struct, frozen=True):
    """How one snapshot differs from the one before it; names in name order, ``unchanged`` a count."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


MOST_LATE = 64
"""How many changes of single volumes are kept beside a snapshot before they are put in."""

_NOTHING_LATE: tuple[dict[str, VolumeInfo], frozenset[str], dict[str, VolumeInfo | None]] = ({}, frozenset(), {})


class Snapshot:
    """All that a refresh found, at one moment. Immutable; swapped whole.

    :param by_name: the records by name, **in name order**; the caller gives it away.
    :param capacity: the pool's size in bytes; ``allocation`` and ``available`` likewise.
    :param taken_at: when the scan began, in seconds since the epoch.
    :param unsettled: names whose identity cannot be trusted yet, since they changed while they were being read
        (git's "racily clean" entries): the next refresh reads their headers again.
    :param permissions: those of the pool's folder, where it has a path on this machine.
    :param folder: where the pool's folder is, for what is known by its place.
    """

    __slots__ = (
        "_late",
        "_merged",
        "_referring",
        "_unsettled",
        "_volumes",
        "allocation",
        "available",
        "capacity",
        "errors",
        "folder",
        "generation",
        "permissions",
        "taken_at",
    )

    generation: int
    taken_at: float
    capacity: int
    allocation: int
    available: int
    errors: tuple[EntryError, ...]
    permissions: Permissions | None
    folder: Place | None

    def __init__(
        self,
        by_name: dict[str, VolumeInfo] | None = None,
        *,
        generation: int = 0,
        taken_at: float = 0.0,
        capacity: int = 0,
        allocation: int = 0,
        available: int = 0,
        errors: tuple[EntryError, ...] = (),
        unsettled: frozenset[str] = frozenset(),
        permissions: Permissions | None = None,
        folder: Place | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "_merged", {} if by_name is None else by_name)
        put(self, "_late", _NOTHING_LATE)
        put(self, "_volumes", None)
        put(self, "_referring", None)
        put(self, "generation", generation)
        put(self, "taken_at", taken_at)
        put(self, "capacity", capacity)
        put(self, "allocation", allocation)
        put(self, "available", available)
        put(self, "errors", errors)
        put(self, "_unsettled", unsettled)
        put(self, "permissions", permissions)
        put(self, "folder", folder)

    # What single volumes were changed to since is put in when the whole is asked for first: a thousand volumes made one
    # after the other would else cost a thousand copies of all records. (Any thread may ask; they find the same.)
    _late: tuple[dict[str, VolumeInfo], frozenset[str], dict[str, VolumeInfo | None]]
    _merged: dict[str, VolumeInfo] | None
    _unsettled: frozenset[str] | None
    _volumes: tuple[VolumeInfo, ...] | None
    _referring: tuple[VolumeInfo, ...] | None
    EMPTY: ClassVar[Snapshot]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Snapshot is immutable: {name} cannot be set")

    def __repr__(self) -> str:
        return f"<Snapshot generation={self.generation} volumes={len(self._by_name)} errors={len(self.errors)}>"

    @property
    def _by_name(self) -> dict[str, VolumeInfo]:
        merged = self._merged
        if merged is None:
            merged, _, late = self._late
            grown = not late.keys() <= merged.keys()
            merged = {name: info for name, info in {**merged, **late}.items() if info is not None}
            if grown:
                merged = {name: merged[name] for name in sorted(merged)}
            object.__setattr__(self, "_merged", merged)
        return merged

    @property
    def unsettled(self) -> frozenset[str]:
        """Names whose headers the next refresh reads again, whatever it finds."""
        unsettled = self._unsettled
        if unsettled is None:
            # what was read on its own may have changed again without its times showing it, like what a refresh reads
            unsettled = self._late[1] | {name for name, info in self._late[2].items() if info is not None}
            object.__setattr__(self, "_unsettled", unsettled)
        return unsettled

    @property
    def volumes(self) -> tuple[VolumeInfo, ...]:
        """The records in name order."""
        volumes = self._volumes
        if volumes is None:
            volumes = tuple(self._by_name.values())
            object.__setattr__(self, "_volumes", volumes)
        return volumes

    @property
    def referring(self) -> tuple[VolumeInfo, ...]:
        """The records of those whose headers name other files."""
        referring = self._referring
        if referring is None:
            referring = tuple(one for one in self._by_name.values() if one.references)
            object.__setattr__(self, "_referring", referring)
        return referring

    @property
    def by_name(self) -> Mapping[str, VolumeInfo]:
        """The records by name (a read-only view), in name order."""
        return MappingProxyType(self._by_name)

    def get(self, name: str) -> VolumeInfo | None:
        """The record of the volume ``name``, or None."""
        merged = self._merged
        if merged is not None:
            return merged.get(name)
        before, _, late = self._late
        return late[name] if name in late else before.get(name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __bool__(self) -> bool:
        return True

    def numbered(self, generation: int) -> Snapshot:
        """The same snapshot with another generation number."""
        twin = self._twin(self.errors, generation)
        put = object.__setattr__
        put(twin, "_merged", self._merged)
        put(twin, "_unsettled", self._unsettled)
        put(twin, "_late", self._late)
        return twin

    def patched(self, patch: Mapping[str, VolumeInfo | EntryError | None], generation: int) -> Snapshot:
        """A snapshot in which each name of ``patch`` has the record given, is an error, or is gone (None)."""
        errors = self.errors
        if errors or any(isinstance(item, EntryError) for item in patch.values()):
            others = [error for error in errors if error.name not in patch]
            errors = (*others, *(item for item in patch.values() if isinstance(item, EntryError)))
        before, unsettled, late = self._late
        if self._merged is not None or len(late) >= MOST_LATE:
            before, unsettled, late = self._by_name, self.unsettled, {}
        late = {**late, **{name: item if isinstance(item, VolumeInfo) else None for name, item in patch.items()}}
        twin = self._twin(errors, generation)
        put = object.__setattr__
        put(twin, "_merged", None)
        put(twin, "_unsettled", None)
        put(twin, "_late", (before, unsettled, late))
        return twin

    def _twin(self, errors: tuple[EntryError, ...], generation: int) -> Snapshot:
        return Snapshot(
            generation=generation,
            taken_at=self.taken_at,
            capacity=self.capacity,
            allocation=self.allocation,
            available=self.available,
            errors=errors,
            permissions=self.permissions,
            folder=self.folder,
        )

    def changes_since(self, previous: Snapshot) -> Changes:
        """What was added, changed and removed from ``previous`` to this snapshot."""
        old, new = previous._by_name, self._by_name
        if not old:
            return Changes(added=tuple(new))
        added: list[str] = []
        changed: list[str] = []
        kept = 0
        for name, record in new.items():
            before = old.get(name)
            if before is record:
                kept += 1
            elif before is None:
                added.append(name)
            elif record.same_as(before):
                kept += 1
            else:
                changed.append(name)
        removed: tuple[str, ...] = ()
        if kept + len(changed) != len(old):
            removed = tuple(name for name in old if name not in new)
        return Changes(tuple(added), tuple(changed), removed, kept)


Snapshot.EMPTY = Snapshot()
