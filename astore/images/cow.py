"""User-mode Linux's cow, version 2, from the structure cow_header_v2 of Linux's arch/um/drivers/cow_user.c.

The size is at 1,036, where a 32-bit User-mode Linux writes it without padding; libvirt reads it there too.
"""

from __future__ import annotations

import struct

from astore.images.fields import backing, checked_size, cut_off
from astore.model import ImageInfo

# version, backing_file[1024], mtime, size, sectorsize
_HEAD = struct.Struct(">4xI1024sIQI")
_FORMAT = "cow"


def read(head: bytes) -> ImageInfo | None:
    """Read a header with the magic ``OOOM``; None if its version is not 2."""
    if head[4:8] != b"\0\0\0\2":
        return None
    cut_off(head, _HEAD.size, _FORMAT)
    _, name, _, size, _ = _HEAD.unpack_from(head)
    return ImageInfo(_FORMAT, checked_size(size, _FORMAT), backing(name))
