"""BlockSession: a whole pool session over any block pool.

:func:`block_session` makes one that can do what its pool can: its class has the methods of :mod:`astore.backend`'s abilities
for which the pool has calls.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from functools import cache

from astore.backend import Context, PoolSession, Progress, QemuNode, VolumeFile
from astore.blocks.calls import Calls
from astore.blocks.contract import Block, BlockPool, MakesBlocks, RenamesBlocks, ResizesBlocks
from astore.blocks.creating import BlockCreator
from astore.blocks.open_blocks import MODE, BlockOpener, OpenBlocks, another
from astore.cancellation import bounded, shielded
from astore.errors import StorageError, printable
from astore.images import formats
from astore.model import EntryError, Snapshot, VolumeDef, VolumeInfo
from astore.volume_io import copying, qemu_img, wiping
from astore.volume_io.export import Export
from astore.volume_io.qemu_worker import QemuWorker
from astore.volume_io.volume_names import TEMPORARY, checked_name, wrong_name
from astore.volume_io.wording import worded

AT_ONCE = 256
"""How many records are made before others on the event loop have their turn."""


class BlockSession(PoolSession):
    """A session that can list, read and write volumes. What it raises names the volume; the core adds the pool.

    :ivar pool: the pool. :ivar context: what the core lends it. :ivar calls: makes the pool's calls.
    :ivar opener: opens its volumes.
    """

    def __init__(self, pool: BlockPool, context: Context) -> None:
        self.pool = pool
        self.context = context
        self.calls = Calls(context)
        self.opener = BlockOpener(self.calls, pool)
        self._known: dict[str, Block] = {}

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """List the volumes; what is known of unchanged ones is taken over."""
        self._check_open()
        taken_at = time.time()
        known = {} if full else self._known
        before = {} if full else previous.by_name
        blocks: dict[str, Block] = {}
        found: dict[str, VolumeInfo] = {}
        errors: list[EntryError] = []
        hidden: list[str] = []
        for number, one in enumerate(await self.calls.run(self.pool.list, known)):
            if not number % AT_ONCE:
                await asyncio.sleep(0)
            if isinstance(one, EntryError):
                errors.append(one)
                continue
            blocks[one.name] = one
            old = before.get(one.name)
            if old is not None and known.get(one.name) is one:
                found[one.name] = old
            elif one.name.startswith(TEMPORARY):
                hidden.append(one.name)
            elif isinstance(record := self.record(one), EntryError):
                errors.append(record)
            else:
                found[one.name] = record if previous.get(one.name) != record else previous.by_name[one.name]
        total, free = await self.calls.run(self.pool.sizes)
        await self.tidy(hidden)
        self._known = blocks
        return Snapshot(
            {name: found[name] for name in sorted(found)},
            taken_at=taken_at,
            capacity=total,
            allocation=total - free,
            available=free,
            errors=tuple(sorted(errors, key=lambda wrong: wrong.name)),
        )

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        """One volume, looked at anew."""
        self._check_open()
        if name.startswith(TEMPORARY) or name in ("", ".", "..") or "/" in name or "\0" in name:
            return None
        found = await self.calls.run(self.pool.look, name)
        return self.record(found) if isinstance(found, Block) else found

    def record(self, block: Block) -> VolumeInfo | EntryError:
        """A volume's record, or its error where no volume can have its name."""
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
            device=self.pool.device or 0,
            made="raw",
        )

    async def find(self, name: str) -> VolumeInfo:
        """The record of a volume that must be there. :raises OSError: ENOENT; what the storage says."""
        found = await self.refresh_volume(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "it is not there any more", name)
        if isinstance(found, EntryError):
            raise OSError(found.errno or errno.EIO, found.message, printable(name))
        return found

    async def tidy(self, hidden: Iterable[str]) -> None:
        """Given the names of volumes in the making by each refresh; only a pool that makes volumes does anything about them."""

    def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AbstractAsyncContextManager[OpenBlocks]:
        """Open a volume's bytes; for writing, locked against all other writers of astore's.

        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: EAGAIN: for
            writing: another volume has its name than the one that was asked about.
        """
        return self.opener.volume(volume, write=write)

    async def wipe_volume(self, volume: VolumeInfo, algorithm: str, *, progress: Progress | None = None) -> None:
        """Overwrite a volume's data; see :mod:`astore.volume_io.wiping`."""
        wiping.check_algorithm(algorithm)
        async with self.opener.volume(volume, write=True) as file:
            count = copying.Count(None, progress)
            with worded(volume.name, "wipe", count):
                await wiping.wipe(file, algorithm, count, self.context.lane)

    async def aclose(self) -> None:
        """Close the pool, after what is being done to volumes was ended; one that hangs is left behind."""
        await self.opener.files.end()
        await shielded(bounded(self.calls.close(self.pool.close)))

    def _check_open(self) -> None:
        if self.opener.files.over:
            raise OSError(errno.EBADF, "the pool is closed")


class MakingSession(BlockSession):
    """Of a pool that :class:`~astore.blocks.contract.MakesBlocks`: volumes are made, copied, converted and deleted."""

    def __init__(self, pool: BlockPool, context: Context) -> None:
        super().__init__(pool, context)
        if not isinstance(pool, MakesBlocks):
            raise TypeError(f"{pool!r} cannot make volumes")
        self._worker = QemuWorker(context)
        self._creator = BlockCreator(self.calls, pool, pool, self.opener, self._worker, self.find)
        self._tidied = False

    async def tidy(self, hidden: Iterable[str]) -> None:
        """The first refresh removes what killed processes left in the making."""
        if not self._tidied:
            if removed := await self._creator.remove_leftovers(hidden):
                self.context.log.info("removed volumes that were never finished", count=len(removed))
            self._tidied = True

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Make an empty volume; ``capacity`` must be given.

        :raises DefinitionError: there can be no such volume. VolumeExistsError: there is something of this name.
            StorageError: the storage said no.
        """
        return await self._creator.create(definition)

    async def copy_volume(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """Make a new volume with the bytes of one of this pool's, holes kept, at least as large."""
        return await self._creator.copy(source, definition, progress)

    async def receive_volume(
        self,
        source: VolumeFile,
        size: int,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        like: VolumeInfo | None = None,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """Make a new volume with the bytes of another pool's, holes kept."""
        return await self._creator.receive(source, size, definition, progress)

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
        """See :class:`astore.backend.ConvertsVolumes`. QEMU is served the volume, which is raw."""
        if format is not None and not formats.is_raw(format):
            raise StorageError(
                f"{operation}: volume {printable(volume.name)!r} is raw, and not read as {format}",
                errno=errno.EOPNOTSUPP,
            )
        async with self.opener.volume(volume, what=operation) as file:
            with worded(volume.name, operation):
                size = (await file.stat()).size
            async with self._worker.serving(Export(file, size, size, on_bytes=on_bytes)) as storage:
                yield qemu_img.node("raw", storage)

    async def convert_volume(
        self,
        source: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        on_bytes: Callable[[int], None] | None = None,
    ) -> VolumeInfo:
        """See :class:`astore.backend.ConvertsVolumes`."""
        return await self._creator.convert(source, definition, stored=stored, on_bytes=on_bytes)

    async def delete_volume(self, volume: VolumeInfo) -> None:
        """Remove a volume.

        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: EAGAIN: another
            volume has its name.
        """
        await self._creator.delete(volume)


class ResizingSession(BlockSession):
    """Of a pool that :class:`~astore.blocks.contract.ResizesBlocks`."""

    async def resize_volume(
        self,
        volume: VolumeInfo,
        capacity: int,
        *,
        allocate: bool = False,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """Make a volume larger or smaller.

        :raises StorageError: EAGAIN: it is not as large any more as ``volume`` says, or another has its name.
        """
        assert isinstance(self.pool, ResizesBlocks)
        async with self.opener.volume(volume, write=True) as file:
            with worded(volume.name, "resize"):
                size = (await file.stat()).size
                if size != volume.capacity:
                    raise StorageError(
                        f"resize of volume {printable(volume.name)!r}: it changed meanwhile, to {size} bytes; refresh it first",
                        errno=errno.EAGAIN,
                    )
                await file.run(self.pool.resize, volume.name, capacity, allocate)
                await file.sync()
                return await self.find(volume.name)


class RenamingSession(BlockSession):
    """Of a pool that :class:`~astore.blocks.contract.RenamesBlocks`."""

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo:
        """Give a volume another name that nobody has.

        :raises VolumeExistsError: somebody has it. VolumeNotFoundError: it is not there. StorageError: EAGAIN: another volume
            has its name than the one that was asked about; it keeps that.
        """
        assert isinstance(self.pool, RenamesBlocks)
        checked_name(name)
        with worded(volume.name, "rename", other=name):
            if (await self.find(volume.name)).inode != volume.inode:
                raise another(volume)
            await self.calls.to_the_end(self.pool.rename, volume.name, name)
            renamed = await self.find(name)
            if renamed.inode != volume.inode:
                with contextlib.suppress(OSError):
                    await shielded(self.calls.run(self.pool.rename, name, volume.name))
                raise another(volume)
            return renamed


_PARTS: tuple[tuple[type, type[BlockSession]], ...] = (
    (MakesBlocks, MakingSession),
    (ResizesBlocks, ResizingSession),
    (RenamesBlocks, RenamingSession),
)


def block_session(pool: BlockPool, context: Context, kind: type[BlockSession] = BlockSession) -> BlockSession:
    """A session that can do what its pool can.

    :param kind: a subclass of :class:`BlockSession` with abilities of the backend's own, or with others in their place.
    """
    parts = tuple(part for ability, part in _PARTS if isinstance(pool, ability))
    return _session_class(kind, parts)(pool, context)


@cache
def _session_class(kind: type[BlockSession], parts: tuple[type[BlockSession], ...]) -> type[BlockSession]:
    bases = parts if kind is BlockSession else (kind, *parts)
    return type(kind.__name__, bases, {}) if bases else kind
