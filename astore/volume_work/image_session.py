"""ImageSession: what takes qemu-img: images made, converted and resized, wherever the pool's storage is.

Storage that has paths here is given to qemu-img by them; any other is served to it (:mod:`astore.volume_work.nbd`), over the
files that the pool has open and locked already. Either way QEMU is told of each image and of what backs it, and so opens
nothing because its name stands in a header.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable

import msgspec

from astore.backend import CommandResult, QemuNode
from astore.errors import CommandError, DefinitionError, StorageError, printable
from astore.model import VolumeDef, VolumeInfo, VolumeType
from astore.shield import shielded
from astore.volume_work import copying, nbd, qemu_img
from astore.volume_work.calls import bounded, to_the_end
from astore.volume_work.contract import TreeFile
from astore.volume_work.export import SECTOR, Export
from astore.volume_work.local import LocalFile
from astore.volume_work.open_file import OpenFile
from astore.volume_work.opening import NewVolume, OpeningSession, close_file, worded
from astore.volume_work.placing import found
from astore.volume_work.private_folder import private_folder

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
    ) -> None:
        """Have qemu-img make an image in a private place, and put it on the pool."""
        async with private_folder(self.context) as folder:
            path = f"{folder}/{definition.name}"  # VMDK has it in its descriptor
            await self._create_here(path, definition, capacity, prealloc_metadata)
            size = await self._put(path, new, count)
        if prealloc_metadata and definition.backing is None and (definition.allocation or 0) >= capacity:
            await self._allocate(new, 0, size, count)

    async def _create_here(self, path: str, definition: VolumeDef, capacity: int, prealloc_metadata: bool) -> None:
        arguments = qemu_img.create_arguments(definition, capacity, prealloc_metadata=prealloc_metadata)
        operation = f"creating a {definition.format} volume"
        await qemu_img.run(
            self.context, *arguments, path, str(capacity), timeout=qemu_img.CREATE_SECONDS, operation=operation
        )

    async def _put(self, path: str, new: NewVolume, count: copying.Count) -> int:
        """Copy a file of this machine into a new volume; the volume's size."""
        lane = self.context.lane
        image = OpenFile(lane, await lane.run(_open_image, path, discard=close_file))
        try:
            made = (await image.stat()).size
            size = whole_sectors(made)
            await new.truncate(size)
            await copying.copy_blocks(image, new, made, count)
        finally:
            await shielded(image.aclose())
        return size

    # -------------------------------------------------------------------------------------------------- converting

    @contextlib.asynccontextmanager
    async def qemu_node(
        self, volume: VolumeInfo, operation: str, backing: QemuNode | None = None, *, on_bytes: OnBytes = None
    ) -> AsyncIterator[QemuNode]:
        """See :class:`astore.backend.ConvertsVolumes`."""
        what = f"{operation}: volume {printable(volume.name)!r}"
        async with self.open_volume(volume) as file:
            with worded(volume.name, operation):
                head = await file.pread(qemu_img.HEAD, 0)
                qemu_img.check_head(volume.format, head, what)
                now = await file.run(found, self.tree, volume.name)
                if (now.format, now.backing) != (volume.format, volume.backing):
                    raise StorageError(f"{what} changed meanwhile; refresh it first", errno=errno.EAGAIN)
                size = (await file.stat()).size
            path = self._path(volume.name)
            if path is not None and not is_served(backing):
                yield qemu_img.node(volume.format, qemu_img.file_node(path, volume.type), backing)
                return
            if backing is not None:
                head = qemu_img.without_backing(volume.format, head)
            export = Export(file, size, size, head=head, on_bytes=on_bytes)
            async with self._serving(export) as storage:
                yield qemu_img.node(volume.format, storage, backing)

    async def convert_volume(
        self, source: QemuNode, definition: VolumeDef, *, backing: QemuNode | None = None, on_bytes: OnBytes = None
    ) -> VolumeInfo:
        """See :class:`astore.backend.ConvertsVolumes`.

        :raises: as for :meth:`~astore.volume_work.session.WritableTreeSession.create_volume`; ``capacity`` must be given, and
            be no less than that of the image.
        """
        kind = definition.format or "raw"
        qemu_img.check_definition(definition)
        if definition.backing is not None and kind not in qemu_img.BACKED_LATER:
            raise DefinitionError(
                f"nothing can be converted into a {kind} volume that is backed", element="backingStore"
            )
        capacity = needed_capacity(definition)
        operation = f"converting from {source['driver']} to {kind}"
        async with self.new_volume(definition.name, definition.permissions) as new:
            with worded(definition.name, "convert"):
                async with self._target(new, definition, capacity, on_bytes) as (storage, export):
                    beside = export is not None or is_served(source)

                    async def run(arguments: list[str]) -> None:
                        await self._run(
                            arguments, operation, beside=beside, export=export, timeout=qemu_img.CONVERT_SECONDS
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
        """The storage of an image that is to be written, empty for the present, and backed by nothing yet."""
        kind = definition.format or "raw"
        definition = msgspec.structs.replace(definition, backing=None)
        hidden = new.made.hidden
        nobody = copying.Count(None, None)
        if kind in qemu_img.BY_LENGTH and self._path(hidden) is None:
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
            await self._create_image(new, definition, capacity, False, nobody)
        async with self._written(new, hidden, room, on_bytes) as (storage, export):
            yield storage, export
            if export is not None and kind != "raw":
                await new.truncate(whole_sectors(export.end))

    # ---------------------------------------------------------------------------------------------------- resizing

    async def _resize_image(
        self, file: OpenFile, volume: VolumeInfo, capacity: int, allocate: bool, backed: int | None
    ) -> None:
        """Have qemu-img resize an image that is open for writing. :param backed: the capacity of what backs it, if known."""
        operation = f"resizing a {volume.format} volume"
        # an image that grows over what backs it must get zeros there, and for that QEMU must see what is there
        alone = volume.backing is None or capacity <= volume.capacity
        alone = alone or (backed is not None and backed <= volume.capacity)
        if not alone and self._path(volume.name) is None:
            known = "has less capacity than what backs it"
            raise StorageError(
                f"{operation}: volume {printable(volume.name)!r} "
                + (known if backed is not None else f"is backed by {volume.backing!r}, which no active pool has"),
                errno=errno.EOPNOTSUPP,
            )
        more = max(capacity - volume.capacity, 0) if allocate else 0
        stored = (await file.stat()).size
        if self._path(volume.name) is None:
            await self._take_space(file, stored, whole_sectors(more))  # before the header says that it has it
        else:
            await self._check_space(more)
        room = whole_sectors(stored + more + more // 16)
        if volume.format == "qcow2":  # on shrinking QEMU writes all tables for what goes
            room += ROOM + whole_sectors(max(capacity, volume.capacity) // (volume.cluster_size or 512) * 16)
        async with self._written(file, volume.name, room, None, volume.type) as (storage, export):
            node = qemu_img.node(volume.format, storage)
            if not alone:
                del node["backing"]
            arguments = ["resize", "-q"]
            if capacity < volume.capacity:
                arguments.append("--shrink")
            if allocate:
                arguments.append("--preallocation=falloc")
            arguments += [qemu_img.filename(node), str(capacity)]
            beside = export is not None
            await self._run(arguments, operation, beside=beside, export=export, timeout=qemu_img.CREATE_SECONDS)
            if export is None:
                return
            # what QEMU does to a file's size it cannot do here: to take space for it, and to cut it
            end = export.end
            if allocate or capacity < volume.capacity:
                said = await self._run(
                    ["check", "--output=json", qemu_img.filename(node)],
                    operation,
                    beside=beside,
                    export=export,
                    timeout=qemu_img.CREATE_SECONDS,
                )
                end = qemu_img.image_end(said)
        await file.truncate(whole_sectors(end))
        if allocate:
            await self._allocate(file, stored, whole_sectors(end) - stored)

    # ----------------------------------------------------------------------------------------------- small things

    @contextlib.asynccontextmanager
    async def _written(
        self, file: OpenFile, name: str, size: int, on_bytes: OnBytes, type: VolumeType = VolumeType.FILE
    ) -> AsyncIterator[tuple[QemuNode, Export | None]]:
        """The storage of an image, to be written: by its path, or served with room for ``size`` bytes."""
        path = self._path(name)
        if path is not None:
            yield qemu_img.file_node(path, type), None
            return
        export = Export(file, size, (await file.stat()).size, write=True, on_bytes=on_bytes)
        async with self._serving(export) as storage:
            yield {**storage, "discard": "unmap"}, export

    @contextlib.asynccontextmanager
    async def _serving(self, export: Export) -> AsyncIterator[QemuNode]:
        async with (
            private_folder(self.context, for_socket=True) as folder,
            nbd.serving(export, self.context, folder) as storage,
        ):
            yield storage

    async def _run(
        self, arguments: list[str], operation: str, *, beside: bool, export: Export | None, timeout: float
    ) -> CommandResult:
        """Run qemu-img. :raises OSError: what the storage said of what is written there. CommandError: else."""
        if self._programs is None:
            self._programs = asyncio.Semaphore(PROGRAMS)
        async with self._programs:
            try:
                return await qemu_img.run(self.context, *arguments, timeout=timeout, operation=operation, beside=beside)
            except CommandError as error:
                if export is not None and export.error is not None:
                    raise export.error from error
                raise

    def _path(self, name: str) -> str | None:
        """What qemu-img calls an entry, if it has a path here."""
        path = self.tree.program_path(name)
        return path if path.startswith("/") else None

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
