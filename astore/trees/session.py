"""WritableTreeSession: a whole pool session, with all work on volumes, over any writable tree.

The session itself does what a volume that is there needs; it has an :class:`~astore.trees.opening.Opener`, a
:class:`~astore.trees.creating.Creator` and :class:`~astore.trees.images.TreeImages` for the rest.
"""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import msgspec

from astore.backend import Context, Progress, QemuNode, VolumeFile
from astore.cancellation import bounded, shielded, to_the_end
from astore.errors import StorageError, printable
from astore.images import ImageError
from astore.model import Snapshot, VolumeDef, VolumeInfo
from astore.trees.creating import Creator
from astore.trees.images import Grown, TreeImages
from astore.trees.opening import Opener, open_locked
from astore.trees.placing import found, remove_leftovers
from astore.trees.resolver import Resolver
from astore.trees.scanning import FileTreeSession, plain_record
from astore.trees.space import Space
from astore.trees.writable import WritableTree
from astore.volume_io import copying, session_files, wiping
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.headers import check_whole, examined, head_and_record, is_raw
from astore.volume_io.open_file import OpenFile
from astore.volume_io.volume_names import checked_name
from astore.volume_io.wording import worded


class WritableTreeSession(FileTreeSession):
    """A session that can also change what is there. What it raises names the volume; the core adds the pool.

    :ivar opener: opens its volumes, and new ones.
    """

    tree: WritableTree

    def __init__(self, tree: WritableTree, context: Context) -> None:
        super().__init__(tree, context)
        self._looked_for_leftovers = False

        def current() -> WritableTree:
            return self.tree

        self._space = Space(context, current)
        self.opener = Opener(context, current)
        self._images = TreeImages(context, current, self.opener, self._space)
        self._creator = Creator(context, current, self.opener, self._images, self._space)

    async def aclose(self) -> None:
        """As for any tree, after what is being done to volumes was ended."""
        await self.end_work()
        await super().aclose()

    async def end_work(self) -> None:
        """Have what is being done to volumes fail, and what was being made be removed. Bounded; nothing begins after it."""
        self.opener.files.over = True
        await self._creator.aclose(session_files.CLOSING_SECONDS)
        await self.opener.files.end()

    async def refresh(self, previous: Snapshot, *, full: bool = False) -> Snapshot:
        """As for any tree; the first one removes what killed processes left in the making."""
        snapshot = await super().refresh(previous, full=full)
        if not self._looked_for_leftovers:
            if self.hidden:
                with contextlib.suppress(
                    OSError
                ):  # LaneTimeoutError is one: they are looked for at the next start again
                    removed = await self.context.lane.run(remove_leftovers, self.tree, self.hidden)
                    if removed:
                        self.context.log.info("removed volumes that were never finished", count=len(removed))
            self._looked_for_leftovers = True
        return snapshot

    def open_volume(self, volume: VolumeInfo, *, write: bool = False) -> AbstractAsyncContextManager[OpenFile]:
        """Open a volume's bytes; for writing, locked against all other writers of astore's.

        :raises VolumeNotFoundError: it is not there. VolumeBusyError: somebody is writing it. StorageError: EISDIR …;
            EAGAIN: for writing: another file has its name than the one that was protected, or asked about.
        """
        return self.opener.volume(volume, write=write)

    # ------------------------------------------------------------------------------------------------ new volumes

    async def create_volume(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """Make a volume as its definition says; ``capacity`` must be given.

        raw: a hole of that size, with space taken for ``allocation`` bytes; other formats: what ``qemu-img create`` makes;
        ``dir``: a directory.

        :raises DefinitionError: there can be no such volume. VolumeExistsError: there is something of this name.
            CommandError: qemu-img is missing, or what it said. StorageError: the storage said no.
        """
        return await self._creator.create(definition, prealloc_metadata=prealloc_metadata)

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
        return await self._creator.copy(source, definition, progress=progress, backed=backed, backing=backing)

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
        return await self._creator.receive(
            source, size, definition, progress=progress, like=like, backed=backed, backing=backing
        )

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
        backed: int | None = None,
        backing: QemuNode | None = None,
    ) -> VolumeInfo:
        """Make a volume larger or smaller; raw by itself, other formats by qemu-img.

        :raises StorageError: EOPNOTSUPP: it would grow over what backs it, which cannot be read here. EAGAIN: it is something
            else by now than ``volume`` says, so that nobody can have meant this. EPERM: it has its data in other files.
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
                elif volume.format == "luks":  # its header does not say how long it is
                    await self._resize_raw(file, capacity + volume.physical - volume.capacity, allocate)
                else:
                    await self._images.resize(file, volume, Grown(capacity, allocate, backed, backing))
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
                await self._space.take(file, size, capacity - size)
            await file.sync()
        except BaseException:
            if capacity > size:  # there may be no space for all of it: it keeps nothing of it
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


def _check_wipeable(file: TreeFile, volume: VolumeInfo) -> None:
    """:raises StorageError: EPERM: the data are in other files, by the header as it is now or as it was."""
    what = f"wipe of volume {printable(volume.name)!r}"
    check_whole(volume, what)
    with contextlib.suppress(ImageError):  # what has no header to be understood has its data here
        check_whole(examined(file, volume.name, volume.key, volume.type, volume.made)[1], what)


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
