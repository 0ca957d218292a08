"""Runs as files in a state folder, ``run/NAME.run``; a reboot of the machine makes them void. Everything here blocks."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import cache
from pathlib import Path

import msgspec

from astore.errors import AstoreError, StoreError, reason
from astore.model import PoolDef
from astore.store.contract import Run
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


class _StoredRun(msgspec.Struct, frozen=True):
    definition: PoolDef
    uuid: str
    started_at: float
    boot_id: str


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_StoredRun).decode


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
                stored = _decode(read_whole(path))
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
