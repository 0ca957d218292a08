"""Last snapshots as files in a state folder, a cache: ``run/NAME.snapshot``. Everything here blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from astore.model import EntryError, Permissions, Place, Snapshot, VolumeInfo
from astore.store.contract import LastSeen
from astore.store.local_files import LockedFolder, read_whole, write_whole

SNAPSHOT_FORMAT = 3

LARGEST_SNAPSHOT = 1 << 30
"""The most bytes that a snapshot's file may have."""


class _StoredSnapshot(msgspec.Struct, frozen=True, array_like=True):
    format: int
    started_at: float
    since: float
    error: str | None
    generation: int
    taken_at: float
    capacity: int
    allocation: int
    available: int
    unsettled: list[str]
    errors: list[EntryError]
    volumes: list[tuple[Any, ...]]
    permissions: Permissions | None
    folder: Place | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_StoredSnapshot).decode
_FIELDS = VolumeInfo.__struct_fields__
_PATH = _FIELDS.index("path")


class SnapshotFiles:
    """The snapshots in one state folder."""

    def __init__(self, folder: LockedFolder) -> None:
        self._folder = folder

    def write(self, name: str, started_at: float, seen: LastSeen) -> None:
        """Write the snapshot of a pool's run. :raises StoreError: that failed."""
        snapshot = seen.snapshot
        volumes = []
        for record in snapshot.volumes:
            fields = msgspec.structs.astuple(record)
            if record.path is record.key or record.path == record.key:
                fields = (*fields[:_PATH], None, *fields[_PATH + 1 :])
            volumes.append(fields)
        stored = _StoredSnapshot(
            SNAPSHOT_FORMAT,
            started_at,
            seen.since,
            seen.error,
            snapshot.generation,
            snapshot.taken_at,
            snapshot.capacity,
            snapshot.allocation,
            snapshot.available,
            sorted(snapshot.unsettled),
            list(snapshot.errors),
            volumes,
            snapshot.permissions,
            snapshot.folder,
        )
        write_whole(self._path(name), _encode(stored), sync=False)

    def read(self, name: str, started_at: float | None = None) -> LastSeen | None:
        """Return the snapshot of a pool; None if there is none that is usable.

        :param started_at: the time of the run that it must belong to; None accepts any.
        """
        try:
            self._folder.check()
            stored = _decode(read_whole(self._path(name), LARGEST_SNAPSHOT))
            if stored.format != SNAPSHOT_FORMAT or started_at not in (None, stored.started_at):
                return None
            by_name: dict[str, VolumeInfo] = {}
            for fields in stored.volumes:
                if fields[_PATH] is None:
                    fields = (*fields[:_PATH], fields[_PATH - 1], *fields[_PATH + 1 :])
                record = msgspec.convert(dict(zip(_FIELDS, fields, strict=True)), VolumeInfo)
                by_name[record.name] = record
        except Exception:  # it is a cache: anything else than a snapshot is none
            return None
        snapshot = Snapshot(
            by_name,
            generation=stored.generation,
            taken_at=stored.taken_at,
            capacity=stored.capacity,
            allocation=stored.allocation,
            available=stored.available,
            errors=tuple(stored.errors),
            unsettled=frozenset(stored.unsettled),
            permissions=stored.permissions,
            folder=stored.folder,
        )
        return LastSeen(snapshot, stored.since, stored.error)

    def _path(self, name: str) -> Path:
        return self._folder.run / f"{name}.snapshot"
