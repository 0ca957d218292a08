"""Entries of a folder, one by one: what each is, and its record or its error."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from astore.errors import StorageError, printable, reason
from astore.images import ImageError, needs_full_header
from astore.model import EntryError, VolumeInfo, VolumeType
from astore.volume_io.headers import recognised, record_of
from astore.volume_io.volume_names import wrong_name

if TYPE_CHECKING:
    from astore.model import FileStat
    from astore.trees.tree import Entry, FileTree


def without_header(tree: FileTree, name: str, st: FileStat) -> VolumeInfo | EntryError | None:
    """What an entry is if its header need not be read; None if it must be."""
    mode = st[0]
    if not (name.isascii() and name.isprintable()) and (wrong := wrong_name(name)) is not None:
        return wrong
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return None
    if stat.S_ISDIR(mode):
        if tree.directory_type is VolumeType.DIR:  # has no size and no blocks, says libvirt; of a netdir it tells them
            st = st.sized(0, blocks=0)
        return record_of(name, tree.directory_type, tree.key(name), st, None)
    kind = "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a character device"
    return EntryError(name, f"it is {kind}", skipped=True)


REPLACED = 5
"""How many files of one name a refresh tries to read, if each is gone by then."""


def read_one(
    tree: FileTree,
    entry: Entry,
    found: list[tuple[str, VolumeInfo]],
    before: VolumeInfo | None = None,
    *,
    notes: bool = False,
    thorough: bool = False,
) -> EntryError | None:
    """Read an entry's header and add its record to ``found``; returns its error, if it has one.

    If the file is gone, look its name up again: another file may have taken it, and gets a record of its own.

    :param before: the record that the entry had until now. :param notes: look for what is noted at images.
    :param thorough: it is this one alone: see that no other file has its name by now, and what is noted at it.
    """
    name = entry[0]
    for left in reversed(range(REPLACED)):
        try:
            record = _read(tree, entry, before, notes or thorough, thorough)
        except OSError as error:
            if error.errno != errno.ENOENT:
                return entry_error(name, error)
        except ImageError as error:
            return EntryError(name, str(error), errno.EINVAL)
        else:
            found.append((name, record))
            return None
        try:
            again = tree.lookup(name) if left else None
        except OSError as error:
            return None if error.errno == errno.ENOENT else entry_error(name, error)
        if again is None:
            return None
        early = without_header(tree, name, again[1])
        if early is not None:
            tree.release(again)
            if isinstance(early, EntryError):
                return early
            found.append((name, early))
            return None
        entry = again
    return None


def _read(tree: FileTree, entry: Entry, before: VolumeInfo | None, notes: bool, thorough: bool) -> VolumeInfo:
    """The record of a regular file, by its header and by what is noted at it.

    :raises OSError: it cannot be read. ImageError: its header is malformed.
    """
    name = entry[0]
    reading = tree.reading(entry, thorough=thorough)
    try:
        head = reading.header(needs_full_header)
        st = reading.entry[1]
        made = None
        if before is not None and before.inode == st[1] and before.device == st[9]:
            made = before.made
            notes = notes or before.format == "raw"
        image, made = recognised(name, st[2], head, reading.read, reading.made, made, notes=notes)
    finally:
        reading.close()
    return record_of(name, tree.file_type, tree.key(name), st, image, made)


_SKIPPED = frozenset({errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM})


def entry_error(name: str, error: OSError) -> EntryError:
    """An entry that the storage says no to."""
    if error.errno == errno.ENOENT:
        message = "it is a dangling link"
    elif error.errno == errno.ELOOP:
        message = "it is a link loop"
    else:
        message = reason(error if isinstance(error, StorageError) else OSError(error.errno, error.strerror))
    return EntryError(printable(name), message, error.errno, error.errno in _SKIPPED)
