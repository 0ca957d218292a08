"""QED: QEMU's docs/interop/qed_spec.txt."""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import checked_size, cut_off, name_at
from astore.model import ImageInfo

# cluster_size, table_size, header_size, features, compat_features, autoclear_features, l1_table_offset, image_size,
# backing_filename_offset, backing_filename_size
_HEAD = struct.Struct("<4xIIIQQQQQII")
_FORMAT = "qed"
_HAS_BACKING = 1 << 0
_BACKING_IS_RAW = 1 << 2


def read(head: bytes) -> ImageInfo | None:
    """A header with the magic ``QED\\0``."""
    cut_off(head, _HEAD.size, _FORMAT)
    cluster, _, _, features, _, _, _, size, offset, length = _HEAD.unpack_from(head)
    if cluster & (cluster - 1) or not 1 << 12 <= cluster <= 1 << 26:
        raise ImageError(f"its cluster_size {cluster} is no power of two from 2^12 to 2^26", format=_FORMAT)
    backing = None
    if features & _HAS_BACKING and length:
        if length > 1023:
            raise ImageError(f"its backing file name has {length} bytes, more than 1,023", format=_FORMAT)
        backing = name_at(head, offset, length, _FORMAT) or None
    return ImageInfo(
        _FORMAT,
        checked_size(size, _FORMAT),
        backing,
        "raw" if backing and features & _BACKING_IS_RAW else None,
        cluster_size=cluster,
    )
