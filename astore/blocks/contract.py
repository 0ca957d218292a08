"""BlockPool: the contract of a backend whose volumes are no files: images of a cluster, logical volumes, LUNs.

A backend writes a :class:`BlockPool` and a :class:`BlockVolume`, and gets a session by
:func:`astore.blocks.session.block_session`. What a pool can do beyond reading and writing is said by the methods it has:
:class:`MakesBlocks`, :class:`ResizesBlocks`, :class:`RenamesBlocks`.

Each method may be a coroutine function, which runs on the event loop and must not block it, or a blocking one, which runs on
a thread of the pool's lane, several at once. Both have the pool's deadline. Every method may raise OSError with an errno.
"""

from __future__ import annotations

import abc
import errno
import os
from collections.abc import Awaitable, Iterable, Mapping
from typing import ClassVar, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec

from astore.model import EntryError, Reference, VolumeDef, VolumeType

T = TypeVar("T")

Answer: TypeAlias = T | Awaitable[T]
"""What a method returns, or its coroutine."""


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as its pool lists it. Its bytes are those of the disk: its format is raw, whatever they say.

    :ivar id: which volume it is: another one that takes its name has another id. Not 0.
    :ivar size: in bytes. :ivar allocation: bytes that it takes on the storage; None: as many as it has.
    :ivar version: differs whenever the volume was changed, where the storage keeps such a number.
    :ivar changed_ns: when it was changed last, in ns since the epoch; 0: not known.
    :ivar references: the volumes of which it reads what it has not itself, as a clone does.
    """

    name: str
    id: int
    size: int
    allocation: int | None = None
    version: int | str = 0
    changed_ns: int = 0
    references: tuple[Reference, ...] = ()


class BlockVolume(abc.ABC):
    """An open volume. Offsets and lengths are in bytes. Several calls may be under way at once.

    :ivar id: see :class:`Block`.
    """

    in_flight: ClassVar[int] = 4
    """How many calls at once pay for bulk data."""

    id: int

    @abc.abstractmethod
    def size(self) -> Answer[int]:
        """Its size now."""

    @abc.abstractmethod
    def read_into(self, buffer: bytearray | memoryview, offset: int) -> Answer[int]:
        """Fill ``buffer`` from ``offset`` on; returns how many bytes there were, fewer only where the volume ends."""

    @abc.abstractmethod
    def write(self, data: bytes | bytearray | memoryview, offset: int) -> Answer[None]:
        """Write all of ``data`` at ``offset``, within the volume."""

    @abc.abstractmethod
    def flush(self) -> Answer[None]:
        """Return when what was written is safe."""

    def discard(self, offset: int, length: int) -> Answer[None]:
        """Give back the space of a range, which reads as zeros then. :raises OSError: EOPNOTSUPP: this storage cannot."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def next_data(self, offset: int) -> Answer[tuple[int, int] | None]:
        """The first range (from, to) at or after ``offset`` that holds data; None: there is none.

        :raises OSError: EOPNOTSUPP: this storage does not tell its holes.
        """
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def lock(self) -> Answer[bool]:
        """Lock it against all others who lock it, in this process and elsewhere, until it is closed.

        :return: False if somebody else has it locked. True also where this storage has no locks.
        """
        return True

    @abc.abstractmethod
    def close(self) -> Answer[None]:
        """Close it. Called once, while no other call is under way."""


class BlockPool(abc.ABC):
    """A pool of volumes that are no files."""

    volume_type: ClassVar[VolumeType] = VolumeType.NETWORK
    """What its volumes are to libvirt: NETWORK, or BLOCK where they are devices of this machine."""

    device: str = ""
    """Names the storage among all others. With a volume's id it says which volume that is; ``""``: that is not told."""

    @abc.abstractmethod
    def key(self, name: str) -> str:
        """A volume's key and path: a URL, or the absolute path of a device. Pure."""

    @abc.abstractmethod
    def list(self, known: Mapping[str, Block]) -> Answer[Iterable[Block | EntryError]]:
        """All volumes, in any order, and an error for each of which no more is known.

        :param known: what the last call returned, by name. A pool that sees by a volume's version that it is unchanged need
            not look further, and returns the same object.
        """

    @abc.abstractmethod
    def look(self, name: str) -> Answer[Block | EntryError | None]:
        """One volume; None where there is none, or none can have this name."""

    @abc.abstractmethod
    def open(self, name: str, write: bool) -> Answer[BlockVolume]:
        """Open a volume. :raises OSError: ENOENT: it is not there."""

    @abc.abstractmethod
    def sizes(self) -> Answer[tuple[int, int]]:
        """Bytes in all and bytes free."""

    @abc.abstractmethod
    def close(self) -> Answer[None]:
        """Let go of the storage. May be called twice, and while other calls are under way."""


@runtime_checkable
class MakesBlocks(Protocol):
    """Can make and remove volumes."""

    def create(self, name: str, size: int, definition: VolumeDef) -> Answer[None]:
        """Make a volume of ``size`` bytes, which reads as zeros.

        :param definition: what was asked for, for what else this storage can do: ``allocation`` are bytes of space to take now.
        :raises OSError: EEXIST: the name is taken. ENOSPC …
        """
        ...

    def remove(self, name: str) -> Answer[None]:
        """Remove a volume. :raises OSError: ENOENT; EBUSY: somebody uses it."""
        ...


@runtime_checkable
class ResizesBlocks(Protocol):
    """Can make volumes larger and smaller."""

    def resize(self, name: str, size: int, allocate: bool) -> Answer[None]:
        """Give a volume, which may be open, another size. What it gains reads as zeros.

        :param allocate: take the space for that now.
        """
        ...


@runtime_checkable
class RenamesBlocks(Protocol):
    """Can give volumes other names. New volumes are hidden by that until they are complete."""

    def rename(self, old: str, new: str) -> Answer[None]:
        """Give a volume, which may be open, a name that nobody has. :raises OSError: EEXIST: the name is taken."""
        ...
