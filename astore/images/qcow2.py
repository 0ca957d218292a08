"""qcow2, versions 2 and 3: QEMU's docs/interop/qcow2.txt."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import LARGEST, cut_off, name_at, text_of
from astore.model import ImageInfo

# version, backing_file_offset, backing_file_size, cluster_bits, size, crypt_method
_HEAD = struct.Struct(">4xIQIIQI").unpack_from
_HEAD_SIZE = 36
_V2_SIZE = 72
_V3_SIZE = 104
# incompatible_features, compatible_features, autoclear_features, refcount_order, header_length
_V3 = struct.Struct(">72xQQQII").unpack_from
_EXTENSION = struct.Struct(">II").unpack_from
_EXT_END = 0
_EXT_BACKING_FORMAT = 0xE2792ACA
_EXT_DATA_FILE = 0x44415441
LONGEST_BACKING_NAME = 1023
MOST_EXTENSIONS = 256

INCOMPATIBLE_DATA_FILE = 1 << 2
INCOMPATIBLE_EXTENDED_L2 = 1 << 4
COMPATIBLE_LAZY_REFCOUNTS = 1 << 0

_ENCRYPTION = {0: None, 1: "aes", 2: "luks"}
_FEATURES = {
    (False, False): (),
    (True, False): ("lazy_refcounts",),
    (False, True): ("extended_l2",),
    (True, True): ("extended_l2", "lazy_refcounts"),
}
_FORMAT = "qcow2"


def read(head: bytes) -> ImageInfo | None:
    """A header with the magic ``QFI\\xfb``; None if its version is not 2 or 3."""
    if len(head) < _HEAD_SIZE:
        if len(head) >= 8 and head[4:8] not in (b"\0\0\0\2", b"\0\0\0\3"):
            return None
        cut_off(head, _V2_SIZE, _FORMAT)
    version, offset, length, cluster_bits, size, crypt = _HEAD(head)
    if version != 3 and version != 2:
        return None
    if version == 3:
        if len(head) < _V3_SIZE:
            cut_off(head, _V3_SIZE, _FORMAT)
        incompatible, compatible, _, _, header_length = _V3(head)
        if header_length < _V3_SIZE:
            raise ImageError(f"its header_length {header_length} is less than {_V3_SIZE}", format=_FORMAT)
    else:
        if len(head) < _V2_SIZE:
            cut_off(head, _V2_SIZE, _FORMAT)
        incompatible = compatible = 0
        header_length = _V2_SIZE
    if not 9 <= cluster_bits <= 21:
        raise ImageError(f"its cluster_bits {cluster_bits} are not between 9 and 21", format=_FORMAT)
    if size > LARGEST:
        raise ImageError(f"its size of {size} bytes is more than any file's", format=_FORMAT)
    if crypt > 2:
        raise ImageError(f"its crypt_method {crypt} is unknown", format=_FORMAT)
    backing = None
    if offset:
        if length > LONGEST_BACKING_NAME:
            raise ImageError(f"its backing file name has {length} bytes, more than 1,023", format=_FORMAT)
        if length:
            backing = name_at(head, offset, length, _FORMAT)
    backing_format, data_file = _extensions(head, header_length, offset or len(head))
    return ImageInfo(
        _FORMAT,
        size,
        backing or None,
        backing_format if backing else None,
        "1.1" if version == 3 else "0.10",
        _FEATURES[bool(compatible & COMPATIBLE_LAZY_REFCOUNTS), bool(incompatible & INCOMPATIBLE_EXTENDED_L2)],
        _ENCRYPTION[crypt],
        1 << cluster_bits,
        data_file if incompatible & INCOMPATIBLE_DATA_FILE else None,
    )


def _extensions(head: bytes, start: int, end: int) -> tuple[str | None, str | None]:
    """The backing format and the data file's name, from the extensions between the header and the backing name."""
    backing_format = data_file = None
    end = min(end, len(head))
    for _ in range(MOST_EXTENSIONS):
        if start + 8 > end:
            break
        kind, length = _EXTENSION(head, start)
        start += 8
        if kind == _EXT_END:
            break
        if start + length > end:
            raise ImageError(f"the header extension 0x{kind:08x} at {start - 8} reaches too far", format=_FORMAT)
        if kind == _EXT_BACKING_FORMAT:
            backing_format = text_of(head[start : start + length], _FORMAT, "backing format") or None
        elif kind == _EXT_DATA_FILE:
            data_file = text_of(head[start : start + length], _FORMAT, "data file name") or None
        start += length + 7 & ~7
    return backing_format, data_file


def reaches_beyond(head: bytes) -> bool:
    """Whether the header goes on beyond what was read of it."""
    if len(head) < _V3_SIZE:
        return False
    version, offset, length, _, _, _ = _HEAD(head)
    if offset:
        return bool(offset + length > len(head))
    header_length = _V3(head)[4] if version == 3 else _V2_SIZE
    # extensions end with a zero type; one page without an end is a rarity
    for _ in range(MOST_EXTENSIONS):
        if header_length + 8 > len(head):
            return True
        kind, size = _EXTENSION(head, header_length)
        if kind == _EXT_END:
            return False
        header_length += 8 + (size + 7 & ~7)
    return False
