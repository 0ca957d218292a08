"""ISO 9660: ECMA-119, 8.4: the primary volume descriptor is in the seventeenth sector, its identifier at its second byte."""

from __future__ import annotations

from astore.model import ImageInfo

MAGIC = b"CD001"
MAGIC_OFFSET = 32_769
MAGIC_END = MAGIC_OFFSET + len(MAGIC)

INFO = ImageInfo("iso")
"""All that is said of such an image: its capacity is the file's own size."""
