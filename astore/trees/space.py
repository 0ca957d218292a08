"""Space: allocates space for files of a tree, all that is requested or none."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from astore.backend import Context
from astore.cancellation import bounded, shielded, to_the_end
from astore.trees.writable import WritableTree
from astore.volume_io.copying import Count
from astore.volume_io.open_file import OpenFile

ALLOCATE_AT_ONCE = 1 << 30
"""The most bytes that one call allocates."""


class Space:
    """Allocates space in a pool.

    :param context: the pool's. :param current: returns its tree.
    """

    def __init__(self, context: Context, current: Callable[[], WritableTree]) -> None:
        self._context = context
        self._current = current

    async def take(self, file: OpenFile, offset: int, length: int, count: Count | None = None) -> None:
        """Allocate space for a range of an open file.

        :raises OSError: ENOSPC: there is not enough space. That is checked before anything is allocated.
        """
        if length <= 0:
            return
        has = (await file.stat()).blocks * 512 if offset == 0 else 0
        await self._check(length - min(has, length))
        for at in range(offset, offset + length, ALLOCATE_AT_ONCE):
            some = min(ALLOCATE_AT_ONCE, offset + length - at)
            await to_the_end(file.lane, file.guarded, file.file.allocate, at, some)
            if count is not None:
                count.add(some)

    async def take_after(self, file: OpenFile, size: int, length: int) -> None:
        """Allocate space after the end of an open file of ``size`` bytes; after an error the file has ``size`` bytes again."""
        try:
            await self.take(file, size, length)
        except BaseException:
            await shielded(bounded(file.truncate(size)))
            raise

    async def _check(self, length: int) -> None:
        if length > 0:
            _, free = await self._context.lane.run(self._current().statvfs)
            if length > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
