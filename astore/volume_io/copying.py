"""Copying what is in one volume into another: by the storage itself where it can, else in blocks, holes kept."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from astore.backend import Progress, VolumeFile
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.open_file import OpenFile

BLOCK = 4 << 20
"""Bytes that are read and written at once."""

COPY_AT_ONCE = 64 << 20
"""Bytes that the storage is asked to copy by one call."""

CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EBADF})
"""What storage says that cannot clone or copy."""


class Count:
    """How much of a piece of work is done, told to whoever wants to know.

    :param total: bytes in all, or None. :param progress: called with bytes done and ``total``.
    """

    def __init__(self, total: int | None, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self._progress = progress

    def add(self, count: int) -> None:
        """So much more is done."""
        if count <= 0:
            return
        self.done += count
        if self._progress is not None:
            self._progress(self.done, self.total)


async def next_data(file: VolumeFile, at: int, end: int) -> tuple[int, int] | None:
    """The next range (from, to) at or after ``at`` that is no hole, as far as the storage tells; None: there is none."""
    try:
        begin = await file.seek_data(at)
        if begin is None or begin >= end:
            return None
        until = min(await file.seek_hole(begin), end)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return at, end  # storage without SEEK_DATA has no holes to be told
    if until <= begin:  # it was written to, or cut, meanwhile
        until = min(begin + BLOCK, end)
    return begin, until


async def data_ranges(file: VolumeFile, start: int, end: int) -> AsyncGenerator[tuple[int, int], None]:
    """The ranges (from, to) between ``start`` and ``end`` that are no holes, as far as the storage tells."""
    at = start
    while at < end and (found := await next_data(file, at, end)) is not None:
        yield found
        at = found[1]


async def side_by_side(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run ``work()`` ``count`` times at once. The first error ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except BaseExceptionGroup as several:
        error = several.exceptions[0]
        raise error from error.__cause__


async def copy_blocks(source: VolumeFile, target: VolumeFile, end: int, count: Count) -> None:
    """Copy what is no hole in the first ``end`` bytes, several blocks at once, through this process."""
    here = there = 0
    lock = asyncio.Lock()  # looking for the next data takes a call

    async def next_block() -> tuple[int, int] | None:
        nonlocal here, there
        async with lock:
            if here >= there:
                if there >= end:
                    return None
                begin, until = await next_data(source, there, end) or (end, end)
                count.add(begin - there)  # a hole
                here, there = begin, until
                if begin >= end:
                    return None
            start, here = here, min(here + BLOCK, there)
            return start, here

    async def work() -> None:
        memory = memoryview(bytearray(min(BLOCK, end)))  # one for all: the kernel would clear new memory for each block
        while (block := await next_block()) is not None:
            start, stop = block
            length = await source.preadinto(memory[: stop - start], start)
            if length:
                await target.pwrite(memory[:length], start)
            count.add(stop - start)

    await side_by_side(work, max(source.in_flight, target.in_flight))


async def copy_within(source: OpenFile, target: OpenFile, end: int, count: Count) -> bool:
    """Have the storage copy the first ``end`` bytes of one of its files into another, an empty one.

    :return: False if it cannot; nothing was done then.
    """
    try:
        await target.run(source.file.clone, target.file)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
    else:
        count.add(end)
        return True
    await target.truncate(end)
    gone = 0
    begun = False
    async for at, stop in data_ranges(source, 0, end):
        while at < stop:
            try:
                done = await target.run(_copy_range, source.file, target.file, at, min(stop - at, COPY_AT_ONCE))
            except OSError as error:
                if not begun and error.errno in CANNOT:
                    return False
                raise
            if done == 0:
                break  # the source was cut meanwhile
            begun = True
            at += done
            count.add(at - gone)  # with the hole before it
            gone = at
    count.add(end - gone)
    return True


def _copy_range(source: TreeFile, target: TreeFile, at: int, length: int) -> int:
    return source.copy_range(at, target, at, length)
