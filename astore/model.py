"""The records that astore takes and gives: frozen, comparable, and made of plain values.

This module imports nothing of astore but its own parts, :mod:`astore.definitions` and :mod:`astore.contents`. Every
record is a frozen ``msgspec.Struct``; records that are kept by the ten thousand (:class:`VolumeInfo`) are left out of
the garbage collector's sight, because they hold nothing that could form a cycle.

Sizes are in bytes, times in nanoseconds since the epoch where the name ends in ``_ns`` and in seconds since
the epoch otherwise. Words are libvirt's (``formatstorage.rst``) for pools and volumes, POSIX's for files.
"""

from __future__ import annotations

import enum

import msgspec

from astore.contents import Changes, EntryError, ImageInfo, Place, Reference, ReferenceKind, Snapshot, VolumeInfo
from astore.definitions import (
    Adapter,
    Auth,
    BackingStore,
    Device,
    Encryption,
    Extent,
    FreeExtent,
    Host,
    KeptPermissions,
    PciAddress,
    Permissions,
    PoolDef,
    Source,
    SourceDevice,
    Target,
    Timestamps,
    VolumeDef,
    VolumeType,
)

__all__ = [
    "Adapter",
    "Auth",
    "BackendInfo",
    "BackingStore",
    "Changes",
    "Device",
    "DiscoveredSource",
    "Encryption",
    "EntryError",
    "Extent",
    "FreeExtent",
    "Host",
    "ImageInfo",
    "KeptPermissions",
    "PciAddress",
    "Permissions",
    "Place",
    "PoolDef",
    "PoolInfo",
    "PoolState",
    "Reference",
    "ReferenceKind",
    "RefreshOutcome",
    "RefreshReport",
    "Snapshot",
    "Source",
    "SourceDevice",
    "Target",
    "Timestamps",
    "VolumeDef",
    "VolumeInfo",
    "VolumeType",
]


class PoolState(enum.StrEnum):
    """What a pool is doing. Running, degraded and inaccessible pools are *active*."""

    INACTIVE = "inactive"
    BUILDING = "building"
    RUNNING = "running"
    DEGRADED = "degraded"
    INACCESSIBLE = "inaccessible"

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self in _ACTIVE


_ACTIVE = frozenset({PoolState.RUNNING, PoolState.DEGRADED, PoolState.INACCESSIBLE})


class PoolInfo(msgspec.Struct, frozen=True):
    """A pool at a glance. Sizes in bytes; ``since`` and ``taken_at`` in seconds since the epoch (0: never).

    ``since`` tells when the pool entered its state (0: not known), ``error`` why it is degraded, inaccessible or unusable.
    ``backend`` is False where no backend is registered for the pool's type.
    """

    name: str
    uuid: str
    type: str
    state: PoolState
    persistent: bool
    autostart: bool
    backend: bool = True
    capacity: int = 0
    allocation: int = 0
    available: int = 0
    volumes: int = 0
    errors: int = 0
    generation: int = 0
    taken_at: float = 0.0
    since: float = 0.0
    error: str | None = None

    @property
    def active(self) -> bool:
        """Whether the pool was started and not stopped since."""
        return self.state.active


class RefreshOutcome(msgspec.Struct, frozen=True):
    """What a refresh did to one pool; ``error`` is set where the pool as a whole could not be read.

    ``added``, ``changed`` and ``removed`` are names, ``unchanged`` a count, ``errors`` the entries that could not
    be read, ``seconds`` how long it took.
    """

    pool: str
    uuid: str = ""
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    unchanged: int = 0
    errors: tuple[EntryError, ...] = ()
    seconds: float = 0.0
    generation: int = 0
    error: Exception | None = None


class RefreshReport(msgspec.Struct, frozen=True):
    """What a refresh of several pools did, pool by pool, in name order; ``seconds`` is the whole's."""

    pools: tuple[RefreshOutcome, ...] = ()
    seconds: float = 0.0

    @property
    def failed(self) -> tuple[RefreshOutcome, ...]:
        """The pools that could not be read at all."""
        return tuple(outcome for outcome in self.pools if outcome.error is not None)


class DiscoveredSource(msgspec.Struct, frozen=True):
    """One place where a pool could come from: enough of a definition to start from."""

    type: str
    source: Source


class BackendInfo(msgspec.Struct, frozen=True):
    """A line of the registry; ``status`` is ``ready``, ``unloaded`` (not imported yet) or ``failed`` (see ``error``)."""

    type: str
    status: str
    distribution: str | None = None
    version: str | None = None
    api_version: int | None = None
    abilities: tuple[str, ...] = ()
    error: str | None = None
    pools: int = 0
