"""Definitions as files in a state folder: ``pools/NAME.xml``, and the link ``autostart/NAME.xml``. Everything here blocks."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from astore.errors import StoreError, reason
from astore.model import PoolDef
from astore.store.contract import Damaged, StoredPool, Version
from astore.store.local_files import FileVersion, LockedFolder, names_in, read_whole, sync_folder, write_whole

FileState: TypeAlias = tuple[FileVersion, int]
"""A file's version and its ctime in nanoseconds, since a wrong mode can damage a definition too."""


class FoundDefinitions(msgspec.Struct, frozen=True):
    """All definitions of a folder.

    :ivar names: the pools that have one, damaged or not.
    :ivar states: the state of each damaged file before it was read.
    """

    names: tuple[str, ...]
    good: tuple[StoredPool, ...]
    damaged: tuple[Damaged, ...]
    states: dict[str, FileState]


class DefinitionFiles:
    """The definitions in one state folder. Writers hold the folder's lock."""

    def __init__(self, folder: LockedFolder) -> None:
        self._folder = folder
        self._parsed: dict[str, tuple[Version, PoolDef]] = {}  # a cache: unchanged files are not read again

    def path(self, name: str) -> Path:
        """Return the path of a pool's definition."""
        return self._folder.pools / f"{name}.xml"

    def names(self) -> list[str]:
        """Return the pools that have a definition, damaged or not, in order. :raises StoreError: the folder cannot be read."""
        return names_in(self._folder.pools, ".xml")

    def version(self, name: str) -> Version | None:
        """Return the version of a definition, damaged or not; None if there is none, or stat(2) fails."""
        state = self.state(name)
        return None if state is None else Version(state[0])

    def state(self, name: str) -> FileState | None:
        """Return a value that changes when the file is written or its mode is changed; None if there is no file."""
        for stat in (os.stat, os.lstat):  # a dangling link is a damaged definition, and can be removed
            with contextlib.suppress(OSError):
                st = stat(self.path(name))
                return (st.st_ino, st.st_mtime_ns, st.st_size), st.st_ctime_ns
        return None

    def read(self) -> FoundDefinitions:
        """Read all definitions. :raises StoreError: the folder cannot be read."""
        good: list[StoredPool] = []
        damaged: list[Damaged] = []
        states: dict[str, FileState] = {}
        marked = set(names_in(self._folder.autostart, ".xml"))
        names = self.names()
        for name in names:
            state = self.state(name)
            if state is None:  # removed meanwhile
                continue
            version = Version(state[0])
            try:
                good.append(StoredPool(self._definition(name, version), name in marked, version))
            except Exception as error:  # the file may hold anything: the others are read
                path = self.path(name)
                if not os.path.lexists(path):
                    continue
                dangling = isinstance(error, FileNotFoundError)
                why = f"its link leads nowhere: {reason(error)}" if dangling else reason(error)
                damaged.append(Damaged(name, str(path), why, version))
                states[name] = state
        return FoundDefinitions(tuple(names), tuple(good), tuple(damaged), states)

    def uuid(self, name: str) -> str | None:
        """Return the uuid of a definition; None if there is none, or it is damaged."""
        version = self.version(name)
        if version is None:
            return None
        try:
            return self._definition(name, version).uuid
        except Exception:  # the file may hold anything
            return None

    def write(self, definition: PoolDef) -> Version:
        """Write a definition; replace an old one. :raises StoreError: that failed; the old one stays."""
        name = definition.name
        write_whole(self.path(name), definition.to_xml().encode(), sync=True)
        version = self.version(name)
        if version is None:
            raise StoreError(f"{self.path(name)} was removed by somebody who does not hold the lock")
        self._parsed[name] = version, definition
        return version

    def remove(self, name: str) -> None:
        """Remove a definition and its autostart link. :raises OSError: it could not be removed."""
        for folder in (self._folder.autostart, self._folder.pools):
            (folder / f"{name}.xml").unlink(missing_ok=True)
            sync_folder(folder)
        self._parsed.pop(name, None)

    def set_autostart(self, name: str, on: bool) -> None:
        """Create or remove the autostart link. :raises OSError: that failed, or there is no such definition."""
        link = self._folder.autostart / f"{name}.xml"
        if on:
            os.stat(self.path(name))  # a dangling link would apply to the next pool of that name
            with contextlib.suppress(FileExistsError):
                link.symlink_to(f"../pools/{name}.xml")
        else:
            link.unlink(missing_ok=True)
        sync_folder(self._folder.autostart)

    def _definition(self, name: str, version: Version) -> PoolDef:
        known = self._parsed.get(name)
        if known is not None and known[0] == version:
            return known[1]
        definition = PoolDef.from_xml(read_whole(self.path(name)))
        if definition.name != name:
            raise StoreError(f"it defines a pool {definition.name!r}")
        if definition.uuid is None:
            raise StoreError("it has no uuid")
        self._parsed[name] = version, definition
        return definition
