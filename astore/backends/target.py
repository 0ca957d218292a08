"""Create and remove a pool's folder: the abilities ``build`` and ``delete`` of pools with a target.

The rules are libvirt's: the folder gets the definition's permissions, or mode 0711; missing parents are created as by
mkdir(1); an existing folder keeps every attribute that the definition does not give; only an empty folder is removed.

Two rules are astore's: the folder itself may not be a symbolic link, and above it only links owned by root or this
process's user are followed. The path is walked by descriptors, so the folder that was checked is the one that is
changed, even if its name is taken meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import stat

import anyio

from astore.backend import Context
from astore.cancellation import CLEANUP_SECONDS, shielded
from astore.errors import DefinitionError, StorageError, from_os_error
from astore.model import Permissions, PoolDef
from astore.places import MOST_LINKS

DEFAULT_MODE = 0o711
"""The mode of a folder if the definition gives none (libvirt's VIR_STORAGE_DEFAULT_POOL_PERM_MODE)."""


async def build_target(definition: PoolDef, context: Context) -> None:
    """Create the folder ``definition.target.path``, on the lane. A failed or cancelled build removes what it created.

    :raises DefinitionError: the definition has no target path.
    :raises StorageError: the folder cannot be created, something else is there, such as a symbolic link, or its
        permissions cannot be set.
    """
    path = _path(definition)
    permissions = definition.target.permissions or Permissions()
    building = asyncio.ensure_future(context.lane.run(_build, path, permissions, discard=_Made.remove))
    try:
        (await asyncio.shield(building)).close()
    except asyncio.CancelledError:
        await shielded(_undo(building, context), whole=True)
        raise
    except OSError as error:
        raise _worded(error, f"cannot build {path}", context) from error


async def _undo(building: asyncio.Future[_Made], context: Context) -> None:
    """Remove the folders of a cancelled build, before the next build takes them for existing ones."""
    with anyio.move_on_after(CLEANUP_SECONDS):
        with contextlib.suppress(Exception):
            await context.lane.run((await asyncio.shield(building)).remove)
    building.cancel()  # hung storage: its thread removes the folders when it returns


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
    if isinstance(error, TimeoutError | StorageError):  # the lane's own deadline is not the storage's error
        return error
    plain = OSError(error.errno, error.strerror)  # the message names the path already
    if context.name:
        what = f"pool {context.name!r}: {what}"
    return from_os_error(plain, what, pool=context.name or None)


class _Made:
    """The folders that a build created, each with a descriptor of its parent."""

    def __init__(self) -> None:
        self._folders: list[tuple[int, str]] = []

    def add(self, parent: int, name: str) -> None:
        """Record that ``name`` was created in the folder ``parent``."""
        self._folders.append((os.dup(parent), name))

    def remove(self) -> None:
        """Remove the folders, the innermost first, as far as they are empty. Blocks."""
        while self._folders:
            parent, name = self._folders.pop()
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
            os.close(parent)

    def close(self) -> None:
        """Keep the folders, and close the descriptors. May be called twice, and after :meth:`remove`."""
        while self._folders:
            os.close(self._folders.pop()[0])

    __del__ = close


def _build(path: str, permissions: Permissions) -> _Made:
    """Create the folder and missing parents; return the folders created."""
    made = _Made()
    try:
        parent, name = _folder_above(path, made)
        try:
            folder, created = _make_folder(parent, name, permissions.mode, made)
        finally:
            os.close(parent)
        try:
            _set_permissions(folder, permissions, created)
        finally:
            os.close(folder)
    except BaseException:
        made.remove()
        raise
    return made


def _folder_above(path: str, made: _Made) -> tuple[int, str]:
    """Return a descriptor of the parent of a path's last part, and that part. Create the parents that are missing.

    :raises OSError: a part of the path is not a directory.
    """
    parts = [part for part in path.split("/") if part]
    if not parts:
        return _root(), "."
    parts, last = parts[-2::-1], parts[-1]
    given = len(parts)  # with fewer parts left, a part is the path's own; otherwise it comes from a link
    links = 0
    folder = _root()
    try:
        while parts:
            part = parts.pop()
            inner = _open(part, folder)
            if inner < 0:
                if len(parts) >= given:
                    raise FileNotFoundError(errno.ENOENT, f"a symbolic link leads to {part!r}, which does not exist")
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=folder)
                    made.add(folder, part)
                inner = _open(part, folder, made=True)
            link = _link_in(inner, part)
            if link is None:
                os.close(folder)
                folder = inner
                continue
            os.close(inner)
            links += 1
            if links > MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if len(parts) < given:
                given = len(parts)
            parts += [part for part in link.split("/") if part not in ("", ".")][::-1]
            if link.startswith("/"):
                os.close(folder)
                folder = _root()
    except BaseException:
        os.close(folder)
        raise
    return folder, last


def _root() -> int:
    return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _open(name: str, parent: int, *, made: bool = False) -> int:
    """Return a descriptor of a folder, a link or another file; -1 if the name does not exist.

    :param made: the folder was just created, and must be one.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # O_DIRECTORY triggers an automounter's folder; O_PATH alone does not
        return os.open(name, flags | os.O_DIRECTORY, dir_fd=parent)
    except FileNotFoundError:
        if made:
            raise
        return -1
    except NotADirectoryError:
        if made:
            raise
        return os.open(name, flags, dir_fd=parent)


def _link_in(fd: int, name: str) -> str | None:
    """Return the target of a symbolic link that may be followed; None if ``fd`` is a folder.

    :raises OSError: it is neither, or a link of another user.
    """
    try:
        st = os.fstat(fd)
        if stat.S_ISDIR(st.st_mode):
            return None
        if not stat.S_ISLNK(st.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, f"{name!r} is not a directory")
        if st.st_uid not in (0, os.geteuid()):
            raise OSError(errno.ELOOP, f"{name!r} is a symbolic link of user {st.st_uid}, and is not followed")
        return os.readlink("", dir_fd=fd)
    except BaseException:
        os.close(fd)
        raise


def _make_folder(parent: int, name: str, mode: int | None, made: _Made) -> tuple[int, bool]:
    """Return a descriptor of the pool's folder, and whether it was created."""
    created = False
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, DEFAULT_MODE if mode is None else mode, dir_fd=parent)
        created = True
        made.add(parent, name)
    folder = _open(name, parent, made=created)
    if folder < 0:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    found = os.fstat(folder).st_mode
    if stat.S_ISDIR(found):
        return folder, created
    os.close(folder)
    if stat.S_ISLNK(found):
        raise OSError(errno.ELOOP, "it is a symbolic link: name the folder that it leads to")
    raise NotADirectoryError(errno.ENOTDIR, "it is not a directory")


def _set_permissions(folder: int, permissions: Permissions, created: bool) -> None:
    mode = permissions.mode
    if created and mode is None:
        mode = DEFAULT_MODE  # again: mkdir(2) applied the umask
    owner = -1 if permissions.owner is None else permissions.owner
    group = -1 if permissions.group is None else permissions.group
    if mode is None and owner == group == -1:
        return
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        st = os.fstat(fd)
        if owner not in (-1, st.st_uid) or group not in (-1, st.st_gid):
            os.fchown(fd, owner, group)
        if mode is not None and stat.S_IMODE(st.st_mode) != mode:
            os.fchmod(fd, mode)
    finally:
        os.close(fd)
