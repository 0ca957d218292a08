"""What an upload may come from: chunks that somebody makes, a stream, bytes at hand, or a file of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from concurrent.futures import Executor, Future
from typing import Any, NamedTuple, TypeVar

import aiofiles.threadpool
import anyio.abc

from astore.backend import Lane, VolumeFile
from astore.cancellation import bounded, in_a_thread, shielded, to_the_end
from astore.images import HEADER_SIZE
from astore.volume_io.blocks import Hole
from astore.volume_io.downloads import Download
from astore.volume_io.transfer import MOST, Data

T = TypeVar("T")

Source = str | os.PathLike[str] | Data | AsyncIterable[Data | Hole] | anyio.abc.ByteReceiveStream
"""A path, bytes, any async iterable of bytes (and :class:`Hole`), or anyio's byte streams."""


@contextlib.asynccontextmanager
async def chunks_of(
    source: Source, lane: Lane | None, *, sparse: bool = False
) -> AsyncIterator[tuple[AsyncIterable[Data | Hole], int | None]]:
    """The source as an async iterable, and how many bytes it has, if that is known; what was opened for it is closed.

    :param lane: whose threads read a file of this machine. :param sparse: tell the holes of such a file.
    :raises TypeError: it is no source. OSError: the file cannot be opened.
    """
    if isinstance(source, (str, os.PathLike)):
        if lane is None:
            raise RuntimeError("there is no lane to read a file on")
        raw, size = await to_the_end(lane, _open, os.fspath(source), undo=lambda opened: opened[0].close())
        executor = LaneExecutor(lane)
        file = aiofiles.threadpool.wrap(raw, loop=asyncio.get_running_loop(), executor=executor)
        try:
            async with contextlib.aclosing(_file_chunks(file, sparse)) as chunks:
                yield chunks, size
        finally:
            # after the read that was given up, which goes on: no number is closed under a call
            await shielded(_close(raw, executor))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield _one(source), memoryview(source).nbytes
    elif isinstance(source, AsyncIterable):
        yield source, None
    else:
        raise TypeError(
            f"bytes come from a path, from bytes, or from an async iterable, not from {type(source).__name__}"
        )


class Beginning(NamedTuple):
    """How a volume begins after an upload.

    :ivar offset: where the upload begins. :ivar own: its own bytes, up to the volume's first HEADER_SIZE.
    :ivar head: the first HEADER_SIZE bytes of the volume after it; None where it leaves them as they are.
    """

    offset: int
    own: bytes = b""
    head: bytes | None = None


@contextlib.asynccontextmanager
async def beginning(
    file: VolumeFile, chunks: AsyncIterable[Data | Hole], offset: int, length: int | None
) -> AsyncIterator[tuple[AsyncIterable[Data | Hole], Beginning]]:
    """An upload's chunks, all of them, and how the volume begins after it.

    :param file: the volume. :param offset: where the chunks go. :param length: how many of their bytes are taken at most.
    """
    if offset >= HEADER_SIZE or length == 0:
        yield chunks, Beginning(offset)
        return
    wanted = HEADER_SIZE - offset if length is None else min(HEADER_SIZE - offset, length)
    taken: list[Data | Hole] = []
    had = 0
    source = aiter(chunks)
    async for chunk in source:
        # whoever gave it may use its memory again
        kept = chunk if isinstance(chunk, Hole | bytes) or isinstance(chunks, Download) else bytes(memoryview(chunk))
        taken.append(kept)
        had += kept.length if isinstance(kept, Hole) else len(kept)
        if had >= wanted:
            break
    head = bytearray(await file.pread(HEADER_SIZE, 0)) if had < HEADER_SIZE or offset else bytearray()
    at = offset
    if len(head) < at and had:
        head.extend(bytes(at - len(head)))
    for one in taken:
        room = offset + wanted - at
        part = bytes(min(one.length, room)) if isinstance(one, Hole) else bytes(memoryview(one).cast("B")[:room])
        head[at : at + len(part)] = part
        at += len(part)

    async def again() -> AsyncGenerator[Data | Hole, None]:
        while taken:
            yield taken.pop(0)
        async for chunk in source:
            yield chunk

    async with contextlib.aclosing(again()) as given:
        head = head[:HEADER_SIZE]
        yield given, Beginning(offset, bytes(head[offset:at]), bytes(head)) if had else Beginning(offset)


def _open(path: str) -> tuple[io.FileIO, int | None]:
    """A file of this machine, and its size if it is a regular file."""
    file = io.FileIO(path)
    st = os.fstat(file.fileno())
    return file, st.st_size if stat.S_ISREG(st.st_mode) else None


async def _close(file: io.FileIO, executor: LaneExecutor) -> None:
    closing = asyncio.wrap_future(executor.submit(file.close))
    await bounded(asyncio.wait([closing]))
    if closing.done() and closing.exception() is not None and not file.closed:
        in_a_thread(file.close)


async def _one(data: Data) -> AsyncIterator[Data | Hole]:
    yield data


async def _file_chunks(file: Any, sparse: bool) -> AsyncGenerator[Data | Hole, None]:
    """The file's data, its holes told as such where that is wanted and can be."""
    at = 0
    while sparse:
        try:
            begin = await file.seek(at, os.SEEK_DATA)
            until = await file.seek(begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a pipe, or a file system that does not know
                break
            end = await file.seek(0, os.SEEK_END)
            if end > at:
                yield Hole(end - at)
            return
        if begin > at:
            yield Hole(begin - at)
        at = await file.seek(begin, os.SEEK_SET)
        while at < until:
            data = await file.read(min(MOST, until - at))
            if not data:
                return
            at += len(data)
            yield data
    while data := await file.read(MOST):
        yield data


class LaneExecutor(Executor):
    """A lane, for libraries that want an executor. For calls from the event loop only, which are made one by one."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Have the lane call ``fn``; it is over when its call is."""
        future: Future[T] = Future()
        task = asyncio.get_running_loop().create_task(self._run(future, fn, args, kwargs))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return future

    async def _run(
        self, future: Future[T], fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        async with self._turn:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = await self._lane.run(lambda: fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)
                if not isinstance(error, Exception):
                    raise
            else:
                future.set_result(result)
