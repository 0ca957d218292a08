"""ISO 9660: the primary volume descriptor is the 17th sector, its identifier starts at the second byte (ECMA-119, 8.4)."""

from __future__ import annotations

from astore.model import ImageInfo

MAGIC = b"CD001"
MAGIC_OFFSET = 32_769
MAGIC_END = MAGIC_OFFSET + len(MAGIC)

INFO = ImageInfo("iso")
"""The result for every ISO image; its capacity is the file's size."""
