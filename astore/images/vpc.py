"""VHD (Virtual PC), from Microsoft's Virtual Hard Disk Image Format Specification, version 1.0.

A dynamic or differencing image begins with a copy of its footer. A fixed one does not, and is raw, as in libvirt.
"""

from __future__ import annotations

import struct

from astore.images.errors import ImageError
from astore.images.fields import checked_size, cut_off, speakable
from astore.model import ImageInfo, Reference, ReferenceKind

# at 16: data offset; at 40: original size, current size; cylinders, heads, sectors; disk type
_DISK = struct.Struct(">16xQ16xQQHBBI")
_FOOTER_SIZE = 512
_FORMAT = "vpc"
_VERSION_END = 16
_TYPES = frozenset({2, 3, 4})
_DIFFERENCING = 4
# creators whose images have the size in their footer, not their geometry's (QEMU's block/vpc.c, vpc_open)
_BY_SIZE = frozenset({b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS"})
_GEOMETRY_MAX = 65535 * 16 * 255

# the dynamic header: cookie, then at 64 the parent's name in UTF-16, big-endian
_DYNAMIC_MAGIC = b"cxsparse"
_PARENT_NAME = 64
_PARENT_NAME_SIZE = 512
UNTOLD = "(the parent's name is not in the header)"
_DOUBT = "is the parent of a differencing VHD, which QEMU does not read"


def read(head: bytes) -> ImageInfo | None:
    """Read a header with the cookie ``conectix``, of any version, as QEMU does; None for a shorter text."""
    if head[:8] != b"conectix" or len(head) < _VERSION_END:
        return None
    cut_off(head, _FOOTER_SIZE, _FORMAT)
    offset, _, current, cylinders, heads, sectors, kind = _DISK.unpack_from(head)
    if kind not in _TYPES:
        raise ImageError(f"its disk type {kind} is unknown", format=_FORMAT)
    by_geometry = cylinders * heads * sectors
    size = by_geometry * 512
    if head[28:32] in _BY_SIZE or by_geometry == _GEOMETRY_MAX:
        size = current & ~511
    references: tuple[Reference, ...] = ()
    if kind == _DIFFERENCING:
        references = (Reference(ReferenceKind.PARENT, _parent(head, offset), _FORMAT, doubt=_DOUBT),)
    return ImageInfo(_FORMAT, checked_size(size, _FORMAT), references)


def reaches_beyond(head: bytes) -> bool | None:
    """Return whether the parent's name ends beyond ``head``; None if :func:`read` would return None."""
    if head[:8] != b"conectix":
        return None
    offset, *_, kind = _DISK.unpack_from(head)
    return bool(kind == _DIFFERENCING and offset + _PARENT_NAME + _PARENT_NAME_SIZE > len(head))


def _parent(head: bytes, offset: int) -> str:
    raw = head[offset + _PARENT_NAME : offset + _PARENT_NAME + _PARENT_NAME_SIZE]
    if len(raw) < _PARENT_NAME_SIZE or head[offset : offset + 8] != _DYNAMIC_MAGIC:
        return UNTOLD
    try:
        name = raw.decode("utf-16-be").partition("\0")[0]
        return speakable(name, "parent's name", _FORMAT) or UNTOLD
    except (UnicodeDecodeError, ImageError):  # QEMU does not read it, so it makes no image malformed
        return UNTOLD
