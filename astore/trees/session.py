"""WritableTreeSession: a whole pool session, with all work on volumes, over any writable tree."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import AsyncIterator

import msgspec

from astore.backend import Progress, QemuNode, VolumeFile
from astore.cancellation import bounded, shielded, to_the_end
from astore.errors import StorageError, printable
from astore.images import ImageError
from astore.model import Permissions, VolumeDef, VolumeInfo, VolumeType
from astore.trees.headers import check_whole, examined, head_and_record, is_raw, unchanged_head
from astore.trees.images import ImageSession, info_of, needed_capacity
from astore.trees.opening import NewVolume, checked_name, open_locked, worded
from astore.trees.placing import HiddenFile, found
from astore.trees.resolver import Resolver
from astore.trees.scanning import plain_record
from astore.trees.writable import WritableTree
from astore.trees.writable_local import LocalFile
from astore.volume_io import copying, qemu_img, wiping
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.open_file import OpenFile

DIRECTORY_MODE = 0o711


class WritableTreeSession(ImageSession):
    """A session that can also change what is there. What it raises names the volume; the core adds the pool."""

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Make a volume as its definition says; ``capacity`` must be given.

        raw: a hole of that size, with space taken for ``allocation`` bytes; other formats: what ``qemu-img create`` makes;
        ``dir``: a directory.

        :raises DefinitionError: there can be no such volume. VolumeExistsError: there is something of this name.
            CommandError: qemu-img is missing, or what it said. StorageError: the storage said no.
        """
        kind = definition.format or "raw"
        if definition.type in (VolumeType.DIR, VolumeType.NETDIR) or kind == "dir":
            return await self._make_directory(definition)
        qemu_img.check_definition(definition)
        capacity = needed_capacity(definition)
        if kind == "raw" and not definition.allocation:
            return await self._make_hole(definition, capacity)
        async with self.new_volume(definition.name, definition.permissions, kind) as new:
            count = copying.Count(None, None)
            with worded(definition.name, "create", count):
                if definition.nocow:
                    await new.run(_set_nocow, new.file)
                if kind == "raw":
                    await new.truncate(capacity)
                    await self._allocate(new, 0, min(definition.allocation or 0, capacity), count)
                else:
                    await self._create_image(new, definition, capacity, prealloc_metadata, count)
        return info_of(new)

    async def _make_hole(self, definition: VolumeDef, capacity: int) -> VolumeInfo:
        """A raw volume without data: made with the others that are asked for at the same time."""
        prepare = (lambda made: _set_nocow(made.file)) if definition.nocow else None
        with worded(definition.name, "create"):
            name = checked_name(definition.name)
            return await self.makers.make(name, capacity, definition.permissions, prepare)

    async def _make_directory(self, definition: VolumeDef) -> VolumeInfo:
        name = checked_name(definition.name)
        permissions = definition.permissions or Permissions()

        def make() -> VolumeInfo:
            mode = DIRECTORY_MODE if permissions.mode is None else permissions.mode
            owners = [-1 if one is None else one for one in (permissions.owner, permissions.group)]
            self.tree.mkdir(name, mode, *(owners if owners != [-1, -1] else ()))
            try:
                self.tree.sync_folder()
                return found(self.tree, name)
            except BaseException:
                take_back()
                raise

        def take_back() -> None:
            with contextlib.suppress(OSError):
                self.tree.rmdir(name)

        with worded(name, "create"):
            return await to_the_end(self.context.lane, make, undo=lambda _: take_back())

    async def copy_volume(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """Make a new volume with the bytes of one of this pool's: shared blocks where the storage can, else its own copy.

        It has the source's format, and at least its capacity.

        :raises: as for :meth:`create_volume`, and VolumeNotFoundError: the source is not there.
        """
        what = f"copy: volume {printable(source.name)!r}"
        async with self._making(definition, progress) as (new, count), self.open_volume(source) as old:
            with worded(definition.name, "copy", count):
                await old.run(unchanged_head, old.file, source, what)
                if not is_raw(source.format):
                    await self._join_qemu(old, source, write=False)
                size = count.total = (await old.stat()).size
                if not await copying.copy_within(old, new, size, count):
                    await self._copy(old, size, new, count)
                await self._finish_copy(new, source, definition, size, backed, backing)
        return info_of(new)

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
        """Make a new volume with the bytes of another pool's, read and written in blocks; holes are kept."""
        async with self._making(definition, progress) as (new, count):
            with worded(definition.name, "copy", count):
                count.total = size
                await self._copy(source, size, new, count)
                await self._finish_copy(new, like, definition, size, backed, backing)
        return info_of(new)

    @contextlib.asynccontextmanager
    async def _making(
        self, definition: VolumeDef, progress: Progress | None
    ) -> AsyncIterator[tuple[NewVolume, copying.Count]]:
        async with self.new_volume(definition.name, definition.permissions, definition.format) as new:
            if definition.nocow:
                await new.run(_set_nocow, new.file)
            yield new, copying.Count(None, progress)

    async def _copy(self, source: VolumeFile, size: int, new: NewVolume, count: copying.Count) -> None:
        await new.truncate(size)
        await copying.copy_blocks(source, new, size, count)

    async def _finish_copy(
        self,
        new: NewVolume,
        source: VolumeInfo | None,
        definition: VolumeDef,
        size: int,
        backed: int | None,
        backing: QemuNode | None,
    ) -> None:
        """See that a copy is what its source was, and give it the capacity that it is to have, and of a raw one the space.

        :param source: the source's record. What its guest, or whoever may write to it, changed meanwhile is in the copy.
        """
        capacity = definition.capacity or 0
        if is_raw(definition.format):
            if capacity > size:
                await new.truncate(capacity)
            await self._allocate(new, 0, min(definition.allocation or 0, max(capacity, size)))
        else:
            image = await new.run(self._copied, new.made, source, definition)
            if capacity > image.capacity and image.format == "luks":
                await new.truncate(capacity + image.physical - image.capacity)
            elif capacity > image.capacity:
                await self._resize_image(new, image, capacity, False, backed, backing)
        await new.sync()  # what a cache cannot write out is this copy's error, with how far it came

    def _copied(self, made: HiddenFile, source: VolumeInfo | None, definition: VolumeDef) -> VolumeInfo:
        """The record of a copy, while it is hidden. Blocks. :raises StorageError: EAGAIN: it is not what its source was."""
        what = f"copy {printable(definition.name)!r}"
        key = self.tree.key(made.hidden)
        _, image = examined(made.file, definition.name, key, self.tree.file_type)
        if source is not None:
            head_and_record(made.file, image, source, what)
        elif image.format != definition.format:
            raise StorageError(f"{what}: its source changed meanwhile; refresh it first", errno=errno.EAGAIN)
        return image

    # --------------------------------------------------------------------------------------------- what is there

    async def resize_volume(
        self,
        volume: VolumeInfo,
        capacity: int,
        *,
        allocate: bool = False,
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """Make a volume larger or smaller; raw by itself, other formats by qemu-img.

        :raises StorageError: EOPNOTSUPP: it would grow over what backs it, which cannot be read here. EAGAIN: it is something
            else by now than ``volume`` says, so that nobody can have meant this. EPERM: it has its data in other files.
        """
        what = f"resize of volume {printable(volume.name)!r}"
        async with self.open_volume(volume, write=True) as file:
            with worded(volume.name, "resize"):
                _, now = await file.run(head_and_record, file.file, volume, volume, what)
                if now.capacity != volume.capacity:
                    raise StorageError(
                        f"{what}: it changed meanwhile, to {now.capacity} bytes; refresh it first", errno=errno.EAGAIN
                    )
                if is_raw(volume.format):
                    await self._resize_raw(file, capacity, allocate)
                elif volume.format == "luks":  # its header does not say how long it is
                    await self._resize_raw(file, capacity + volume.physical - volume.capacity, allocate)
                else:
                    await self._resize_image(file, volume, capacity, allocate, backed, backing)
                return await file.run(self._record, file.file, volume)

    def _record(self, file: TreeFile, volume: VolumeInfo) -> VolumeInfo:
        """The record of an open volume as it is now. Blocks."""
        _, now = examined(file, volume.name, volume.key, volume.type, volume.made)
        resolver = Resolver(self.tree, lambda name: plain_record(self.tree, name))
        return msgspec.structs.replace(now, references=resolver.placed(now.references))

    async def _resize_raw(self, file: OpenFile, capacity: int, allocate: bool) -> None:
        size = (await file.stat()).size
        try:
            await file.truncate(capacity)
            if allocate:
                await self._allocate(file, size, capacity - size)
            await file.sync()
        except BaseException:
            if capacity > size:  # there may be no space for all of it: it keeps nothing of it
                await shielded(bounded(file.truncate(size)))
            raise

    async def wipe_volume(self, volume: VolumeInfo, algorithm: str, *, progress: Progress | None = None) -> None:
        """Overwrite a volume's data; see :mod:`astore.volume_io.wiping`."""
        wiping.check_algorithm(algorithm)
        async with self.open_volume(volume, write=True) as file:
            with worded(volume.name, "wipe"):
                await file.run(self._check_wipeable, file.file, volume)
            count = copying.Count(None, progress)
            with worded(volume.name, "wipe", count):
                await wiping.wipe(file, algorithm, count)
                await file.note_format("raw")

    @staticmethod
    def _check_wipeable(file: TreeFile, volume: VolumeInfo) -> None:
        """:raises StorageError: EPERM: the data are in other files, by the header as it is now or as it was."""
        what = f"wipe of volume {printable(volume.name)!r}"
        check_whole(volume, what)
        with contextlib.suppress(ImageError):  # what has no header to be understood has its data here
            check_whole(examined(file, volume.name, volume.key, volume.type, volume.made)[1], what)

    async def delete_volume(self, volume: VolumeInfo) -> None:
        """Remove a file, a link, or an empty directory.

        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: ENOTEMPTY …
        """
        with worded(volume.name, "delete"):
            await to_the_end(self.context.lane, _delete, self.tree, volume)

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo:
        """Give a volume another name that nobody has.

        :raises VolumeExistsError: somebody has it. VolumeNotFoundError: it is not there. StorageError: EAGAIN: another file has
            its name than the one that was asked about; it keeps that.
        """
        checked_name(name)

        def rename() -> VolumeInfo:
            _check_same(self.tree, volume)
            self.tree.rename(volume.name, name)
            try:
                renamed = found(self.tree, name)
                if renamed.inode != volume.inode:
                    what = f"volume {printable(volume.name)!r} is another file by now; refresh it first"
                    raise StorageError(what, errno=errno.EAGAIN)
            except OSError:
                with contextlib.suppress(OSError):
                    self.tree.rename(name, volume.name)
                raise
            self.tree.sync_folder()
            return renamed

        with worded(volume.name, "rename", other=name):
            return await to_the_end(self.context.lane, rename)


# ------------------------------------------------------------------------------------------------- blocking calls


def _delete(tree: WritableTree, volume: VolumeInfo) -> None:
    name = volume.name
    mode = tree.stat(name, follow=False).mode
    _check_same(tree, volume)
    if stat.S_ISDIR(mode):
        tree.rmdir(name)
    else:
        if stat.S_ISREG(mode):
            with contextlib.suppress(PermissionError):  # a file that we may not write may still be ours to remove
                open_locked(tree, name, True, volume.inode).close()  # nobody else is writing it
        tree.unlink(name)
    tree.sync_folder()


def _check_same(tree: WritableTree, volume: VolumeInfo) -> None:
    """:raises StorageError: EAGAIN: a volume's name leads to another file than it did: it was not that which was protected."""
    try:
        found = tree.stat(volume.name).inode
    except FileNotFoundError:  # a link that leads nowhere by now
        return
    if volume.inode and found != volume.inode:
        raise StorageError(
            f"volume {printable(volume.name)!r} is another file by now; refresh it first", errno=errno.EAGAIN
        )


def _set_nocow(file: TreeFile) -> None:
    # a wish: on most file systems there is nothing to switch off
    if isinstance(file, LocalFile):
        with contextlib.suppress(OSError):
            file.set_nocow()
