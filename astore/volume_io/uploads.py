"""Sources of uploads: async iterables of chunks, byte streams, bytes in memory, and local files."""

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
    """Yield the source as an async iterable, with its size in bytes if known; close what was opened for it.

    :param lane: whose threads read a local file. :param sparse: yield the holes of a local file as such.
    :raises TypeError: the source has an unsupported type. OSError: the file cannot be opened.
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
            # the executor closes it after an abandoned read: no descriptor is closed while a call uses it
            await shielded(_close(raw, executor))
    elif isinstance(source, (bytes, bytearray, memoryview)):
        yield _one(source), memoryview(source).nbytes
    elif isinstance(source, AsyncIterable):
        yield source, None
    else:
        raise TypeError(f"cannot upload from {type(source).__name__}: give a path, bytes or an async iterable")


class Beginning(NamedTuple):
    """The beginning of a volume after an upload.

    :ivar offset: where the upload begins. :ivar own: the upload's bytes within the volume's first HEADER_SIZE.
    :ivar head: the volume's first HEADER_SIZE bytes after the upload; None: they do not change.
    """

    offset: int
    own: bytes = b""
    head: bytes | None = None


@contextlib.asynccontextmanager
async def beginning(
    file: VolumeFile, chunks: AsyncIterable[Data | Hole], offset: int, length: int | None
) -> AsyncIterator[tuple[AsyncIterable[Data | Hole], Beginning]]:
    """Yield all chunks of an upload, and the beginning of the volume after it.

    :param file: the volume. :param offset: where the chunks go. :param length: the most bytes of them that are written.
    """
    if offset >= HEADER_SIZE or length == 0:
        yield chunks, Beginning(offset)
        return
    wanted = HEADER_SIZE - offset if length is None else min(HEADER_SIZE - offset, length)
    taken: list[Data | Hole] = []
    had = 0
    source = aiter(chunks)
    async for chunk in source:
        # the source may reuse its memory
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
    """Open a local file; return it, and its size if it is a regular file."""
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
    """Yield the file's data, with its holes as such if ``sparse`` is set and the file system tells them."""
    at = 0
    while sparse:
        try:
            begin = await file.seek(at, os.SEEK_DATA)
            until = await file.seek(begin, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a pipe, or a file system that tells no holes
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
    """Adapts a lane to the Executor interface. Only the event loop may submit calls; they run one by one."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Call ``fn`` on the lane. The future ends with the call."""
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
