"""VMDK: VMware's Virtual Disk Format 1.1, and VMware 3's COWD as in QEMU's block/vmdk.c.

A parent is what a descriptor's parentFileNameHint names. QEMU and libvirt open it whatever the parentCID is, so that is
what counts here. libvirt 9 takes descriptor files and COWD for raw.
"""

from __future__ import annotations

import re
import struct

from astore.images.errors import ImageError
from astore.images.fields import HEADER_SIZE, LARGEST, LONGEST_BACKING_NAME, checked_name_length, cut_off, text_of
from astore.model import ImageInfo

# version, flags, capacity, grainSize (sectors), descriptorOffset, descriptorSize (sectors)
_SPARSE = struct.Struct("<4xIIQQQQ")
_SPARSE_SIZE = 512
# version, flags, disk_sectors, granularity
_COWD = struct.Struct("<4xIIII")
_FORMAT = "vmdk"
_VERSIONS = frozenset({b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"})
_LARGEST_GRAIN = 1 << 21
"""In sectors: QEMU's limit, 1 GiB."""
_SIGNATURE = b"# Disk DescriptorFile"
# No pattern may match a newline by its way: \s* at the beginning of every line is quadratic in a file of newlines
_PARENT = re.compile(rb'parentFileNameHint(?:[ \t]*=[ \t]*"([^"\r\n]*)")?')
_EXTENT = re.compile(rb"^[ \t]*(?:RW|RDONLY|NOACCESS)[ \t]+([0-9]{1,19})[ \t]+[A-Z0-9]", re.MULTILINE)


def read(head: bytes) -> ImageInfo | None:
    """A sparse extent (magic ``KDMV``), with the descriptor that may be embedded; None if its version is not 1, 2 or 3."""
    if head[4:8] not in _VERSIONS:
        return None
    cut_off(head, _SPARSE_SIZE, _FORMAT)
    _, _, capacity, grain, offset, length = _SPARSE.unpack_from(head)
    if capacity > LARGEST // 512:
        raise ImageError(f"its capacity of {capacity} sectors is more than any file's", format=_FORMAT)
    if grain > _LARGEST_GRAIN:
        raise ImageError(f"its grain of {grain} sectors is too large", format=_FORMAT)
    backing = None
    if offset and length:
        descriptor = _embedded(head, offset * 512, length * 512)
        backing = _parent(descriptor)
        # with a capacity of 0 the descriptor has it (QEMU's vmdk_open_vmdk4)
        capacity = capacity or _sectors(descriptor)
    return ImageInfo(_FORMAT, capacity * 512, backing, _FORMAT if backing else None, cluster_size=grain * 512 or None)


def reaches_beyond(head: bytes) -> bool | None:
    """Whether the embedded descriptor does; None if :func:`read` would return None."""
    if head[4:8] not in _VERSIONS:
        return None
    _, _, _, _, offset, length = _SPARSE.unpack_from(head)
    start, end = offset * 512, (offset + length) * 512
    if not (offset and length) or end <= len(head):
        return False
    return start >= len(head) or head.find(b"\0", start) < 0


def read_cowd(head: bytes) -> ImageInfo | None:
    """A VMware 3 sparse disk (magic ``COWD``); None if its version is not 1."""
    if head[4:8] != b"\1\0\0\0":
        return None
    cut_off(head, _COWD.size, _FORMAT)
    _, _, sectors, grain = _COWD.unpack_from(head)
    return ImageInfo(_FORMAT, sectors * 512, cluster_size=grain * 512 or None)


def read_descriptor(head: bytes) -> ImageInfo | None:
    """A descriptor file, whose extents are other files; None if it only begins like one.

    :raises ImageError: (also) it is longer than HEADER_SIZE: extents that were not read would be missing in the sum.
    """
    if not head.startswith(_SIGNATURE):
        return None
    descriptor = head.partition(b"\0")[0]
    if len(descriptor) >= HEADER_SIZE:
        raise ImageError(f"its descriptor has {HEADER_SIZE:,} bytes or more", format=_FORMAT)
    backing = _parent(descriptor)
    sectors = _sectors(descriptor)
    if not sectors:
        raise ImageError("its descriptor names no extents", format=_FORMAT)
    return ImageInfo(_FORMAT, sectors * 512, backing, _FORMAT if backing else None)


def descriptor_reaches_beyond(head: bytes) -> bool | None:
    """Whether a descriptor file does; None if :func:`read_descriptor` would return None."""
    return b"\0" not in head if head.startswith(_SIGNATURE) else None


def _embedded(head: bytes, offset: int, length: int) -> bytes:
    raw = head[offset : offset + length]
    text, end, _ = raw.partition(b"\0")
    if len(raw) < length and not end:
        raise ImageError(f"its descriptor at {offset}, {length} bytes, lies beyond the header", format=_FORMAT)
    return text


def _sectors(descriptor: bytes) -> int:
    sectors = sum(int(found) for found in _EXTENT.findall(descriptor))
    if sectors > LARGEST // 512:
        raise ImageError("its extents are larger than any file", format=_FORMAT)
    return sectors


def _parent(descriptor: bytes) -> str | None:
    found = _PARENT.search(descriptor)
    if found is None:
        return None
    name = found[1]
    if name is None:
        raise ImageError("its parentFileNameHint is malformed or cut off", format=_FORMAT)
    checked_name_length(len(name), LONGEST_BACKING_NAME, _FORMAT)
    return text_of(name, _FORMAT, "parent's name") or None
