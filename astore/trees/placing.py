"""How a new file appears complete or not at all: under a hidden name first, then in its place, never over another.

The hidden file is locked by whoever makes it for as long as that lasts, so that whoever finds one can tell what a
killed process left behind from what is being made at this moment, by another process or on another machine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from astore.errors import printable
from astore.model import EntryError, KeptPermissions, Permissions, VolumeInfo
from astore.trees.scanning import blank_record, read_entry
from astore.trees.writable import WritableTree
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.volume_names import is_leftover, new_hidden_name

T = TypeVar("T")

STALE_TRIES = 10
"""How many times, 20 ms apart, a name is asked for again that several make at once (network file systems need it)."""

DEFAULT_MODE = 0o600
"""A new volume's, where its definition names none (libvirt's VIR_STORAGE_DEFAULT_VOL_PERM_MODE)."""

ATTEMPTS = 16
"""How many hidden files are tried: each may be taken for a leftover before it is locked, but not all of them."""

_NOT_KEPT = frozenset({errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})
"""What storage says that does not take owners or modes, or not these (in a user namespace, for one)."""

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.ENOTSUP})


class HiddenFile:
    """A new file that is not in its place yet. Blocking; made by :func:`begin`."""

    def __init__(
        self, tree: WritableTree, hidden: str, name: str, file: TreeFile, permissions: Permissions, made: str | None
    ) -> None:
        self.tree = tree
        self.hidden = hidden
        self.name = name
        self.file = file
        self.permissions = permissions
        self.made = made
        self._inode = -1
        self._named = False

    def place(self) -> VolumeInfo:
        """Make it safe and give it its name. :raises OSError: EEXIST: the name was taken meanwhile."""
        self.file.sync()
        self.give_name()
        self.drop_hidden()
        self.tree.sync_folder()
        return self._checked(_anew(lambda: found(self.tree, self.name)))

    def give_name(self) -> None:
        """Put it in its place, with its permissions; the folder is not synced yet.

        Until then it is nobody else's to write, whoever it is made for. :raises OSError: EEXIST: the name is taken.
        """
        owner, group, mode = self.permissions.owner, self.permissions.group, self.permissions.mode
        try:
            if owner is not None or group is not None:
                self.file.chown(-1 if owner is None else owner, -1 if group is None else group)
        except OSError as error:
            if not self._may_differ(error):
                raise
        try:
            if mode is not None and mode != DEFAULT_MODE:
                self.file.chmod(mode)
        except OSError as error:
            if not self._may_differ(error):
                raise
        self._named = True
        self._link()

    def _may_differ(self, error: OSError) -> bool:
        """Whether permissions that the storage refuses are only those of what is copied."""
        return isinstance(self.permissions, KeptPermissions) and error.errno in _NOT_KEPT

    def drop_hidden(self) -> None:
        """Remove its hidden name, when it has the other."""
        with contextlib.suppress(FileNotFoundError):
            self.tree.unlink(self.hidden)

    def record(self, hole: int) -> VolumeInfo:
        """Its record, when it has its name: of a hole of so many bytes nothing is read."""
        stat = _anew(lambda: self.tree.stat(self.name, follow=False))
        if stat.size != hole:  # somebody was very fast
            return self._checked(_anew(lambda: found(self.tree, self.name)))
        return self._checked(blank_record(self.tree, self.name, stat))

    def _checked(self, record: VolumeInfo) -> VolumeInfo:
        """The record, if it is of this file. :raises OSError: EEXIST: another file has its name by now."""
        if record.inode != self._own_inode():
            raise FileExistsError(errno.EEXIST, "another file took its name in the moment when it was made", self.name)
        if self.made is not None and record.made is None:
            record = msgspec.structs.replace(record, made=self.made)
        return record

    def close(self) -> None:
        """Close the file; whether it is what has the name can be told later too. :raises OSError: as of files."""
        with contextlib.suppress(OSError):
            self._own_inode()
        self.file.close()

    def _own_inode(self) -> int:
        if self._inode < 0:
            self._inode = self.file.stat().inode
        return self._inode

    def _link(self) -> None:
        try:
            _anew(lambda: self.tree.link(self.file, self.name))
        except FileExistsError:
            # NFS asks again when an answer is lost, and is told then that there is what it made itself (link(2), BUGS)
            if _anew(lambda: self.tree.stat(self.name, follow=False)).inode != self._own_inode():
                raise
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self.tree.rename(self.hidden, self.name)

    def remove(self) -> None:
        """Remove it, hidden as it is or in its place, if it is it that is there. Never raises."""
        with contextlib.suppress(OSError):
            self.tree.unlink(self.hidden)
        if self._named:
            with contextlib.suppress(OSError):
                if self.tree.stat(self.name, follow=False).inode == self._own_inode():
                    self.tree.unlink(self.name)


def _anew(call: Callable[[], T]) -> T:
    """Call, and again while a network file system finds that what it knew of a name was of another file (ESTALE)."""
    for _ in range(STALE_TRIES):
        try:
            return call()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
        time.sleep(0.02)
    return call()


def begin(tree: WritableTree, name: str, permissions: Permissions | None, made: str | None = None) -> HiddenFile:
    """A new hidden file, locked; see :func:`start`. :raises OSError: EEXIST: the name is taken."""
    try:
        _anew(lambda: tree.stat(name, follow=False))
    except FileNotFoundError:
        pass
    else:
        raise FileExistsError(errno.EEXIST, "there is something of this name already", name)
    return start(tree, name, permissions, made, sure=True)


def start(
    tree: WritableTree, name: str, permissions: Permissions | None, made: str | None = None, *, sure: bool = False
) -> HiddenFile:
    """A new hidden file, locked, which is to have these permissions.

    :param made: the format that is noted at it: ``raw``, so that it stays that whatever its guest writes.
    :param sure: see to it that nobody has removed it before it was locked. (Else linking it would say so, by ENOENT.)
    """
    wanted = permissions or Permissions()
    for _ in range(ATTEMPTS):
        hidden = new_hidden_name()
        file = tree.create(hidden, DEFAULT_MODE)
        new = HiddenFile(tree, hidden, name, file, wanted, made)
        try:
            if file.lock() and (not sure or _is_there(tree, hidden, file)):
                if made is not None and file.note_format(made):
                    tree.note_folder()
                return new
        except BaseException:
            new.remove()
            file.close()
            raise
        new.remove()  # somebody who looks for leftovers was faster than the lock, and removes it too
        file.close()
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), name)


def _is_there(tree: WritableTree, hidden: str, file: TreeFile) -> bool:
    try:
        return tree.stat(hidden, follow=False).inode == file.stat().inode
    except FileNotFoundError:
        return False


def found(tree: WritableTree, name: str, hidden: bool = False) -> VolumeInfo:
    """The record of a volume that must be there. :raises OSError: it cannot be read."""
    item = read_entry(tree, name, hidden=hidden)
    if item is None:
        raise FileNotFoundError(errno.ENOENT, "it is not there any more", name)
    if isinstance(item, EntryError):
        raise OSError(item.errno or errno.EIO, item.message, printable(name))
    return item


def remove_leftovers(tree: WritableTree, names: Iterable[str]) -> list[str]:
    """Remove hidden files that nobody is making any more; returns their names. What cannot be told stays."""
    removed = []
    for name in names:
        if not is_leftover(name):
            continue  # nothing of astore's, whatever it begins with
        with contextlib.suppress(OSError):
            file = tree.open(name, write=True)
            try:
                if file.lock():
                    tree.unlink(name)
                    removed.append(name)
            finally:
                file.close()
    return removed
