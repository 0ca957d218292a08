"""Import of libvirt's own pools: their definitions and autostart marks, from its configuration folder.

libvirt keeps ``NAME.xml`` for each pool, beginning with a comment, and for those that are started automatically a link
``autostart/NAME.xml`` to it (storage_driver.c, virstorageobj.c). The import only reads the folder, and asks no libvirtd.
A bad entry does not stop the others.
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
    PoolNotFoundError,
    SourceConflictError,
    StorageError,
    printable,
)
from astore.lanes import Lanes
from astore.lanes.lane import PoolLane
from astore.manager.manager import Manager
from astore.model import PoolDef
from astore.model.record import Record
from astore.pools.pool import Pool

LIBVIRT_FOLDER = "/etc/libvirt/storage"
"""The folder of a machine's libvirtd."""

LARGEST_FILE = 1 << 20
"""The most bytes that a definition may have."""

OnImport = Callable[[int, int, "ImportedPool"], None]
"""Called after each entry with the number of entries done, the number of all, and the result; must not block."""


class ImportAction(enum.StrEnum):
    """The result for an entry of the folder."""

    IMPORTED = "imported"
    """The pool is new here."""
    UPDATED = "updated"
    """The pool was here with another definition or autostart mark, and now has libvirt's."""
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"
    """Another pool has its name, its uuid or its source; nothing was done."""
    UNREADABLE = "unreadable"
    """The entry is no definition that astore accepts; nothing was done."""
    FAILED = "failed"
    """The definition could not be stored."""


class ImportedPool(Record, frozen=True):
    """The result for one entry: ``file`` is its name in the folder, made printable.

    ``pool``, ``uuid`` and ``type`` are None if unknown; ``autostart`` is libvirt's mark; ``backend`` tells whether pools of
    this type can be started here. ``other`` is the other pool of a conflict, ``error`` why the entry was not imported.
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


class ImportReport(Record, frozen=True):
    """The results for all entries of ``folder``, by name."""

    folder: str
    entries: tuple[ImportedPool, ...] = ()

    @property
    def failed(self) -> tuple[ImportedPool, ...]:
        """The entries that were not imported."""
        return tuple(entry for entry in self.entries if entry.error is not None)


class _Folder(msgspec.Struct, frozen=True):
    """The contents of libvirt's folder: definitions, those with an autostart mark, and marks without a definition."""

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
    """Define the pools of a libvirt configuration folder, with its autostart marks. The folder is only read.

    May be called again: a pool that is here already, by name and uuid, gets libvirt's current definition and mark
    (an active pool uses them from its next start, as after :meth:`Manager.define`). Pools that libvirt no longer has stay.
    No pool is started. Pools of types without a backend are defined as well.

    :param folder: has ``NAME.xml`` and ``autostart/``. :param timeout: seconds for each entry.
    :raises StorageError: the folder does not exist, or cannot be listed. StoreError: the state folder cannot be read.
        An entry raises nothing: see the report.
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
        entries: list[ImportedPool] = []
        for name in (*found.files, *found.stray):
            if name in found.stray:
                entries.append(_stray(name))
            else:
                entries.append(await _import(manager, lane, path, name, name in found.autostarted, timeout))
            if on_progress is not None:
                on_progress(len(entries), len(found.files) + len(found.stray), entries[-1])
    finally:
        lanes.close()
    return ImportReport(printable(str(path)), tuple(entries))


def _stray(name: str) -> ImportedPool:
    missing = StorageError(f"it marks pool {printable(_stem(name))!r}, which is not defined", errno=errno.ENOENT)
    return ImportedPool(f"autostart/{printable(name)}", ImportAction.UNREADABLE, error=missing)


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
        raise DefinitionError(f"it defines a pool {printable(wanted.name)!r}, and is not named after it")
    return wanted


async def _define(manager: Manager, wanted: PoolDef, result: ImportedPool) -> ImportedPool:
    pool: Pool | None = None
    with contextlib.suppress(PoolNotFoundError):
        pool = manager.pool(wanted.name)
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
    """List the folder. Ignore names that do not end in ``.xml``, as libvirt does."""
    files = tuple(sorted(name for name in os.listdir(folder) if name.endswith(".xml")))
    marks: list[str] = []
    with contextlib.suppress(FileNotFoundError):
        marks = sorted(name for name in os.listdir(folder / "autostart") if name.endswith(".xml"))
    defined = set(files)
    return _Folder(
        files,
        frozenset(name for name in marks if name in defined and _marks(folder / "autostart" / name, folder / name)),
        tuple(name for name in marks if name not in defined),
    )


def _marks(link: Path, file: Path) -> bool:
    """Return whether a link points to a file: the same file (virFileLinkPointsTo), or its name before a move."""
    with contextlib.suppress(OSError):
        if os.path.samefile(link, file):
            return True
    with contextlib.suppress(OSError):
        return os.path.basename(os.readlink(link)) == file.name
    return False


def _read(path: Path) -> bytes:
    """Return the bytes of a regular file. :raises StorageError: it is no regular file, or too large. OSError: as of files."""
    handle = -1
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        st = os.fstat(handle)
        if not stat.S_ISREG(st.st_mode):
            raise StorageError("it is not a regular file", errno=errno.EINVAL)
        if st.st_size > LARGEST_FILE:
            raise StorageError(f"it is larger than {LARGEST_FILE} bytes", errno=errno.EFBIG)
        # open it through the handle, so that the file is the one that was checked
        with open(f"/proc/self/fd/{handle}", "rb") as file:
            return file.read(LARGEST_FILE + 1)
    except StorageError:
        raise
    except OSError as error:
        raise OSError(error.errno, error.strerror) from error  # without the path: the report has it
    finally:
        if handle >= 0:
            os.close(handle)
