"""MakingSession: creates volumes in a block pool: empty, copied, received and converted ones. It also removes them."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import msgspec

from astore.backend import BackingFile, Context, Progress, QemuNode, VolumeFile
from astore.blocks.contract import Answer, Block, BlockPool, BlockVolume, ClonesBlocks, MakesBlocks, RenamesBlocks
from astore.blocks.leftovers import Leftovers
from astore.blocks.open_blocks import OpenBlocks, close_volume
from astore.blocks.session import BlockSession
from astore.cancellation import bounded, shielded
from astore.errors import DefinitionError, StorageError, printable
from astore.images import formats
from astore.model import EntryError, Snapshot, VolumeDef, VolumeInfo, VolumeType
from astore.volume_io import copying, qemu_img
from astore.volume_io.export import Export, whole_sectors
from astore.volume_io.qemu_worker import check_convertible
from astore.volume_io.volume_names import ATTEMPTS, IN_PROGRESS, checked_name, new_hidden_name
from astore.volume_io.wording import replaced, worded


class NewBlocks(OpenBlocks):
    """An unfinished volume. Closing it before it is ``placed`` removes it.

    :ivar info: its record, once it is placed.
    """

    info: VolumeInfo

    def __init__(self, session: MakingSession, volume: BlockVolume, name: str, final_name: str) -> None:
        super().__init__(session.calls, session.pool, volume, name)
        self._session = session
        self._names = [name]  # which it may have
        self._final_name = final_name
        self.placed: bool = False

    async def place(self) -> None:
        """Give the volume its name, close it and read its record. :raises OSError: EEXIST: another volume took the name."""
        await self.sync()
        if isinstance(self._pool, RenamesBlocks):
            self._names.append(self._final_name)
            await self._calls.to_the_end(self._pool.rename, self.name, self._final_name)
            self.name = self._final_name
        self.placed = True
        await shielded(self.aclose())
        self.info = await self._session.find(self.name)
        if self.info.inode != self.volume.id:
            raise FileExistsError(errno.EEXIST, "another volume took the name while this one was created", self.name)

    async def remove(self) -> None:
        """Remove the volume, whichever of its names it has."""
        for name in self._names:
            await self._session.remove(name, self.volume.id)

    async def aclose(self) -> None:
        try:
            await super().aclose()
        finally:  # also if a call never returns: what it made is a leftover then, locked as long as it is written to
            IN_PROGRESS.discard(self._names[0])

    async def close(self) -> None:
        try:
            await super().close()
        finally:
            if not self.placed:
                await self.remove()


class MakingSession(BlockSession):
    """The session of a pool with :class:`~astore.blocks.contract.MakesBlocks`: creates, copies, converts, deletes.

    If the pool can rename, new volumes are hidden until they are complete.

    :ivar leftovers: the hidden volumes of work that was not ended.
    """

    def __init__(self, pool: BlockPool, context: Context) -> None:
        super().__init__(pool, context)
        assert isinstance(pool, MakesBlocks)
        self._makes: MakesBlocks = pool
        self._renames = isinstance(pool, RenamesBlocks)
        self.leftovers: Leftovers = Leftovers(self.calls, self.opener, pool, context)

    # ------------------------------------------------------------------------------------------------ new volumes

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Create an empty volume; its definition must have a ``capacity``.

        :raises DefinitionError: there can be no such volume. VolumeExistsError: the name is taken.
            StorageError: the storage failed.
        """
        _check(definition)
        async with self._new(definition, qemu_img.needed_capacity(definition)) as new:
            pass
        return new.info

    async def copy_volume(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Create a volume with the bytes of another of this pool, at least as large. Holes are kept.

        It is a clone if the storage can make one, unless its definition allocates all of it.
        """
        _check(definition)
        size = source.physical
        if isinstance(self.pool, ClonesBlocks) and (definition.allocation or 0) < (definition.capacity or size):
            try:
                return await self._clone(self.pool, source, definition, progress)
            except StorageError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
        async with (
            self._new(definition, max(size, definition.capacity or 0)) as new,
            self.opener.volume(source, what="copy") as old,  # closed before the new one is placed
        ):
            with worded(source.name, "copy"):
                if (await old.stat()).size != size:
                    raise _changed(source)
            await _fill(new, definition.name, old, size, progress)
        return new.info

    async def _clone(
        self, pool: ClonesBlocks, source: VolumeInfo, definition: VolumeDef, progress: Progress | None
    ) -> VolumeInfo:
        """Create a clone. :raises StorageError: EOPNOTSUPP: the storage can make none of this volume."""
        with worded(source.name, "copy"):
            there = await self.calls.run(self.pool.look, source.name)
            if not isinstance(there, Block):
                raise OSError(errno.ENOENT if there is None else there.errno or errno.EIO, "it cannot be read")
        if there.id != source.inode:
            raise replaced(source.name, "volume")
        if there.size != source.physical:
            raise _changed(source)
        size = max(source.physical, definition.capacity or 0)
        async with self._new(definition, size, partial(pool.clone, there)) as new:
            copying.Count(source.physical, progress).add(source.physical)
        return new.info

    async def receive_volume(
        self,
        source: VolumeFile,
        size: int,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        like: VolumeInfo | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Create a volume with the bytes of another pool's volume. Holes are kept."""
        _check(definition)
        async with self._new(definition, max(size, definition.capacity or 0)) as new:
            await _fill(new, definition.name, source, size, progress)
        return new.info

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
        check_convertible(definition)
        _check(definition)
        room = whole_sectors(qemu_img.needed_capacity(definition))
        async with self._new(definition, room) as new:
            with worded(definition.name, "convert"):
                export = Export(new, room, room, write=True, on_bytes=on_bytes)
                async with self.worker.serving(export) as served:
                    storage = {**served, "discard": "unmap"}
                    await self.worker.convert(source, storage, definition, stored=stored, export=export)
        return new.info

    @contextlib.asynccontextmanager
    async def _new(
        self, definition: VolumeDef, size: int, make: Callable[..., Answer[None]] | None = None
    ) -> AsyncIterator[NewBlocks]:
        """Create a volume: unfinished inside the block, placed at its end, and removed if the block fails.

        :param make: creates it with the bytes of another, instead of the pool's ``create``.
        :raises VolumeExistsError: the name is taken. StorageError: the storage failed.
        """
        name = checked_name(definition.name)
        with worded(name, "create"):
            if await self.calls.run(self.pool.look, name) is not None:
                raise FileExistsError(errno.EEXIST, "the name is taken", name)
            new = await self._begin(definition, size, make or self._makes.create)
        async with self.opener.files.making(new, name):
            yield new

    async def _begin(self, definition: VolumeDef, size: int, make: Callable[..., Answer[None]]) -> NewBlocks:
        """Create a volume; return it open and locked, so that it is not removed as a leftover."""
        allocation = None if definition.allocation is None else min(definition.allocation, size)
        wanted = msgspec.structs.replace(definition, capacity=size, allocation=allocation)
        for _ in range(ATTEMPTS):
            if not self._renames:
                new = await self._made(wanted, definition.name, make)
            else:
                name = new_hidden_name()
                IN_PROGRESS.add(name)
                new = None
                try:
                    new = await self._made(wanted, name, make)
                finally:
                    if new is None:
                        IN_PROGRESS.discard(name)
            if new is not None:
                return new
        raise OSError(errno.EAGAIN, "each new volume was removed as a leftover", definition.name)

    async def _made(self, wanted: VolumeDef, name: str, make: Callable[..., Answer[None]]) -> NewBlocks | None:
        """Create a volume ``name``, open and lock it; None if it was removed meanwhile."""
        undo = partial(_remove_made, self._makes, name)
        try:
            await self.calls.to_the_end(make, name, wanted.capacity, wanted, undo=undo)
            made = None if self._renames else await self.calls.to_the_end(self.pool.look, name, undo=undo)
            return await self._opened(wanted.name, name, made)
        except FileExistsError:
            raise
        except BaseException:
            if self._renames:  # nobody else uses the hidden name
                await shielded(bounded(self.calls.run(self._makes.remove, name)))
            raise

    async def _opened(self, final_name: str, name: str, made: Block | EntryError | None) -> NewBlocks | None:
        """Open and lock a created volume; None if it was removed meanwhile.

        :param made: the volume; it is removed if it cannot be opened.
        """
        try:
            volume = await self.calls.to_the_end(self.pool.open, name, True, undo=close_volume)
        except FileNotFoundError:
            return None
        except BaseException:
            if isinstance(made, Block):
                await shielded(bounded(self.remove(name, made.id)))
            raise
        new = NewBlocks(self, volume, name, final_name)
        try:
            if await new.lock():
                there = await self.calls.run(self.pool.look, name)
                if isinstance(there, Block) and there.id == volume.id:
                    return new
        except BaseException:
            with contextlib.suppress(Exception):
                await shielded(new.aclose())
            raise
        with contextlib.suppress(OSError):  # whoever takes it for a leftover may have it open
            await shielded(new.aclose())
        return None

    async def remove(self, name: str, id: int) -> None:
        """Remove the volume ``name``, if it has this id."""
        there = await self.calls.run(self.pool.look, name)
        if isinstance(there, Block) and there.id == id:
            try:
                await self.calls.run(self._makes.remove, name, id)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EAGAIN):  # it has gone, or lost its name
                    raise

    # ------------------------------------------------------------------------------------------------------ removing

    async def delete_volume(self, volume: VolumeInfo) -> None:
        """Remove a volume.

        :raises VolumeNotFoundError: it does not exist. VolumeBusyError: it is open for writing. StorageError: EAGAIN: its name
            leads to another volume.
        """
        async with self.opener.volume(volume, write=True):
            pass  # no other writer has it open
        with worded(volume.name, "delete"), self.leftovers.removing(volume.name, volume.inode):
            await self.calls.to_the_end(self._makes.remove, volume.name, volume.inode)

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """Refresh, and remove unfinished volumes that nobody works on; see :class:`Leftovers`."""
        with self.leftovers.looked_for_after_errors():
            return await super().refresh(previous, full=full)

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        with self.leftovers.looked_for_after_errors():
            return await super().refresh_volume(name, before)

    async def tidy(self, hidden: Sequence[Block]) -> None:
        await self.leftovers.remove(hidden)


def _changed(source: VolumeInfo) -> StorageError:
    what = f"copy: volume {printable(source.name)!r} changed meanwhile; refresh it first"
    return StorageError(what, errno=errno.EAGAIN)


async def _fill(new: NewBlocks, name: str, source: VolumeFile, size: int, progress: Progress | None) -> None:
    """Copy ``size`` bytes into a new volume, and wait until they are safe."""
    count = copying.Count(size, progress)
    with worded(name, "copy", count):
        await copying.copy_blocks(source, new, size, count)
        await new.sync()  # a failed write-back is this copy's error, with the bytes done


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
