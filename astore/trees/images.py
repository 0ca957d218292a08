"""ImageSession: what takes qemu-img: images made, converted and resized, wherever the pool's storage is.

qemu-img opens nothing by a name that somebody else could have written. It inherits raw volumes and files in the making as open
files, where the storage has such. Everything else is served to it (:mod:`astore.volume_io.nbd`), over the file that the pool
has open already, with the header that was checked. It is told of each image which files belong to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from astore.backend import CommandResult, QemuNode
from astore.cancellation import bounded, cleaned_up, shielded, to_the_end
from astore.errors import CommandError, DefinitionError, StorageError, VolumeBusyError, printable
from astore.images import HEADER_SIZE, formats
from astore.images.headers import without_references
from astore.model import VolumeDef, VolumeInfo, VolumeType
from astore.trees.headers import check_whole, is_raw, unchanged_head
from astore.trees.opening import NewVolume, OpeningSession, close_file, worded
from astore.trees.writable_local import LocalFile
from astore.volume_io import copying, nbd, qemu_img
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.export import SECTOR, Export
from astore.volume_io.open_file import OpenFile
from astore.volume_io.private_folder import private_folder

ALLOCATE_AT_ONCE = 1 << 30
"""Bytes that one call takes space for."""

PROGRAMS = 4
"""How many qemu-img one pool has at work at once."""

ROOM = 64 << 20
"""More bytes than an image's tables can grow by when its capacity changes: QEMU takes qcow2's up to 32 MiB and 8 MiB."""

OnBytes = Callable[[int], None] | None


class ImageSession(OpeningSession):
    """A session that can have images made, converted and resized."""

    _programs: asyncio.Semaphore | None = None

    # ------------------------------------------------------------------------------------------------------ making

    async def _create_image(
        self, new: NewVolume, definition: VolumeDef, capacity: int, prealloc_metadata: bool, count: copying.Count
    ) -> bytes:
        """Have qemu-img make an image in a private place, and put it on the pool; the image's first bytes."""
        async with private_folder(self.context) as folder:
            path = f"{folder}/{definition.name}"  # VMDK has it in its descriptor
            await self._create_here(path, definition, capacity, prealloc_metadata)
            size, head = await self._put(path, new, count)
        if prealloc_metadata and definition.backing is None and (definition.allocation or 0) >= capacity:
            await self._allocate(new, 0, size, count)
        return head

    async def _create_here(self, path: str, definition: VolumeDef, capacity: int, prealloc_metadata: bool) -> None:
        arguments = qemu_img.create_arguments(definition, capacity, prealloc_metadata=prealloc_metadata)
        operation = f"creating a {definition.format} volume"
        await self._run([*arguments, path, str(capacity)], operation, timeout=qemu_img.CREATE_SECONDS)

    async def _put(self, path: str, new: NewVolume, count: copying.Count) -> tuple[int, bytes]:
        """Copy a file of this machine into a new volume; the volume's size, and its first bytes."""
        lane = self.context.lane
        image = OpenFile(lane, await lane.run(_open_image, path, discard=close_file))
        try:
            made = (await image.stat()).size
            head = await image.pread(HEADER_SIZE, 0)
            size = whole_sectors(made)
            await new.truncate(size)
            await copying.copy_blocks(image, new, made, count)
        finally:
            await shielded(image.aclose())
        return size, head

    # -------------------------------------------------------------------------------------------------- converting

    @contextlib.asynccontextmanager
    async def qemu_node(
        self,
        volume: VolumeInfo,
        operation: str,
        backing: QemuNode | None = None,
        *,
        format: str | None = None,
        on_bytes: OnBytes = None,
    ) -> AsyncIterator[QemuNode]:
        """See :class:`astore.backend.ConvertsVolumes`."""
        kind = volume.format if format is None else format
        what = f"{operation}: volume {printable(volume.name)!r}"
        if not formats.can_be_read(kind):
            raise StorageError(f"{what}: images of format {kind!r} are not read", errno=errno.EOPNOTSUPP)
        async with self.open_volume(volume) as file:
            with worded(volume.name, operation):
                head = await file.run(unchanged_head, file.file, volume, what)
                if not is_raw(kind):
                    check_whole(volume, what)
                await self._join_qemu(file, volume, write=False)
                size = (await file.stat()).size
            if is_raw(kind):
                head = b""
            elif formats.can_be_backed(kind):  # QEMU takes a node together with the name in the header, which is wrong
                head = without_references(kind, head)
            async with self._storage(file, size, head=head, type=volume.type, on_bytes=on_bytes) as storage:
                yield qemu_img.node(kind, storage, backing)

    @staticmethod
    async def _join_qemu(file: OpenFile, volume: VolumeInfo, *, write: bool) -> None:
        """:raises VolumeBusyError: a QEMU has the volume open in a way that does not go with this."""
        if not await file.run(lambda: file.file.begin_as_qemu(write=write)):
            raise VolumeBusyError(
                f"volume {printable(volume.name)!r} is in use by a running QEMU", operation="write" if write else "read"
            )

    async def convert_volume(
        self,
        source: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        on_bytes: OnBytes = None,
    ) -> VolumeInfo:
        """See :class:`astore.backend.ConvertsVolumes`.

        :raises: as for :meth:`~astore.trees.session.WritableTreeSession.create_volume`; ``capacity`` must be given, and
            be no less than that of the image.
        """
        kind = definition.format or "raw"
        qemu_img.check_definition(definition)
        if definition.backing is not None and not formats.can_be_backed_later(kind):
            raise DefinitionError(
                f"nothing can be converted into a {kind} volume that is backed", element="backingStore"
            )
        capacity = needed_capacity(definition)
        operation = f"converting from {source['driver']} to {kind}"
        async with self.new_volume(definition.name, definition.permissions, kind) as new:
            with worded(definition.name, "convert"):
                async with self._target(new, definition, capacity, on_bytes) as (storage, export):

                    async def run(arguments: list[str]) -> None:
                        await self._run(
                            arguments,
                            operation,
                            nodes=(source, storage, backing or {}),
                            stored=stored,
                            export=export,
                            timeout=qemu_img.CONVERT_SECONDS,
                        )

                    thin = backing is not None
                    if definition.backing is not None and backing is None:
                        # something unknown, so that nothing is left to what is there really
                        backing = {"driver": "null-co", "size": capacity, "read-zeroes": False}
                    target = qemu_img.node(kind, storage, backing)
                    await run(qemu_img.convert_arguments(definition, source, target, thin=thin))
                    if definition.backing is not None:
                        await run(qemu_img.rebase_arguments(definition, qemu_img.node(kind, storage)))
                if kind == "raw":
                    await self._allocate(new, 0, min(definition.allocation or 0, capacity))
        return info_of(new)

    @contextlib.asynccontextmanager
    async def _target(
        self, new: NewVolume, definition: VolumeDef, capacity: int, on_bytes: OnBytes
    ) -> AsyncIterator[tuple[QemuNode, Export | None]]:
        """Yield the storage of a new, empty image without a backing file, and what serves it, if anything does."""
        kind = definition.format or "raw"
        definition = msgspec.structs.replace(definition, backing=None)
        nobody = copying.Count(None, None)
        head = b""
        # elsewhere somebody could write names of files into the header before QEMU reads it
        inherited = new.file.in_kernel and not (self.tree.shared and formats.can_be_backed(kind))
        if formats.grows(kind) and not inherited:
            async with private_folder(self.context) as folder:
                path = f"{folder}/{definition.name}"  # VMDK has it in its descriptor
                await self._create_here(path, definition, capacity, False)
                yield qemu_img.file_node(path), None
                await self._put(path, new, nobody)
            return
        if kind == "raw":
            room = whole_sectors(capacity)
            await new.truncate(room)
        else:
            room = whole_sectors(capacity + capacity // 16) + ROOM  # tables take a 64th and a 256th at most
            head = await self._create_image(new, definition, capacity, False, nobody)
        if inherited:
            async with self._inherited(new, VolumeType.FILE) as storage:
                yield storage, None
            return
        export = Export(new, room, (await new.stat()).size, write=True, head=head, on_bytes=on_bytes)
        async with self._serving(export) as storage:
            yield {**storage, "discard": "unmap"}, export
        if kind != "raw":
            await new.truncate(whole_sectors(export.end))

    # ---------------------------------------------------------------------------------------------------- resizing

    async def _resize_image(
        self,
        file: OpenFile,
        volume: VolumeInfo,
        capacity: int,
        allocate: bool,
        backed: int | None,
        backing: QemuNode | None,
    ) -> None:
        """Have qemu-img resize an image that is open for writing.

        :param backed: the capacity of what backs it, if known. :param backing: the node of that.
        """
        operation = f"resizing a {volume.format} volume"
        what = f"{operation}: volume {printable(volume.name)!r}"
        if not formats.can_be_read(volume.format):
            raise StorageError(f"{what}: images of format {volume.format!r} are not resized", errno=errno.EOPNOTSUPP)
        head = await file.run(unchanged_head, file.file, volume, what)
        check_whole(volume, what)
        # an image that grows over what backs it must get zeros there, and for that QEMU must see what is there
        alone = volume.backing is None or capacity <= volume.capacity
        alone = alone or (backed is not None and backed <= volume.capacity)
        if not alone and backing is None:
            raise StorageError(
                f"{what} is backed by {printable(volume.backing or '')!r}, which cannot be read here: "
                "what it gains would show what is there",
                errno=errno.EOPNOTSUPP,
            )
        await self._join_qemu(file, volume, write=True)
        more = max(capacity - volume.capacity, 0) if allocate else 0
        stored = (await file.stat()).size
        await self._take_space(file, stored, whole_sectors(more))  # before the header says that it has it
        room = whole_sectors(stored + more + more // 16)
        if volume.format == "qcow2":  # on shrinking QEMU writes all tables for what goes
            room += ROOM + whole_sectors(max(capacity, volume.capacity) // (volume.cluster_size or 512) * 16)
        export = Export(file, room, stored, write=True, head=head)
        async with self._serving(export) as served, self._shim(None if alone else backing, backed or 0) as below:
            node = qemu_img.node(volume.format, {**served, "discard": "unmap"}, below)
            arguments = ["resize", "-q"]
            if capacity < volume.capacity:
                arguments.append("--shrink")
            if allocate:
                arguments.append("--preallocation=falloc")
            arguments += [qemu_img.filename(node), str(capacity)]

            async def run(arguments: list[str]) -> CommandResult:
                return await self._run(
                    arguments,
                    operation,
                    nodes=(backing or {},),
                    stored=room,
                    export=export,
                    timeout=qemu_img.CONVERT_SECONDS,
                )

            try:
                await run(arguments)
            except BaseException:
                if more:  # the space that was taken is in no header
                    await shielded(bounded(file.truncate(export.end)))
                raise
            # what QEMU does to a file's size it cannot do here: to take space for it, and to cut it
            end = export.end
            if allocate or capacity < volume.capacity:
                end = qemu_img.image_end(await run(["check", "--output=json", qemu_img.filename(node)]))
        await file.truncate(whole_sectors(end))
        if allocate:
            await self._allocate(file, stored, whole_sectors(end) - stored)

    @contextlib.asynccontextmanager
    async def _shim(self, backing: QemuNode | None, capacity: int) -> AsyncIterator[QemuNode | None]:
        """The node of what backs an image whose header keeps its own name for that.

        QEMU mixes a node with that name, unless the node has a file name of its own. So QEMU gets an empty image of ours,
        which is backed by the node.
        """
        if backing is None:
            yield None
            return
        name = qemu_img.filename(backing)
        if len(name.encode()) > qemu_img.LONGEST_NAME:
            raise StorageError("it is backed by a chain that is too long to be resized", errno=errno.EOPNOTSUPP)
        async with private_folder(self.context) as folder:
            path = f"{folder}/backing.qcow2"
            create = ["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", backing["driver"], path, str(capacity)]
            await self._run(create, "resizing a backed volume")
            yield {"driver": "qcow2", "file": qemu_img.file_node(path)}

    # ----------------------------------------------------------------------------------------------- small things

    @contextlib.asynccontextmanager
    async def _storage(
        self, file: OpenFile, size: int, *, head: bytes, type: VolumeType, on_bytes: OnBytes
    ) -> AsyncIterator[QemuNode]:
        """The storage of an image that is read: inherited, where its header (``head``) does not matter, or served."""
        inherited = not head and file.file.in_kernel
        export = Export(file, size, size, head=head, on_bytes=on_bytes)
        async with self._inherited(file, type) if inherited else self._serving(export) as storage:
            yield storage

    @contextlib.asynccontextmanager
    async def _inherited(self, file: OpenFile, type: VolumeType) -> AsyncIterator[QemuNode]:
        """An open file that qemu-img inherits."""
        lane = self.context.lane
        descriptor = await to_the_end(lane, file.guarded, file.file.open_again, undo=os.close)
        try:
            yield qemu_img.descriptor_node(descriptor, type)
        finally:
            await cleaned_up(lane, lambda: os.close(descriptor))

    @contextlib.asynccontextmanager
    async def _serving(self, export: Export) -> AsyncIterator[QemuNode]:
        async with (
            private_folder(self.context, for_socket=True) as folder,
            nbd.serving(export, self.context, folder) as storage,
        ):
            yield storage

    async def _run(
        self,
        arguments: list[str],
        operation: str,
        *,
        nodes: Sequence[QemuNode] = (),
        stored: int = 0,
        export: Export | None = None,
        timeout: float = qemu_img.CREATE_SECONDS,
    ) -> CommandResult:
        """Run qemu-img.

        :param nodes: what it is told of, whose open files it inherits. :param stored: bytes that it may have to read.
        :raises OSError: what the storage said of what is written there. CommandError: else.
        """
        if self._programs is None:
            self._programs = asyncio.Semaphore(PROGRAMS)
        async with self._programs:
            try:
                return await qemu_img.run(
                    *arguments,
                    timeout=timeout,
                    operation=operation,
                    limits=qemu_img.limits(stored),
                    descriptors=qemu_img.descriptors(*nodes),
                )
            except CommandError as error:
                if export is not None and export.error is not None:
                    raise export.error from error
                raise

    async def _allocate(self, file: OpenFile, offset: int, length: int, count: copying.Count | None = None) -> None:
        """Take space for a range. :raises OSError: ENOSPC: there is not so much; then none was taken in vain."""
        if length <= 0:
            return
        has = (await file.stat()).blocks * 512 if offset == 0 else 0
        await self._check_space(length - min(has, length))
        for at in range(offset, offset + length, ALLOCATE_AT_ONCE):
            some = min(ALLOCATE_AT_ONCE, offset + length - at)
            await to_the_end(file.lane, file.guarded, file.file.allocate, at, some)
            if count is not None:
                count.add(some)

    async def _take_space(self, file: OpenFile, size: int, length: int) -> None:
        """Take space after the end of a file, which had ``size`` bytes; all of it or nothing."""
        try:
            await self._allocate(file, size, length)
        except BaseException:
            await shielded(bounded(file.truncate(size)))
            raise

    async def _check_space(self, length: int) -> None:
        if length > 0:
            _, free = await self.context.lane.run(self.tree.statvfs)
            if length > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _open_image(path: str) -> TreeFile:
    return LocalFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)


def is_served(node: QemuNode | None) -> bool:
    """Whether QEMU gets an image from this process, and so waits for its lanes."""
    return node is not None and node["file"]["driver"] == "nbd"


def needed_capacity(definition: VolumeDef) -> int:
    """:raises DefinitionError: it has none."""
    if definition.capacity is None:
        raise DefinitionError(f"volume {definition.name!r} needs a capacity", element="capacity")
    return definition.capacity


def whole_sectors(size: int) -> int:
    """As many bytes, and as many more as make whole sectors."""
    return (size + SECTOR - 1) // SECTOR * SECTOR


def info_of(new: NewVolume) -> VolumeInfo:
    """The record of a volume that is in its place."""
    assert new.info is not None
    return new.info
