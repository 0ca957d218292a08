"""Compressed loop images, from the header that QEMU's block/cloop.c reads (read-only in QEMU; raw to libvirt)."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import cut_off
from astore.model import ImageInfo

_MAGIC = b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n"
# at 128: block size, count of blocks
_BLOCKS = struct.Struct(">II")
_BLOCKS_AT = 128
_LARGEST_BLOCK = 64 << 20
_FORMAT = "cloop"


def read(head: bytes) -> ImageInfo | None:
    """Read a header with cloop's magic, which is a shell script; None without it."""
    if not head.startswith(_MAGIC):
        return None
    cut_off(head, _BLOCKS_AT + _BLOCKS.size, _FORMAT)
    block, count = _BLOCKS.unpack_from(head, _BLOCKS_AT)
    if not block or block % 512 or block > _LARGEST_BLOCK:
        raise ImageError(f"its block size {block} is not a multiple of 512 up to 64 MiB", format=_FORMAT)
    return ImageInfo(_FORMAT, block * count, cluster_size=block)
