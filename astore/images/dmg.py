"""Apple's disk images, from the block ``koly`` at the end of the file, as QEMU's block/dmg.c reads it.

Like QEMU, astore looks for the block only in files whose names end in ``.dmg``.
"""

from __future__ import annotations

import struct

from astore.images.fields import LARGEST
from astore.model import ImageInfo

SUFFIX = ".dmg"
TRAILER = 512
"""The size of the block, in bytes."""

_SECTORS = struct.Struct(">Q")


def read_trailer(tail: bytes) -> ImageInfo | None:
    """Read a file's last TRAILER bytes; None if they are not a ``koly`` block."""
    if len(tail) != TRAILER or not tail.startswith(b"koly"):
        return None
    (sectors,) = _SECTORS.unpack_from(tail, 0x1EC)
    return ImageInfo("dmg", min(sectors * 512, LARGEST))
