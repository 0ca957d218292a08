"""Making and removing the folder where a pool is seen: the abilities ``build`` and ``delete`` of ``dir`` and ``netfs``.

libvirt's rules: the folder gets the definition's permissions, or mode 0711; folders above it that are missing are made as
mkdir(1) would; what is there already keeps whatever the definition does not speak of; only an empty folder is removed.

Not libvirt's: the folder itself may not be a symbolic link, and above it only links of root's or of this process's user are
followed. The way to it is walked by descriptors, and what was looked at is what is changed, whatever takes its name meanwhile.
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

MAX_LINKS = 40
"""As many as the kernel follows (path_resolution(7))."""

DEFAULT_MODE = 0o711
"""What a pool's folder gets where the definition names no mode (libvirt's VIR_STORAGE_DEFAULT_POOL_PERM_MODE)."""


async def build_target(definition: PoolDef, context: Context) -> None:
    """Make the folder ``definition.target.path``, on the lane. Failed or cancelled, it leaves no folder that was not there.

    :raises DefinitionError: the definition has no target path.
    :raises StorageError: it cannot be made, something else is there, such as a symbolic link, or its permissions cannot be
        set.
    """
    path = _path(definition)
    permissions = definition.target.permissions or Permissions()
    building = asyncio.ensure_future(context.lane.run(_build, path, permissions, discard=_Made.remove))
    try:
        (await asyncio.shield(building)).close()
    except asyncio.CancelledError:
        await shielded(_undo(building, context))
        raise
    except OSError as error:
        raise _worded(error, f"cannot build {path}", context) from error


async def _undo(building: asyncio.Future[_Made], context: Context) -> None:
    """Remove what a cancelled build made, before whoever builds next takes it for a folder that was there."""
    with anyio.move_on_after(CLEANUP_SECONDS):
        with contextlib.suppress(Exception):
            await context.lane.run((await asyncio.shield(building)).remove)
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


class _Made:
    """The folders that a build has made, each with a descriptor of the folder that it is in."""

    def __init__(self) -> None:
        self._folders: list[tuple[int, str]] = []

    def add(self, parent: int, name: str) -> None:
        """Note that ``name`` was made in the folder ``parent``."""
        self._folders.append((os.dup(parent), name))

    def remove(self) -> None:
        """Remove them again, the innermost first, as far as they are empty. Blocks."""
        while self._folders:
            parent, name = self._folders.pop()
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=parent)
            os.close(parent)

    def close(self) -> None:
        """Keep them. May be called twice, and after :meth:`remove`."""
        while self._folders:
            os.close(self._folders.pop()[0])

    __del__ = close


def _build(path: str, permissions: Permissions) -> _Made:
    """Make the folder and those above it that are missing; returns those made."""
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
    """A descriptor of the folder that a path's last part is in, and that part. What is missing on the way is made.

    :raises OSError: something is in the way.
    """
    parts = [part for part in path.split("/") if part]
    if not parts:
        return _root(), "."
    parts, last = parts[-2::-1], parts[-1]
    given = len(parts)  # below that many parts left, a part is the path's own; else it is of a link that was followed
    links = 0
    folder = _root()
    try:
        while parts:
            part = parts.pop()
            inner = _open(part, folder)
            if inner < 0:
                if len(parts) >= given:
                    raise FileNotFoundError(errno.ENOENT, f"a symbolic link leads to {part!r}, which is not there")
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
            if links > MAX_LINKS:
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
    """A descriptor of a folder, or of whatever else has that name, a link itself too; -1 if there is nothing.

    :param made: it was just made, and must be a folder.
    """
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        # with O_DIRECTORY, since without it nothing is mounted on an automounter's folder
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
    """Where a symbolic link leads that may be followed; None if this is a folder.

    :raises OSError: it is neither, or a link that anybody may have laid there.
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
    """A descriptor of the pool's folder, and whether it had to be made."""
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
    raise NotADirectoryError(errno.ENOTDIR, "something else than a directory is there")


def _set_permissions(folder: int, permissions: Permissions, created: bool) -> None:
    mode = permissions.mode
    if created and mode is None:
        mode = DEFAULT_MODE  # once more: mkdir(2) took the umask off
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
