"""WritableTreeSession: a complete pool session over any writable tree.

Images are made and resized by :class:`~astore.trees.images.TreeImages`, and empty raw volumes by
:class:`~astore.trees.batch_create.Makers`.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager

import msgspec

from astore.backend import BackingFile, Context, Progress, QemuNode, VolumeFile
from astore.cancellation import bounded, shielded, to_the_end
from astore.errors import StorageError, printable
from astore.images import ImageError
from astore.images.formats import is_raw
from astore.model import EntryError, Snapshot, VolumeDef, VolumeInfo, VolumeType
from astore.trees import space
from astore.trees.batch_create import Makers
from astore.trees.entries import plain_record
from astore.trees.images import Grown, TreeImages, join_qemu
from astore.trees.leftovers import Leftovers
from astore.trees.opening import NewVolume, Opener, open_locked
from astore.trees.placing import HiddenFile, create_directory, found, remove_directory
from astore.trees.resolver import Resolver
from astore.trees.scanning import FileTreeSession
from astore.trees.writable import WritableTree
from astore.volume_io import copying, qemu_img, session_files, wiping
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.headers import check_whole, examined, head_and_record, unchanged_head
from astore.volume_io.open_file import OpenFile
from astore.volume_io.volume_names import checked_name
from astore.volume_io.wording import replaced, worded


class WritableTreeSession(FileTreeSession):
    """A session that can create and change volumes. Its errors name the volume; the core adds the pool.

    :ivar opener: opens its volumes, and new ones. :ivar leftovers: the files of work that was not ended.
    """

    tree: WritableTree

    def __init__(self, tree: WritableTree, context: Context) -> None:
        super().__init__(tree, context)
        self.leftovers: Leftovers = Leftovers()

        def current() -> WritableTree:
            return self.tree

        self.opener: Opener = Opener(context, current)
        self._images = TreeImages(self.opener)
        self._makers = Makers(context.lane, current)

    async def aclose(self) -> None:
        """End all work on volumes, then close the tree."""
        try:
            await self.end_work()
        finally:  # also if nobody waits any longer
            await super().aclose()

    async def end_work(self) -> None:
        """Fail all work on volumes and remove unfinished ones, in bounded time. No work begins afterwards."""
        self.opener.files.over = True
        await self._makers.aclose(session_files.CLOSING_SECONDS)
        await self.opener.files.end()

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """Refresh as for any tree, and remove unfinished volumes of killed processes; see :class:`Leftovers`."""
        with self._answering():
            snapshot = await super().refresh(previous, full=full)
        with contextlib.suppress(OSError):  # LaneTimeoutError is one
            if removed := await self.leftovers.remove(self.context.lane, self.tree, self.hidden):
                self.context.log.info("removed unfinished volumes", count=removed)
        return snapshot

    async def refresh_volume(self, name: str, before: VolumeInfo | None = None) -> VolumeInfo | EntryError | None:
        with self._answering():
            return await super().refresh_volume(name, before)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Have leftovers looked for again after the storage fails."""
        try:
            yield
        except OSError:
            self.leftovers.suspects.look_again()
            raise

    def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AbstractAsyncContextManager[OpenFile]:
        """Open a volume's bytes; see :meth:`astore.trees.opening.Opener.volume`."""
        return self.opener.volume(volume, write=write)

    # ------------------------------------------------------------------------------------------------ new volumes

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Create a volume by its definition, which must have a ``capacity``.

        A raw volume is a hole with space allocated for ``allocation`` bytes, ``dir`` is a directory, and other formats are
        made by ``qemu-img create``.

        :raises DefinitionError: there can be no such volume. VolumeExistsError: the name is taken.
            CommandError: qemu-img is missing, or failed. StorageError: the storage failed.
        """
        kind = definition.format or "raw"
        if definition.type in (VolumeType.DIR, VolumeType.NETDIR) or kind == "dir":
            return await self._create_directory(definition)
        qemu_img.check_definition(definition)
        capacity = qemu_img.needed_capacity(definition)
        if kind == "raw" and not definition.allocation:  # a hole is made in a batch with others
            with worded(definition.name, "create"):
                checked_name(definition.name)
                return await self._makers.make(definition, capacity)
        async with self.opener.new_volume(definition) as new:
            count = copying.Count(None, None)
            with worded(definition.name, "create", count):
                if kind == "raw":
                    await new.truncate(capacity)
                    await space.allocate(self.tree, new, 0, min(definition.allocation or 0, capacity), count)
                else:
                    await self._images.create(new, definition, capacity, prealloc_metadata, count)
        return new.info

    async def _create_directory(self, definition: VolumeDef) -> VolumeInfo:
        tree, name = self.tree, checked_name(definition.name)
        with worded(name, "create"):
            return await to_the_end(
                self.context.lane, create_directory, tree, definition, undo=lambda _: remove_directory(tree, name)
            )

    async def copy_volume(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Create a volume with the bytes of another of this pool, sharing blocks if the storage can.

        The copy has the source's format, and at least its capacity.

        :raises: as for :meth:`create_volume`, and VolumeNotFoundError: the source does not exist.
        """
        what = f"copy: volume {printable(source.name)!r}"
        async with self.opener.new_volume(definition) as new, self.opener.volume(source) as old:
            count = copying.Count(None, progress)
            with worded(definition.name, "copy", count):
                await old.run(unchanged_head, old.file, source, what)
                if not is_raw(source.format):
                    await join_qemu(old, source, write=False)
                size = count.total = (await old.stat()).size
                if not await copying.copy_within(old, new, size, count):
                    await _copy(old, size, new, count)
                await self._finish(new, source, definition, size, backing)
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
        async with self.opener.new_volume(definition) as new:
            count = copying.Count(size, progress)
            with worded(definition.name, "copy", count):
                await _copy(source, size, new, count)
                await self._finish(new, like, definition, size, backing)
        return new.info

    async def _finish(
        self,
        new: NewVolume,
        source: VolumeInfo | None,
        definition: VolumeDef,
        size: int,
        backing: BackingFile | None,
    ) -> None:
        """Check a copy against its source, then give it its capacity and, if it is raw, its allocation.

        :param source: the source's record. The copy includes data that the source's guest wrote meanwhile.
        """
        capacity = definition.capacity or 0
        if is_raw(definition.format):
            if capacity > size:
                await new.truncate(capacity)
            await space.allocate(self.tree, new, 0, min(definition.allocation or 0, max(capacity, size)))
        else:
            image = await new.run(_copied, self.tree, new.made, source, definition)
            if capacity > image.capacity and image.format == "luks":
                await new.truncate(capacity + image.physical - image.capacity)
            elif capacity > image.capacity:
                await self._images.resize(new, image, Grown(capacity, backing=backing))
        await new.sync()  # a failed write-back is this copy's error, with the bytes done

    def qemu_node(
        self,
        volume: VolumeInfo,
        operation: str,
        backing: QemuNode | None = None,
        *,
        format: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> AbstractAsyncContextManager[QemuNode]:
        """See :class:`astore.backend.ConvertsVolumes`."""
        return self._images.node(volume, operation, backing, format, on_bytes)

    async def convert_volume(
        self,
        source: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        on_bytes: Callable[[int], None] | None = None,
    ) -> VolumeInfo:
        """See :class:`astore.backend.ConvertsVolumes`.

        :raises: as for :meth:`create_volume`; ``capacity`` must be given, and be no less than that of the image.
        """
        return await self._images.convert(source, definition, backing=backing, stored=stored, on_bytes=on_bytes)

    # --------------------------------------------------------------------------------------------- what is there

    async def resize_volume(
        self,
        volume: VolumeInfo,
        capacity: int,
        *,
        allocate: bool = False,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """Make a volume larger or smaller; formats other than raw and luks by qemu-img.

        :raises StorageError: EOPNOTSUPP: it would grow beyond its backing image's old end, and that cannot be read here.
            EAGAIN: it is no longer what ``volume`` describes. EPERM: it has its data in other files.
        """
        what = f"resize of volume {printable(volume.name)!r}"
        async with self.opener.volume(volume, write=True) as file:
            with worded(volume.name, "resize"):
                _, now = await file.run(head_and_record, file.file, volume, volume, what)
                if now.capacity != volume.capacity:
                    raise StorageError(
                        f"{what}: it changed meanwhile, to {now.capacity} bytes; refresh it first", errno=errno.EAGAIN
                    )
                if is_raw(volume.format):
                    await self._resize_raw(file, capacity, allocate)
                elif volume.format == "luks":  # its header has no length
                    await self._resize_raw(file, capacity + volume.physical - volume.capacity, allocate)
                else:
                    await self._images.resize(file, volume, Grown(capacity, allocate, backing))
                return await file.run(self._record, file.file, volume)

    def _record(self, file: TreeFile, volume: VolumeInfo) -> VolumeInfo:
        """Read the record of an open volume. Blocks."""
        _, now = examined(file, volume.name, volume.key, volume.type, volume.made)
        resolver = Resolver(self.tree, lambda name: plain_record(self.tree, name))
        return msgspec.structs.replace(now, references=resolver.placed(now.references))

    async def _resize_raw(self, file: OpenFile, capacity: int, allocate: bool) -> None:
        size = (await file.stat()).size
        try:
            await file.truncate(capacity)
            if allocate:
                await space.allocate(self.tree, file, size, capacity - size)
            await file.sync()
        except BaseException:
            if capacity > size:  # not all of the space could be allocated: give all of it back
                await shielded(bounded(file.truncate(size)))
            raise

    async def wipe_volume(self, volume: VolumeInfo, algorithm: str, *, progress: Progress | None = None) -> None:
        """Overwrite a volume's data; see :mod:`astore.volume_io.wiping`."""
        wiping.check_algorithm(algorithm)
        async with self.opener.volume(volume, write=True) as file:
            with worded(volume.name, "wipe"):
                await file.run(_check_wipeable, file.file, volume)
            count = copying.Count(None, progress)
            with worded(volume.name, "wipe", count):
                await wiping.wipe(file, algorithm, count, self.context.lane)
                await file.note_format("raw")

    async def delete_volume(self, volume: VolumeInfo) -> None:
        """Remove a file, a link, or an empty directory.

        :raises VolumeNotFoundError: it does not exist. VolumeBusyError: it is open for writing. StorageError: ENOTEMPTY …
        """
        with worded(volume.name, "delete"):
            await to_the_end(self.context.lane, _delete, self.tree, volume)

    async def rename_volume(self, volume: VolumeInfo, name: str) -> VolumeInfo:
        """Give a volume another, unused name.

        :raises VolumeExistsError: the name is taken. VolumeNotFoundError: the volume does not exist. StorageError: EAGAIN: its
            name leads to another file than ``volume`` describes, which keeps that name.
        """
        checked_name(name)

        def rename() -> VolumeInfo:
            _check_same(self.tree, volume)
            self.tree.rename(volume.name, name)
            try:
                renamed = found(self.tree, name)
                if renamed.inode != volume.inode:
                    raise replaced(volume.name)
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
            with contextlib.suppress(PermissionError):  # removing a file does not need the right to write it
                open_locked(tree, name, True, volume.inode).close()  # no other writer has it open
        tree.unlink(name)
    tree.sync_folder()


def _check_wipeable(file: TreeFile, volume: VolumeInfo) -> None:
    """Check that a volume has its own data, by its record and by its header. :raises StorageError: EPERM: it has not."""
    what = f"wipe of volume {printable(volume.name)!r}"
    check_whole(volume, what)
    with contextlib.suppress(ImageError):  # a file with a malformed header has its data itself
        check_whole(examined(file, volume.name, volume.key, volume.type, volume.made)[1], what)


def _check_same(tree: WritableTree, volume: VolumeInfo) -> None:
    """Check that a volume's name leads to the file of its record. :raises StorageError: EAGAIN: it leads to another."""
    try:
        found = tree.stat(volume.name).inode
    except FileNotFoundError:  # a link that has become dangling
        return
    if volume.inode and found != volume.inode:
        raise replaced(volume.name)


async def _copy(source: VolumeFile, size: int, new: NewVolume, count: copying.Count) -> None:
    await new.truncate(size)
    await copying.copy_blocks(source, new, size, count)


def _copied(tree: WritableTree, made: HiddenFile, source: VolumeInfo | None, definition: VolumeDef) -> VolumeInfo:
    """Return the record of a hidden copy. Blocks. :raises StorageError: EAGAIN: it is not what its source was."""
    what = f"copy {printable(definition.name)!r}"
    _, image = examined(made.file, definition.name, tree.key(made.hidden), tree.file_type)
    if source is not None:
        head_and_record(made.file, image, source, what)
    elif image.format != definition.format:
        raise StorageError(f"{what}: its source changed meanwhile; refresh it first", errno=errno.EAGAIN)
    return image
