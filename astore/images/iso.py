"""ISO 9660: ECMA-119, 8.4: the primary volume descriptor is in the seventeenth sector."""

from __future__ import annotations

from astore.model import ImageInfo

MAGIC_OFFSET = 32_769
_MAGIC = b"CD001"


def read(head: bytes) -> ImageInfo | None:
    """A file that has the standard identifier at 32,769. Its capacity is the file's own size."""
    return ImageInfo("iso") if head[MAGIC_OFFSET : MAGIC_OFFSET + 5] == _MAGIC else None
