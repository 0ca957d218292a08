"""LUKS 1 and 2: the LUKS1 and LUKS2 On-Disk Format Specifications (cryptsetup)."""

from __future__ import annotations

import json
import struct

from astore.images.errors import ImageError
from astore.images.fields import LARGEST, cut_off
from astore.model import ImageInfo

_FORMAT = "luks"
_MAGIC = b"LUKS\xba\xbe"
_HEADER_SIZES = {b"\0\1": 592, b"\0\2": 4096}
"""The sizes of LUKS1's phdr and LUKS2's binary header, by version."""
_PAYLOAD_OFFSET = struct.Struct(">104xI")
"""The payload offset of LUKS1, in sectors."""
_LUKS2_SIZE = struct.Struct(">8xQ")
"""hdr_size of LUKS2: the binary header with the JSON area."""


def read(head: bytes) -> ImageInfo | None:
    """Read a header with LUKS's magic; None if its version is neither 1 nor 2.

    The capacity is the file's size without the bytes before the payload. LUKS2 names the payload's offset in its JSON
    area; if the header does not contain it, the offset counts as 0. (QEMU 7.2 reads LUKS1 only.)
    """
    if head[:6] != _MAGIC:
        return None
    needed = _HEADER_SIZES.get(head[6:8])
    if needed is None:
        return None
    cut_off(head, needed, _FORMAT)
    before = _PAYLOAD_OFFSET.unpack_from(head)[0] * 512 if head[7] == 1 else _segment_offset(head)
    return ImageInfo(_FORMAT, encryption="luks", before=before)


def reaches_beyond(head: bytes) -> bool | None:
    """Return whether the JSON area reaches beyond ``head``; None if :func:`read` would return None."""
    if head[:6] != _MAGIC or head[6:8] not in _HEADER_SIZES:
        return None
    return head[7] == 2 and _LUKS2_SIZE.unpack_from(head)[0] > len(head) and head.find(b"\0", 4096) < 0


def _segment_offset(head: bytes) -> int:
    """Return where the first segment of a LUKS2 volume begins, in bytes; 0 if unknown."""
    area = head[4096 : _LUKS2_SIZE.unpack_from(head)[0]]
    text, end, _ = area.partition(b"\0")
    if not end:
        return 0
    try:
        offset = json.loads(text)["segments"]["0"]["offset"]
        if not isinstance(offset, str) or len(offset) > 19 or not (offset.isascii() and offset.isdigit()):
            return 0
        return min(int(offset), LARGEST)
    except (ValueError, LookupError, TypeError, RecursionError, ImageError):
        return 0
