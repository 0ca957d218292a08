"""Creator: creates volumes in a tree: empty ones, copies, and volumes received from other pools."""

from __future__ import annotations

import contextlib
import errno

from astore.backend import BackingFile, Progress, VolumeFile
from astore.cancellation import to_the_end
from astore.errors import StorageError, printable
from astore.images.formats import is_raw
from astore.model import Permissions, VolumeDef, VolumeInfo, VolumeType
from astore.trees.batch_create import Makers
from astore.trees.images import Grown, TreeImages, join_qemu
from astore.trees.opening import NewVolume, Opener
from astore.trees.placing import HiddenFile, found
from astore.trees.space import allocate
from astore.trees.writable import WritableTree
from astore.volume_io import copying, qemu_img
from astore.volume_io.headers import examined, head_and_record, unchanged_head
from astore.volume_io.volume_names import checked_name
from astore.volume_io.wording import worded

DIRECTORY_MODE = 0o711


class Creator:
    """Creates volumes in a tree. Each appears complete or not at all.

    :param opener: opens the tree's volumes, and new ones. :param images: runs qemu-img on its images.
    """

    def __init__(self, opener: Opener, images: TreeImages) -> None:
        self._opener = opener
        self._images = images
        self._makers = Makers(opener.lane, opener.current)

    async def aclose(self, seconds: float) -> None:
        """Stop batched creation, and wait at most ``seconds`` for running batches."""
        await self._makers.aclose(seconds)

    async def create(self, definition: VolumeDef, *, prealloc_metadata: bool = False) -> VolumeInfo:
        """See :meth:`astore.trees.session.WritableTreeSession.create_volume`."""
        kind = definition.format or "raw"
        if definition.type in (VolumeType.DIR, VolumeType.NETDIR) or kind == "dir":
            return await self._make_directory(definition)
        qemu_img.check_definition(definition)
        capacity = qemu_img.needed_capacity(definition)
        if kind == "raw" and not definition.allocation:
            return await self._make_hole(definition, capacity)
        async with self._opener.new_volume(definition) as new:
            count = copying.Count(None, None)
            with worded(definition.name, "create", count):
                if kind == "raw":
                    await new.truncate(capacity)
                    await allocate(self._opener.current(), new, 0, min(definition.allocation or 0, capacity), count)
                else:
                    await self._images.create(new, definition, capacity, prealloc_metadata, count)
        return new.info

    async def _make_hole(self, definition: VolumeDef, capacity: int) -> VolumeInfo:
        """Create a raw volume without data, in a batch with others."""
        with worded(definition.name, "create"):
            checked_name(definition.name)
            return await self._makers.make(definition, capacity)

    async def _make_directory(self, definition: VolumeDef) -> VolumeInfo:
        name = checked_name(definition.name)
        permissions = definition.permissions or Permissions()
        tree = self._opener.current()

        def make() -> VolumeInfo:
            mode = DIRECTORY_MODE if permissions.mode is None else permissions.mode
            owners = [-1 if one is None else one for one in (permissions.owner, permissions.group)]
            tree.mkdir(name, mode, *(owners if owners != [-1, -1] else ()))
            try:
                tree.sync_folder()
                return found(tree, name)
            except BaseException:
                take_back()
                raise

        def take_back() -> None:
            with contextlib.suppress(OSError):
                tree.rmdir(name)

        with worded(name, "create"):
            return await to_the_end(self._opener.lane, make, undo=lambda _: take_back())

    async def copy(
        self,
        source: VolumeInfo,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """See :meth:`astore.trees.session.WritableTreeSession.copy_volume`."""
        what = f"copy: volume {printable(source.name)!r}"
        async with self._opener.new_volume(definition) as new, self._opener.volume(source) as old:
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

    async def receive(
        self,
        source: VolumeFile,
        size: int,
        definition: VolumeDef,
        *,
        progress: Progress | None = None,
        like: VolumeInfo | None = None,
        backing: BackingFile | None = None,
    ) -> VolumeInfo:
        """See :meth:`astore.trees.session.WritableTreeSession.receive_volume`."""
        async with self._opener.new_volume(definition) as new:
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
            await allocate(self._opener.current(), new, 0, min(definition.allocation or 0, max(capacity, size)))
        else:
            image = await new.run(_copied, self._opener.current(), new.made, source, definition)
            if capacity > image.capacity and image.format == "luks":
                await new.truncate(capacity + image.physical - image.capacity)
            elif capacity > image.capacity:
                await self._images.resize(new, image, Grown(capacity, backing=backing))
        await new.sync()  # a failed write-back is this copy's error, with the bytes done


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
