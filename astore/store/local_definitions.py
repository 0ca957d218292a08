"""Definitions on disk: libvirt's own XML, one file a pool, safe against kill -9 and shared by several processes.

::

    pools/NAME.xml           the definition
    autostart/NAME.xml       a link to it: start_all() starts this pool
    run/NAME.run             the pool is active since this boot, and what it runs by
    run/NAME.snapshot        its last snapshot: a cache
    lock                     held while a definition is changed

Everything here blocks and is called from worker threads. A file is written beside its place, synced, and renamed over it, and
its folder is synced: what is read is always one whole version.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec
import platformdirs

from astore.errors import StoreError, reason
from astore.model import PoolDef
from astore.store.local_files import Version, names_in, read_whole, saying, sync_folder, version_of, write_whole
from astore.store.local_runs import OutdatedError, RunFiles, RunState, boot_id, encode


class StoredPool(msgspec.Struct, frozen=True):
    """A definition that was read, and whether it is started automatically."""

    definition: PoolDef
    autostart: bool


class DamagedFile(msgspec.Struct, frozen=True):
    """A file that is no good: the pool ``name`` it is named after, its ``path``, and what is wrong with it."""

    name: str
    path: str
    error: str


class Loaded(msgspec.Struct, frozen=True):
    """All definitions of a folder, and by which it can be told whether they have changed since."""

    pools: tuple[StoredPool, ...] = ()
    damaged: tuple[DamagedFile, ...] = ()
    versions: dict[str, Version] = {}
    names: tuple[str, ...] = ()
    mark: Version | None = None
    runs_known: bool = False  # else the folder is gone, which says nothing of what is active


def default_state_dir() -> Path:
    """Root's is /var/lib/astore; another user's is where the platform keeps users' state."""
    if os.geteuid() == 0:
        return Path("/var/lib/astore")
    return platformdirs.user_state_path("astore")


class DefinitionStore(RunFiles):
    """The files of one state folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self._parsed: dict[str, tuple[Version, PoolDef]] = {}  # files that did not change are not read again

    def load(self) -> Loaded:
        """Read all definitions. Those that cannot be read are reported and left as they are.

        :raises StoreError: the folder cannot be read, or others may have written it.
        """
        self.check()
        pools: list[StoredPool] = []
        damaged: list[DamagedFile] = []
        versions: dict[str, Version] = {}
        mark = self._mark(self.pools)
        autostarted = set(names_in(self.autostart, ".xml"))
        names = self._names()
        for name in names:
            path = self.pools / f"{name}.xml"
            try:
                versions[name] = version_of(path)
                definition = self._definition(name, path, versions[name])
            except FileNotFoundError as error:
                versions.pop(name, None)
                if os.path.lexists(path):  # else it was removed meanwhile
                    damaged.append(DamagedFile(name, str(path), f"its link leads nowhere: {reason(error)}"))
            except Exception as error:  # whatever is in it: the others are loaded
                damaged.append(DamagedFile(name, str(path), reason(error)))
            else:
                pools.append(StoredPool(definition, name in autostarted))
        return Loaded(tuple(pools), tuple(damaged), versions, tuple(names), mark, self.run.is_dir())

    def _definition(self, name: str, path: Path, version: Version) -> PoolDef:
        known = self._parsed.get(name)
        if known is not None and known[0] == version:
            return known[1]
        definition = PoolDef.from_xml(read_whole(path))
        if definition.name != name:
            raise StoreError(f"it defines a pool {definition.name!r}")
        if definition.uuid is None:
            raise StoreError("it has no uuid")
        self._parsed[name] = (version, definition)
        return definition

    def save(
        self, definition: PoolDef, given_up: threading.Event | None = None, *, loaded: Loaded | None = None
    ) -> Version:
        """Write a definition in place of the one there may be; returns its version.

        :param given_up: as in :meth:`locked`. :param loaded: what the definition was checked against.
        :raises StoreError: it could not be; the old one stays. OutdatedError: there are others since.
        """
        path = self.pools / f"{definition.name}.xml"
        with self.locked(given_up=given_up), saying(path):
            if loaded is not None:
                run = self._run_of(definition.name)
                seen = loaded.mark, list(loaded.names)
                if seen != (self._mark(self.pools), self._names()) or (run and run.uuid != definition.uuid):
                    raise OutdatedError(f"{self.pools} was changed meanwhile", errno=errno.EAGAIN)
            write_whole(path, definition.to_xml().encode(), sync=True)
            version = version_of(path)
            self._parsed[definition.name] = version, definition
            return version

    def remove(self, name: str, given_up: threading.Event | None = None, *, version: Version | None = None) -> None:
        """Remove a definition, and its autostart link.

        :param given_up: as in :meth:`locked`. :param version: the one that is to be removed.
        :raises StoreError: it could not be removed. OutdatedError: there is another, or the pool is active.
        """
        path = self.pools / f"{name}.xml"
        with self.locked(given_up=given_up), saying(path):
            if version is not None and self.is_news(name, version=version, started_at=None):
                raise OutdatedError(f"{path} was changed meanwhile", errno=errno.EAGAIN)
            for folder in (self.autostart, self.pools):
                (folder / f"{name}.xml").unlink(missing_ok=True)
                sync_folder(folder)

    def save_run(
        self, name: str, state: RunState, given_up: threading.Event | None = None, *, persistent: bool = False
    ) -> None:
        """Note that a pool is active.

        :param given_up: as in :meth:`locked`. :param persistent: there must be a definition of it.
        :raises StoreError: that failed. OutdatedError: another process has started it, or it is another pool's name by now.
        """
        state = state if state.boot_id else msgspec.structs.replace(state, boot_id=boot_id())
        path = self.pools / f"{name}.xml"
        with self.locked(given_up=given_up):
            theirs = self._run_of(name)
            if theirs is not None and theirs.started_at != state.started_at:
                raise OutdatedError(f"pool {name!r} was started meanwhile", errno=errno.EAGAIN)
            uuid: str | None = None
            with contextlib.suppress(Exception):  # a damaged definition says nothing
                uuid = self._definition(name, path, version_of(path)).uuid
            if uuid not in (None, state.uuid) or (persistent and not path.exists()):
                raise OutdatedError(f"pool {name!r} was undefined meanwhile", errno=errno.EAGAIN)
            write_whole(self.run / f"{name}.run", encode(state), sync=False)

    def set_autostart(self, name: str, autostart: bool, given_up: threading.Event | None = None) -> None:
        """Make or remove the autostart link. :raises StoreError: that failed, or there is no such definition (any more)."""
        link = self.autostart / f"{name}.xml"
        with self.locked(given_up=given_up), saying(link):
            if autostart:
                os.stat(self.pools / f"{name}.xml")  # else the link would wait for the next pool of that name
                with contextlib.suppress(FileExistsError):
                    link.symlink_to(f"../pools/{name}.xml")
            else:
                link.unlink(missing_ok=True)
            sync_folder(self.autostart)

    def fingerprint(self, damaged: Iterable[DamagedFile] = ()) -> tuple[object, ...]:
        """What changes whenever another process changed anything here: cheap to compare.

        :param damaged: files that may be repaired in their place.
        """
        self.check()
        found: list[object] = [self._mark(folder) for folder in (self.pools, self.autostart, self.run)]
        for file in damaged:
            with contextlib.suppress(OSError):
                found.append(
                    (version_of(Path(file.path)), os.stat(file.path).st_ctime_ns)
                )  # its mode may be the damage
        return tuple(found)

    @staticmethod
    def _mark(folder: Path) -> Version | None:
        with saying(folder):
            try:
                st = os.stat(folder)
            except FileNotFoundError:
                return None
        return st.st_ino, st.st_mtime_ns, st.st_nlink

    def _names(self) -> list[str]:
        return names_in(self.pools, ".xml")

    def is_news(self, name: str, *, version: Version | None, started_at: float | None) -> bool:
        """Whether somebody has changed a pool since.

        :param version: that of its definition; None: it has none. :param started_at: since when it is active.
        """
        run = self._run_of(name)
        if (None if run is None else run.started_at) != started_at and self.run.is_dir():
            return True  # (a state folder that is gone says nothing of what is active)
        try:
            return version is not None and version != version_of(self.pools / f"{name}.xml")
        except OSError:
            return True
