"""TreeImages: creates, reads, converts and resizes images in a tree by qemu-img."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator
from functools import partial
from typing import NamedTuple

import msgspec

from astore.backend import BackingFile, QemuNode
from astore.cancellation import bounded, shielded
from astore.errors import StorageError, VolumeBusyError, printable
from astore.images import HEADER_SIZE, formats
from astore.images.formats import is_raw
from astore.images.headers import without_references
from astore.model import VolumeDef, VolumeInfo, VolumeType
from astore.trees.opening import NewVolume, Opener, close_file
from astore.trees.space import allocate
from astore.volume_io import copying, qemu_img
from astore.volume_io.blocking_file import TreeFile
from astore.volume_io.export import Export, whole_sectors
from astore.volume_io.headers import check_whole, unchanged_head
from astore.volume_io.local_file import LocalFile
from astore.volume_io.open_file import OpenFile
from astore.volume_io.qemu_worker import OnBytes, QemuWorker, check_convertible
from astore.volume_io.wording import worded

ROOM = 64 << 20
"""Bytes reserved for an image's tables to grow when its capacity changes: QEMU's qcow2 tables have up to 32 MiB and 8 MiB."""


class Grown(NamedTuple):
    """A request to resize an image.

    :ivar capacity: in bytes. :ivar allocate: allocate the space that it gains.
    :ivar backing: its backing file, if it grows and that is known.
    """

    capacity: int
    allocate: bool = False
    backing: BackingFile | None = None


class TreeImages:
    """Runs qemu-img on the images of a tree.

    :param opener: opens the tree's volumes.
    """

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._worker = QemuWorker(opener.context)

    # ------------------------------------------------------------------------------------------------------ making

    async def create(
        self, new: NewVolume, definition: VolumeDef, capacity: int, prealloc_metadata: bool, count: copying.Count
    ) -> bytes:
        """Create an image in a private folder and copy it to the pool; return the image's first bytes."""
        async with self._worker.new_image(definition, capacity, prealloc_metadata=prealloc_metadata) as path:
            size, head = await self._put(path, new, count)
        if prealloc_metadata and definition.backing is None and (definition.allocation or 0) >= capacity:
            await allocate(self._opener.current(), new, 0, size, count)
        return head

    async def _put(self, path: str, new: NewVolume, count: copying.Count) -> tuple[int, bytes]:
        """Copy a local file into a new volume; return the volume's size and first bytes."""
        lane = self._opener.lane
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
            elif formats.can_be_backed(kind):  # QEMU would combine the node with the name in the header
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
        """See :meth:`astore.backend.ConvertsVolumes.convert_volume`; ``capacity`` must be at least the image's."""
        kind = definition.format or "raw"
        check_convertible(definition)
        capacity = qemu_img.needed_capacity(definition)
        async with self._opener.new_volume(definition) as new:
            with worded(definition.name, "convert"):
                async with self._target(new, definition, capacity, on_bytes) as (storage, export):
                    await self._worker.convert(
                        source, storage, definition, backing=backing, stored=stored, export=export
                    )
                if kind == "raw":
                    await allocate(self._opener.current(), new, 0, min(definition.allocation or 0, capacity))
        return new.info

    @contextlib.asynccontextmanager
    async def _target(
        self, new: NewVolume, definition: VolumeDef, capacity: int, on_bytes: OnBytes
    ) -> AsyncIterator[tuple[QemuNode, Export | None]]:
        """Yield the storage node of a new, empty image without a backing file, and its export, if it is served."""
        kind = definition.format or "raw"
        definition = msgspec.structs.replace(definition, backing=None)
        uncounted = copying.Count(None, None)
        head = b""
        # on shared storage others could write file names into the header before QEMU reads it
        inherited = new.file.in_kernel and not (self._opener.current().shared and formats.can_be_backed(kind))
        if formats.grows(kind) and not inherited:
            async with self._worker.new_image(definition, capacity) as path:
                yield qemu_img.file_node(path), None
                await self._put(path, new, uncounted)
            return
        if kind == "raw":
            room = whole_sectors(capacity)
            await new.truncate(room)
        else:
            room = whole_sectors(capacity + capacity // 16) + ROOM  # tables take a 64th and a 256th at most
            head = await self.create(new, definition, capacity, False, uncounted)
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
        """Resize an image that is open for writing.

        :raises StorageError: EOPNOTSUPP: it would grow beyond its backing image's old end, and that cannot be read here.
            EAGAIN, EPERM: see :mod:`astore.volume_io.headers`.
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
        try:  # before the header promises it
            await allocate(self._opener.current(), file, stored, whole_sectors(more))
        except BaseException:
            await shielded(bounded(file.truncate(stored)))
            raise
        room = whole_sectors(stored + more + more // 16)
        if volume.format == "qcow2":  # to shrink, QEMU writes every table of the part that goes
            largest = max(wanted.capacity, volume.capacity)
            room += ROOM + whole_sectors(largest // (volume.cluster_size or 512) * 16)
        export = Export(file, room, stored, write=True, head=head)
        resized = asyncio.Event()
        try:
            end = await self._resized(export, volume, wanted, below, resized)
        except BaseException:
            if more:  # either no header refers to the allocated space, or the image ends somewhere in the export
                await shielded(bounded(file.truncate(export.size if resized.is_set() else export.end)))
            raise
        await file.truncate(whole_sectors(end))
        if wanted.allocate:
            await allocate(self._opener.current(), file, stored, whole_sectors(end) - stored)

    async def _resized(
        self, export: Export, volume: VolumeInfo, wanted: Grown, below: BackingFile | None, resized: asyncio.Event
    ) -> int:
        """Resize an image that is served; return where it ends afterwards.

        :param resized: set once its header has the new capacity, even if a later step fails.
        """
        arguments = ["resize", "-q"]
        if wanted.capacity < volume.capacity:
            arguments.append("--shrink")
        if wanted.allocate:
            arguments.append("--preallocation=falloc")

        run = partial(
            self._worker.run,
            operation=f"resizing a {volume.format} volume",
            nodes=() if below is None or below.node is None else (below.node,),
            stored=export.size,
            export=export,
            timeout=qemu_img.CONVERT_SECONDS,
        )
        async with self._worker.serving(export) as served, self._worker.shim(below) as backing:
            node = qemu_img.node(volume.format, {**served, "discard": "unmap"}, backing)
            await run([*arguments, qemu_img.filename(node), str(wanted.capacity)])
            resized.set()
            # over NBD, QEMU can neither allocate space nor truncate the file
            if not wanted.allocate and wanted.capacity >= volume.capacity:
                return export.end
            return qemu_img.image_end(await run(["check", "--output=json", qemu_img.filename(node)]))


def _below(volume: VolumeInfo, wanted: Grown, what: str) -> BackingFile | None:
    """Return the backing file that QEMU needs for a resize: where the image grows over its backing image, it must get zeros.

    :raises StorageError: EOPNOTSUPP: the backing image cannot be read here.
    """
    if volume.backing is None or wanted.capacity <= volume.capacity:
        return None
    if wanted.backing is not None and wanted.backing.capacity <= volume.capacity:
        return None
    if wanted.backing is None or wanted.backing.node is None:
        raise StorageError(
            f"{what} is backed by {printable(volume.backing)!r}, which cannot be read here: "
            "what it gains would show what is there",
            errno=errno.EOPNOTSUPP,
        )
    return wanted.backing


async def join_qemu(file: OpenFile, volume: VolumeInfo, *, write: bool) -> None:
    """Take the locks that QEMU takes. :raises VolumeBusyError: a running QEMU holds conflicting locks."""
    if not await file.run(lambda: file.file.begin_as_qemu(write=write)):
        raise VolumeBusyError(
            f"volume {printable(volume.name)!r} is in use by a running QEMU", operation="write" if write else "read"
        )


def _open_image(path: str) -> TreeFile:
    return LocalFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
