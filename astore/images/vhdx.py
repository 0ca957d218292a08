"""VHDX, from Microsoft's [MS-VHDX], Virtual Hard Disk v2 File Format.

The first bytes have only the magic. Size and parent are in the metadata region, which the region table at 192 KiB
points to: hence the reader. Checksums are not checked, and an unreplayed log is ignored.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Callable

from astore.images.errors import ImageError
from astore.images.fields import checked_size, speakable, whole_sectors
from astore.model import ImageInfo, Reference, ReferenceKind

MAGIC = b"vhdxfile"
_FORMAT = "vhdx"
_INFO = ImageInfo(_FORMAT)

_REGIONS_AT = 192 << 10
_TABLE_SIZE = 64 << 10
"""The size of the region table, and of the metadata table at the beginning of its region, in bytes."""
_FIRST = 4096
"""How much of a table is read first, in bytes."""
# signature, entry count, then entries
_REGION_HEAD = struct.Struct("<4s4xI4x")
_REGION = struct.Struct("<16sQII")
_METADATA_HEAD = struct.Struct("<8s2xH20x")
_METADATA = struct.Struct("<16sIIII")
_MOST_ENTRIES = 2047

_METADATA_REGION = uuid.UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e").bytes_le
_PARAMETERS = uuid.UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b").bytes_le
_DISK_SIZE = uuid.UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8").bytes_le
_LOCATOR = uuid.UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c").bytes_le
_HAS_PARENT = 1 << 1
_LARGEST = 64 << 40

_LOCATOR_HEAD = struct.Struct("<16s2xH")
_LOCATOR_ENTRY = struct.Struct("<IIHH")
_PATHS = ("relative_path", "absolute_win32_path", "volume_path")
UNTOLD = "(the parent's name is not in the header)"
_DOUBT = "is the parent of a differencing VHDX, which QEMU does not open"

Reader = Callable[[int, int], bytes]


def read(head: bytes) -> ImageInfo | None:
    """Read the format from the first bytes. The capacity stays unknown; it is not the file's size."""
    return _INFO if head[:8] == MAGIC else None


def read_on(read: Reader) -> ImageInfo:
    """Read the virtual size, the block size and the parent, in about six short reads.

    :raises ImageError: a table is malformed or cut off.
    """
    region = _metadata_region(read)
    items = _items(read, region)
    block, flags = struct.unpack("<II", _item(read, items, _PARAMETERS, 8))
    (size,) = struct.unpack("<Q", _item(read, items, _DISK_SIZE, 8))
    if size > _LARGEST:
        raise ImageError(f"its size of {size} bytes is more than 64 TiB", format=_FORMAT)
    references: tuple[Reference, ...] = ()
    if flags & _HAS_PARENT:
        references = (Reference(ReferenceKind.PARENT, _parent(read, items), _FORMAT, doubt=_DOUBT),)
    return ImageInfo(_FORMAT, whole_sectors(checked_size(size, _FORMAT)), references, cluster_size=block or None)


def _metadata_region(read: Reader) -> int:
    table = read(_REGIONS_AT, _FIRST)
    count = _count(table, _REGION_HEAD, b"regi", "region table")
    table = _whole(read, _REGIONS_AT, table, _REGION_HEAD.size + count * _REGION.size, "region table")
    for index in range(count):
        kind, offset, _, _ = _REGION.unpack_from(table, _REGION_HEAD.size + index * _REGION.size)
        if kind == _METADATA_REGION:
            return int(offset)
    raise ImageError("it has no metadata region", format=_FORMAT)


def _items(read: Reader, region: int) -> dict[bytes, tuple[int, int]]:
    """Return the offset in the file and the length of each metadata item."""
    if region > 1 << 62:
        raise ImageError(f"its metadata region at {region} lies beyond any file", format=_FORMAT)
    table = read(region, _FIRST)
    count = _count(table, _METADATA_HEAD, b"metadata", "metadata table")
    table = _whole(read, region, table, _METADATA_HEAD.size + count * _METADATA.size, "metadata table")
    items: dict[bytes, tuple[int, int]] = {}
    for index in range(count):
        kind, offset, length, _, _ = _METADATA.unpack_from(table, _METADATA_HEAD.size + index * _METADATA.size)
        items[kind] = (region + offset, length)
    return items


def _count(table: bytes, layout: struct.Struct, signature: bytes, what: str) -> int:
    if len(table) < layout.size or not table.startswith(signature):
        raise ImageError(f"its {what} is missing or cut off", format=_FORMAT)
    count = int(layout.unpack_from(table)[1])
    if count > _MOST_ENTRIES:
        raise ImageError(f"its {what} has {count} entries, more than {_MOST_ENTRIES}", format=_FORMAT)
    return count


def _whole(read: Reader, offset: int, table: bytes, needed: int, what: str) -> bytes:
    if needed > len(table):
        table = read(offset, needed)
    if len(table) < needed:
        raise ImageError(f"its {what} is cut off", format=_FORMAT)
    return table


def _item(read: Reader, items: dict[bytes, tuple[int, int]], kind: bytes, size: int) -> bytes:
    offset, _ = items.get(kind, (0, 0))
    if not offset:
        raise ImageError("its metadata has no size or no parameters", format=_FORMAT)
    raw = read(offset, size)
    if len(raw) < size:
        raise ImageError("its metadata is cut off", format=_FORMAT)
    return raw[:size]


def _parent(read: Reader, items: dict[bytes, tuple[int, int]]) -> str:
    """Return the parent's path from its locator. QEMU does not read it, so a malformed one is no error."""
    offset, length = items.get(_LOCATOR, (0, 0))
    raw = read(offset, min(length, _TABLE_SIZE)) if offset and length else b""
    if len(raw) < _LOCATOR_HEAD.size:
        return UNTOLD
    paths: dict[str, str] = {}
    for index in range(_LOCATOR_HEAD.unpack_from(raw)[1]):
        at = _LOCATOR_HEAD.size + index * _LOCATOR_ENTRY.size
        if at + _LOCATOR_ENTRY.size > len(raw):
            break
        key_at, value_at, key_length, value_length = _LOCATOR_ENTRY.unpack_from(raw, at)
        try:
            key = raw[key_at : key_at + key_length].decode("utf-16-le")
            if key in _PATHS:
                paths[key] = speakable(raw[value_at : value_at + value_length].decode("utf-16-le"), "parent's name")
        except (UnicodeDecodeError, ImageError):
            continue
    return next((paths[key] for key in _PATHS if paths.get(key)), UNTOLD)
