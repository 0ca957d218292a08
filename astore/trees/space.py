"""Allocate space for files of a tree: all that is requested, or none."""

from __future__ import annotations

import errno
import os

from astore.cancellation import to_the_end
from astore.trees.writable import WritableTree
from astore.volume_io.copying import Count
from astore.volume_io.open_file import OpenFile

ALLOCATE_AT_ONCE = 1 << 30
"""The most bytes that one call allocates."""


async def allocate(tree: WritableTree, file: OpenFile, offset: int, length: int, count: Count | None = None) -> None:
    """Allocate space for a range of an open file of a tree.

    :raises OSError: ENOSPC: there is not enough space. That is checked before anything is allocated.
    """
    if length <= 0:
        return
    has = (await file.stat()).blocks * 512 if offset == 0 else 0
    if has < length:
        _, free = await file.lane.run(tree.statvfs)
        if length - has > free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for at in range(offset, offset + length, ALLOCATE_AT_ONCE):
        some = min(ALLOCATE_AT_ONCE, offset + length - at)
        await to_the_end(file.lane, file.guarded, file.file.allocate, at, some)
        if count is not None:
            count.add(some)
