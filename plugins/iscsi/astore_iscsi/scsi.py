"""SCSI's commands and answers, as bytes: SPC-4 (INQUIRY, REPORT LUNS) and SBC-3 (the others). Nothing here does I/O."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from typing import Final, NamedTuple

REPORT_LUNS_MOST: Final = 16384
"""The most LUNs that fit into 14 bits, which is all that one level of addressing has."""

VPD_IDENTIFICATION: Final = 0x83
VPD_BLOCK_LIMITS: Final = 0xB0
VPD_PROVISIONING: Final = 0xB2

DISKS: Final = frozenset({0x00, 0x07, 0x0E, 0x14})
"""The peripheral device types that are disks of blocks: direct access, optical memory, simplified, host managed zones."""

SILENT: Final = frozenset({0x0C, 0x0D, 0x11, 0x1E, 0x1F})
"""The types that are part of the storage itself: controllers, enclosures, object stores, well-known and unknown units."""

HOLES: Final = frozenset({1, 2})
"""The provisioning states of blocks without storage: deallocated and anchored (SBC-3). 0 is mapped; what is unknown is data."""

IDENTIFICATION: Final = 1024
"""The room for a unit's identification, in bytes. What goes beyond it does not identify the unit: it is the same everywhere."""

_NONE: Final = (1 << 64) - 1

UNIT_ATTENTION: Final = 6
ILLEGAL_REQUEST: Final = 5
ABORTED: Final = 0x0B

_KEYS: Final = {
    1: errno.EIO,
    2: errno.ENXIO,
    3: errno.EIO,
    4: errno.EIO,
    5: errno.EOPNOTSUPP,
    6: errno.EAGAIN,
    7: errno.EROFS,
    0x0B: errno.EAGAIN,
    0x0E: errno.EILSEQ,
}
_CODES: Final = {
    0x2100: errno.ENOSPC,  # an address beyond the end
    0x2500: errno.ENOENT,  # there is no such unit
    0x2707: errno.ENOSPC,  # the space of a thin unit is used up
    0x3A00: errno.ENOMEDIUM,
}
_WORDS: Final = {
    1: "recovered error",
    2: "the unit is not ready",
    3: "medium error",
    4: "hardware error",
    5: "the unit does not know the request",
    6: "unit attention",
    7: "the unit is write-protected",
    0x0B: "the target aborted the command",
    0x0E: "miscompare",
}
_CODE_WORDS: Final = {
    0x2100: "the address is beyond the unit's end",
    0x2500: "there is no such unit",
    0x2707: "the target has no space left",
    0x3A00: "there is no medium",
}


class UnitError(OSError):
    """A unit refuses a command, or answers nonsense. Its target is there."""


class Sense(NamedTuple):
    """Why a command failed: the key, and the additional code with its qualifier in the lower byte."""

    key: int
    code: int

    def error(self) -> UnitError:
        """Return the error that this is."""
        number = _CODES.get(self.code, _KEYS.get(self.key, errno.EIO))
        words = _CODE_WORDS.get(self.code) or _WORDS.get(self.key) or os.strerror(number)
        return UnitError(number, f"{words} (sense {self.key:x}h/{self.code >> 8:02x}h/{self.code & 0xFF:02x}h)")


# ---------------------------------------------------------------------------------------------------------- commands


def report_luns(length: int) -> bytes:
    """Ask for all units. :param length: the room for the answer, in bytes."""
    return struct.pack(">BxBxxxIxx", 0xA0, 0, length)


def test_unit_ready() -> bytes:
    """Ask whether the unit can be used."""
    return bytes(6)


def inquiry(length: int, page: int | None = None) -> bytes:
    """Ask what a unit is. :param page: of its vital product data; None: the standard data."""
    return struct.pack(">BBBHx", 0x12, page is not None, page or 0, length)


def read_capacity() -> bytes:
    """Ask for the size; the answer has 32 bytes."""
    return struct.pack(">BBQIxx", 0x9E, 0x10, 0, 32)


def read(block: int, count: int) -> bytes:
    """Read ``count`` blocks."""
    return struct.pack(">BxQIxx", 0x88, block, count)


def write(block: int, count: int) -> bytes:
    """Write ``count`` blocks."""
    return struct.pack(">BxQIxx", 0x8A, block, count)


def write_same_unmapped(block: int, count: int) -> bytes:
    """Write one block of data over ``count`` blocks; the unit may unmap them instead if they read as that data then."""
    return struct.pack(">BBQIxx", 0x93, 0x08, block, count)


def unmap(ranges: int) -> bytes:
    """Unmap the ranges of a list, see :func:`unmap_list`."""
    return struct.pack(">BxxxxxxHx", 0x42, 8 + 16 * ranges)


def unmap_list(ranges: list[tuple[int, int]]) -> bytes:
    """Return the parameter list of UNMAP: ranges of blocks, each with its first block and its count."""
    body = b"".join(struct.pack(">QIxxxx", block, count) for block, count in ranges)
    return struct.pack(">HHxxxx", 6 + len(body), len(body)) + body


def synchronize_cache() -> bytes:
    """Wait until all written blocks are on the medium."""
    return struct.pack(">BxQIxx", 0x91, 0, 0)


def get_lba_status(block: int, length: int) -> bytes:
    """Ask which blocks are mapped, from ``block`` on."""
    return struct.pack(">BBQIxx", 0x9E, 0x12, block, length)


# ----------------------------------------------------------------------------------------------------------- answers


class Capacity(NamedTuple):
    """A unit's size in blocks, the bytes of a block, and what becomes of unmapped blocks.

    :ivar thin: it can unmap blocks. :ivar zeros: an unmapped block reads as zeros.
    """

    blocks: int
    block: int
    thin: bool
    zeros: bool

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.blocks * self.block


class Limits(NamedTuple):
    """A unit's limits, in blocks; 0: none is told.

    :ivar transfer: of a read or write. :ivar unmap: of all ranges of an UNMAP. :ivar ranges: their number.
    :ivar grain: UNMAP has an effect on whole ones of these. :ivar aligned: where the first of them begins.
    :ivar same: of a WRITE SAME. :ivar unmaps: UNMAP unmaps. :ivar unmaps_same: WRITE SAME(16) unmaps.
    """

    transfer: int = 0
    unmap: int = 0
    ranges: int = 0
    grain: int = 0
    aligned: int = 0
    same: int = 0
    unmaps: bool = False
    unmaps_same: bool = False


def parse_luns(answer: bytes | bytearray) -> tuple[int, list[int]]:
    """Return the length in bytes that the whole list has, and its LUNs as far as ``answer`` goes.

    A LUN is the number that its first two bytes are, as libvirt and QEMU count. Those with further levels are left out.
    """
    length = struct.unpack_from(">I", answer)[0]
    end = min(8 + length, len(answer))
    found = (struct.unpack_from(">HHI", answer, at) for at in range(8, end - 7, 8))
    return 8 + length, [lun for lun, second, rest in found if not second and not rest]


def parse_capacity(answer: bytes | bytearray) -> Capacity:
    """Return the size of a unit. :raises UnitError: EIO: nonsense."""
    last, block = struct.unpack_from(">QI", answer)
    if not 512 <= block <= 1 << 20 or block & (block - 1) or (1 << 63) // block <= last < _NONE:
        raise UnitError(errno.EIO, f"the unit claims to have {last + 1} blocks of {block} bytes")
    blocks = 0 if last == _NONE else last + 1  # as tgt tells an empty file
    return Capacity(blocks, block, bool(answer[14] & 0x80), bool(answer[14] & 0x40))


def parse_identification(answer: bytes | bytearray, target: str, lun: int) -> int:
    """Return a number, not 0, that identifies the unit in the world, or at least at its target, from page 83h.

    The descriptors of target and port, which are the same for several units, do not count.
    """
    told = bytearray()
    at, end = 4, min(4 + struct.unpack_from(">H", answer, 2)[0], len(answer))
    while at + 4 <= end:
        code, kind, length = answer[at], answer[at + 1], answer[at + 3]
        if not kind & 0x30 and length:
            told += bytes((code & 0x0F, kind & 0x0F, length)) + answer[at + 4 : at + 4 + length]
        at += 4 + length
    name = bytes(told) if told else f"{target}/{lun}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big") >> 1 or 1


def parse_limits(limits: bytes | bytearray, provisioning: bytes | bytearray) -> Limits:
    """Return what pages B0h and B2h tell. Each may be empty."""
    transfer = unmap_most = ranges = grain = aligned = same = ways = 0
    if len(limits) >= 44 and limits[1] == VPD_BLOCK_LIMITS:
        transfer, unmap_most, ranges, grain, aligned, same = struct.unpack_from(">I8xIIIIQ", limits, 8)
    if len(provisioning) >= 6 and provisioning[1] == VPD_PROVISIONING:
        ways = provisioning[5]
    valid = aligned >> 31  # the bit UGAVALID
    return Limits(
        transfer,
        unmap_most,
        ranges,
        grain,
        aligned & 0x7FFFFFFF if valid else 0,
        same,
        bool(ways & 0x80),
        bool(ways & 0x40),
    )


def parse_lba_status(answer: bytes | bytearray) -> list[tuple[int, int, int]]:
    """Return ranges of blocks with what they are: first block, count, provisioning state."""
    length = struct.unpack_from(">I", answer)[0]
    end = min(4 + length, len(answer))
    found = (struct.unpack_from(">QIB", answer, at) for at in range(8, end - 15, 16))
    return [(block, count, state & 0x0F) for block, count, state in found]
