"""VMDK: VMware's Virtual Disk Format 1.1, and VMware 3's COWD, as QEMU's block/vmdk.c reads them.

QEMU looks for the parent in a fixed place: in the 10,240 bytes after the first sector of a sparse file, or at the
beginning of a descriptor file. It ignores the header's other fields, and opens the parent whatever the parentCID says.
The name begins two bytes after the word ``parentFileNameHint``, which may stand anywhere, even in a comment, and ends
at the next quotation mark.

Extents are read from a descriptor file, and from a sparse file with a capacity of 0. An extent's size is the one in its
line; QEMU takes it from the header of a sparse extent. QEMU reads a descriptor's first LONGEST_DESCRIPTOR bytes; so does
astore, with a reader.

A streamOptimized file may have its header at its end, in a footer. QEMU then takes the capacity from there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

from astore.images.errors import ImageError
from astore.images.fields import HEADER_SIZE, LARGEST, checked_name_length, cut_off, doubted, named, unknown_version
from astore.model import ImageInfo, Reference, ReferenceKind

# version, flags, capacity, grainSize (sectors), descriptorOffset, descriptorSize (sectors)
_SPARSE = struct.Struct("<4xIIQQQQ")
_SPARSE_SIZE = 512
_OFFSET_AT = 28
_TABLE = struct.Struct("<56xQ")
"""gdOffset, where the grain directory is (sectors)."""
_AT_END = (1 << 64) - 1
"""The gdOffset of a file whose header is at its end, in the footer."""
# a marker: value, size, type, then NULs to the end of its sector
_MARKER = struct.Struct("<QII")
_FOOTER_SIZE = 3 * 512
"""The footer's marker, the footer and the marker of the end, in bytes."""
_FOOTER_MARKER = 3
# version, flags, disk_sectors, granularity
_COWD = struct.Struct("<4xIIII")
_FORMAT = "vmdk"
_NEWEST = 3
_LARGEST_GRAIN = 1 << 21
"""The largest grain, in sectors: QEMU's limit, 1 GiB."""

PARENT_WORD = b"parentFileNameHint"
SPARSE_TEXT = 512
"""Where QEMU looks for the parent in a sparse file, in bytes."""
TEXT_SIZE = 10_240
"""How many bytes QEMU searches for the parent."""
LONGEST_PARENT_NAME = 4095
"""The longest name of a parent, in bytes: QEMU's PATH_MAX without the NUL."""

_DESCRIPTOR = re.compile(rb"(?:#[^\n]*+\n| ++\r?\n)*+version=[123]\r?\n")
"""The beginning of a descriptor file, for QEMU, if it is in the first 512 bytes."""
_PROBED = 512
_BLANK = re.compile(rb"\s*+")
# as sscanf reads "%10s %lld %10s \"%511[^\n\r\"]\" %lld"; every quantifier is possessive, so it never backtracks
_EXTENT = re.compile(
    rb'([^\s]{1,10}+)\s*+([+-]?[0-9]++)\s*+([^\s]{1,10}+)\s*+"([^\n\r"]{1,511}+)(?:"\s*+([+-]?[0-9]++))?'
)
_FLAT = {b"FLAT": True, b"VMFS": False}
"""Types of extents that hold the disk's bytes, and whether an offset in the file follows the name."""
_SPARSE_TYPES = frozenset({b"SPARSE", b"VMFSSPARSE", b"SESPARSE"})
_MOST_DIGITS = 19
LONGEST_DESCRIPTOR = (1 << 20) - 1
"""How many bytes of a descriptor QEMU reads (vmdk_read_desc)."""
MOST_EXTENTS = 16_384
"""The most files of one image: 32 TiB in extents of 2 GiB. QEMU would need an open file for each."""
_TOO_LARGE = "is an extent of a disk that is said to be larger than any file"


def read(head: bytes) -> ImageInfo | None:
    """Read a sparse file (magic ``KDMV``); None for a shorter text.

    :raises ImageError: (also) its version is more than 3: QEMU knows the magic, and refuses the image.
    """
    if len(head) < 8:
        return None
    version = int.from_bytes(head[4:8], "little")
    if len(head) < _SPARSE_SIZE:
        cut_off(head, _SPARSE_SIZE, _FORMAT)
    _, _, capacity, grain, offset, _ = _SPARSE.unpack_from(head)
    split = not capacity and offset
    if version > _NEWEST and not split:
        raise unknown_version(version, _FORMAT)
    if capacity > LARGEST // 512:
        raise ImageError(f"its capacity of {capacity} sectors is more than any file's", format=_FORMAT)
    if grain > _LARGEST_GRAIN:
        raise ImageError(f"its grain of {grain} sectors is too large", format=_FORMAT)
    references = _parent(head, SPARSE_TEXT)
    if split:
        size, extents = _extents(_embedded(head, offset * 512))
        return ImageInfo(_FORMAT, size, references + extents)
    return ImageInfo(_FORMAT, capacity * 512, references, cluster_size=grain * 512 or None)


def reaches_beyond(head: bytes) -> bool:
    """Return whether the descriptor ends beyond ``head``."""
    version, _, capacity, _, offset, _ = _SPARSE.unpack_from(head)
    split = not capacity and offset
    if version > _NEWEST and not split and not _is_at_end(head):
        return False
    if _text_reaches_beyond(head, SPARSE_TEXT):
        return True
    return bool(split) and (offset * 512 >= len(head) or head.find(b"\0", offset * 512) < 0)


def read_cowd(head: bytes) -> ImageInfo | None:
    """Read a VMware 3 sparse disk (magic ``COWD``); QEMU does not check its version."""
    if len(head) < 8:
        return None
    cut_off(head, _COWD.size, _FORMAT)
    _, _, sectors, grain = _COWD.unpack_from(head)
    return ImageInfo(_FORMAT, sectors * 512, _parent(head, SPARSE_TEXT), cluster_size=grain * 512 or None)


def cowd_reaches_beyond(head: bytes) -> bool:
    """Return whether the descriptor ends beyond ``head``."""
    return _text_reaches_beyond(head, SPARSE_TEXT)


def read_descriptor(head: bytes) -> ImageInfo | None:
    """Read a descriptor file, whose extents are other files; None if QEMU would not recognise it.

    :raises ImageError: (also) the file is longer than ``head``: unread extents would be missing.
    """
    if not is_descriptor(head):
        return None
    text, end, _ = head.partition(b"\0")
    if not end and len(text) >= HEADER_SIZE:
        raise ImageError(f"its descriptor has {HEADER_SIZE:,} bytes or more", format=_FORMAT)
    references = _parent(head, 0)
    size, extents = _extents(text)
    return ImageInfo(_FORMAT, size, references + extents)


def whole_descriptor(head: bytes, read: Callable[[int, int], bytes]) -> bytes | None:
    """Read what QEMU reads of a descriptor file, ended by a NUL; None if it ends within ``head``."""
    if b"\0" in head or len(head) < HEADER_SIZE or not is_descriptor(head):
        return None
    return read(0, LONGEST_DESCRIPTOR) + b"\0"


def with_whole_descriptor(head: bytes, read: Callable[[int, int], bytes]) -> bytes | None:
    """Return a sparse file's ``head``, followed by what QEMU reads of its descriptor; None if there is no more of it.

    The header then says that the descriptor is there.
    """
    if len(head) < _SPARSE_SIZE:
        return None
    _, _, capacity, _, offset, _ = _SPARSE.unpack_from(head)
    begin = offset * 512
    if capacity or not offset or begin > LARGEST - LONGEST_DESCRIPTOR or head.find(b"\0", begin) >= 0:
        return None
    text = read(begin, LONGEST_DESCRIPTOR)
    moved = head[:_OFFSET_AT] + struct.pack("<Q", HEADER_SIZE // 512) + head[_OFFSET_AT + 8 :]
    return moved.ljust(HEADER_SIZE, b"\0") + text + b"\0" if text else None


def with_footer(head: bytes, read: Callable[[int, int], bytes], size: int) -> bytes:
    """Return ``head`` with the header that QEMU reads: the footer's, if the first one says that it is at the file's end.

    A footer's descriptor is not read: QEMU looks for it only by the first header.

    :param size: the file's, in bytes.
    :raises ImageError: there is no footer.
    """
    if len(head) < _SPARSE_SIZE or not _is_at_end(head):
        return head
    begin = (size + 511 & ~511) - _FOOTER_SIZE
    footer = read(begin, _FOOTER_SIZE).ljust(_FOOTER_SIZE, b"\0") if begin >= 0 else bytes(_FOOTER_SIZE)
    _, length, kind = _MARKER.unpack_from(footer)
    header = footer[512:1024]
    ended = _MARKER.unpack_from(footer, 1024) == (0, 0, 0)
    if (length, kind) != (0, _FOOTER_MARKER) or header[:4] != b"KDMV" or not ended:
        raise ImageError("its header is said to be at its end, and is not there", format=_FORMAT)
    return header[:_OFFSET_AT] + bytes(8) + header[_OFFSET_AT + 8 :] + head[_SPARSE_SIZE:]


def _is_at_end(head: bytes) -> bool:
    """Return whether a sparse file has its header in the footer. QEMU looks for an embedded descriptor first."""
    _, _, capacity, _, offset, _ = _SPARSE.unpack_from(head)
    return bool(_TABLE.unpack_from(head)[0] == _AT_END and (capacity or not offset))


def is_descriptor(head: bytes) -> bool:
    """Return whether QEMU would recognise a file with this beginning as a descriptor file."""
    return _DESCRIPTOR.match(head[:_PROBED]) is not None


def descriptor_reaches_beyond(head: bytes) -> bool | None:
    """Return whether a descriptor file ends beyond ``head``; None if :func:`read_descriptor` would return None."""
    if not is_descriptor(head):
        return None
    return b"\0" not in head or _text_reaches_beyond(head, 0)


def without_parent(head: bytes) -> bytes:
    """Remove the word that QEMU looks for from an image's first bytes. The name stays, and means nothing without it."""
    start = SPARSE_TEXT if head[:4] in (b"KDMV", b"COWD") else 0
    end = start + TEXT_SIZE
    return head[:start] + head[start:end].replace(PARENT_WORD, b"parentFileNameGone") + head[end:]


def _text_reaches_beyond(head: bytes, start: int) -> bool:
    if len(head) >= start + TEXT_SIZE:
        return False
    end = head.find(b"\0", start)
    if end < 0:
        return True
    at = head.find(PARENT_WORD, start, end)
    return at >= 0 and at + len(PARENT_WORD) + 2 > end  # QEMU would step over the NUL


def _parent(head: bytes, start: int) -> tuple[Reference, ...]:
    text = head[start : start + TEXT_SIZE]
    at = text.find(PARENT_WORD)
    if at < 0 or text.find(b"\0", 0, at) >= 0:
        return ()
    begin = at + len(PARENT_WORD) + 2
    end = text.find(b'"', begin)
    if end < 0 or text.find(b"\0", begin, end) >= 0:
        raise ImageError("the name of its parent has no end", format=_FORMAT)
    checked_name_length(end - begin, LONGEST_PARENT_NAME, _FORMAT)
    return named(ReferenceKind.BACKING, text[begin:end], _FORMAT)


def _embedded(head: bytes, offset: int) -> bytes:
    text, end, _ = head[offset:].partition(b"\0")
    if offset >= len(head) or (not end and len(head) >= HEADER_SIZE):  # whole descriptors end with a NUL
        raise ImageError(f"its descriptor at {offset} lies beyond the header", format=_FORMAT)
    return text


def _extents(text: bytes) -> tuple[int, tuple[Reference, ...]]:
    """Return the size of the disk that the extents make, in bytes, and the extents.

    QEMU tries every line, and its sscanf crosses line ends: an extent after a blank line counts twice.
    """
    sectors = 0
    found: dict[tuple[bytes, str], None] = {}
    line, began = 0, -1
    extent: tuple[int, bytes, str] | None = None
    while 0 <= line < len(text):
        if line > began:
            blank = _BLANK.match(text, line)
            began = line if blank is None else blank.end()
            extent = _extent(text, began)
        if extent is not None:
            sectors += extent[0]
            found[extent[1:]] = None
            if len(found) > MOST_EXTENTS:
                raise ImageError(f"its descriptor names more than {MOST_EXTENTS:,} extents", format=_FORMAT)
        line = text.find(b"\n", line) + 1 or len(text)
    if not found:
        raise ImageError("its descriptor names no extents", format=_FORMAT)
    extents = tuple(one for name, format in found for one in named(ReferenceKind.EXTENT, name, format))
    if sectors > LARGEST // 512:  # QEMU opens the files before it notices
        return LARGEST & ~511, doubted(extents, _TOO_LARGE)
    return sectors * 512, extents


def _extent(text: bytes, at: int) -> tuple[int, bytes, str] | None:
    """Return size in sectors, name and format of the extent that a line describes; None if QEMU skips it."""
    line = _EXTENT.match(text, at)
    if line is None or line[1] != b"RW":
        return None
    kind, offset = line[3], line[5]
    with_offset = _FLAT.get(kind, False)
    if (offset is not None) != with_offset or (offset is not None and offset.startswith(b"-") and _number(offset)):
        raise ImageError(f"its extent line {line[0][:80]!r} is malformed", format=_FORMAT)
    size = _number(line[2])
    if size <= 0 or not (kind in _FLAT or kind in _SPARSE_TYPES):
        return None
    return size, line[4], "raw" if kind in _FLAT else _FORMAT


def _number(digits: bytes) -> int:
    if len(digits.lstrip(b"+-0")) > _MOST_DIGITS:
        return -LARGEST if digits.startswith(b"-") else LARGEST
    return int(digits)
