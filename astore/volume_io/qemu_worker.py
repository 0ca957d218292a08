"""QemuWorker: runs qemu-img for one pool, on files that the pool has open.

qemu-img opens no file by a name that somebody else could have written. It inherits open files if the storage is local and
their headers do not matter. Other volumes are served to it (:mod:`astore.volume_io.nbd`) with the header that was checked.
The files of each image are named to it explicitly.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from astore.backend import BackingFile, CommandResult, Context, QemuNode
from astore.cancellation import cleaned_up, to_the_end
from astore.errors import CommandError, DefinitionError, StorageError
from astore.images import formats
from astore.model import VolumeDef, VolumeType
from astore.volume_io import nbd, qemu_img
from astore.volume_io.export import Export
from astore.volume_io.open_file import OpenFile
from astore.volume_io.private_folder import private_folder

PROGRAMS = 4
"""The most qemu-img processes of one pool at once."""

OnBytes = Callable[[int], None] | None


class QemuWorker:
    """Runs qemu-img, a few processes at once, and hands it volumes.

    :param context: the pool's.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._programs: asyncio.Semaphore | None = None

    async def run(
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

        :param nodes: the nodes in its arguments, whose open files it inherits. :param stored: bytes that it may have to read.
        :param export: the export that it writes to, if any. :param timeout: in seconds.
        :raises OSError: the storage failed. CommandError: qemu-img failed.
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
                # "no space" about an export may mean that the export ends there
                storage = qemu_img.storage_error(error) if export is None else export.error
                if storage is not None:
                    raise storage from error
                raise

    # ------------------------------------------------------------------------------------------ volumes for qemu-img

    @contextlib.asynccontextmanager
    async def serving(self, export: Export) -> AsyncIterator[QemuNode]:
        """Serve an open volume to qemu-img."""
        async with (
            private_folder(self._context, for_socket=True) as folder,
            nbd.serving(export, self._context, folder) as storage,
        ):
            yield storage

    @contextlib.asynccontextmanager
    async def inherited(self, file: OpenFile, type: VolumeType) -> AsyncIterator[QemuNode]:
        """Let qemu-img inherit an open local file."""
        lane = self._context.lane
        descriptor = await to_the_end(lane, file.guarded, file.file.open_again, undo=os.close)
        try:
            yield qemu_img.descriptor_node(descriptor, type)
        finally:
            await cleaned_up(lane, lambda: os.close(descriptor))

    @contextlib.asynccontextmanager
    async def shim(self, backing: BackingFile | None) -> AsyncIterator[QemuNode | None]:
        """Yield a backing node for an image whose header keeps the backing file's name.

        QEMU confuses a node with that name unless the node has a file name of its own. So it gets an empty, temporary
        image that is backed by the node.
        """
        if backing is None or backing.node is None:
            yield None
            return
        name = qemu_img.filename(backing.node)
        if len(name.encode()) > qemu_img.LONGEST_NAME:
            raise StorageError("its backing chain is too long for a resize", errno=errno.EOPNOTSUPP)
        async with private_folder(self._context) as folder:
            path = f"{folder}/backing.qcow2"
            create = ["create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", backing.node["driver"]]
            await self.run([*create, path, str(backing.capacity)], "resizing a backed volume")
            yield {"driver": "qcow2", "file": qemu_img.file_node(path)}

    # ------------------------------------------------------------------------------------------------- operations

    @contextlib.asynccontextmanager
    async def new_image(
        self, definition: VolumeDef, capacity: int, *, prealloc_metadata: bool = False
    ) -> AsyncIterator[str]:
        """Create an empty image in a private folder; yield its path."""
        async with private_folder(self._context) as folder:
            # a VMDK's descriptor contains the name, in quotes, among lines that name other files
            odd = '"' in definition.name or "parentFileNameHint" in definition.name
            path = f"{folder}/{'disk' if odd else definition.name}"
            arguments = qemu_img.create_arguments(definition, prealloc_metadata=prealloc_metadata)
            await self.run([*arguments, path, str(capacity)], f"creating a {definition.format} volume")
            yield path

    async def convert(
        self,
        source: QemuNode,
        storage: QemuNode,
        definition: VolumeDef,
        *,
        backing: QemuNode | None = None,
        stored: int = 0,
        export: Export | None = None,
    ) -> None:
        """Copy the disk of one image into another, empty one.

        :param source: the image to read. :param storage: the storage of the image to write.
        :param definition: of the image to write; it must have a capacity.
        :param backing: the node of its backing file, if that has the same data as the source's backing file.
        :param stored: bytes that the source takes in its files. :param export: the export behind ``storage``, if any.
        """
        kind = definition.format or "raw"
        run = partial(
            self.run,
            operation=f"converting from {source['driver']} to {kind}",
            nodes=(source, storage, backing or {}),
            stored=stored,
            export=export,
            timeout=qemu_img.CONVERT_SECONDS,
        )
        thin = backing is not None
        if definition.backing is not None and backing is None:
            # a backing node of unknown data, so that qemu-img leaves nothing to the real backing file
            backing = {"driver": "null-co", "size": definition.capacity, "read-zeroes": False}
        target = qemu_img.node(kind, storage, backing)
        await run(qemu_img.convert_arguments(definition, source, target, thin=thin))
        if definition.backing is not None:
            await run(qemu_img.rebase_arguments(definition, qemu_img.node(kind, storage)))


def check_convertible(definition: VolumeDef) -> None:
    """Check that an image can be converted into this volume. :raises DefinitionError: it cannot."""
    qemu_img.check_definition(definition)
    if definition.backing is not None and not formats.can_be_backed_later(definition.format or "raw"):
        raise DefinitionError(
            f"nothing can be converted into a {definition.format} volume that is backed", element="backingStore"
        )
