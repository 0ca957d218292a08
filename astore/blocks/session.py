"""BlockSession: a pool session over any block pool, which lists, reads and writes volumes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager

from astore.backend import Context, PoolSession, Progress, QemuNode
from astore.blocks.calls import Calls
from astore.blocks.contract import Block, BlockPool
from astore.blocks.open_blocks import MODE, BlockOpener, OpenBlocks
from astore.cancellation import bounded, shielded
from astore.errors import StorageError, printable
from astore.images import formats
from astore.model import EntryError, Snapshot, VolumeInfo
from astore.volume_io import copying, qemu_img, wiping
from astore.volume_io.export import Export
from astore.volume_io.qemu_worker import QemuWorker
from astore.volume_io.volume_names import TEMPORARY, wrong_name
from astore.volume_io.wording import existing, worded

AT_ONCE = 256
"""How many records are made before other tasks of the event loop run."""


class BlockSession(PoolSession):
    """A session that can list, read and write volumes. Its errors name the volume; the core adds the pool.

    :ivar pool: the pool. :ivar context: the context that the core gave to ``open``. :ivar calls: makes the pool's calls.
    :ivar opener: opens its volumes. :ivar worker: lets qemu-img read and write them.
    """

    def __init__(self, pool: BlockPool, context: Context) -> None:
        self.pool = pool
        self.context = context
        self.calls: Calls = Calls(context)
        self.opener: BlockOpener = BlockOpener(self.calls, pool)
        self.worker: QemuWorker = QemuWorker(context)
        self._known: dict[str, Block] = {}
        self._records: dict[str, VolumeInfo] = {}  # what was made of them

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the volumes, keeping the records of unchanged ones."""
        self._check_open()
        taken_at = time.time()
        known = {} if full else self._known
        before = {} if full else previous.by_name
        blocks: dict[str, Block] = {}
        found: dict[str, VolumeInfo] = {}
        errors: list[EntryError] = []
        hidden: list[Block] = []
        listed = await self.calls.run(self.pool.list, known)
        if not isinstance(listed, (list, tuple)):  # a generator would do its work here, on the event loop
            raise TypeError(f"{type(self.pool).__name__}.list() returned no list: {listed!r}")
        for number, one in enumerate(listed):
            if not number % AT_ONCE:
                await asyncio.sleep(0)
            if isinstance(one, EntryError):
                errors.append(one)
                continue
            blocks[one.name] = one
            old = before.get(one.name)
            same = known.get(one.name) is one
            if same and old is not None and old is self._records.get(one.name):
                found[one.name] = old
            elif one.name.startswith(TEMPORARY) or one.unfinished:
                hidden.append(one)
            elif isinstance(record := self.record(one), EntryError):
                errors.append(record)
            else:
                found[one.name] = record if previous.get(one.name) != record else previous.by_name[one.name]
        total, free, *taken = await self.calls.run(self.pool.sizes)
        await self.tidy(hidden)
        self._known, self._records = blocks, found
        return Snapshot(
            {name: found[name] for name in sorted(found)},
            taken_at=taken_at,
            capacity=total,
            allocation=taken[0] if taken else total - free,
            available=free,
            errors=tuple(sorted(errors, key=lambda wrong: wrong.name)),
        )

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """Read one volume anew."""
        self._check_open()
        if name.startswith(TEMPORARY) or name in ("", ".", "..") or "/" in name or "\0" in name:
            return None
        found = await self.calls.run(self.pool.look, name)
        if not isinstance(found, Block):
            return found
        if found.unfinished:
            return None
        return self.record(found) if found.name == name else None  # None: names may differ in case alone, for example

    def record(self, block: Block) -> VolumeInfo | EntryError:
        """Return a volume's record, or an error if no volume can have its name."""
        name = block.name
        if not (name.isascii() and name.isprintable()) and (wrong := wrong_name(name)) is not None:
            return wrong
        if not name or name in (".", "..") or "/" in name:
            return EntryError(printable(name), "no volume can have its name", errno.EINVAL)
        key = self.pool.key(name)
        allocation = block.size if block.allocation is None else block.allocation
        return VolumeInfo(
            name=name,
            type=self.pool.volume_type,
            key=key,
            path=key,
            capacity=block.size,
            allocation=-(-allocation // 512) * 512,
            physical=block.size,
            format="raw",
            mode=MODE,
            uid=0,
            gid=0,
            inode=block.id,
            atime_ns=block.changed_ns,
            mtime_ns=block.changed_ns,
            ctime_ns=block.changed_ns,
            references=block.references,
            features=block.features,
            extras=block.extras,
            device=self.pool.device or 0,
            made="raw",
        )

    async def find(self, name: str) -> VolumeInfo:
        """Return the record of a volume that must exist. :raises OSError: ENOENT, or any error of the storage."""
        return existing(await self.refresh_volume(name), name)

    async def tidy(self, hidden: Sequence[Block]) -> None:
        """Handle the hidden and the unfinished volumes that a refresh saw. The base class leaves them alone."""

    def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AbstractAsyncContextManager[OpenBlocks]:
        """Open a volume's bytes; see :meth:`astore.blocks.open_blocks.BlockOpener.volume`."""
        return self.opener.volume(volume, write=write)

    async def wipe_volume(self, volume: VolumeInfo, algorithm: str, *, progress: Progress | None = None) -> None:
        """Overwrite a volume's data; see :mod:`astore.volume_io.wiping`."""
        wiping.check_algorithm(algorithm)
        async with self.opener.volume(volume, write=True) as file:
            count = copying.Count(None, progress)
            with worded(volume.name, "wipe", count):
                await wiping.wipe(file, algorithm, count, self.context.lane)

    @contextlib.asynccontextmanager
    async def qemu_node(
        self,
        volume: VolumeInfo,
        operation: str,
        backing: QemuNode | None = None,
        *,
        format: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> AsyncIterator[QemuNode]:
        """Serve the volume, which is raw, to QEMU; see :class:`astore.backend.ServesVolumes`."""
        if format is not None and not formats.is_raw(format):
            raise StorageError(
                f"{operation}: volume {printable(volume.name)!r} is raw and cannot be read as {format}",
                errno=errno.EOPNOTSUPP,
            )
        async with self.opener.volume(volume, what=operation) as file:
            with worded(volume.name, operation):
                size = (await file.stat()).size
            async with self.worker.serving(Export(file, size, size, on_bytes=on_bytes)) as storage:
                yield qemu_img.node("raw", storage)

    async def aclose(self) -> None:
        """End all work on volumes, then close the pool; a pool that hangs is abandoned."""
        try:
            await self.opener.files.end()
        finally:  # also if nobody waits any longer
            await shielded(bounded(self.calls.close(self.pool.close)))

    def _check_open(self) -> None:
        if self.opener.files.over:
            raise OSError(errno.EBADF, "the pool is closed")
