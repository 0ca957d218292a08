"""Copy one volume into another: by the storage itself if it can, otherwise in blocks. Holes are kept."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

from astore.backend import Progress, VolumeFile
from astore.cancellation import TaskGroup
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.open_file import OpenFile

BLOCK = 4 << 20
"""Bytes per read and write."""

COPY_AT_ONCE = 64 << 20
"""The most bytes that the storage copies in one call."""

CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.EBADF})
"""Errors of storage that cannot clone, copy, punch holes or tell them."""


class Count:
    """Counts the bytes that are done, and reports them.

    :param total: bytes in total, or None. :param progress: called with bytes done and ``total``.
    """

    def __init__(self, total: int | None, progress: Progress | None) -> None:
        self.total = total
        self.done: int = 0
        self._progress = progress

    def add(self, count: int) -> None:
        """Count ``count`` more bytes as done."""
        if count <= 0:
            return
        self.done += count
        if self._progress is not None:
            self._progress(self.done, self.total)


async def next_data(file: VolumeFile, at: int, end: int) -> tuple[int, int] | None:
    """Return the next range of data (from, to) at or after ``at``, as far as the storage tells; None: there is none."""
    try:
        begin = await file.seek_data(at)
        if begin is None or begin >= end:
            return None
        until = min(await file.seek_hole(begin), end)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return at, end  # storage without SEEK_DATA tells no holes
    if until <= begin:  # it was written or truncated meanwhile
        until = min(begin + BLOCK, end)
    return begin, until


async def data_ranges(file: VolumeFile, start: int, end: int) -> AsyncGenerator[tuple[int, int], None]:
    """Yield the ranges of data (from, to) between ``start`` and ``end``, as far as the storage tells."""
    at = start
    while at < end and (found := await next_data(file, at, end)) is not None:
        yield found
        at = found[1]


async def side_by_side(work: Callable[[], Coroutine[Any, Any, None]], count: int) -> None:
    """Run ``work()`` ``count`` times concurrently. The first error cancels the others, and is raised unwrapped."""
    try:
        async with TaskGroup() as group:
            for _ in range(count):
                group.create_task(work())
    except BaseExceptionGroup as several:
        error = several.exceptions[0]
        raise error from error.__cause__


async def copy_blocks(source: VolumeFile, target: VolumeFile, end: int, count: Count) -> None:
    """Copy the data in the first ``end`` bytes through this process, several blocks at once."""
    here = there = 0
    lock = asyncio.Lock()  # finding the next data awaits a call

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
        memory = memoryview(bytearray(min(BLOCK, end)))  # reused: the kernel would clear new memory for each block
        while (block := await next_block()) is not None:
            start, stop = block
            length = await source.preadinto(memory[: stop - start], start)
            if length:
                await target.pwrite(memory[:length], start)
            count.add(stop - start)

    await side_by_side(work, max(source.in_flight, target.in_flight))


async def copy_within(source: OpenFile, target: OpenFile, end: int, count: Count) -> bool:
    """Have the storage copy the first ``end`` bytes of one of its files into another, empty one.

    :return: False if it cannot; then nothing was copied.
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
                break  # the source was truncated meanwhile
            begun = True
            at += done
            count.add(at - gone)  # with the hole before it
            gone = at
    count.add(end - gone)
    return True


def _copy_range(source: TreeFile, target: TreeFile, at: int, length: int) -> int:
    return source.copy_range(at, target, at, length)
