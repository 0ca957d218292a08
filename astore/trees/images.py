"""TreeImages: images in a tree that qemu-img makes, reads, converts and resizes."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import msgspec

from astore.backend import CommandResult, Context, QemuNode
from astore.cancellation import bounded, shielded
from astore.errors import StorageError, VolumeBusyError, printable
from astore.images import HEADER_SIZE, formats
from astore.images.headers import without_references
from astore.model import VolumeDef, VolumeInfo, VolumeType
from astore.trees.opening import NewVolume, Opener, close_file, info_of
from astore.trees.space import Space
from astore.trees.writable import WritableTree
from astore.volume_io import copying, qemu_img
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.export import Export, whole_sectors
from astore.volume_io.headers import check_whole, is_raw, unchanged_head
from astore.volume_io.local_file import LocalFile
from astore.volume_io.open_file import OpenFile
from astore.volume_io.qemu_worker import OnBytes, QemuWorker, check_convertible
from astore.volume_io.wording import worded

ROOM = 64 << 20
"""More bytes than an image's tables can grow by when its capacity changes: QEMU takes qcow2's up to 32 MiB and 8 MiB."""


class Grown(NamedTuple):
    """How an image is to be resized.

    :ivar capacity: in bytes. :ivar allocate: take the space for what it gains.
    :ivar backed: the capacity of what backs it, if known. :ivar backing: the node of that.
    """

    capacity: int
    allocate: bool = False
    backed: int | None = None
    backing: QemuNode | None = None


class TreeImages:
    """Has qemu-img work on the images of a tree.

    :param context: the pool's. :param current: gives its tree. :param opener: opens its volumes.
    :param space: takes space there.
    """

    def __init__(self, context: Context, current: Callable[[], WritableTree], opener: Opener, space: Space) -> None:
        self._lane = context.lane
        self._current = current
        self._opener = opener
        self._space = space
        self._worker = QemuWorker(context)

    # ------------------------------------------------------------------------------------------------------ making

    async def create(
        self, new: NewVolume, definition: VolumeDef, capacity: int, prealloc_metadata: bool, count: copying.Count
    ) -> bytes:
        """Have qemu-img make an image in a private place, and put it on the pool; the image's first bytes."""
        async with self._worker.new_image(definition, capacity, prealloc_metadata=prealloc_metadata) as path:
            size, head = await self._put(path, new, count)
        if prealloc_metadata and definition.backing is None and (definition.allocation or 0) >= capacity:
            await self._space.take(new, 0, size, count)
        return head

    async def _put(self, path: str, new: NewVolume, count: copying.Count) -> tuple[int, bytes]:
        """Copy a file of this machine into a new volume; the volume's size, and its first bytes."""
        image = OpenFile(self._lane, await self._lane.run(_open_image, path, discard=close_file))
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
    async def node(
        self, volume: VolumeInfo, operation: str, backing: QemuNode | None, format: str | None, on_bytes: OnBytes
    ) -> AsyncIterator[QemuNode]:
        """See :meth:`astore.backend.ConvertsVolumes.qemu_node`."""
        kind = volume.format if format is None else format
        what = f"{operation}: volume {printable(volume.name)!r}"
        if not formats.can_be_read(kind):
            raise StorageError(f"{what}: images of format {kind!r} are not read", errno=errno.EOPNOTSUPP)
        async with self._opener.volume(volume) as file:
            with worded(volume.name, operation):
                head = await file.run(unchanged_head, file.file, volume, what)
                if not is_raw(kind):
                    check_whole(volume, what)
                await join_qemu(file, volume, write=False)
                size = (await file.stat()).size
            if is_raw(kind):
                head = b""
            elif formats.can_be_backed(kind):  # QEMU takes a node together with the name in the header, which is wrong
                head = without_references(kind, head)
            export = Export(file, size, size, head=head, on_bytes=on_bytes)
            inherited = not head and file.file.in_kernel
            serving = self._worker.inherited(file, volume.type) if inherited else self._worker.serving(export)
            async with serving as storage:
                yield qemu_img.node(kind, storage, backing)

    async def convert(
        self,
        source: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        on_bytes: OnBytes = None,
    ) -> VolumeInfo:
        """See :meth:`astore.backend.ConvertsVolumes.convert_volume`; ``capacity`` must be no less than that of the image."""
        kind = definition.format or "raw"
        check_convertible(definition)
        capacity = qemu_img.needed_capacity(definition)
        async with self._opener.new_volume(definition.name, definition.permissions, kind) as new:
            with worded(definition.name, "convert"):
                async with self._target(new, definition, capacity, on_bytes) as (storage, export):
                    await self._worker.convert(
                        source, storage, definition, backing=backing, stored=stored, export=export
                    )
                if kind == "raw":
                    await self._space.take(new, 0, min(definition.allocation or 0, capacity))
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
        inherited = new.file.in_kernel and not (self._current().shared and formats.can_be_backed(kind))
        if formats.grows(kind) and not inherited:
            async with self._worker.new_image(definition, capacity) as path:
                yield qemu_img.file_node(path), None
                await self._put(path, new, nobody)
            return
        if kind == "raw":
            room = whole_sectors(capacity)
            await new.truncate(room)
        else:
            room = whole_sectors(capacity + capacity // 16) + ROOM  # tables take a 64th and a 256th at most
            head = await self.create(new, definition, capacity, False, nobody)
        if inherited:
            async with self._worker.inherited(new, VolumeType.FILE) as storage:
                yield storage, None
            return
        export = Export(new, room, (await new.stat()).size, write=True, head=head, on_bytes=on_bytes)
        async with self._worker.serving(export) as storage:
            yield {**storage, "discard": "unmap"}, export
        if kind != "raw":
            await new.truncate(whole_sectors(export.end))

    # ---------------------------------------------------------------------------------------------------- resizing

    async def resize(self, file: OpenFile, volume: VolumeInfo, wanted: Grown) -> None:
        """Have qemu-img resize an image that is open for writing.

        :raises StorageError: EOPNOTSUPP: it would grow over what backs it, which cannot be read here. EAGAIN, EPERM: see
            :mod:`astore.volume_io.headers`.
        """
        what = f"resizing a {volume.format} volume: volume {printable(volume.name)!r}"
        if not formats.can_be_read(volume.format):
            raise StorageError(f"{what}: images of format {volume.format!r} are not resized", errno=errno.EOPNOTSUPP)
        head = await file.run(unchanged_head, file.file, volume, what)
        check_whole(volume, what)
        below = _below(volume, wanted, what)
        await join_qemu(file, volume, write=True)
        more = max(wanted.capacity - volume.capacity, 0) if wanted.allocate else 0
        stored = (await file.stat()).size
        await self._space.take_after(file, stored, whole_sectors(more))  # before the header says that it has it
        room = whole_sectors(stored + more + more // 16)
        if volume.format == "qcow2":  # on shrinking QEMU writes all tables for what goes
            largest = max(wanted.capacity, volume.capacity)
            room += ROOM + whole_sectors(largest // (volume.cluster_size or 512) * 16)
        export = Export(file, room, stored, write=True, head=head)
        try:
            end = await self._resized(export, volume, wanted, below)
        except BaseException:
            if more:  # the space that was taken is in no header
                await shielded(bounded(file.truncate(export.end)))
            raise
        await file.truncate(whole_sectors(end))
        if wanted.allocate:
            await self._space.take(file, stored, whole_sectors(end) - stored)

    async def _resized(self, export: Export, volume: VolumeInfo, wanted: Grown, below: QemuNode | None) -> int:
        """Have qemu-img change an image that is served; where the image ends then."""
        arguments = ["resize", "-q"]
        if wanted.capacity < volume.capacity:
            arguments.append("--shrink")
        if wanted.allocate:
            arguments.append("--preallocation=falloc")

        async def run(arguments: list[str]) -> CommandResult:
            return await self._worker.run(
                arguments,
                f"resizing a {volume.format} volume",
                nodes=(wanted.backing or {},),
                stored=export.size,
                export=export,
                timeout=qemu_img.CONVERT_SECONDS,
            )

        async with self._worker.serving(export) as served, self._worker.shim(below, wanted.backed or 0) as backing:
            node = qemu_img.node(volume.format, {**served, "discard": "unmap"}, backing)
            await run([*arguments, qemu_img.filename(node), str(wanted.capacity)])
            # what QEMU does to a file's size it cannot do here: to take space for it, and to cut it
            if not wanted.allocate and wanted.capacity >= volume.capacity:
                return export.end
            return qemu_img.image_end(await run(["check", "--output=json", qemu_img.filename(node)]))


def _below(volume: VolumeInfo, wanted: Grown, what: str) -> QemuNode | None:
    """What QEMU must see below an image that it resizes: an image that grows over what backs it must get zeros there.

    :raises StorageError: EOPNOTSUPP: that cannot be read here.
    """
    if volume.backing is None or wanted.capacity <= volume.capacity:
        return None
    if wanted.backed is not None and wanted.backed <= volume.capacity:
        return None
    if wanted.backing is None:
        raise StorageError(
            f"{what} is backed by {printable(volume.backing)!r}, which cannot be read here: "
            "what it gains would show what is there",
            errno=errno.EOPNOTSUPP,
        )
    return wanted.backing


async def join_qemu(file: OpenFile, volume: VolumeInfo, *, write: bool) -> None:
    """Take the locks that QEMU takes. :raises VolumeBusyError: a QEMU uses the volume in a way that does not go with this."""
    if not await file.run(lambda: file.file.begin_as_qemu(write=write)):
        raise VolumeBusyError(
            f"volume {printable(volume.name)!r} is in use by a running QEMU", operation="write" if write else "read"
        )


def _open_image(path: str) -> TreeFile:
    return LocalFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
