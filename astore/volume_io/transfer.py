"""Upload: streams of bytes into an open volume, several blocks under way at once, holes kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterator

import anyio

from astore.backend import VolumeFile
from astore.errors import StorageError, TransferError, reason
from astore.volume_io.blocks import Blocks, Hole
from astore.volume_io.copying import CANNOT, Count
from astore.volume_io.downloads import Download

BLOCK = 2 << 20
"""The least bytes that are written at once where more are to come."""

MOST = 4 << 20
"""The most bytes that are written at once."""

GRAIN = 64 << 10
"""Zeros are found in whole pieces of this many bytes, aligned to it."""

_ZEROS = bytes(MOST)

Data = bytes | bytearray | memoryview


class _Written:
    """How far an upload came without a gap, though its blocks end in any order."""

    def __init__(self, count: Count) -> None:
        self._count = count
        self._blocks: deque[list[int]] = deque()  # length, and 1 when it is done

    def begin(self, length: int) -> list[int]:
        block = [length, 0]
        self._blocks.append(block)
        return block

    def end(self, block: list[int]) -> None:
        block[1] = 1
        while self._blocks and self._blocks[0][1]:
            self._count.add(self._blocks.popleft()[0])


async def upload(
    file: VolumeFile,
    source: AsyncIterable[Data | Hole],
    offset: int,
    length: int | None,
    sparse: bool,
    count: Count,
    *,
    own: bool = False,
) -> int:
    """Write what ``source`` gives from ``offset`` on; returns the offset after it.

    :param length: the most bytes that it may give. :param sparse: zeros become holes.
    :param own: nobody else uses what it gives, as of a download.
    :raises TransferError: the source gives more than ``length`` bytes, which are written; or the storage said no.
        What ``source`` raises, as it is.
    """
    try:
        writing = _Upload(file, (await file.stat()).size, sparse, count)
        given = await writing.all_of(source, offset, length, own or isinstance(source, Download))
        end = given if length is None else min(given, offset + length)
        if end > offset and end > max(writing.size, (await file.stat()).size):
            await file.truncate(end)  # it ends in a hole
        await file.sync()
    except _StorageSaidNo as no:
        raise _broken_off(no.error, count) from no.error
    except StorageError as error:
        raise _broken_off(error, count) from error
    if given > end:
        raise TransferError(f"there are more than the {length} bytes that were announced", done=count.done)
    return end


class _Upload:
    """Blocks on their way into a volume."""

    def __init__(self, file: VolumeFile, size: int, sparse: bool, count: Count) -> None:
        self.file = file
        self.size = size
        """The volume's, before."""
        self._sparse = sparse
        self._written = _Written(count)
        self._room = asyncio.Semaphore(file.in_flight)
        self._taking = anyio.CancelScope()
        self._refused: OSError | None = None

    async def all_of(
        self, source: AsyncIterable[Data | Hole], offset: int, length: int | None, own_source: bool
    ) -> int:
        """Write all that there is, up to ``length``; returns the offset at which it ends, or would."""
        at = offset
        own: BaseException | None = None
        pieces_of = _pieces(source, self.file.in_flight + 2, own_source)
        try:
            async with asyncio.TaskGroup() as group, contextlib.aclosing(pieces_of) as pieces:
                try:
                    with self._taking:
                        async for piece in pieces:
                            kept = piece if length is None else _first(piece, length - (at - offset))
                            await self._room.acquire()
                            group.create_task(self._put(at, kept, self._written.begin(_length(kept))))
                            at += _length(piece)
                            if kept is not piece:
                                break
                except Exception as error:
                    own = error
                    raise
        except BaseExceptionGroup as several:
            first = several.exceptions[0] if own is None else own
            raise first from first.__cause__
        if self._refused is not None:
            raise _StorageSaidNo(self._refused) from self._refused
        return at

    async def _put(self, start: int, piece: Data | Hole, block: list[int]) -> None:
        file = self.file
        try:
            if isinstance(piece, Hole):
                await _make_hole(file, start, min(piece.length, self.size - start))
            elif self._sparse:
                await _put_sparsely(file, start, piece, self.size)
            else:
                await file.pwrite(piece, start)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            # nothing more is taken, but what is under way comes to its end, so that it can be said how far that was
            self._refused = self._refused or error
            self._taking.cancel()
        else:
            self._written.end(block)
        finally:
            self._room.release()


class _StorageSaidNo(Exception):
    """Tells an error of the volume from one of the source."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def _broken_off(error: OSError, count: Count) -> TransferError:
    return TransferError(
        f"{reason(error)}, after {count.done} bytes",
        errno=error.errno,
        pool=getattr(error, "pool", None),
        done=count.done,
    )


def _length(piece: Data | Hole) -> int:
    return piece.length if isinstance(piece, Hole) else len(piece)


def _first(piece: Data | Hole, length: int) -> Data | Hole:
    """The first ``length`` bytes of a piece: the piece itself where it has no more."""
    if _length(piece) <= length:
        return piece
    return Hole(length) if isinstance(piece, Hole) else memoryview(piece)[:length]


class _Gathered:
    """Small pieces, put together until they are worth a call."""

    def __init__(self, kept: int) -> None:
        self._blocks = Blocks(BLOCK, kept)
        self._block: bytearray | None = None
        self.length = 0

    def add(self, data: Data) -> Iterator[bytearray]:
        """Take a piece; gives the blocks that are full with it."""
        view = memoryview(data)
        while view:
            if self._block is None:
                self._block = self._blocks.take(BLOCK)
            end = min(self.length + len(view), BLOCK)
            self._block[self.length : end] = view[: end - self.length]
            view = view[end - self.length :]
            self.length = end
            if end == BLOCK:
                full, self._block, self.length = self._block, None, 0
                yield full
                del full  # whoever has it may let go of it now

    def rest(self) -> memoryview:
        """What is there, though it is little."""
        assert self._block is not None
        rest = memoryview(self._block)[: self.length]
        self._block, self.length = None, 0
        return rest


async def _pieces(source: AsyncIterable[Data | Hole], kept: int, own: bool) -> AsyncGenerator[Data | Hole, None]:
    """What the source gives, in pieces that are worth a call each. They are no longer the source's own.

    :param kept: how many of them may be in use at once. :param own: nobody else uses what the source gives.
    """
    small = _Gathered(kept)
    async for item in source:
        if isinstance(item, Hole):
            if small.length:
                yield small.rest()
            if item.length > 0:
                yield item
            continue
        if not isinstance(item, (bytes, bytearray)):
            view = memoryview(item)
            if view.format != "B" or view.ndim != 1 or not view.c_contiguous:
                item = view.tobytes()  # whatever it is a view of
        if small.length or len(item) < BLOCK:
            if small.length + len(item) >= BLOCK and not isinstance(item, bytes):
                item = bytes(item)  # it is not all taken before others have their turn, and may change
            for block in small.add(item):
                yield block
                del block
            continue
        # whoever gave it may go on using it, but for a download, which gives it to nobody else meanwhile
        whole = item if own or isinstance(item, bytes) else bytes(item)
        if len(whole) <= MOST:
            yield whole
            continue
        view = memoryview(whole)
        for begin in range(0, len(view), MOST):
            yield view[begin : begin + MOST]
    if small.length:
        yield small.rest()


async def _put_sparsely(file: VolumeFile, start: int, data: Data, size: int) -> None:
    view = memoryview(data)
    for begin, end, empty in _runs(view, start):
        if not empty:
            await file.pwrite(view[begin:end], start + begin)
        else:
            await _make_hole(file, start + begin, min(end, size - start) - begin)


def _runs(view: memoryview, start: int) -> list[tuple[int, int, bool]]:
    """The pieces of a block in turn: from, to, and whether there is nothing but zeros in it."""
    runs: list[tuple[int, int, bool]] = []
    begin = 0
    while begin < len(view):
        end = min(begin + GRAIN - (start + begin) % GRAIN, len(view))
        empty = _ZEROS.startswith(view[begin:end])
        if runs and runs[-1][2] == empty:
            runs[-1] = (runs[-1][0], end, empty)
        else:
            runs.append((begin, end, empty))
        begin = end
    return runs


async def _make_hole(file: VolumeFile, start: int, length: int) -> None:
    """Have a range within the volume's size read as zeros."""
    if length <= 0:
        return
    try:
        await file.punch(start, length)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        for at in range(start, start + length, MOST):
            await file.pwrite(memoryview(_ZEROS)[: min(MOST, start + length - at)], at)
