"""BlockCreator: creates volumes in a block pool: empty, copied, received and converted ones. It also removes them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import msgspec

from astore.backend import Progress, QemuNode, VolumeFile
from astore.blocks.calls import Calls
from astore.blocks.contract import Answer, Block, BlockPool, BlockVolume, MakesBlocks, RenamesBlocks
from astore.blocks.open_blocks import BlockOpener, OpenBlocks, close_volume
from astore.cancellation import bounded, shielded
from astore.errors import DefinitionError, StorageError, printable
from astore.images import formats
from astore.model import EntryError, VolumeDef, VolumeInfo, VolumeType
from astore.volume_io import copying, qemu_img
from astore.volume_io.export import Export, whole_sectors
from astore.volume_io.qemu_worker import OnBytes, QemuWorker, check_convertible
from astore.volume_io.volume_names import ATTEMPTS, checked_name, is_leftover, new_hidden_name
from astore.volume_io.wording import worded

Find = Callable[[str], Awaitable[VolumeInfo]]


class NewBlocks(OpenBlocks):
    """An unfinished volume. Closing it before it is ``placed`` removes it.

    :ivar names: the names that it may have. :ivar info: its record, once it is complete.
    """

    def __init__(self, creator: BlockCreator, calls: Calls, pool: BlockPool, volume: BlockVolume, name: str) -> None:
        super().__init__(calls, pool, volume, name)
        self._creator = creator
        self.names = [name]
        self.placed = False
        self.info: VolumeInfo | None = None

    async def remove(self) -> None:
        """Remove the volume, whichever of its names it has."""
        for name in self.names:
            await self._creator.remove(name, self.volume.id)

    async def close(self) -> None:
        """Close the volume, which no call uses any more."""
        try:
            await super().close()
        finally:
            if not self.placed:
                await self.remove()


class BlockCreator:
    """Creates volumes in a block pool. If the pool can rename, they are hidden until they are complete.

    :param calls: makes the pool's calls. :param pool: the pool. :param makes: the same pool, typed by its ability.
    :param opener: opens its volumes. :param worker: runs qemu-img. :param find: returns the record of an existing volume.
    """

    def __init__(
        self, calls: Calls, pool: BlockPool, makes: MakesBlocks, opener: BlockOpener, worker: QemuWorker, find: Find
    ) -> None:
        self._calls = calls
        self._pool = pool
        self._makes = makes
        self._renames = pool if isinstance(pool, RenamesBlocks) else None
        self._opener = opener
        self._worker = worker
        self._find = find

    # ------------------------------------------------------------------------------------------------ new volumes

    async def create(self, definition: VolumeDef) -> VolumeInfo:
        """Create an empty volume."""
        _check(definition)
        async with self._new(definition, qemu_img.needed_capacity(definition)) as new:
            pass
        return _info_of(new)

    async def copy(self, source: VolumeInfo, definition: VolumeDef, progress: Progress | None) -> VolumeInfo:
        """Create a volume with the bytes of another of the pool."""
        _check(definition)
        size = source.physical
        async with (
            self._new(definition, max(size, definition.capacity or 0)) as new,
            self._opener.volume(source, what="copy") as old,  # closed before the new one is placed
        ):
            with worded(source.name, "copy"):
                if (await old.stat()).size != size:
                    what = f"copy: volume {printable(source.name)!r} changed meanwhile; refresh it first"
                    raise StorageError(what, errno=errno.EAGAIN)
            await _fill(new, definition.name, old, size, progress)
        return _info_of(new)

    async def receive(
        self, source: VolumeFile, size: int, definition: VolumeDef, progress: Progress | None
    ) -> VolumeInfo:
        """Create a volume with the bytes of a volume of any pool."""
        _check(definition)
        async with self._new(definition, max(size, definition.capacity or 0)) as new:
            await _fill(new, definition.name, source, size, progress)
        return _info_of(new)

    async def convert(
        self, source: QemuNode, definition: VolumeDef, *, stored: int = 0, on_bytes: OnBytes = None
    ) -> VolumeInfo:
        """Create a volume with the disk of an image."""
        check_convertible(definition)
        _check(definition)
        room = whole_sectors(qemu_img.needed_capacity(definition))
        async with self._new(definition, room) as new:
            with worded(definition.name, "convert"):
                export = Export(new, room, room, write=True, on_bytes=on_bytes)
                async with self._worker.serving(export) as served:
                    storage = {**served, "discard": "unmap"}
                    await self._worker.convert(source, storage, definition, stored=stored, export=export)
        return _info_of(new)

    async def _found(self, new: NewBlocks) -> VolumeInfo:
        """Return the record of a placed volume. :raises OSError: EEXIST: another volume took its name."""
        info = await self._find(new.name)
        if info.inode != new.volume.id:
            raise FileExistsError(errno.EEXIST, "another volume took the name while this one was created", new.name)
        return info

    @contextlib.asynccontextmanager
    async def _new(self, definition: VolumeDef, size: int) -> AsyncIterator[NewBlocks]:
        """Create a volume: unfinished inside the block, placed at its end, and removed if the block fails.

        :raises VolumeExistsError: the name is taken. StorageError: the storage failed.
        """
        name = checked_name(definition.name)
        with worded(name, "create"):
            if await self._calls.run(self._pool.look, name) is not None:
                raise FileExistsError(errno.EEXIST, "the name is taken", name)
            new = await self._begin(definition, size)
        try:
            with self._opener.files.keeping(new):
                yield new
                with worded(name, "create"):
                    await new.sync()
                    await self._place(new, name)
                    await shielded(new.aclose())
                    new.info = await self._found(new)
                self._opener.files.check()  # the session may have ended, and closed and removed it, just now
        except BaseException:
            if new.placed:  # closing no longer removes it
                await shielded(bounded(new.remove()))
            with contextlib.suppress(Exception):
                await shielded(new.aclose())
            raise

    async def _place(self, new: NewBlocks, name: str) -> None:
        """Give a new volume its name, unless that is taken."""
        if self._renames is not None:
            new.names.append(name)
            await self._calls.to_the_end(self._renames.rename, new.name, name)
            new.name = name
        new.placed = True

    async def _begin(self, definition: VolumeDef, size: int) -> NewBlocks:
        """Create a volume; return it open and locked, so that it is not removed as a leftover."""
        allocation = None if definition.allocation is None else min(definition.allocation, size)
        wanted = msgspec.structs.replace(definition, capacity=size, allocation=allocation)
        look = self._pool.look
        for _ in range(ATTEMPTS):
            name = new_hidden_name() if self._renames is not None else definition.name
            undo = partial(_remove_made, self._makes, name)
            try:
                await self._calls.to_the_end(self._makes.create, name, size, wanted, undo=undo)
                made = None if self._renames is not None else await self._calls.to_the_end(look, name, undo=undo)
                new = await self._opened(name, made)
            except FileExistsError:
                raise
            except BaseException:
                if self._renames is not None:  # nobody else uses the hidden name
                    await shielded(bounded(self._calls.run(self._makes.remove, name)))
                raise
            if new is not None:
                return new
        raise OSError(errno.EAGAIN, "each new volume was removed as a leftover", definition.name)

    async def _opened(self, name: str, made: Block | EntryError | None) -> NewBlocks | None:
        """Open and lock a created volume; None if it was removed meanwhile.

        :param made: the volume; it is removed if it cannot be opened.
        """
        try:
            volume = await self._calls.to_the_end(self._pool.open, name, True, undo=close_volume)
        except FileNotFoundError:
            return None
        except BaseException:
            if isinstance(made, Block):
                await shielded(bounded(self.remove(name, made.id)))
            raise
        new = NewBlocks(self, self._calls, self._pool, volume, name)
        try:
            if await new.lock():
                there = await self._calls.run(self._pool.look, name)
                if isinstance(there, Block) and there.id == volume.id:
                    return new
        except BaseException:
            with contextlib.suppress(Exception):
                await shielded(new.aclose())
            raise
        await shielded(new.aclose())
        return None

    async def remove(self, name: str, id: int) -> None:
        """Remove the volume ``name``, if it has this id."""
        there = await self._calls.run(self._pool.look, name)
        if isinstance(there, Block) and there.id == id:
            with contextlib.suppress(FileNotFoundError):
                await self._calls.run(self._makes.remove, name)

    # ------------------------------------------------------------------------------------------------------ removing

    async def delete(self, volume: VolumeInfo) -> None:
        """Remove a volume that is not open for writing."""
        await self._opener.check_unused(volume)
        with worded(volume.name, "delete"):
            await self._calls.to_the_end(self._makes.remove, volume.name)

    async def remove_leftover(self, name: str) -> bool:
        """Remove an unfinished volume, if its lock shows that no process is making it; return whether it was removed.

        :raises OSError: EOPNOTSUPP: this storage has no locks. Other errors: the storage failed.
        """
        if not is_leftover(name):
            return False
        opened = await self._opener.opened(name, True)
        try:
            if not await opened.run(opened.volume.lock):
                return False
            try:
                await self._calls.run(self._makes.remove, name)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                await shielded(opened.aclose())  # this storage removes no open volume
                await self._calls.run(self._makes.remove, name)
            return True
        finally:
            await shielded(opened.aclose())


async def _fill(new: NewBlocks, name: str, source: VolumeFile, size: int, progress: Progress | None) -> None:
    """Copy ``size`` bytes into a new volume, and wait until they are safe."""
    count = copying.Count(size, progress)
    with worded(name, "copy", count):
        await copying.copy_blocks(source, new, size, count)
        await new.sync()  # a failed write-back is this copy's error, with the bytes done


def _info_of(new: NewBlocks) -> VolumeInfo:
    assert new.info is not None
    return new.info


def _remove_made(makes: MakesBlocks, name: str, _: object) -> Answer[None]:
    """Remove what was created just now for a caller who was cancelled."""
    return makes.remove(name)


def _check(definition: VolumeDef) -> None:
    """Check that a definition is of a raw volume. :raises DefinitionError: it is not."""
    if definition.type in (VolumeType.DIR, VolumeType.NETDIR) or definition.format == "dir":
        raise DefinitionError("a block pool has no directories", element="format")
    qemu_img.check_definition(definition)
    if not formats.is_raw(definition.format):
        raise DefinitionError(f"volumes of a block pool are raw, not {definition.format}", element="format")
