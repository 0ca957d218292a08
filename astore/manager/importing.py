"""Taking over libvirt's own pools: the definitions in its configuration folder, and which of them are started automatically.

libvirt keeps ``NAME.xml`` for each pool, beginning with a comment, and for those that are started automatically a link
``autostart/NAME.xml`` to it (storage_driver.c, virstorageobj.c). Nothing is written there, and no libvirtd is asked. The folder
is read entry by entry: what is no good costs only itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec

from astore.errors import (
    AstoreError,
    DefinitionError,
    ManagerClosedError,
    SourceConflictError,
    StorageError,
    printable,
)
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.manager.manager import Manager
from astore.model import PoolDef

LIBVIRT_FOLDER = "/etc/libvirt/storage"
"""Where the libvirtd of a machine keeps its pools."""

LARGEST_FILE = 1 << 20
"""Bytes that a definition may have, as everywhere."""

OnImport = Callable[[int, int, "ImportedPool"], None]
"""Called after each entry with how many are done, how many there are, and what became of it; must not block."""


class ImportAction(enum.StrEnum):
    """What became of an entry of the folder."""

    IMPORTED = "imported"
    """There is a pool now that was not."""
    UPDATED = "updated"
    """The pool was here, with another definition or autostart mark: now it has libvirt's."""
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"
    """Another pool has its name, its uuid or its source; nothing was done."""
    UNREADABLE = "unreadable"
    """It is no definition that astore takes; nothing was done."""
    FAILED = "failed"
    """It could not be kept here."""


class ImportedPool(msgspec.Struct, frozen=True):
    """What became of one entry: ``file`` is its name in the folder, printable whatever the disk holds.

    ``pool``, ``uuid`` and ``type`` as far as they are known; ``autostart`` is libvirt's mark, ``backend`` whether pools of this
    type can be started here. ``other`` is the pool that a conflict is with, ``error`` why it was not taken over.
    """

    file: str
    action: ImportAction
    pool: str | None = None
    uuid: str | None = None
    type: str | None = None
    autostart: bool = False
    backend: bool = False
    other: str | None = None
    error: Exception | None = None


class ImportReport(msgspec.Struct, frozen=True):
    """What became of all entries of ``folder``, by name."""

    folder: str
    entries: tuple[ImportedPool, ...] = ()

    @property
    def failed(self) -> tuple[ImportedPool, ...]:
        """The entries that were not taken over."""
        return tuple(entry for entry in self.entries if entry.error is not None)


class _Folder(msgspec.Struct, frozen=True):
    """What is in a libvirt's folder: names of definitions, which of them are marked, and marks of nothing."""

    files: tuple[str, ...]
    autostarted: frozenset[str]
    stray: tuple[str, ...]


async def import_pools(
    manager: Manager,
    folder: str | os.PathLike[str] = LIBVIRT_FOLDER,
    *,
    timeout: float | None = None,
    on_progress: OnImport | None = None,
) -> ImportReport:
    """Define the pools of a libvirt configuration folder, which is only read, and mark those that libvirt starts automatically.

    May be called again: a pool that is here already, by name and uuid, gets the definition and the mark that libvirt has now
    (an active one takes them up at its next start, as after :meth:`Manager.define`). Pools that libvirt has no more stay.
    No pool is started. Pools of types without a backend are kept as well.

    :param folder: with ``NAME.xml`` and ``autostart/``. :param timeout: seconds for each entry.
    :raises StorageError: there is no such folder, or it cannot be listed. StoreError: the state folder cannot be read.
        Nothing is raised for an entry: see the report.
    """
    await manager.reload()
    path = Path(folder)
    lanes = Lanes(max_threads=2)
    lane = lanes.lane(f"import from {printable(str(path))}", limit=2, timeout=manager.call_timeout)
    try:
        try:
            found = await lane.run(_look, path)
        except TimeoutError:
            raise
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror}", errno=error.errno) from error
        count = len(found.files) + len(found.stray)
        entries: list[ImportedPool] = []
        for name in found.files:
            entries.append(await _import(manager, lane, path, name, name in found.autostarted, timeout))
            if on_progress is not None:
                on_progress(len(entries), count, entries[-1])
        for name in found.stray:
            missing = StorageError(
                f"it marks pool {printable(_stem(name))!r}, which is not defined", errno=errno.ENOENT
            )
            entries.append(ImportedPool(f"autostart/{printable(name)}", ImportAction.UNREADABLE, error=missing))
            if on_progress is not None:
                on_progress(len(entries), count, entries[-1])
    finally:
        lanes.close()
    return ImportReport(printable(str(path)), tuple(entries))


async def _import(
    manager: Manager, lane: PoolLane, folder: Path, name: str, autostart: bool, timeout: float | None
) -> ImportedPool:
    result = ImportedPool(printable(name), ImportAction.FAILED)
    try:
        async with asyncio.timeout(timeout):
            try:
                wanted = await _read_definition(manager, lane, folder / name)
            except (DefinitionError, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise
                return msgspec.structs.replace(result, action=ImportAction.UNREADABLE, error=error)
            result = msgspec.structs.replace(
                result,
                pool=wanted.name,
                uuid=wanted.uuid,
                type=wanted.type,
                autostart=autostart,
                backend=wanted.type in manager.registry,
            )
            return await _define(manager, wanted, result)
    except ManagerClosedError:
        raise
    except SourceConflictError as error:
        return msgspec.structs.replace(result, action=ImportAction.CONFLICT, other=error.other, error=error)
    except (AstoreError, OSError) as error:
        return msgspec.structs.replace(result, error=error)


async def _read_definition(manager: Manager, lane: PoolLane, path: Path) -> PoolDef:
    wanted = await manager.check(await lane.run(_read, path))
    if wanted.name != _stem(path.name):  # libvirt leaves such a file out too
        raise DefinitionError(f"it defines a pool {printable(wanted.name)!r}, which is not what it is named after")
    return wanted


async def _define(manager: Manager, wanted: PoolDef, result: ImportedPool) -> ImportedPool:
    pool = next((one for one in manager.pools() if one.name == wanted.name), None)
    action = ImportAction.UNCHANGED
    if pool is None or not pool.persistent:
        action = ImportAction.IMPORTED
    elif pool.to_xml(inactive=True) != msgspec.structs.replace(wanted, uuid=wanted.uuid or pool.uuid).to_xml():
        action = ImportAction.UPDATED
    if pool is None or action is not ImportAction.UNCHANGED:
        pool = await manager.define(wanted)
    if pool.autostart != result.autostart:
        await pool.set_autostart(result.autostart)
        if action is ImportAction.UNCHANGED:
            action = ImportAction.UPDATED
    return msgspec.structs.replace(result, action=action, uuid=pool.uuid)


def _stem(name: str) -> str:
    return name.removesuffix(".xml")


def _look(folder: Path) -> _Folder:
    """List the folder. Names without ``.xml`` at their end are nothing to libvirt either."""
    files = tuple(sorted(name for name in os.listdir(folder) if name.endswith(".xml")))
    marks: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        marks = sorted(name for name in os.listdir(folder / "autostart") if name.endswith(".xml"))
    there = set(files)
    return _Folder(
        files,
        frozenset(name for name in marks if name in there and _marks(folder / "autostart" / name, folder / name)),
        tuple(name for name in marks if name not in there),
    )


def _marks(link: Path, file: Path) -> bool:
    """Whether the link is to that file, by libvirt's rule (virFileLinkPointsTo: the same file), or was before it was moved."""
    with contextlib.suppress(OSError):
        if os.path.samefile(link, file):
            return True
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(link)) == file.name
    return False


def _read(path: Path) -> bytes:
    """A file's bytes; nothing but a regular file is opened. :raises StorageError: it is none, or too large. OSError"""
    handle = -1
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        st = os.fstat(handle)
        if not stat.S_ISREG(st.st_mode):
            raise StorageError("it is not a regular file", errno=errno.EINVAL)
        if st.st_size > LARGEST_FILE:
            raise StorageError(f"it is larger than {LARGEST_FILE} bytes", errno=errno.EFBIG)
        # by way of the handle: what is opened is what was looked at
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            return file.read(LARGEST_FILE + 1)
    except StorageError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror) from error  # the path is said by whoever names the entry
    finally:
        if handle >= 0:
            os.close(handle)
