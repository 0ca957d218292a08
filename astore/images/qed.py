"""QED, from QEMU's docs/interop/qed_spec.txt."""

from __future__ import annotations

import struct
from collections.abc import Callable

from astore.images.errors import ImageError
from astore.images.fields import HEADER_SIZE, backing, checked_name_length, checked_size, cut_off, far_name, name_at
from astore.model import ImageInfo

# cluster_size, table_size, header_size (clusters), features, compat_features, autoclear_features, l1_table_offset,
# image_size, backing_filename_offset, backing_filename_size
_HEAD = struct.Struct("<4xIIIQQQQQII")
_NAME = struct.Struct("<II")
_NAME_AT = 56
_FORMAT = "qed"
_HAS_BACKING = 1 << 0
_BACKING_IS_RAW = 1 << 2
_LONGEST_BACKING_NAME = 4095
"""The longest backing file name, in bytes: QEMU's PATH_MAX without the NUL. The document has no limit."""


def read(head: bytes) -> ImageInfo | None:
    r"""Read a header with the magic ``QED\0``; None without it. The format has no versions."""
    cut_off(head, _HEAD.size, _FORMAT)
    cluster, _, clusters, features, _, _, _, size, offset, length = _HEAD.unpack_from(head)
    if cluster & (cluster - 1) or not 1 << 12 <= cluster <= 1 << 26:
        raise ImageError(f"its cluster_size {cluster} is not a power of two from 2^12 to 2^26", format=_FORMAT)
    name = b""
    if features & _HAS_BACKING and length:
        checked_name_length(length, _LONGEST_BACKING_NAME, _FORMAT)
        if offset + length > cluster * clusters:
            raise ImageError(f"its header of {clusters} clusters ends before the backing file name", format=_FORMAT)
        name = name_at(head, offset, length, _FORMAT)
    return ImageInfo(
        _FORMAT,
        checked_size(size, _FORMAT),
        backing(name, "raw" if features & _BACKING_IS_RAW else None),
        cluster_size=cluster,
    )


def reaches_beyond(head: bytes) -> bool:
    """Return whether the backing name ends beyond ``head``."""
    _, _, _, features, _, _, _, _, offset, length = _HEAD.unpack_from(head)
    return bool(features & _HAS_BACKING and length and offset + length > len(head))


def with_far_name(head: bytes, read: Callable[[int, int], bytes]) -> bytes | None:
    """Return ``head``, followed by a backing name that ends beyond it; None if there is none.

    The header then says that the name is there.
    """
    if len(head) < _HEAD.size or not reaches_beyond(head):
        return None
    cluster, _, clusters, *_, offset, length = _HEAD.unpack_from(head)
    if length > _LONGEST_BACKING_NAME or offset + length > cluster * clusters:
        return None
    name = far_name(offset, length, read)
    if name is None:
        return None
    moved = head[:_NAME_AT] + _NAME.pack(HEADER_SIZE, length) + head[_NAME_AT + _NAME.size :]
    return moved.ljust(HEADER_SIZE, b"\0") + name
