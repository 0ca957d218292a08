"""LUKS 1 and 2: the LUKS1 and LUKS2 On-Disk Format Specifications (cryptsetup)."""

from __future__ import annotations

from astore.images.fields import cut_off
from astore.model import ImageInfo

_HEADER_SIZES = {b"\0\1": 592, b"\0\2": 4096}
"""LUKS1's phdr and LUKS2's binary header, by version."""
_INFO = ImageInfo("luks", encryption="luks")


def read(head: bytes) -> ImageInfo | None:
    """A header with LUKS's magic; None if its version is neither 1 nor 2. Its capacity is taken from the file's size."""
    if head[:6] != b"LUKS\xba\xbe":
        return None
    needed = _HEADER_SIZES.get(head[6:8])
    if needed is None:
        return None
    cut_off(head, needed, "luks")
    return _INFO
