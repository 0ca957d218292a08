"""VDI, version 1.1, from the structure VdiHeader of QEMU's block/vdi.c, after VirtualBox's VDICore.h.

QEMU knows other versions by their magic, and refuses them.
"""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import checked_size, cut_off, unknown_version
from astore.model import ImageInfo

MAGIC = b"\x7f\x10\xda\xbe"
"""0xbeda107f, little-endian, at 0x40."""
_VERSION = b"\1\0\1\0"
# at 0x170: disk_size; then block_size at 0x178
_SIZES = struct.Struct("<QI")
_HEADER_SIZE = 0x180
_FORMAT = "vdi"


def read(head: bytes) -> ImageInfo | None:
    """Read a header with VDI's signature; None if it ends before its version."""
    version = head[0x44:0x48]
    if len(version) < 4:
        return None
    if version != _VERSION:
        minor, major = struct.unpack("<HH", version)
        raise unknown_version(f"{major}.{minor}", _FORMAT)
    cut_off(head, _HEADER_SIZE, _FORMAT)
    size, block = _SIZES.unpack_from(head, 0x170)
    if not block:
        raise ImageError("its block size is 0", format=_FORMAT)
    whole = size + 511 & ~511  # QEMU rounds it up
    return ImageInfo(_FORMAT, checked_size(whole, _FORMAT), cluster_size=block)
