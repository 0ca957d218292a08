"""Runs as files in a state folder, and their last snapshots. Everything here blocks.

``run/NAME.run`` is a run; a reboot of the machine makes it void. ``run/NAME.snapshot`` is a cache.
"""

from __future__ import annotations

import contextlib
import errno
import os
from functools import cache
from pathlib import Path

import msgspec

from astore.errors import AstoreError, StoreError, reason
from astore.model import EntryError, Permissions, Place, Snapshot, VolumeInfo
from astore.store.contract import LastSeen, Run
from astore.store.local_files import (
    FileVersion,
    LockedFolder,
    names_in,
    read_whole,
    store_errors_about,
    version_of,
    write_whole,
)

STALE_TIMEOUT = 0.2
"""Seconds to wait for the lock before removing a leftover."""

_NO_FILE = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG})
"""Errors which mean that the path is no file of astore's."""


SNAPSHOT_FORMAT = 4

LARGEST_SNAPSHOT = 1 << 30
"""The most bytes that a snapshot's file may have."""


class _StoredRun(Run, frozen=True):
    boot_id: str


_FIELDS = VolumeInfo.__struct_fields__
_PATH = _FIELDS.index("path")

_StoredVolume = msgspec.defstruct(
    "_StoredVolume",
    [(one.name, str | None if one.name == "path" else one.type) for one in msgspec.structs.fields(VolumeInfo)],
    array_like=True,
)
"""A record whose path is None if it is the same as the key."""


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
    unsettled: frozenset[str]
    errors: tuple[EntryError, ...]
    volumes: list[_StoredVolume]  # type: ignore[valid-type]
    permissions: Permissions | None
    folder: Place | None
    recent: dict[str, tuple[float, VolumeInfo | None]]


class _StoredHead(msgspec.Struct, frozen=True, array_like=True):
    """The same, without what is large."""

    format: int
    started_at: float
    since: float
    error: str | None
    generation: int
    taken_at: float
    capacity: int
    allocation: int
    available: int
    unsettled: msgspec.Raw
    errors: msgspec.Raw
    volumes: msgspec.Raw
    permissions: msgspec.Raw
    folder: msgspec.Raw
    recent: dict[str, tuple[float, VolumeInfo | None]]


_encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode_run = msgspec.msgpack.Decoder(_StoredRun).decode
_decode_snapshot = msgspec.msgpack.Decoder(_StoredSnapshot).decode
_decode_head = msgspec.msgpack.Decoder(_StoredHead).decode
_AS_IS = set(_StoredSnapshot.__struct_fields__) - {"format", "started_at", "since", "error", "volumes", "recent"}
"""Fields that are stored as the snapshot has them."""


@cache
def boot_id() -> str:
    """Return the id of this boot of the machine (proc(5): /proc/sys/kernel/random/boot_id)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class RunFiles:
    """The runs in one state folder."""

    def __init__(self, folder: LockedFolder) -> None:
        self._folder = folder

    def read(self) -> tuple[dict[str, Run], dict[str, str]]:
        """Return the runs of this boot, and why a file cannot be read now, both by pool name. Remove runs of earlier boots.

        :raises StoreError: the folder cannot be read.
        """
        active: dict[str, Run] = {}
        unknown: dict[str, str] = {}
        for name in names_in(self._folder.run, ".run"):
            path = self._path(name)
            try:
                version = version_of(path)
                run = self.find(name)
            except StoreError as error:
                unknown[name] = reason(error)
            except OSError:  # removed meanwhile, or a dangling link
                continue
            else:
                if run is not None:
                    active[name] = run
                elif path.is_file():
                    self._remove_stale(name, version)
        return active, unknown

    def find(self, name: str) -> Run | None:
        """Return the run of a pool; None if there is none, it is of an earlier boot, or it is damaged.

        :raises StoreError: it cannot be read now.
        """
        path = self._path(name)
        try:
            with store_errors_about(path):
                stored = _decode_run(read_whole(path))
        except StoreError as error:
            if error.errno in _NO_FILE:
                return None
            raise
        except Exception:  # whatever is in it: the other pools are read
            return None
        if stored.boot_id != boot_id() or stored.definition.name != name:
            return None
        return Run(stored.definition, stored.uuid, stored.started_at)

    def write(self, run: Run) -> None:
        """Write a run of this boot. The caller holds the folder's lock. :raises StoreError: that failed."""
        stored = _StoredRun(run.definition, run.uuid, run.started_at, boot_id())
        write_whole(self._path(run.name), _encode(stored), sync=False)

    def remove(self, name: str) -> None:
        """Remove a pool's run and its snapshot. :raises StoreError: that failed."""
        with store_errors_about(self._path(name)):
            for suffix in (".snapshot", ".run"):  # a snapshot without a run would stay
                (self._folder.run / f"{name}{suffix}").unlink(missing_ok=True)

    def check_remove(self, name: str) -> None:
        """Check that :meth:`remove` can work. (A state folder that is gone has no runs.) :raises StoreError: it cannot."""
        path = self._path(name)
        with store_errors_about(path):
            if path.exists() and not os.access(self._folder.run, os.W_OK | os.X_OK):
                readonly = os.statvfs(self._folder.run).f_flag & os.ST_RDONLY
                number = errno.EROFS if readonly else errno.EACCES
                raise OSError(number, os.strerror(number))

    def _path(self, name: str) -> Path:
        return self._folder.run / f"{name}.run"

    def _remove_stale(self, name: str, version: FileVersion) -> None:
        """Remove a file that is no run of this boot, unless another process has started the pool meanwhile."""
        with contextlib.suppress(AstoreError, OSError), self._folder.locked(timeout=STALE_TIMEOUT):
            if version_of(self._path(name)) == version:
                self.remove(name)


class SnapshotFiles:
    """The snapshots in one state folder."""

    def __init__(self, folder: LockedFolder) -> None:
        self._folder = folder

    def write(self, name: str, started_at: float, seen: LastSeen) -> None:
        """Write the snapshot of a pool's run. :raises StoreError: that failed."""
        volumes = []
        for record in seen.snapshot.volumes:
            fields = msgspec.structs.astuple(record)
            if record.path is record.key or record.path == record.key:
                fields = (*fields[:_PATH], None, *fields[_PATH + 1 :])
            volumes.append(fields)
        others = {field: getattr(seen.snapshot, field) for field in _AS_IS}
        others["recent"] = seen.recent
        stored = _StoredSnapshot(SNAPSHOT_FORMAT, started_at, seen.since, seen.error, volumes=volumes, **others)
        write_whole(self._path(name), _encode(stored), sync=False)

    def head(self, name: str, started_at: float) -> LastSeen | None:
        """Return what :meth:`read` does, but for the snapshot's records: it has its time alone."""
        try:
            self._folder.check()
            head = _decode_head(read_whole(self._path(name), LARGEST_SNAPSHOT))
        except Exception:  # see read()
            return None
        if (head.format, head.started_at) != (SNAPSHOT_FORMAT, started_at):
            return None
        return LastSeen(Snapshot(taken_at=head.taken_at), head.since, head.error, recent=head.recent)

    def read(self, name: str, started_at: float | None = None) -> LastSeen | None:
        """Return the snapshot of a pool; None if there is none that is usable.

        :param started_at: the time of the run that it must belong to; None accepts any.
        """
        try:
            self._folder.check()
            stored = _decode_snapshot(read_whole(self._path(name), LARGEST_SNAPSHOT))
            if stored.format != SNAPSHOT_FORMAT or started_at not in (None, stored.started_at):
                return None
            by_name: dict[str, VolumeInfo] = {}
            for one in stored.volumes:
                fields = msgspec.structs.astuple(one)
                if fields[_PATH] is None:
                    fields = (*fields[:_PATH], fields[_PATH - 1], *fields[_PATH + 1 :])
                record = VolumeInfo(*fields)
                by_name[record.name] = record
        except Exception:  # it is a cache: anything else than a snapshot is none
            return None
        snapshot = Snapshot(by_name, **{field: getattr(stored, field) for field in _AS_IS})
        return LastSeen(snapshot, stored.since, stored.error, recent=stored.recent)

    def _path(self, name: str) -> Path:
        return self._folder.run / f"{name}.snapshot"
