"""BlockSession: a complete pool session over any block pool.

:func:`block_session` makes a session with the pool's abilities: its class has those methods of :mod:`astore.backend`'s
abilities for which the pool has calls.
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
"""How many records are made before other tasks of the event loop run."""


class BlockSession(PoolSession):
    """A session that can list, read and write volumes. Its errors name the volume; the core adds the pool.

    :ivar pool: the pool. :ivar context: the context that the core gave to ``open``. :ivar calls: makes the pool's calls.
    :ivar opener: opens its volumes.
    """

    def __init__(self, pool: BlockPool, context: Context) -> None:
        self.pool = pool
        self.context = context
        self.calls = Calls(context)
        self.opener = BlockOpener(self.calls, pool)
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
        hidden: list[str] = []
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
            elif one.name.startswith(TEMPORARY):
                hidden.append(one.name)
            elif isinstance(record := self.record(one), EntryError):
                errors.append(record)
            else:
                found[one.name] = record if previous.get(one.name) != record else previous.by_name[one.name]
        total, free = await self.calls.run(self.pool.sizes)
        await self.tidy(hidden)
        self._known, self._records = blocks, found
        return Snapshot(
            {name: found[name] for name in sorted(found)},
            taken_at=taken_at,
            capacity=total,
            allocation=total - free,
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
            device=self.pool.device or 0,
            made="raw",
        )

    async def find(self, name: str) -> VolumeInfo:
        """Return the record of a volume that must exist. :raises OSError: ENOENT, or any error of the storage."""
        found = await self.refresh_volume(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "it is not there any more", name)
        if isinstance(found, EntryError):
            raise OSError(found.errno or errno.EIO, found.message, printable(name))
        return found

    async def tidy(self, hidden: Iterable[str]) -> None:
        """Handle the unfinished volumes that a refresh saw. The base class leaves them alone."""

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

    async def aclose(self) -> None:
        """End all work on volumes, then close the pool; a pool that hangs is abandoned."""
        await self.opener.files.end()
        await shielded(bounded(self.calls.close(self.pool.close)))

    def _check_open(self) -> None:
        if self.opener.files.over:
            raise OSError(errno.EBADF, "the pool is closed")


class MakingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.MakesBlocks`: creates, copies, converts, deletes."""

    def __init__(self, pool: BlockPool, context: Context) -> None:
        super().__init__(pool, context)
        if not isinstance(pool, MakesBlocks):
            raise TypeError(f"{pool!r} cannot make volumes")
        self._worker = QemuWorker(context)
        self._creator = BlockCreator(self.calls, pool, pool, self.opener, self._worker, self.find)
        self._tidied = False

    async def tidy(self, hidden: Iterable[str]) -> None:
        """Remove unfinished volumes of killed processes, at the first refresh. Bounded, as one call is."""
        if not self._tidied:
            await bounded(self._remove_leftovers(hidden), self.context.timeout)
            self._tidied = True

    async def _remove_leftovers(self, hidden: Iterable[str]) -> None:
        """Remove unfinished volumes; in doubt they stay."""
        removed = 0
        for name in hidden:
            try:
                removed += await self._creator.remove_leftover(name)
            except TimeoutError:
                break  # the others would take as long
            except OSError:
                pass
            except Exception as error:  # a backend may raise anything, and its pool is of use all the same
                self.context.log.warning("an unfinished volume stays", volume=printable(name), reason=repr(error))
        if removed:
            self.context.log.info("removed unfinished volumes", count=removed)

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Create an empty volume; its definition must have a ``capacity``.

        :raises DefinitionError: there can be no such volume. VolumeExistsError: the name is taken.
            StorageError: the storage failed.
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
        """Create a volume with the bytes of another of this pool, at least as large. Holes are kept."""
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
        """Create a volume with the bytes of another pool's volume. Holes are kept."""
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
        """Serve the volume, which is raw, to QEMU; see :class:`astore.backend.ConvertsVolumes`."""
        if format is not None and not formats.is_raw(format):
            raise StorageError(
                f"{operation}: volume {printable(volume.name)!r} is raw and cannot be read as {format}",
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

        :raises VolumeNotFoundError: it does not exist. VolumeBusyError: it is open for writing. StorageError: EAGAIN: its name
            leads to another volume.
        """
        await self._creator.delete(volume)


class ResizingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.ResizesBlocks`."""

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

        :raises StorageError: EAGAIN: its size is no longer that of ``volume``, or its name leads to another volume.
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
                await file.run(self.pool.resize, file.volume, capacity, allocate)
                await file.sync()
                if (resized := await self.find(volume.name)).inode != volume.inode:
                    raise another(volume)
                return resized


class RenamingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.RenamesBlocks`."""

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo:
        """Give a volume another, unused name.

        :raises VolumeExistsError: the name is taken. VolumeNotFoundError: the volume does not exist. StorageError: EAGAIN: its
            name leads to another volume than ``volume`` describes, which keeps that name.
        """
        assert isinstance(self.pool, RenamesBlocks)
        checked_name(name)
        with worded(volume.name, "rename", other=name):
            if (await self.find(volume.name)).inode != volume.inode:
                raise another(volume)
            await self.calls.to_the_end(self.pool.rename, volume.name, name)
            try:
                renamed = await self.find(name)
                if renamed.inode != volume.inode:
                    raise another(volume)
            except BaseException:
                await shielded(bounded(self.calls.run(self.pool.rename, name, volume.name)))
                raise
            return renamed


_PARTS: tuple[tuple[type, type[BlockSession]], ...] = (
    (MakesBlocks, MakingSession),
    (ResizesBlocks, ResizingSession),
    (RenamesBlocks, RenamingSession),
)


def block_session(pool: BlockPool, context: Context, kind: type[BlockSession] = BlockSession) -> BlockSession:
    """Make a session with the abilities of its pool.

    :param kind: a subclass of :class:`BlockSession` that adds or replaces abilities.
    """
    parts = tuple(part for ability, part in _PARTS if isinstance(pool, ability) and not issubclass(kind, part))
    return _session_class(kind, parts)(pool, context)


@cache
def _session_class(kind: type[BlockSession], parts: tuple[type[BlockSession], ...]) -> type[BlockSession]:
    bases = parts if kind is BlockSession else (kind, *parts)
    return type(kind.__name__, bases, {}) if bases else kind
