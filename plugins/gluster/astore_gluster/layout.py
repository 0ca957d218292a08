"""The layouts of ``struct stat``, ``struct dirent`` and ``struct statvfs`` in this machine's C library.

libgfapi fills in the C library's structures, which differ between architectures. They are read with
:class:`struct.Struct`, not ctypes structures: one unpacking reads all numbers of an entry.
"""

from __future__ import annotations

import platform
import struct
import sys
from typing import NamedTuple

from astore.model import FileStat


class StatLayout(NamedTuple):
    """The layout of ``struct stat``.

    :ivar members: unpacks inode, mode, uid, gid, size, blocks and the times (access, modification, change; seconds and
        nanoseconds of each).
    :ivar size: the size of the structure, in bytes.
    """

    members: struct.Struct
    size: int


# st_dev, st_ino, st_nlink, st_mode, st_uid, st_gid, padding, st_rdev, st_size, st_blksize, st_blocks, three timespecs:
# glibc's sysdeps/unix/sysv/linux/x86/bits/struct_stat.h and sysdeps/unix/sysv/linux/powerpc/bits/struct_stat.h
_NLINK_FIRST = StatLayout(struct.Struct("=8xQ8xIII12xq8xqqqqqqq"), 144)

# st_dev, st_ino, st_mode, st_nlink, st_uid, st_gid, st_rdev, padding, st_size, st_blksize, padding, st_blocks, three
# timespecs: the kernel's include/uapi/asm-generic/stat.h, which every younger 64-bit architecture uses
_GENERIC = StatLayout(struct.Struct("=8xQI4xII16xq8xqqqqqqq"), 128)

_LAYOUTS = {
    "x86_64": _NLINK_FIRST,
    "amd64": _NLINK_FIRST,
    "ppc64le": _NLINK_FIRST,
    "aarch64": _GENERIC,
    "arm64": _GENERIC,
    "riscv64": _GENERIC,
    "loongarch64": _GENERIC,
}

DIRENT_NAME = 19
"""Where the name starts in ``struct dirent``: after d_ino and d_off (8 bytes each), d_reclen (2) and d_type (1)."""

DIRENT_ROOM = 560
"""Bytes for one ``struct dirent``: glfs.h asks for 512, and warns that more may be needed."""

NAME_ROOM = 256
"""The longest name (NAME_MAX) with its NUL, in bytes."""

STATVFS_ROOM = 256
"""Bytes for a ``struct statvfs`` (112 on 64-bit machines)."""

_STATVFS = struct.Struct("=8xQQQ")
_SECOND = 1_000_000_000


def stat_layout(machine: str | None = None) -> StatLayout | None:
    """Return the layout of ``struct stat`` on a machine (platform.machine()'s word; None: this one); None if unknown."""
    if sys.maxsize <= 2**32 and machine is None:
        return None
    return _LAYOUTS.get((machine or platform.machine()).lower())


def decode_stat(layout: StatLayout, data: bytes | bytearray | memoryview, device: int | str = 0) -> FileStat:
    """Decode a ``struct stat``. :param device: identifies the volume."""
    inode, mode, uid, gid, size, blocks, a, a_ns, m, m_ns, c, c_ns = layout.members.unpack_from(data)
    times = (a * _SECOND + a_ns, m * _SECOND + m_ns, c * _SECOND + c_ns)
    return FileStat(mode, inode, size, blocks, uid, gid, *times, device)


def decode_statvfs(data: bytes) -> tuple[int, int]:
    """Return the total bytes (f_frsize × f_blocks) and free bytes (f_frsize × f_bfree) in a ``struct statvfs``."""
    frsize, blocks, bfree = _STATVFS.unpack_from(data)
    return frsize * blocks, frsize * bfree
