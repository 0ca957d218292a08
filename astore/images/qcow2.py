"""qcow2, versions 2 and 3, from QEMU's docs/interop/qcow2.txt.

The backing name and the header extensions are in the first cluster, which may have 2 MiB. A name beyond HEADER_SIZE
bytes is legal: with a reader the whole cluster is read. Without one it is an error, since the image does have a backing
file. (qemu-img writes the name right after the extensions, within the first 2 KiB.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from astore.images.errors import ImageError
from astore.images.fields import (
    LARGEST,
    LONGEST_BACKING_NAME,
    backing,
    checked_name_length,
    cut_off,
    doubted,
    name_at,
    named,
    text_of,
    unknown_version,
    whole_sectors,
)
from astore.model import ImageInfo, Reference, ReferenceKind

# version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method, nb_snapshots
_HEAD = struct.Struct(">4xIQIIQI24xI").unpack_from
_V2_SIZE = 72
_V3_SIZE = 104
_SIZES = {b"\0\0\0\2": _V2_SIZE, b"\0\0\0\3": _V3_SIZE}
# incompatible_features, compatible_features, autoclear_features, refcount_order, header_length
_V3 = struct.Struct(">72xQQQII").unpack_from
_EXTENSION = struct.Struct(">II").unpack_from
_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_DATA_FILE = 0x44415441
MOST_EXTENSIONS = 256
"""The most header extensions: QEMU knows five, and writes each once."""
LONGEST_FORMAT_NAME = 15
"""The longest name of a backing format, in bytes (QEMU's block/qcow2.c, qcow2_read_extensions)."""

INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
COMPATIBLE_LAZY_REFCOUNTS = 1 << 0
AUTOCLEAR_BITMAPS = 1 << 0

_ENCRYPTION = (None, "aes", "luks")
_FEATURES = {
    (0, 0): (),
    (COMPATIBLE_LAZY_REFCOUNTS, 0): ("lazy_refcounts",),
    (0, INCOMPATIBLE_EXTENDED_L2): ("extended_l2",),
    (COMPATIBLE_LAZY_REFCOUNTS, INCOMPATIBLE_EXTENDED_L2): ("extended_l2", "lazy_refcounts"),
}
_EXTRAS = {
    (False, False): (),
    (True, False): ("internal snapshots",),
    (False, True): ("bitmaps",),
    (True, True): ("internal snapshots", "bitmaps"),
}
_FORMAT = "qcow2"
_UNTOLD = (Reference(ReferenceKind.DATA, "", "raw", doubt="has no name in the header"),)


def read(head: bytes) -> ImageInfo | None:
    r"""Read a header with the magic ``QFI\xfb``; None if its version is less than 2.

    :raises ImageError: (also) its version is more than 3: QEMU knows the magic, and refuses the image.
    """
    if len(head) < _V3_SIZE:
        needed = _SIZES.get(head[4:8])
        if needed is None:
            _check_version(int.from_bytes(head[4:8]) if len(head) >= 8 else 0)
            return None
        cut_off(head, needed, _FORMAT)
    version, offset, length, cluster_bits, size, crypt, snapshots = _HEAD(head)
    if version == 3:
        incompatible, compatible, autoclear, _, header_length = _V3(head)
    elif version == 2:
        incompatible = compatible = autoclear = 0
        header_length = _V2_SIZE
    else:
        _check_version(version)
        return None
    if not 9 <= cluster_bits <= 21:
        raise ImageError(f"its cluster_bits {cluster_bits} are not between 9 and 21", format=_FORMAT)
    cluster = 1 << cluster_bits
    if version == 3 and not _V3_SIZE <= header_length <= cluster:
        raise ImageError(f"its header_length {header_length} is not between {_V3_SIZE} and {cluster}", format=_FORMAT)
    if size > LARGEST:
        raise ImageError(f"its size of {size} bytes is more than any file's", format=_FORMAT)
    if crypt > 2:
        raise ImageError(f"its crypt_method {crypt} is unknown", format=_FORMAT)
    references = _references(head, offset, length, cluster, header_length, incompatible)
    return ImageInfo(
        _FORMAT,
        whole_sectors(size),
        references,
        "1.1" if version == 3 else "0.10",
        _FEATURES[compatible & COMPATIBLE_LAZY_REFCOUNTS, incompatible & INCOMPATIBLE_EXTENDED_L2],
        _ENCRYPTION[crypt],
        cluster,
        extras=_EXTRAS[snapshots > 0, bool(autoclear & AUTOCLEAR_BITMAPS)],
    )


def _references(
    head: bytes, offset: int, length: int, cluster: int, header_length: int, incompatible: int
) -> tuple[Reference, ...]:
    """Return the references to the backing file, named at ``offset``, and to the data file."""
    name = b""
    if offset and length:
        checked_name_length(length, LONGEST_BACKING_NAME, _FORMAT)
        if offset + length > cluster:
            raise ImageError(f"the backing file name at {offset} lies beyond the first cluster", format=_FORMAT)
        name = name_at(head, offset, length, _FORMAT)
    has_data_file = incompatible & INCOMPATIBLE_DATA_FILE
    if not name and not has_data_file:
        return ()
    backing_format, data_file, doubt = _extensions(head, header_length, min(offset or cluster, cluster))
    references = backing(name, backing_format)
    if has_data_file:
        references += named(ReferenceKind.DATA, data_file, "raw") or _UNTOLD
    return references if doubt is None else doubted(references, doubt)


def _check_version(version: int) -> None:
    if version > 3:
        raise unknown_version(version, _FORMAT)


def _extensions(head: bytes, start: int, end: int) -> tuple[str | None, bytes, str | None]:
    """Return the backing format, the data file's name and a doubt, from the extensions before the backing name.

    Without an end mark they end where the name begins or the first cluster ends (``end``). QEMU reads any number; here
    the files are doubted if there are more than MOST_EXTENSIONS.
    """
    backing_format, data_file = None, b""
    for _ in range(MOST_EXTENSIONS):
        if start + 8 > end:
            break
        if start + 8 > len(head):
            raise ImageError(f"the header extension at {start} lies beyond the header", format=_FORMAT)
        kind, length = _EXTENSION(head, start)
        if kind == _EXT_END:
            break
        start += 8
        if start + length > min(end, len(head)):
            raise ImageError(f"the header extension 0x{kind:08x} at {start - 8} reaches too far", format=_FORMAT)
        if kind == _EXT_BACKING_FORMAT:
            if length > LONGEST_FORMAT_NAME:
                raise ImageError(f"its backing format's name has {length} bytes, more than 15", format=_FORMAT)
            backing_format = text_of(head[start : start + length], _FORMAT, "backing format") or None
        elif kind == _EXT_DATA_FILE:
            data_file = head[start : start + length]
        start += length + 7 & ~7
    else:
        return backing_format, data_file, f"is named in a header with more than {MOST_EXTENSIONS} extensions"
    return backing_format, data_file, None


def first_cluster(head: bytes, read: Callable[[int, int], bytes]) -> bytes | None:
    """Read the first cluster, where it is longer than ``head``; None if it is not. For QEMU, NULs follow the file's end."""
    cluster_bits = _HEAD(head)[3] if len(head) >= _V2_SIZE else 0
    if not 9 <= cluster_bits <= 21 or 1 << cluster_bits <= len(head):
        return None
    return read(0, 1 << cluster_bits).ljust(1 << cluster_bits, b"\0")


def reaches_beyond(head: bytes) -> bool | None:
    """Return whether the name or the extensions end beyond ``head``; None if :func:`read` would return None."""
    version, offset, length, cluster_bits, _, _, _ = _HEAD(head)
    if version == 3:
        incompatible, _, _, _, start = _V3(head)
    elif version == 2:
        incompatible, start = 0, _V2_SIZE
    else:
        return None if version < 2 else False
    if not 9 <= cluster_bits <= 21:
        return False
    if offset:
        return bool(offset + length > len(head))
    if not incompatible & INCOMPATIBLE_DATA_FILE:
        return False
    for _ in range(MOST_EXTENSIONS):
        if start + 8 > len(head):
            break
        kind, size = _EXTENSION(head, start)
        if kind == _EXT_END:
            return False
        start += 8 + (size + 7 & ~7)
    return bool(start + 8 > len(head) and 1 << cluster_bits > len(head))
