"""Entries of a folder, one by one: what each is, and its record or its error."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from astore.errors import StorageError, printable, reason
from astore.images import ImageError, needs_full_header, probe
from astore.images.references import located
from astore.model import EntryError, ImageInfo, VolumeInfo, VolumeType

if TYPE_CHECKING:
    from astore.files import Entry, FileStat, FileTree, Reading


def without_header(tree: FileTree, name: str, st: FileStat) -> VolumeInfo | EntryError | None:
    """What an entry is if its header need not be read; None if it must be."""
    mode = st[0]
    if not (name.isascii() and name.isprintable()):
        if any(ord(c) < 32 or c == "\x7f" for c in name):
            return EntryError(printable(name), "its name has control characters", skipped=True)
        try:
            name.encode()
        except UnicodeEncodeError:
            return EntryError(printable(name), "its name is not UTF-8", errno.EILSEQ)
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return None
    if stat.S_ISDIR(mode):
        if tree.directory_type is VolumeType.DIR:  # has no size and no blocks, says libvirt; of a netdir it tells them
            st = st._replace(size=0, blocks=0)
        return record_of(name, tree.directory_type, tree.key(name), st, None)
    kind = "a FIFO" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a character device"
    return EntryError(name, f"it is {kind}", skipped=True)


REPLACED = 5
"""How many files of one name a refresh tries to read, if each is gone by then."""


def read_one(
    tree: FileTree, entry: Entry, found: list[tuple[str, VolumeInfo]], before: VolumeInfo | None = None
) -> EntryError | None:
    """Read an entry's header and add its record to ``found``; returns its error, if it has one.

    If the file is gone, look its name up again: another file may have taken it, and gets a record of its own.

    :param before: the record that the entry had until now.
    """
    name = entry[0]
    for left in reversed(range(REPLACED)):
        try:
            record = _read(tree, entry, before)
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


def _read(tree: FileTree, entry: Entry, before: VolumeInfo | None) -> VolumeInfo:
    """The record of a regular file, by its header and by what is noted at it.

    :raises OSError: it cannot be read. ImageError: its header is malformed.
    """
    name = entry[0]
    reading = tree.reading(entry)
    try:
        head = reading.header(needs_full_header)
        st = reading.stat
        if before is not None and (before.inode != st[1] or before.device != st[9]):
            before = None  # of another file
        made = None if before is None else before.made
        turned = before is not None and before.format == "raw"
        try:
            image = probe(head, reading.read)
        except ImageError as error:
            made = _noted(reading, made)
            if made != "raw":
                raise
            image = ImageInfo(error.format)
        else:
            if image is not None and (reading.cheap or image.references or turned):
                made = _noted(reading, made)
    finally:
        reading.close()
    return record_of(name, tree.file_type, tree.key(name), st, image, made)


def _noted(reading: Reading, made: str | None) -> str | None:
    """The format that is noted at a file, or where its storage keeps no notes the one that is known."""
    noted = reading.made()
    return made if noted is None else noted or None


def record_of(
    name: str, type: VolumeType, key: str, st: FileStat, image: ImageInfo | None, made: str | None = None
) -> VolumeInfo:
    """The record of an entry, with what its header says, if that was read.

    :param made: the format that it is known to have been made in.
    """
    mode, inode, size, blocks, uid, gid, atime, mtime, ctime, device = st
    if image is None or made == "raw":
        fmt = "dir" if type is VolumeType.DIR or type is VolumeType.NETDIR else "raw"
        said = None if image is None else image.format
        return VolumeInfo(
            *(name, type, key, key, size, blocks * 512, size, fmt, mode, uid, gid, inode, atime, mtime, ctime),
            device=device,
            made=made,
            header_format=said,
        )
    capacity = max(size - image.before, 0) if image.capacity is None else image.capacity
    return VolumeInfo(
        *(name, type, key, key, capacity, blocks * 512, size, image.format),
        *(mode, uid, gid, inode, atime, mtime, ctime),
        located(image.references, key) if image.references else (),
        image.compat,
        image.features,
        image.encryption,
        image.cluster_size,
        device,
        made,
        None,
        image.extras,
    )


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
