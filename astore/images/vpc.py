"""VHD (Virtual PC): Microsoft's Virtual Hard Disk Image Format Specification, version 1.0.

A dynamic or differencing image has a copy of its footer at its beginning; a fixed one has none, and is raw to us as it is
to libvirt.
"""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import checked_size, cut_off
from astore.model import ImageInfo

# at 40: original size, current size; cylinders, heads, sectors; disk type
_DISK = struct.Struct(">QQHBBI")
_FOOTER_SIZE = 512
_FORMAT = "vpc"
_VERSION = b"\0\1\0\0"
_TYPES = frozenset({2, 3, 4})
# creators whose images have the size that the geometry says, not the current size (QEMU's block/vpc.c, vpc_open)
_BY_GEOMETRY = frozenset({b"vpc ", b"vs  ", b"qemu"})
_GEOMETRY_MAX = 65535 * 16 * 255


def read(head: bytes) -> ImageInfo | None:
    """A header with the cookie ``conectix``; None if its version is not 1.0."""
    if head[:8] != b"conectix" or head[12:16] != _VERSION:
        return None
    cut_off(head, _FOOTER_SIZE, _FORMAT)
    _, current, cylinders, heads, sectors, kind = _DISK.unpack_from(head, 40)
    if kind not in _TYPES:
        raise ImageError(f"its disk type {kind} is unknown", format=_FORMAT)
    by_geometry = cylinders * heads * sectors
    size = current
    if head[28:32] in _BY_GEOMETRY and by_geometry != _GEOMETRY_MAX:
        size = by_geometry * 512
    return ImageInfo(_FORMAT, checked_size(size, _FORMAT))
