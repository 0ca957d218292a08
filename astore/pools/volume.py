"""Volume: the handle of a volume that programs hold."""

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
    """A file of a chain: of an image, of what backs it, or of one that has data of theirs.

    :ivar path: where it is, or what names it. :ivar format: the format in which it is read: what the image above says, or
        else that of the volume.
    :ivar volume: None where no active pool has it. :ivar kind: what the image above uses it for; None of the first.
    :ivar doubt: why astore reads nothing through it, in words that follow what it is called.
    """

    path: str
    format: str | None = None
    volume: Volume | None = None
    kind: ReferenceKind | None = None
    doubt: str | None = None


class Volume:
    """The volume ``name`` of ``pool``. It stays valid over refreshes, for as long as there is a volume of that name."""

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

        :raises VolumeNotFoundError: it is not there any more.
        """
        return self._member.info

    @property
    def key(self) -> str:
        """What names it among all volumes of all pools."""
        return self.info.key

    @property
    def path(self) -> str:
        """Where it is: an absolute path, or a URL."""
        return self.info.path

    async def refresh(self, *, timeout: float | None = None) -> VolumeInfo:
        """Read its header anew.

        :param timeout: seconds.
        :raises VolumeNotFoundError: it is not there any more. OSError: it cannot be read. TimeoutError: not in time.
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
        """libvirt's ``<volume>`` document for it."""
        from astore.xml import volume_info_to_xml

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
        """Write bytes into the volume; returns how many there were, holes included.

        What its beginning says the volume is from then on: an image of that format, or raw, whatever its guest writes later.

        :param source: an async iterable of bytes, one of anyio's byte streams, bytes, or the path of a file.
        :param offset: where they go, in bytes. :param length: the most that there may be.
        :param sparse: zeros, and the holes of a file, become holes.
        :param on_progress: called with bytes done and in all (None: unknown); must not block.
        :param force: also where other volumes are backed by this one.
        :param allow_references: also bytes that begin as an image whose header names other files.
        :raises VolumeBusyError: somebody is writing it. VolumeInUseError: others are backed by it. StorageError: EPERM: the
            header names other files; nothing was written then. TransferError: the storage said no (ENOSPC …), or there are
            more bytes than ``length``; ``done`` says how far it came. What ``source`` raises is raised as it is.
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
        """The volume's bytes: ``async with volume.download() as chunks: async for chunk in chunks: ...``.

        The chunks are bytearrays, whoever gets one may keep it or change it. The memory of those that nobody keeps is used
        for the next.

        :param offset: where to begin, in bytes. :param length: how many; None is all there are.
        :param sparse: for what is a hole give an :class:`astore.Hole` instead of zeros.
        :param on_progress: called with bytes done and in all; must not block.
        """
        return volume_jobs.download(
            self.pool.parts, self.name, offset=offset, length=length, sparse=sparse, on_progress=on_progress
        )

    def open(self, *, write: bool = False, force: bool = False) -> AbstractAsyncContextManager[VolumeFile]:
        """Open it for random access: ``async with volume.open() as file: await file.pread(512, 0)``.

        :param write: also for ``pwrite``, ``truncate``, ``punch``: locked against other writers meanwhile.
        :param force: also where other volumes are backed by this one.
        """
        return volume_jobs.open_volume(self.pool.parts, self.name, write=write, force=force)

    # ------------------------------------------------------------------------------------------------- its life

    async def resize(
        self, capacity: int, *, delta: bool = False, shrink: bool = False, allocate: bool = False, force: bool = False
    ) -> VolumeInfo:
        """Give it another capacity, in bytes; libvirt's flags.

        :param delta: ``capacity`` is what it is to have more (with ``shrink``: less). :param shrink: it may become smaller.
        :param allocate: take the space of what it gains now. :param force: also where others are backed by it.
        :raises DefinitionError: it would become smaller. VolumeBusyError, VolumeInUseError, CommandError, StorageError.
        """
        return await volume_jobs.resize_volume(
            self.pool.parts, self.name, capacity, delta=delta, shrink=shrink, allocate=allocate, force=force
        )

    async def wipe(self, algorithm: str = "zero", *, on_progress: Progress | None = None, force: bool = False) -> None:
        """Overwrite its data, the image's header included, by one of libvirt's algorithms (see
        :data:`astore.volume_io.wiping.ALGORITHMS`); ``trim`` gives its space back instead.

        :param on_progress: called with bytes done and in all, over all passes; must not block.
        :raises DefinitionError: there is no such algorithm. VolumeBusyError, VolumeInUseError, TransferError.
        """
        await volume_jobs.wipe_volume(self.pool.parts, self.name, algorithm, on_progress, force=force)

    async def delete(self, *, force: bool = False) -> None:
        """Remove it; a directory only if it is empty.

        :raises VolumeBusyError: somebody is writing it. VolumeInUseError: others are backed by it. StorageError: ENOTEMPTY …
        """
        await volume_jobs.delete_volume(self.pool.parts, self.name, force=force)

    async def rename(self, name: str, *, force: bool = False) -> Volume:
        """Give it another name in its pool; returns the volume of that name.

        :raises VolumeExistsError: there is something of that name. VolumeInUseError: others are backed by it, by this name.
        """
        renamed = await volume_jobs.rename_volume(self.pool.parts, self.name, name, force=force)
        return Volume(self.pool, renamed.name)

    async def set_format(self, format: str) -> VolumeInfo:
        """Say what it is where its content and what it was made as say different things.

        :param format: ``raw``: it stays raw, whatever its content says now or later. Else what its header says: from then on
            that is believed, with the files that it names.
        :raises DefinitionError: its header says something else. UnsupportedOperationError, StorageError.
        """
        return await volume_jobs.set_volume_format(self.pool.parts, self.name, format)

    # --------------------------------------------------------------------------------------------- to others' eyes

    def backing_chain(self) -> tuple[ChainLink, ...]:
        """The files it is made of, itself first, as the active pools know them: what backs it, and what has data of it.

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
        """The ``<disk>`` element with which a libvirt domain uses it: ``type='network'`` on Gluster, with every host.

        :param target: the device in the guest. :param bus: libvirt's word for how it is attached.
        """
        from astore.pools.disk import disk_xml

        return disk_xml(self._member, target, bus, readonly=readonly)

    def qemu_uri(self) -> str:
        """What QEMU's programs call it: its path, or its ``gluster://`` URI."""
        return self.info.path

    def qemu_blockdev(self, node_name: str | None = None) -> dict[str, Any]:
        """The argument of QEMU's ``blockdev-add`` (or, as JSON, of ``-blockdev``) that opens it, with every host."""
        from astore.pools.disk import qemu_blockdev

        return qemu_blockdev(self._member, node_name)
