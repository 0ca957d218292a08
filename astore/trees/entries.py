"""Turn a folder's entries into records or errors, one by one."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from astore.errors import StorageError, is_shortage, printable, reason
from astore.images import ImageError, needs_full_header
from astore.model import EntryError, VolumeInfo, VolumeType
from astore.volume_io.headers import recognised, record_of
from astore.volume_io.volume_names import wrong_name

if TYPE_CHECKING:
    from astore.model import FileStat
    from astore.trees.tree import Entry, FileTree


def without_header(tree: FileTree, name: str, st: FileStat) -> VolumeInfo | EntryError | None:
    """Return the record or error of an entry whose header need not be read; None if it must be."""
    mode = st[0]
    if not (name.isascii() and name.isprintable()) and (wrong := wrong_name(name)) is not None:
        return wrong
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return None
    if stat.S_ISDIR(mode):
        if tree.directory_type is VolumeType.DIR:  # libvirt reports a dir's size and blocks as 0, but not a netdir's
            st = st.sized(0, blocks=0)
        return record_of(name, tree.directory_type, tree.key(name), st, None)
    kind = "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a character device"
    return EntryError(name, f"it is {kind}", skipped=True)


REPLACED = 5
"""How often a refresh looks up a name again whose file vanished before it was read."""


def read_anew(
    tree: FileTree,
    entry: Entry,
    found: list[tuple[str, VolumeInfo]],
    before: VolumeInfo | None = None,
    tries: int = REPLACED,
) -> EntryError | None:
    """Add the record of an entry that was looked up just now to ``found``; return its error, if it has one.

    :param before: its last record. :param tries: how often its name may be looked up.
    """
    early = without_header(tree, entry.name, entry.stat)
    if early is None:
        return read_one(tree, entry, found, before, thorough=True, tries=tries)
    tree.release(entry)
    if isinstance(early, EntryError):
        return early
    found.append((entry.name, early))
    return None


def read_one(
    tree: FileTree,
    entry: Entry,
    found: list[tuple[str, VolumeInfo]],
    before: VolumeInfo | None = None,
    *,
    notes: bool = False,
    thorough: bool = False,
    tries: int = REPLACED,
) -> EntryError | None:
    """Read an entry's header and add its record to ``found``; return its error, if it has one.

    If the file is gone, its name is looked up again: another file may have taken it, and gets its own record.

    :param before: the entry's last record. :param notes: read the notes of images.
    :param thorough: also check that no other file has taken the name, and read the notes.
    """
    name = entry[0]
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
        again = tree.lookup(name) if tries > 1 else None
    except OSError as error:
        return None if error.errno == errno.ENOENT else entry_error(name, error)
    return None if again is None else read_anew(tree, again, found, before, tries - 1)


def _read(tree: FileTree, entry: Entry, before: VolumeInfo | None, notes: bool, thorough: bool) -> VolumeInfo:
    """Return the record of a regular file, from its header and its notes.

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
    """Return the entry error for an OSError. :raises OSError: it is one of this process, which has no descriptor left."""
    if is_shortage(error):
        raise error
    if error.errno == errno.ENOENT:
        message = "it is a dangling link"
    elif error.errno == errno.ELOOP:
        message = "it is a link loop"
    else:
        message = reason(error if isinstance(error, StorageError) else OSError(error.errno, error.strerror))
    return EntryError(printable(name), message, error.errno, error.errno in _SKIPPED)


def plain_record(tree: FileTree, name: str) -> VolumeInfo | None:
    """Return an entry's record without what its header says: enough to tell which file it is."""
    try:
        entry = tree.lookup(name)
    except OSError:
        return None
    if entry is None:
        return None
    tree.release(entry)
    return blank_record(tree, name, entry.stat)


def blank_record(tree: FileTree, name: str, st: FileStat) -> VolumeInfo:
    """Return the record of an empty file, which has no header: a raw volume."""
    return record_of(name, tree.file_type, tree.key(name), st, None)
