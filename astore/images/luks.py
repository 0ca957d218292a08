"""LUKS 1 and 2: the LUKS1 and LUKS2 On-Disk Format Specifications (cryptsetup)."""

from __future__ import annotations

from astore.images.fields import cut_off
from astore.model import ImageInfo

_MAGIC = b"LUKS\xba\xbe"
_VERSIONS = (b"\0\1", b"\0\2")


def read(head: bytes) -> ImageInfo | None:
    """A header with LUKS's magic; None if its version is neither 1 nor 2. Its capacity is taken from the file's size."""
    if head[:6] != _MAGIC:
        if len(head) < 6:
            cut_off(head, 592, "luks")
        return None
    if len(head) >= 8 and head[6:8] not in _VERSIONS:
        return None
    cut_off(head, 592, "luks")  # LUKS1's phdr; LUKS2's binary header is 4,096
    return ImageInfo("luks", encryption="luks")
