"""What is active since this boot, and what was known of it last: files of the state folder that a restart makes void."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from astore.errors import AstoreError, StoreError
from astore.model import EntryError, Permissions, Place, PoolDef, Snapshot, VolumeInfo
from astore.store.local_files import LockedFolder, Version, names_in, read_whole, saying, version_of, write_whole

SNAPSHOT_FORMAT = 3

OUTDATED_PAUSE = 0.01
"""Seconds after which whoever was told of others' changes looks again."""

STALE_TIMEOUT = 0.2
"""Seconds that the lock is waited for where it is about leftovers only."""

_NO_FILE = frozenset({errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EFBIG})
"""What says that there is no file of astore's."""


class OutdatedError(StoreError):
    """Other processes changed definitions since they were last read: whoever decided by them must read them again."""


class RunState(msgspec.Struct, frozen=True):
    """An active pool: the definition it runs by, and since when, in seconds since the epoch, of which boot.

    ``boot_id`` is filled in when it is saved.
    """

    definition: PoolDef
    uuid: str
    started_at: float
    boot_id: str = ""


class Runs(msgspec.Struct, frozen=True):
    """The pools that are active, by name; and those of which that cannot be told, since their file cannot be read now."""

    active: dict[str, RunState]
    unknown: frozenset[str]


class LastSeen(msgspec.Struct, frozen=True):
    """What a process knew of an active pool when it left: the snapshot, and why the pool was inaccessible, if it was.

    ``since`` tells when the pool entered its state, in seconds since the epoch.
    """

    snapshot: Snapshot
    since: float
    error: str | None


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


encode = msgspec.msgpack.Encoder().encode
_decode_run = msgspec.msgpack.Decoder(RunState).decode
_decode_snapshot = msgspec.msgpack.Decoder(_StoredSnapshot).decode
_FIELDS = VolumeInfo.__struct_fields__
_PATH = _FIELDS.index("path")


@cache
def boot_id() -> str:
    """What names this boot of the machine (proc(5): /proc/sys/kernel/random/boot_id)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class RunFiles(LockedFolder):
    """The part of a state folder that tells which pools are active. Everything here blocks."""

    def load_runs(self) -> Runs:
        """The pools that are active since this boot; what is left of earlier boots is removed."""
        self.check()
        active: dict[str, RunState] = {}
        unknown: set[str] = set()
        for name in names_in(self.run, ".run"):
            path = self.run / f"{name}.run"
            try:
                version = version_of(path)
                state = self._run_of(name)
            except StoreError:
                unknown.add(name)
            except OSError:  # removed meanwhile, or a link that leads nowhere
                continue
            else:
                if state is not None:
                    active[name] = state
                elif path.is_file():
                    self._remove_stale(name, version)
        return Runs(active, frozenset(unknown))

    def _remove_stale(self, name: str, version: Version) -> None:
        """Remove what is no run of this boot, unless another process has started the pool meanwhile."""
        with contextlib.suppress(AstoreError, OSError), self.locked(timeout=STALE_TIMEOUT):
            if version_of(self.run / f"{name}.run") == version:
                self._unlink_run(name)

    def _run_of(self, name: str) -> RunState | None:
        """None if there is none: but one of an earlier boot, or one that cannot be understood.

        :raises StoreError: it cannot be read now.
        """
        path = self.run / f"{name}.run"
        try:
            with saying(path):
                state = _decode_run(read_whole(path))
        except StoreError as error:
            if error.errno in _NO_FILE:
                return None
            raise
        except (ValueError, msgspec.MsgspecError):
            return None
        return state if state.boot_id == boot_id() and state.definition.name == name else None

    def check_forgettable(self, name: str) -> None:
        """:raises StoreError: :meth:`forget_run` would fail. (A state folder that is gone has no run state either.)"""
        path = self.run / f"{name}.run"
        with saying(path):
            if path.exists() and not os.access(self.run, os.W_OK | os.X_OK):
                readonly = os.statvfs(self.run).f_flag & os.ST_RDONLY
                raise (
                    OSError(errno.EROFS, os.strerror(errno.EROFS))
                    if readonly
                    else PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                )

    def forget_run(self, name: str, started_at: float) -> None:
        """Note that a pool that was started then is not active any more. :raises StoreError: that failed."""
        run = self._run_of(name)
        if run is not None and run.started_at == started_at:  # while it is there nobody else writes one
            self._unlink_run(name)

    def started_at(self, name: str) -> float | None:
        """Since when the pool is active, by whichever process; None if it is not. :raises StoreError: it cannot be read."""
        run = self._run_of(name)
        return None if run is None else run.started_at

    def _unlink_run(self, name: str) -> None:
        with saying(self.run / f"{name}.run"):
            for suffix in (".run", ".snapshot"):
                (self.run / f"{name}{suffix}").unlink(missing_ok=True)

    def save_snapshot(self, name: str, seen: LastSeen, started_at: float) -> None:
        """Keep what is known for the next process, if the pool is still what was started then.

        :raises StoreError: that failed.
        """
        snapshot = seen.snapshot
        run = self._run_of(name)
        if run is None or run.started_at != started_at:
            return
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
        with self.made():
            write_whole(self.run / f"{name}.snapshot", encode(stored), sync=False)

    def load_snapshot(self, name: str, started_at: float | None = None) -> LastSeen | None:
        """What was kept; None if there is nothing, or nothing that can be understood.

        :param started_at: of the run that it must be of.
        """
        try:
            self.check()
            stored = _decode_snapshot(read_whole(self.run / f"{name}.snapshot", 1 << 30))
            if stored.format != SNAPSHOT_FORMAT or started_at not in (None, stored.started_at):
                return None
            by_name: dict[str, VolumeInfo] = {}
            for fields in stored.volumes:
                if fields[_PATH] is None:
                    fields = (*fields[:_PATH], fields[_PATH - 1], *fields[_PATH + 1 :])
                record = _record(fields)
                by_name[record.name] = record
        except (OSError, ValueError, TypeError, LookupError):
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


def _record(fields: tuple[Any, ...]) -> VolumeInfo:
    return msgspec.convert(dict(zip(_FIELDS, fields, strict=True)), VolumeInfo)
