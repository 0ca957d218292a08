"""BlockPool: the contract of a backend whose volumes are not files: images of a cluster, logical volumes, LUNs.

A backend writes a :class:`BlockPool` and a :class:`BlockVolume`, and gets a session by
:func:`astore.blocks.abilities.block_session`. A pool's further abilities follow from its methods:
:class:`MakesBlocks`, :class:`ResizesBlocks`, :class:`RenamesBlocks`.

Each method may be a coroutine function, which runs on the event loop and must not block it, or a blocking function, which
runs on threads of the pool's lane, several calls at once. Both have the pool's deadline. A coroutine is cancelled at its
deadline, or when its caller is: it then undoes what it did, as far as it can. Any method may raise OSError with an errno.
"""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Awaitable, Mapping, Sequence
from typing import ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec

from astore.model import EntryError, Reference, VolumeDef, VolumeType

T = TypeVar("T")

Answer: TypeAlias = T | Awaitable[T]
"""A method's result, or an awaitable of it."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as its pool lists it. Its format is raw, whatever its bytes look like.

    :ivar id: identifies the volume: another volume that takes its name has another id. Not 0.
    :ivar size: in bytes. :ivar allocation: bytes that it takes on the storage; None: ``size`` bytes.
    :ivar version: differs after each change of the volume, if the storage keeps such a number.
    :ivar changed_ns: when it was changed last, in ns since the epoch; 0: not known.
    :ivar references: the volumes that it reads missing data from, as a clone does.
    :ivar features: what the storage calls the abilities of this volume, such as ``exclusive-lock``.
    :ivar extras: see :class:`astore.model.VolumeInfo`, such as ``internal snapshots``.
    :ivar unfinished: it cannot be opened, only be removed: its creation or its removal was cut off within the storage. No
        pool shows it.
    """

    name: str
    id: int
    size: int
    allocation: int | None = None
    version: int | str = 0
    changed_ns: int = 0
    references: tuple[Reference, ...] = ()
    features: tuple[str, ...] = ()
    extras: tuple[str, ...] = ()
    unfinished: bool = False


class BlockVolume(abc.ABC):
    """An open volume. Offsets and lengths are in bytes. Several calls may run at once.

    :ivar id: see :class:`Block`.
    """

    in_flight: ClassVar[int] = 4
    """How many calls should run at once for bulk data."""

    id: int

    @abc.abstractmethod
    def size(self) -> Answer[int]:
        """Return the current size in bytes."""

    @abc.abstractmethod
    def read_into(self, buffer: bytearray | memoryview, offset: int) -> Answer[int]:
        """Fill ``buffer`` from ``offset``, with fewer bytes only at the end of the volume; return their number."""

    @abc.abstractmethod
    def write(self, data: bytes | bytearray | memoryview, offset: int) -> Answer[None]:
        """Write all of ``data`` at ``offset``, within the volume."""

    @abc.abstractmethod
    def flush(self) -> Answer[None]:
        """Wait until written data is safe."""

    def discard(self, offset: int, length: int) -> Answer[None]:
        """Free the space of a range, which then reads as zeros. :raises OSError: EOPNOTSUPP: this storage cannot."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def next_data(self, offset: int) -> Answer[tuple[int, int] | None]:
        """Return the first range (from, to) with data at or after ``offset``; None: there is none.

        A range that is not told reads as zeros: data that a clone reads from its parent counts as data.

        :raises OSError: EOPNOTSUPP: this storage does not tell its holes.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def lock(self) -> Answer[bool]:
        """Lock the volume against other callers of this method, here and on other machines, until it is closed.

        :return: False if it is locked already. :raises OSError: EOPNOTSUPP: this storage has no locks.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    @abc.abstractmethod
    def close(self) -> Answer[None]:
        """Close the volume. Called once, while no other call runs."""


class BlockPool(abc.ABC):
    """A pool of volumes that are not files."""

    volume_type: ClassVar[VolumeType] = VolumeType.NETWORK
    """The volumes' type in libvirt: NETWORK, or BLOCK for devices of this machine."""

    device: str = ""
    """A unique name of the storage, which identifies a volume together with the volume's id; ``""``: none."""

    @abc.abstractmethod
    def key(self, name: str) -> str:
        """Return a volume's key and path: a URL, or the absolute path of a device. Must not do I/O."""

    @abc.abstractmethod
    def list(self, known: Mapping[str, Block]) -> Answer[Sequence[Block | EntryError]]:
        """Return a list or a tuple of all volumes, in any order, with an error for each that cannot be read.

        :param known: the last call's result, by name. A pool that sees by a volume's version that it is unchanged can return
            the same object.
        """

    @abc.abstractmethod
    def look(self, name: str) -> Answer[Block | EntryError | None]:
        """Return one volume; None if there is none, or none can have this name."""

    @abc.abstractmethod
    def open(self, name: str, write: bool) -> Answer[BlockVolume]:
        """Open a volume. :raises OSError: ENOENT: it does not exist."""

    @abc.abstractmethod
    def sizes(self) -> Answer[tuple[int, int] | tuple[int, int, int]]:
        """Return the total and the free bytes; and the bytes that the pool takes, if others share the storage with it."""

    @abc.abstractmethod
    def close(self) -> Answer[None]:
        """Let go of the storage. May be called twice, and while other calls run."""


@runtime_checkable
class MakesBlocks(Protocol):
    """A pool that can create and remove volumes."""

    def create(self, name: str, size: int, definition: VolumeDef) -> Answer[None]:
        """Create a volume of ``size`` bytes, which reads as zeros.

        If the pool cannot rename, a coroutine that is cancelled must remove what it created: nobody else can tell it from
        another volume of this name.

        :param definition: the requested definition; ``allocation`` are the bytes of space to allocate now.
        :raises OSError: EEXIST: the name is taken. ENOSPC …
        """

    def remove(self, name: str, id: int | None = None) -> Answer[None]:
        """Remove a volume, or an unfinished one that has a hidden name, or the id that is given.

        :param id: of the volume that is meant, which may have lost its name to another one meanwhile; None: any.
        :raises OSError: ENOENT; EBUSY: it is in use; EAGAIN: its name leads to another volume.
        """


@runtime_checkable
class ClonesBlocks(Protocol):
    """A pool that can make a volume which shares another's data until one of them is changed."""

    def clone(self, source: Block, name: str, size: int, definition: VolumeDef) -> Answer[None]:
        """Create a volume with the bytes of another, and zeros up to ``size``, without copying them.

        :param source: the volume, in this pool; its name may have become another's. :param definition: see
            :meth:`MakesBlocks.create`.
        :raises OSError: EOPNOTSUPP: this volume cannot be cloned; its bytes are copied then. EAGAIN: its name leads to another
            volume. Others: as :meth:`MakesBlocks.create`.
        """


@runtime_checkable
class ResizesBlocks(Protocol):
    """A pool that can make volumes larger and smaller."""

    def resize(self, volume: BlockVolume, size: int, allocate: bool) -> Answer[None]:
        """Give a volume another size. The bytes it gains read as zeros.

        :param volume: open for writing. Its name may have changed since, and another volume may have that name.
        :param allocate: allocate the space for them now.
        """


@runtime_checkable
class TellsBlockUsers(Protocol):
    """A pool that knows who has a volume open."""

    def users(self, volume: BlockVolume) -> Answer[Sequence[str]]:
        """Return who has a volume open for writing now, each in words, such as ``client 4123 at 192.0.2.7``.

        :param volume: open for reading. What this pool itself has open is not told.
        """


@runtime_checkable
class RenamesBlocks(Protocol):
    """A pool that can rename volumes. New volumes then have hidden names until they are complete."""

    def rename(self, old: str, new: str) -> Answer[None]:
        """Give a volume, which may be open, an unused name. :raises OSError: EEXIST: the name is taken."""
