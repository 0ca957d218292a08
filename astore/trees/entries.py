"""Entries of a folder, one by one: what each is, and its record or its error."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from astore.errors import StorageError, printable, reason
from astore.images import ImageError, dmg, needs_full_header, probe
from astore.images.references import located
from astore.model import EntryError, ImageInfo, VolumeInfo, VolumeType

if TYPE_CHECKING:
    from astore.model import FileStat
    from astore.trees.tree import Entry, FileTree


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


def recognised(
    name: str,
    size: int,
    head: bytes,
    read: Callable[[int, int], bytes] | None,
    noted: Callable[[], str | None],
    made: str | None,
    *,
    notes: bool = True,
) -> tuple[ImageInfo | None, str | None]:
    """Say what a file's header says it is, and the format that it is known to have been made in.

    :param size: of the file. :param read: gives more of it than ``head``. :param noted: gives what is noted at the file.
    :param made: what is known where no notes are kept. :param notes: look for a note at every image.
    :raises ImageError: its header is malformed, and it was not made raw.
    """
    try:
        image = probe(head, read)
    except ImageError as error:
        made = _known(noted(), made)
        if made != "raw":
            raise
        return ImageInfo(error.format), made
    if image is None and name.endswith(dmg.SUFFIX) and read is not None:
        image = dmg.read_trailer(read(max(size - dmg.TRAILER, 0), dmg.TRAILER))
    if image is not None and (notes or image.references):
        made = _known(noted(), made)
    return image, made


def _known(noted: str | None, made: str | None) -> str | None:
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
        name,
        type,
        key,
        key,
        capacity,
        blocks * 512,
        size,
        image.format,
        mode,
        uid,
        gid,
        inode,
        atime,
        mtime,
        ctime,
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
