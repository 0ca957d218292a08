"""Upload: write a stream of bytes into an open volume, several blocks at once. Holes are kept."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterator

import anyio

from astore.backend import VolumeFile
from astore.cancellation import TaskGroup
from astore.errors import StorageError, TransferError, reason
from astore.volume_io.blocks import Blocks, Hole
from astore.volume_io.copying import CANNOT, Count
from astore.volume_io.downloads import Download

BLOCK = 2 << 20
"""The least bytes of a write, except the last one before a hole or the end."""

MOST = 4 << 20
"""The most bytes of a write."""

SYNC_EVERY = 64 << 20
"""How many bytes are written before they are synced, beside the next writes: what is synced is certain to have arrived."""

GRAIN = 64 << 10
"""Zeros become holes in aligned pieces of this many bytes."""

_ZEROS = bytes(MOST)

Data = bytes | bytearray | memoryview


class _Written:
    """Counts the bytes of an upload that are written without a gap, while its blocks end in any order.

    :ivar synced: how many of them are certain to have arrived: a sync has followed, and no write that ran beside it failed.
        (NFS and write-behind caches may tell the failure of an earlier write to a later one, and none to the sync.)
    """

    def __init__(self, count: Count) -> None:
        self.synced = 0
        self._count = count
        self._blocks: deque[list[int]] = deque()  # length, 1 once it is written, and bytes of data
        self._begun = 0
        self._unsynced = 0  # bytes of data, written since the last sync began
        self._said: list[
            tuple[int, int]
        ] = []  # bytes that a sync covers, and those that have to be written without error

    @property
    def done(self) -> int:
        """The bytes that are written without a gap, synced or not."""
        return self._count.done

    def begin(self, piece: Data | Hole) -> list[int]:
        length = _length(piece)
        block = [length, 0, 0 if isinstance(piece, Hole) else length]
        self._blocks.append(block)
        self._begun += length
        return block

    def end(self, block: list[int]) -> None:
        block[1] = 1
        while self._blocks and self._blocks[0][1]:
            length, _, data = self._blocks.popleft()
            self._unsynced += data
            self._count.add(length)
        while self._said and self._said[0][1] <= self.done:
            self.synced = self._said.pop(0)[0]

    def sync_is_due(self) -> bool:
        """Return whether to sync now; True once for every SYNC_EVERY bytes of data."""
        if self._unsynced < SYNC_EVERY:
            return False
        self._unsynced = 0
        return True

    def synced_up_to(self, done: int) -> None:
        """Note that a sync that began after ``done`` bytes has succeeded."""
        if self._begun <= self.done:
            self.synced = done
        else:
            self._said.append((done, self._begun))


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
    """Write the chunks of ``source`` from ``offset`` on; return the offset after them.

    :param length: the most bytes that the source may give. :param sparse: turn zeros into holes.
    :param own: the source does not reuse the memory of its chunks, like a download.
    :raises TransferError: the storage failed, or the source gives more than ``length`` bytes; these are written and synced.
        Errors of ``source`` are raised unwrapped.
    """
    written = _Written(count)
    try:
        writing = _Upload(file, (await file.stat()).size, sparse, written)
        given = await writing.all_of(source, offset, length, own or isinstance(source, Download))
        end = given if length is None else min(given, offset + length)
        if end > offset and end > max(writing.size, (await file.stat()).size):
            await file.truncate(end)  # the upload ends in a hole
        await file.sync()
    except _StorageSaidNo as no:
        raise _broken_off(no.error, written) from no.error
    except StorageError as error:
        raise _broken_off(error, written) from error
    if given > end:
        message = f"the source gave more than the announced {length} bytes"
        raise TransferError(message, done=written.done, synced=written.done)
    return end


class _Upload:
    """One upload: its running writes, and the first error of the volume."""

    def __init__(self, file: VolumeFile, size: int, sparse: bool, written: _Written) -> None:
        self.file = file
        self.size = size
        """The volume's size before the upload."""
        self._sparse = sparse
        self._written = written
        self._syncing: asyncio.Task[None] | None = None
        self._room = asyncio.Semaphore(file.in_flight)
        self._taking = anyio.CancelScope()
        self._refused: OSError | None = None

    async def all_of(
        self, source: AsyncIterable[Data | Hole], offset: int, length: int | None, own_source: bool
    ) -> int:
        """Write the whole source, up to ``length`` bytes; return the offset at which it ends, or would end."""
        at = offset
        own: BaseException | None = None
        pieces_of = _pieces(source, self.file.in_flight + 2, own_source)
        try:
            async with TaskGroup() as group, contextlib.aclosing(pieces_of) as pieces:
                try:
                    with self._taking:
                        async for piece in pieces:
                            kept = piece if length is None else _first(piece, length - (at - offset))
                            await self._room.acquire()
                            group.create_task(self._put(at, kept, self._written.begin(kept)))
                            self._sync_in(group)
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
            self._refuse(error)
        else:
            self._written.end(block)
        finally:
            self._room.release()

    def _refuse(self, error: OSError) -> None:
        """Stop taking chunks, but let running writes end; a sync says nothing any more."""
        self._refused = self._refused or error
        self._taking.cancel()
        if self._syncing is not None:
            self._syncing.cancel()

    def _sync_in(self, group: TaskGroup) -> None:
        """Sync what is written, beside the next writes, if it is time for that and no sync runs."""
        if self._syncing is None and self._refused is None and self._written.sync_is_due():
            self._syncing = group.create_task(self._sync(self._written.done))

    async def _sync(self, done: int) -> None:
        try:
            await self.file.sync()
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            self._syncing = None  # it has ended by itself
            self._refuse(error)
        else:
            self._written.synced_up_to(done)
        finally:
            self._syncing = None


class _StorageSaidNo(Exception):
    """Marks an error of the volume, to tell it from one of the source."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error)
        self.error = error


def _broken_off(error: OSError, written: _Written) -> TransferError:
    return TransferError(
        f"{reason(error)}, after {written.done} bytes, of which {written.synced} are synced",
        errno=error.errno,
        pool=getattr(error, "pool", None),
        done=written.done,
        synced=written.synced,
    )


def _length(piece: Data | Hole) -> int:
    return piece.length if isinstance(piece, Hole) else len(piece)


def _first(piece: Data | Hole, length: int) -> Data | Hole:
    """Return the first ``length`` bytes of a piece; the piece itself if it has no more."""
    if _length(piece) <= length:
        return piece
    return Hole(length) if isinstance(piece, Hole) else memoryview(piece)[:length]


class _Gathered:
    """Joins small pieces into blocks."""

    def __init__(self, kept: int) -> None:
        self._blocks = Blocks(BLOCK, kept)
        self._block: bytearray | None = None
        self.length = 0

    def add(self, data: Data) -> Iterator[bytearray]:
        """Add a piece; yield the blocks that it fills."""
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
                del full  # so that it can be reused

    def rest(self) -> memoryview:
        """Return the last, unfilled block."""
        assert self._block is not None
        rest = memoryview(self._block)[: self.length]
        self._block, self.length = None, 0
        return rest


async def _pieces(source: AsyncIterable[Data | Hole], kept: int, own: bool) -> AsyncGenerator[Data | Hole, None]:
    """Yield the source's bytes in pieces of a good size, which the source cannot change any more.

    :param kept: how many pieces may be in use at once. :param own: the source does not reuse the memory of its chunks.
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
                item = view.tobytes()  # flat bytes of any other view
        if small.length or len(item) < BLOCK:
            if small.length + len(item) >= BLOCK and not isinstance(item, bytes):
                item = bytes(item)  # it is consumed in several steps, and could change between them
            for block in small.add(item):
                yield block
                del block
            continue
        # the source may reuse its memory, unless it is a download
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
    """Return the pieces of a block in order: from, to, and whether it is all zeros."""
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
    """Make a range within the volume read as zeros."""
    if length <= 0:
        return
    try:
        await file.punch(start, length)
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        for at in range(start, start + length, MOST):
            await file.pwrite(memoryview(_ZEROS)[: min(MOST, start + length - at)], at)
