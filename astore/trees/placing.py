"""Create files that appear complete or not at all: first under a hidden name, then placed, never over another file.

The creating process keeps the hidden file locked. A locked one is being created now, by some process, perhaps on another
machine. :mod:`astore.trees.leftovers` removes the others.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

import msgspec

from astore.errors import PoolInaccessibleError
from astore.model import KeptPermissions, Permissions, VolumeDef, VolumeInfo
from astore.trees.entries import blank_record
from astore.trees.scanning import read_entry
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.local_file import LocalFile
from astore.volume_io.volume_names import ATTEMPTS, IN_PROGRESS, new_hidden_name
from astore.volume_io.wording import existing

T = TypeVar("T")

STALE_TRIES = 10
"""How many times, 20 ms apart, a call is repeated after ESTALE (a network file system, several creators of one name)."""

DEFAULT_MODE = 0o600
"""The mode of a new volume whose definition has none (libvirt's VIR_STORAGE_DEFAULT_VOL_PERM_MODE)."""

DIRECTORY_MODE = 0o711

_NOT_KEPT = frozenset({errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""Errors of storage that does not keep owners or modes, or not these (in a user namespace, for one)."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOTSUP})


class HiddenFile:
    """A new file that is not placed yet. Its methods block; :func:`begin` makes it."""

    def __init__(self, tree: WritableTree, hidden: str, file: TreeFile, definition: VolumeDef) -> None:
        self.tree = tree
        self.hidden = hidden
        self.file = file
        self.name: str = definition.name
        self.permissions: Permissions = definition.permissions or Permissions()
        self.made: str | None = "raw" if definition.format in (None, "raw") else None
        self._inode = -1
        self._named = False

    def place(self) -> VolumeInfo:
        """Sync the file and give it its name. :raises OSError: EEXIST: the name was taken meanwhile."""
        self.file.sync()
        self.give_name()
        self.drop_hidden()
        self.tree.sync_folder()
        return self._checked(_anew(lambda: found(self.tree, self.name)))

    def give_name(self) -> None:
        """Set the file's permissions and give it its name, without a sync of the folder.

        Until then only this user may write it. :raises OSError: EEXIST: the name is taken.
        """
        owner, group, mode = self.permissions.owner, self.permissions.group, self.permissions.mode
        if owner is not None or group is not None:
            self._set(self.file.chown, -1 if owner is None else owner, -1 if group is None else group)
        if mode is not None and mode != DEFAULT_MODE:
            self._set(self.file.chmod, mode)
        self._named = True
        self._link()

    def _set(self, call: Callable[..., None], *permissions: int) -> None:
        """Set permissions. If they are refused that were only copied from a source, they are dropped."""
        try:
            call(*permissions)
        except OSError as error:
            if not isinstance(self.permissions, KeptPermissions) or error.errno not in _NOT_KEPT:
                raise

    def drop_hidden(self) -> None:
        """Remove the hidden name of a named file."""
        with contextlib.suppress(FileNotFoundError):
            self.tree.unlink(self.hidden)

    def record(self, hole: int) -> VolumeInfo:
        """Return the record of a named file. A hole of ``hole`` bytes is not read."""
        stat = _anew(lambda: self.tree.stat(self.name, follow=False))
        if stat.size != hole:  # another program has written it already
            return self._checked(_anew(lambda: found(self.tree, self.name)))
        return self._checked(blank_record(self.tree, self.name, stat))

    def _checked(self, record: VolumeInfo) -> VolumeInfo:
        """Return the record if it describes this file. :raises OSError: EEXIST: another file took the name."""
        if record.inode != self._own_inode():
            raise FileExistsError(errno.EEXIST, "another file took the name while this one was created", self.name)
        if self.made is not None and record.made is None:
            record = msgspec.structs.replace(record, made=self.made)
        return record

    def close(self) -> None:
        """Close the file; its inode is remembered for :meth:`remove`. :raises OSError: a delayed write failed."""
        with contextlib.suppress(OSError):
            self._own_inode()
        IN_PROGRESS.discard(self.hidden)
        self.file.close()

    def _own_inode(self) -> int:
        if self._inode < 0:
            self._inode = self.file.stat().inode
        return self._inode

    def _link(self) -> None:
        try:
            _anew(lambda: self.tree.link(self.file, self.name))
        except FileExistsError:
            # an NFS client that lost the answer repeats the request, and then finds its own link (link(2), BUGS)
            if _anew(lambda: self.tree.stat(self.name, follow=False)).inode != self._own_inode():
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.tree.rename(self.hidden, self.name)

    def remove(self) -> None:
        """Remove the file, under its hidden name and under its own if that leads to this file. Never raises."""
        with contextlib.suppress(OSError):
            self.tree.unlink(self.hidden)
        if self._named:
            with contextlib.suppress(OSError):
                if self.tree.stat(self.name, follow=False).inode == self._own_inode():
                    self.tree.unlink(self.name)
        IN_PROGRESS.discard(self.hidden)


def _anew(call: Callable[[], T]) -> T:
    """Call, and repeat while a network file system finds its cached name outdated (ESTALE)."""
    for _ in range(STALE_TRIES):
        try:
            return call()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(0.02)
    return call()


def begin(tree: WritableTree, definition: VolumeDef) -> HiddenFile:
    """Create a hidden file, locked; see :func:`start`. :raises OSError: EEXIST: the name is taken."""
    with contextlib.suppress(FileNotFoundError):
        _anew(lambda: tree.stat(definition.name, follow=False))
        raise FileExistsError(errno.EEXIST, "the name is taken", definition.name)
    return start(tree, definition, sure=True)


def start(tree: WritableTree, definition: VolumeDef, *, sure: bool = False) -> HiddenFile:
    """Create a hidden file, locked, that gets its permissions when it is named.

    If it is raw, that is noted at it, so that it stays raw whatever its guest writes.

    :param sure: check that it was not removed before it was locked. (Otherwise linking it raises ENOENT.)
    """
    for _ in range(ATTEMPTS):
        hidden = new_hidden_name()
        IN_PROGRESS.add(hidden)
        try:
            file = tree.create(hidden, DEFAULT_MODE)
        except BaseException as error:
            IN_PROGRESS.discard(hidden)
            if isinstance(error, FileNotFoundError):
                raise _folder_gone(error) from error
            raise
        new = HiddenFile(tree, hidden, file, definition)
        try:
            if file.lock() and (not sure or _is_there(tree, hidden, file)):
                if definition.nocow and isinstance(file, LocalFile):
                    with contextlib.suppress(OSError):  # most file systems have nothing to switch off
                        file.set_nocow()
                if new.made is not None and file.note_format(new.made):
                    tree.note_folder()
                return new
        except BaseException:
            new.remove()
            file.close()
            raise
        new.remove()  # a search for leftovers was faster than the lock, and removes it too
        file.close()
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), definition.name)


def _folder_gone(error: FileNotFoundError) -> PoolInaccessibleError:
    """Return the error for a new entry that cannot be created because of ENOENT, which is the folder's then."""
    return PoolInaccessibleError("the pool's folder is gone", errno=error.errno)


def _is_there(tree: WritableTree, hidden: str, file: TreeFile) -> bool:
    try:
        return tree.stat(hidden, follow=False).inode == file.stat().inode
    except FileNotFoundError:
        return False


def found(tree: WritableTree, name: str) -> VolumeInfo:
    """Return the record of a volume that must exist. :raises OSError: it does not (ENOENT), or cannot be read."""
    return existing(read_entry(tree, name), name)


def create_directory(tree: WritableTree, definition: VolumeDef) -> VolumeInfo:
    """Create a directory and return its record. Blocks. :raises OSError: EEXIST: the name is taken."""
    wanted = definition.permissions or Permissions()
    owners = [-1 if one is None else one for one in (wanted.owner, wanted.group)]
    mode = DIRECTORY_MODE if wanted.mode is None else wanted.mode
    try:
        tree.mkdir(definition.name, mode, *(owners if owners != [-1, -1] else ()))
    except FileNotFoundError as error:
        raise _folder_gone(error) from error
    try:
        tree.sync_folder()
        return found(tree, definition.name)
    except BaseException:
        remove_directory(tree, definition.name)
        raise


def remove_directory(tree: WritableTree, name: str) -> None:
    """Remove a directory that was created just now, if it can be."""
    with contextlib.suppress(OSError):
        tree.rmdir(name)
