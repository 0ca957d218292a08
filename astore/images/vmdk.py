"""VMDK: VMware's Virtual Disk Format 1.1, and VMware 3's COWD as in QEMU's block/vmdk.c."""

from __future__ import annotations

import re
import struct

from astore.images.errors import ImageError
from astore.images.fields import LARGEST, cut_off, text_of
from astore.model import ImageInfo

# version, flags, capacity, grainSize (sectors), descriptorOffset, descriptorSize (sectors)
_SPARSE = struct.Struct("<4xIIQQQQ")
# version, flags, disk_sectors, granularity
_COWD = struct.Struct("<4xIIII")
_FORMAT = "vmdk"
_SIGNATURE = b"# Disk DescriptorFile"
_PARENT = re.compile(rb'^\s*parentFileNameHint\s*=\s*"([^"\n]*)"', re.MULTILINE)
_PARENT_CID = re.compile(rb"^\s*parentCID\s*=\s*([0-9a-fA-F]{1,8})", re.MULTILINE)
_EXTENT = re.compile(rb"^\s*(?:RW|RDONLY|NOACCESS)\s+([0-9]{1,19})\s+[A-Z0-9]+", re.MULTILINE)
_NO_PARENT = 0xFFFFFFFF


def read(head: bytes) -> ImageInfo | None:
    """A sparse extent (magic ``KDMV``), with the descriptor that may be embedded; None if its version is not 1, 2 or 3."""
    if len(head) >= 8 and head[4:8] not in (b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"):
        return None
    cut_off(head, 512, _FORMAT)
    _, _, capacity, grain, offset, length = _SPARSE.unpack_from(head)
    if capacity > LARGEST // 512:
        raise ImageError(f"its capacity of {capacity} sectors is more than any file's", format=_FORMAT)
    if grain > 1 << 16:
        raise ImageError(f"its grain of {grain} sectors is too large", format=_FORMAT)
    backing = None
    if offset and length and offset * 512 < len(head):
        backing = _parent(head[offset * 512 : (offset + length) * 512])
    return ImageInfo(_FORMAT, capacity * 512, backing, _FORMAT if backing else None, cluster_size=grain * 512 or None)


def read_cowd(head: bytes) -> ImageInfo | None:
    """A VMware 3 sparse disk (magic ``COWD``); None if its version is not 1."""
    if len(head) >= 8 and head[4:8] != b"\1\0\0\0":
        return None
    cut_off(head, _COWD.size, _FORMAT)
    _, _, sectors, grain = _COWD.unpack_from(head)
    return ImageInfo(_FORMAT, sectors * 512, cluster_size=grain * 512 or None)


def read_descriptor(head: bytes) -> ImageInfo | None:
    """A descriptor file, whose extents are other files; None if it only begins like one."""
    if not head.startswith(_SIGNATURE):
        return None
    sectors = sum(int(found) for found in _EXTENT.findall(head))
    if sectors > LARGEST // 512:
        raise ImageError("its extents are larger than any file", format=_FORMAT)
    backing = _parent(head)
    return ImageInfo(_FORMAT, sectors * 512, backing, _FORMAT if backing else None)


def _parent(descriptor: bytes) -> str | None:
    cid = _PARENT_CID.search(descriptor)
    if cid is not None and int(cid[1], 16) == _NO_PARENT:
        return None
    found = _PARENT.search(descriptor)
    return None if found is None else text_of(found[1], _FORMAT, "parent's name") or None
