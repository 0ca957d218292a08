"""VDI, version 1.1: the structure VdiHeader of QEMU's block/vdi.c, after VirtualBox's VDICore.h."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import checked_size, cut_off
from astore.model import ImageInfo

MAGIC_OFFSET = 0x40
MAGIC = b"\x7f\x10\xda\xbe"  # 0xbeda107f, little-endian
_VERSION = struct.Struct("<I")
# at 0x170: disk_size; then block_size at 0x178
_SIZES = struct.Struct("<QI")
_FORMAT = "vdi"


def read(head: bytes) -> ImageInfo | None:
    """A header with VDI's signature at 0x40; None if its version is not 1.1."""
    cut_off(head, 0x48, _FORMAT)
    if _VERSION.unpack_from(head, 0x44)[0] != 0x00010001:
        return None
    cut_off(head, 0x180, _FORMAT)
    size, block = _SIZES.unpack_from(head, 0x170)
    if not block:
        raise ImageError("its block size is 0", format=_FORMAT)
    return ImageInfo(_FORMAT, checked_size(size, _FORMAT), cluster_size=block)
