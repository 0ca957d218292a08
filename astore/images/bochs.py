"""Bochs' growing disks, from the structure bochs_header of QEMU's block/bochs.c (read-only in QEMU; raw to libvirt)."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import cut_off
from astore.model import ImageInfo

# magic, type, subtype, version; at 84, or at 88 in version 2, the size in bytes
_HEAD = struct.Struct("<32s16s16sI")
_SIZE = struct.Struct("<Q")
_SIZE_AT = {0x0001_0000: 84, 0x0002_0000: 88}
_HEADER_SIZE = 512
_FORMAT = "bochs"
_LARGEST = 1 << 51


def read(head: bytes) -> ImageInfo | None:
    """Read a header with Bochs' magic; None unless it is a growing disk of version 1 or 2."""
    if len(head) < _HEAD.size:
        return None
    magic, kind, subtype, version = _HEAD.unpack_from(head)
    told = tuple(text.partition(b"\0")[0] for text in (magic, kind, subtype))
    if told != (b"Bochs Virtual HD Image", b"Redolog", b"Growing") or version not in _SIZE_AT:
        return None
    cut_off(head, _HEADER_SIZE, _FORMAT)
    (size,) = _SIZE.unpack_from(head, _SIZE_AT[version])
    if size > _LARGEST:
        raise ImageError(f"its size of {size} bytes is too large", format=_FORMAT)
    return ImageInfo(_FORMAT, size & ~511)
