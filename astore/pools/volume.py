"""Volume: the public handle of a volume."""

from __future__ import annotations

import errno
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import msgspec

from astore.backend import Progress, VolumeFile
from astore.errors import StorageError, printable
from astore.model import ReferenceKind, VolumeInfo
from astore.model.records import first_of
from astore.pools import graph, upload, volume_jobs
from astore.pools.parts import Member
from astore.volume_io.downloads import Download
from astore.volume_io.uploads import Source

if TYPE_CHECKING:
    from astore.pools.pool import Pool


class ChainLink(msgspec.Struct, frozen=True):
    """A file of a chain: an image, its backing files, and the files that hold their data.

    :ivar path: an absolute path or a URL; the name in the header if its location is unknown.
    :ivar format: the format in which it is read: the one that the image above gives, or else the volume's.
    :ivar volume: None if no active pool has it. :ivar kind: how the image above uses it; None for the image itself.
    :ivar doubt: why astore reads nothing through it, in words that follow its name.
    """

    path: str
    format: str | None = None
    volume: Volume | None = None
    kind: ReferenceKind | None = None
    doubt: str | None = None


class Volume:
    """The volume ``name`` of ``pool``. The handle stays valid over refreshes, while the pool has a volume of that name."""

    __slots__ = ("name", "pool")

    def __init__(self, pool: Pool, name: str) -> None:
        self.pool = pool
        self.name = name

    def __repr__(self) -> str:
        return f"<Volume {self.name!r} of pool {self.pool.name!r}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Volume) and other.pool is self.pool and other.name == self.name

    def __hash__(self) -> int:
        return hash((id(self.pool), self.name))

    @property
    def _member(self) -> Member:
        return Member(self.pool.parts, self.name)

    @property
    def info(self) -> VolumeInfo:
        """Its record in the pool's last snapshot.

        :raises VolumeNotFoundError: the volume is gone.
        """
        return self._member.info

    @property
    def key(self) -> str:
        """Its key, unique among all volumes of all pools."""
        return self.info.key

    @property
    def path(self) -> str:
        """Its absolute path, or its URL."""
        return self.info.path

    async def refresh(self, *, timeout: float | None = None) -> VolumeInfo:
        """Read its header anew.

        :param timeout: seconds.
        :raises VolumeNotFoundError: the volume is gone. OSError: it cannot be read. TimeoutError: not in time.
        """
        outcome = await self.pool.refresh(self.name, timeout=timeout)
        for error in outcome.errors:
            if self.pool.snapshot.get(self.name) is None and error.name == printable(self.name):
                raise StorageError(
                    f"volume {self.name!r} of pool {self.pool.name!r}: {error.message}",
                    errno=error.errno or errno.EIO,
                    pool=self.pool.name,
                )
        return self.info

    def to_xml(self) -> str:
        """Return libvirt's ``<volume>`` document."""
        from astore.xml.volume import volume_info_to_xml

        info = self.info
        backing = first_of(info.references, ReferenceKind.BACKING)
        pools = [pool for pool in self.pool.parts.others() if pool.active]
        below = None if backing is None else graph.volume_at(backing, pools)
        return volume_info_to_xml(info, None if below is None else below.info)

    # --------------------------------------------------------------------------------------------------- its bytes

    async def upload(
        self,
        source: Source,
        *,
        offset: int = 0,
        length: int | None = None,
        sparse: bool = False,
        on_progress: Progress | None = None,
        force: bool = False,
        allow_references: bool = False,
    ) -> int:
        """Write bytes into the volume; return their number, holes included.

        The first bytes decide the volume's format: that of their header, or raw, whatever the guest writes later.

        :param source: an async iterable of bytes, one of anyio's byte streams, bytes, or the path of a file.
        :param offset: the first byte to write. :param length: the most bytes that ``source`` may have.
        :param sparse: make holes of zeros, and of the holes of a file.
        :param on_progress: called with bytes done and in all (None: unknown); must not block.
        :param force: even if other volumes are backed by this one.
        :param allow_references: accept an image whose header names other files.
        :raises VolumeBusyError: it has another writer. VolumeInUseError: others are backed by it. StorageError: EPERM: the
            header names other files; nothing was written. TransferError: the storage refused (ENOSPC …), or ``source`` has
            more than ``length`` bytes; ``done`` tells how many were written. What ``source`` raises is raised unchanged.
        """
        return await upload.upload(
            self.pool.parts,
            self.name,
            source,
            offset=offset,
            length=length,
            sparse=sparse,
            on_progress=on_progress,
            force=force,
            allow_references=allow_references,
        )

    def download(
        self,
        *,
        offset: int = 0,
        length: int | None = None,
        sparse: bool = False,
        on_progress: Progress | None = None,
    ) -> AbstractAsyncContextManager[Download]:
        """Read the volume's bytes: ``async with volume.download() as chunks: async for chunk in chunks: ...``.

        The chunks are bytearrays, which the caller may keep or change. Later chunks reuse the memory of those that are not
        kept.

        :param offset: the first byte. :param length: the number of bytes; None means all.
        :param sparse: yield an :class:`astore.Hole` for a hole, instead of zeros.
        :param on_progress: called with bytes done and in all; must not block.
        """
        return volume_jobs.download(
            self.pool.parts, self.name, offset=offset, length=length, sparse=sparse, on_progress=on_progress
        )

    def open(self, *, write: bool = False, force: bool = False) -> AbstractAsyncContextManager[VolumeFile]:
        """Open it for random access: ``async with volume.open() as file: await file.pread(512, 0)``.

        :param write: allow ``pwrite``, ``truncate`` and ``punch``, and lock it against other writers meanwhile.
        :param force: even if other volumes are backed by this one.
        """
        return volume_jobs.open_volume(self.pool.parts, self.name, write=write, force=force)

    # ------------------------------------------------------------------------------------------------- its life

    async def resize(
        self, capacity: int, *, delta: bool = False, shrink: bool = False, allocate: bool = False, force: bool = False
    ) -> VolumeInfo:
        """Set its capacity, in bytes; libvirt's flags.

        :param delta: add ``capacity`` to the present one (with ``shrink``: subtract). :param shrink: allow a smaller one.
        :param allocate: allocate the space that it gains. :param force: even if other volumes are backed by it.
        :raises DefinitionError: it would become smaller. VolumeBusyError, VolumeInUseError, CommandError, StorageError.
        """
        return await volume_jobs.resize_volume(
            self.pool.parts, self.name, capacity, delta=delta, shrink=shrink, allocate=allocate, force=force
        )

    async def wipe(self, algorithm: str = "zero", *, on_progress: Progress | None = None, force: bool = False) -> None:
        """Overwrite all its data, the image's header included.

        :param algorithm: one of libvirt's (see :data:`astore.volume_io.wiping.ALGORITHMS`); ``trim`` frees its space instead.
        :param on_progress: called with bytes done and in all, over all passes; must not block.
        :raises DefinitionError: there is no such algorithm. VolumeBusyError, VolumeInUseError, TransferError.
        """
        await volume_jobs.wipe_volume(self.pool.parts, self.name, algorithm, on_progress, force=force)

    async def delete(self, *, force: bool = False) -> None:
        """Remove it; a directory only if it is empty.

        :raises VolumeBusyError: it has a writer. VolumeInUseError: others are backed by it. StorageError: ENOTEMPTY …
        """
        await volume_jobs.delete_volume(self.pool.parts, self.name, force=force)

    async def rename(self, name: str, *, force: bool = False) -> Volume:
        """Rename it within its pool; return the volume of that name.

        :raises VolumeExistsError: the name is taken. VolumeInUseError: others are backed by it, by its present name.
        """
        renamed = await volume_jobs.rename_volume(self.pool.parts, self.name, name, force=force)
        return Volume(self.pool, renamed.name)

    async def set_format(self, format: str) -> VolumeInfo:
        """Decide between ``raw`` and the format of its header, if it was made raw and now looks like an image.

        :param format: ``raw``: it stays raw, whatever its header says now or later. The header's format: the header, with the
            files that it names, is trusted from then on.
        :raises DefinitionError: its header has another format. UnsupportedOperationError, StorageError.
        """
        return await volume_jobs.set_volume_format(self.pool.parts, self.name, format)

    # --------------------------------------------------------------------------------------------- to others' eyes

    def backing_chain(self) -> tuple[ChainLink, ...]:
        """Return the files that it is made of, itself first, as far as the active pools know them.

        :raises StorageError: ELOOP: the chain loops, or is deeper than libvirt's 200.
        """
        return tuple(
            ChainLink(
                path=link.path,
                format=link.format,
                volume=None if link.volume is None else self.pool.handle_of(link.volume),
                kind=link.kind,
                doubt=link.doubt,
            )
            for link in graph.chain(self._member, self.pool.parts.others())
        )

    def disk_xml(self, target: str = "vda", bus: str = "virtio", *, readonly: bool = False) -> str:
        """Return the ``<disk>`` element for a libvirt domain, with every host if the volume is on the network.

        :param target: the device in the guest. :param bus: libvirt's name of the bus.
        :raises DefinitionError: it is a directory. StorageError: EPERM: it needs a file that astore does not read.
            BackendLoadError: it is on the network, and its pool's backend is not loaded: refresh the pool first.
        """
        from astore.pools.disk import disk_xml

        return disk_xml(self._member, target, bus, readonly=readonly)

    def qemu_uri(self) -> str:
        """Return its path or URL, as QEMU's programs take it."""
        return self.info.path

    def qemu_blockdev(self, node_name: str | None = None) -> dict[str, Any]:
        """Return the argument of QEMU's ``blockdev-add`` (or, as JSON, of ``-blockdev``), with every host.

        :raises: as :meth:`disk_xml`.
        """
        from astore.pools.disk import qemu_blockdev

        return qemu_blockdev(self._member, node_name)
