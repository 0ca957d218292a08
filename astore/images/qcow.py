"""qcow, version 1, from the structure QCowHeader of QEMU's block/qcow.c."""

from __future__ import annotations

import struct
from collections.abc import Callable

from astore.images.errors import ImageError
from astore.images.fields import (
    HEADER_SIZE,
    LONGEST_BACKING_NAME,
    backing,
    checked_name_length,
    checked_size,
    cut_off,
    far_name,
    name_at,
    whole_sectors,
)
from astore.model import ImageInfo

# version, backing_file_offset, backing_file_size, mtime, size, cluster_bits, l2_bits, padding, crypt_method,
# l1_table_offset
_HEAD = struct.Struct(">4xIQIIQBBHIQ")
_NAME = struct.Struct(">QI")
_NAME_AT = 8
_FORMAT = "qcow"
_VERSION = b"\0\0\0\1"


def read(head: bytes) -> ImageInfo | None:
    r"""Read a header with the magic ``QFI\xfb``; None if its version is not 1."""
    if head[4:8] != _VERSION:
        return None
    cut_off(head, _HEAD.size, _FORMAT)
    _, offset, length, _, size, cluster_bits, _, _, crypt, _ = _HEAD.unpack_from(head)
    if not 9 <= cluster_bits <= 16:
        raise ImageError(f"its cluster_bits {cluster_bits} are not between 9 and 16", format=_FORMAT)
    if crypt > 1:
        raise ImageError(f"its crypt_method {crypt} is unknown", format=_FORMAT)
    name = b""
    if offset and length:
        name = name_at(head, offset, checked_name_length(length, LONGEST_BACKING_NAME, _FORMAT), _FORMAT)
    return ImageInfo(
        _FORMAT,
        whole_sectors(checked_size(size, _FORMAT)),
        backing(name),
        encryption="aes" if crypt else None,
        cluster_size=1 << cluster_bits,
    )


def reaches_beyond(head: bytes) -> bool | None:
    """Return whether the backing name ends beyond ``head``; None if :func:`read` would return None."""
    if head[4:8] != _VERSION:
        return None
    _, offset, length, *_ = _HEAD.unpack_from(head)
    return bool(offset and length and offset + length > len(head))


def with_far_name(head: bytes, read: Callable[[int, int], bytes]) -> bytes | None:
    """Return ``head``, followed by a backing name that ends beyond it; None if there is none.

    The header then says that the name is there.
    """
    if len(head) < _HEAD.size or not reaches_beyond(head):
        return None
    offset, length = _NAME.unpack_from(head, _NAME_AT)
    name = None if length > LONGEST_BACKING_NAME else far_name(offset, length, read)
    if name is None:
        return None
    moved = head[:_NAME_AT] + _NAME.pack(HEADER_SIZE, length) + head[_NAME_AT + _NAME.size :]
    return moved.ljust(HEADER_SIZE, b"\0") + name
