"""The records that astore takes and returns: frozen, comparable, and made of plain values.

Nothing here imports any other part of astore, except its errors and the XML reader and writer, on demand. Every record is a
frozen ``msgspec.Struct``. The garbage collector does not track those that exist by the ten thousand (:class:`VolumeInfo`): they
cannot be part of a cycle.

Sizes are in bytes, times in nanoseconds since the epoch where the name ends in ``_ns`` and in seconds since
the epoch otherwise. Words are libvirt's (``formatstorage.rst``) for pools and volumes, POSIX's for files.
"""

from astore.model.definitions import (
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
from astore.model.pools import Freshness, PoolInfo, PoolState
from astore.model.records import EntryError, FileStat, ImageInfo, Place, Reference, ReferenceKind, VolumeInfo
from astore.model.reports import BackendInfo, DiscoveredSource, ImageCheck, ImageSnapshot, RefreshOutcome, RefreshReport
from astore.model.secrets import SecretDef, SecretName, SecretValue
from astore.model.snapshot import Changes, Snapshot

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
    "FileStat",
    "FreeExtent",
    "Freshness",
    "Host",
    "ImageCheck",
    "ImageInfo",
    "ImageSnapshot",
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
    "SecretDef",
    "SecretName",
    "SecretValue",
    "Snapshot",
    "Source",
    "SourceDevice",
    "Target",
    "Timestamps",
    "VolumeDef",
    "VolumeInfo",
    "VolumeType",
]
