"""Making and removing the folder where a pool is seen: the abilities ``build`` and ``delete`` of ``dir`` and ``netfs``.

libvirt's rules: the folder gets the definition's permissions, or mode 0711; folders above it that are missing are made as
mkdir(1) would; what is there already keeps whatever the definition does not speak of; only an empty folder is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat

import anyio

from astore.backend import Context
from astore.errors import DefinitionError, StorageError, from_os_error
from astore.model import Permissions, PoolDef
from astore.shield import shielded

CLEANUP_SECONDS = 2.0
"""How long a cancelled build waits for its thread, to remove what that made."""

DEFAULT_MODE = 0o711
"""What a pool's folder gets where the definition names no mode (libvirt's VIR_STORAGE_DEFAULT_POOL_PERM_MODE)."""


async def build_target(definition: PoolDef, context: Context) -> None:
    """Make the folder ``definition.target.path``, on the lane. Failed or cancelled, it leaves no folder that was not there.

    :raises DefinitionError: the definition has no target path.
    :raises StorageError: it cannot be made, something else is there, or its permissions cannot be set.
    """
    path = _path(definition)
    permissions = definition.target.permissions or Permissions()
    building = asyncio.ensure_future(context.lane.run(_build, path, permissions, discard=_remove_made))
    try:
        await asyncio.shield(building)
    except asyncio.CancelledError:
        await shielded(_undo(building, context))
        raise
    except OSError as error:
        raise _worded(error, f"cannot build {path}", context) from error


async def _undo(building: asyncio.Future[list[str]], context: Context) -> None:
    """Remove what a cancelled build made, before whoever builds next takes it for a folder that was there."""
    with anyio.move_on_after(CLEANUP_SECONDS):
        with contextlib.suppress(Exception):
            await context.lane.run(_remove_made, await asyncio.shield(building))
    building.cancel()  # storage that hangs: its thread removes it when it comes to it


async def delete_target(definition: PoolDef, context: Context) -> None:
    """Remove the folder ``definition.target.path``, on the lane.

    :raises DefinitionError: the definition has no target path.
    :raises StorageError: there is none (ENOENT), it is not empty (ENOTEMPTY), or something is mounted on it (EBUSY).
    """
    path = _path(definition)
    try:
        await context.lane.run(os.rmdir, path)
    except OSError as error:
        raise _worded(error, f"cannot delete {path}", context) from error


def _path(definition: PoolDef) -> str:
    path = definition.target.path
    if not path:
        raise DefinitionError("the pool has no target path", element="target")
    return path


def _worded(error: OSError, what: str, context: Context) -> OSError:
    if isinstance(error, TimeoutError | StorageError):  # the lane's own deadline is no word of the storage's
        return error
    plain = OSError(error.errno, error.strerror)  # without the path, which the message names already
    if context.name:
        what = f"pool {context.name!r}: {what}"
    return from_os_error(plain, what, pool=context.name or None)


def _build(path: str, permissions: Permissions) -> list[str]:
    """Make the folder and those above it that are missing; returns those made, the outermost first."""
    made: list[str] = []
    try:
        _make_folders(os.path.dirname(path), made)
        created = _make_folder(path, DEFAULT_MODE if permissions.mode is None else permissions.mode, made)
        _set_permissions(path, permissions, created)
    except BaseException:
        _remove_made(made)
        raise
    return made


def _make_folders(path: str, made: list[str]) -> None:
    missing: list[str] = []
    while path and not os.path.lexists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for folder in reversed(missing):
        _make_folder(folder, 0o777, made)


def _make_folder(path: str, mode: int, made: list[str]) -> bool:
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "something else than a directory is there", path) from None
        return False
    made.append(path)
    return True


def _set_permissions(path: str, permissions: Permissions, created: bool) -> None:
    mode = permissions.mode
    if created and mode is None:
        mode = DEFAULT_MODE  # once more: mkdir(2) took the umask off
    owner = -1 if permissions.owner is None else permissions.owner
    group = -1 if permissions.group is None else permissions.group
    if mode is None and owner == group == -1:
        return
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)
        if owner not in (-1, st.st_uid) or group not in (-1, st.st_gid):
            os.fchown(fd, owner, group)
        if mode is not None and stat.S_IMODE(st.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)


def _remove_made(made: list[str]) -> None:
    for folder in reversed(made):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
