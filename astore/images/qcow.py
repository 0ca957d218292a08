"""qcow, version 1: the structure QCowHeader of QEMU's block/qcow.c."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import checked_size, cut_off, name_at
from astore.model import ImageInfo

# version, backing_file_offset, backing_file_size, mtime, size, cluster_bits, l2_bits, padding, crypt_method
_HEAD = struct.Struct(">4xIQIIQBBHI")
_FORMAT = "qcow"


def read(head: bytes) -> ImageInfo | None:
    """A header with the magic ``QFI\\xfb``; None if its version is not 1."""
    if len(head) >= 8 and head[4:8] != b"\0\0\0\1":
        return None
    cut_off(head, _HEAD.size, _FORMAT)
    _, offset, length, _, size, cluster_bits, _, _, crypt = _HEAD.unpack_from(head)
    if not 9 <= cluster_bits <= 16:
        raise ImageError(f"its cluster_bits {cluster_bits} are not between 9 and 16", format=_FORMAT)
    if crypt > 1:
        raise ImageError(f"its crypt_method {crypt} is unknown", format=_FORMAT)
    backing = None
    if offset and length:
        if length > 1023:
            raise ImageError(f"its backing file name has {length} bytes, more than 1,023", format=_FORMAT)
        backing = name_at(head, offset, length, _FORMAT) or None
    return ImageInfo(
        _FORMAT,
        checked_size(size, _FORMAT),
        backing,
        encryption="aes" if crypt else None,
        cluster_size=1 << cluster_bits,
    )
