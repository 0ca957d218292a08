"""ploop, also the format of Parallels, from the structure ploop_pvd_header of the OpenVZ kernel's ploop1_image.h."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import LARGEST, cut_off
from astore.model import ImageInfo

# m_Type, m_Heads, m_Cylinders, m_Sectors (of a cluster), m_Size, then the size in sectors: 32 bits, or 64 in the second form
_HEAD = struct.Struct("<16sIIIIIQ")
_HEADER_SIZE = 64
_FORMAT = "ploop"
_VERSION = b"\2\0\0\0"


def read(head: bytes) -> ImageInfo | None:
    """Read a header with the signature ``WithoutFreeSpace`` or ``WithouFreSpacExt``; None if its version is not 2."""
    extended = head[:16] == b"WithouFreSpacExt"
    if (not extended and head[:16] != b"WithoutFreeSpace") or head[16:20] != _VERSION:
        return None
    cut_off(head, _HEADER_SIZE, _FORMAT)
    _, _, _, _, cluster, _, sectors = _HEAD.unpack_from(head)
    if not extended:
        sectors &= 0xFFFFFFFF
    if sectors > LARGEST // 512:
        raise ImageError(f"its size of {sectors} sectors is more than any file's", format=_FORMAT)
    return ImageInfo(_FORMAT, sectors * 512, cluster_size=cluster * 512 or None)
