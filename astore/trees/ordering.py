"""Detect file systems that commit changes of names and sizes in the order in which they were made.

There a new, empty file is safe once a later change of its folder is safe: syncing each file would only wait for the same
journal again.
"""

from __future__ import annotations

import ctypes
import os

from astore.volume_io.local_file import libc

EXT, XFS, TMPFS = 0xEF53, 0x5846_5342, 0x0102_1994
"""f_type of statfs(2); linux/magic.h."""


def keeps_order(fd: int) -> bool:
    """Return whether the file system of an open file or folder is known to keep the order. Blocks, but waits for no disk.

    XFS has one log, committed in order (the kernel's filesystems/xfs/xfs-delayed-logging-design.rst). ext3 and ext4 have one
    journal (filesystems/ext4/journal.rst), unless they were made without. tmpfs has nothing to lose. Others are not
    known; btrfs, for one, writes only what belongs to the synced file.
    """
    kind = _kind(fd)
    return kind in (XFS, TMPFS) or (kind == EXT and _has_journal(os.fstat(fd).st_dev))


def _kind(fd: int) -> int:
    room = (ctypes.c_long * 64)()  # struct statfs, which begins with f_type
    return int(room[0]) if libc().fstatfs(fd, ctypes.byref(room)) == 0 else 0


def _has_journal(device: int) -> bool:
    name = os.path.basename(os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
    return os.path.exists(f"/sys/fs/ext4/{name}/journal_task")
