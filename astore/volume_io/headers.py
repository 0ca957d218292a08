"""Read a volume's header and check it against the volume's record, so that work is done on what was checked."""

from __future__ import annotations

import errno
from collections.abc import Callable

from astore.backend import VolumeFile
from astore.errors import DefinitionError, StorageError, printable
from astore.images import HEADER_SIZE, ImageError, dmg, probe
from astore.images.formats import is_raw
from astore.images.references import located
from astore.model import FileStat, ImageInfo, Reference, ReferenceKind, VolumeInfo, VolumeType
from astore.volume_io.blocking_file import TreeFile

BEGIN = 4 << 20
"""So many bytes of a file have all of its header."""


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
    """Probe a file's header; return the image it describes and the format that the file is known to have been made in.

    :param size: of the file. :param read: reads more of it than ``head``. :param noted: reads the note at the file.
    :param made: the known format if the storage keeps no notes. :param notes: read the note of every image.
    :raises ImageError: the header is malformed, and the file was not made raw.
    """
    try:
        image = probe(head, read, size)
    except ImageError as error:
        made = _known(noted(), made)
        if made != "raw":
            raise
        return ImageInfo(error.format), made
    if (image is None or image.format == "iso") and name.endswith(dmg.SUFFIX) and read is not None:
        image = dmg.read_trailer(read(max(size - dmg.TRAILER, 0), dmg.TRAILER)) or image
    if image is not None and (notes or image.references):
        made = _known(noted(), made)
    return image, made


def _known(noted: str | None, made: str | None) -> str | None:
    return made if noted is None else noted or None


def record_of(
    name: str, type: VolumeType, key: str, st: FileStat, image: ImageInfo | None, made: str | None = None
) -> VolumeInfo:
    """Return the record of an entry, with what its header says if that was read.

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
        *(name, type, key, key, capacity, blocks * 512, size, image.format, mode, uid, gid, inode, atime, mtime, ctime),
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


def examined(
    file: TreeFile, name: str, key: str, type: VolumeType = VolumeType.FILE, made: str | None = None
) -> tuple[bytes, VolumeInfo]:
    """Read the first HEADER_SIZE bytes of an open file; return them and its record as the volume ``name``. Blocks.

    :param made: the format that it is known to have been made in.
    :raises OSError: it cannot be read. ImageError: its header is malformed.
    """
    head, st = file.pread(HEADER_SIZE, 0), file.stat()
    image, made = recognised(
        *(name, st.size, head, lambda offset, length: file.pread(length, offset), file.noted_format, made)
    )
    return head, record_of(name, type, key, st, image, made)


def unchanged_head(file: TreeFile, volume: VolumeInfo, what: str) -> bytes:
    """Return the first bytes of an open volume, if it still matches its record. Blocks.

    :param what: the operation, for the error.
    :raises StorageError: EAGAIN: it is another file, or its header has changed.
    """
    return head_and_record(file, volume, volume, what)[0]


def head_and_record(file: TreeFile, volume: VolumeInfo, before: VolumeInfo, what: str) -> tuple[bytes, VolumeInfo]:
    """Return an open file's first bytes and its record as ``volume``, if its header still matches ``before``. Blocks.

    :raises StorageError: EAGAIN: the header does not match, or the file is not that of ``volume``.
    """
    try:
        head, now = examined(file, volume.name, volume.key, volume.type, volume.made)
    except ImageError as error:
        raise StorageError(f"{what}: {error}", errno=errno.EAGAIN) from error
    if now.inode != volume.inode or _meaning(now) != _meaning(before):
        raise StorageError(f"{what}: it changed meanwhile; refresh it first", errno=errno.EAGAIN)
    return head, now


def _meaning(info: VolumeInfo) -> tuple[object, ...]:
    """Return what must not change between a check of a volume and work on it."""
    references = tuple((one.kind, one.name, one.format) for one in info.references)
    return ("raw" if is_raw(info.format) else info.format, references)


def elsewhere(info: VolumeInfo) -> Reference | None:
    """Return the first reference to another file that holds data of the volume, or None."""
    for reference in info.references:
        if reference.kind in (ReferenceKind.DATA, ReferenceKind.EXTENT):
            return reference
    return None


def check_whole(info: VolumeInfo, what: str) -> None:
    """Check that a volume has all its data itself. :raises StorageError: EPERM: its header names other files for data."""
    reference = elsewhere(info)
    if reference is not None:
        where = printable(reference.location or reference.name)
        raise StorageError(f"{what}: it has its data in another file, {where}", errno=errno.EPERM)


async def check_format(file: VolumeFile, format: str) -> None:
    """Check that an open volume is an image of this format now. :raises DefinitionError: it is not."""
    begin = await file.pread(BEGIN, 0)
    try:
        image = probe(begin[:HEADER_SIZE], lambda offset, length: begin[offset : offset + length])
    except ImageError as error:
        raise DefinitionError(f"its header is no good: {error}", element="format") from error
    if image is None or image.format != format:
        found = "raw" if image is None else image.format
        raise DefinitionError(f"by its header it is {found} by now, and not {format}", element="format")
