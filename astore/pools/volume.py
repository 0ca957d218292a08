"""Volume: the public handle of a volume, and the work on it.

A claim locks a volume against other writers only: refreshes, lookups and work on other volumes go on. Work updates the
snapshot as soon as it is done, and the journal of a running refresh.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, Literal, cast, overload

import msgspec

from astore.backend import (
    DeletesVolumes,
    Progress,
    RenamesVolumes,
    ResizesVolumes,
    TellsUsers,
    VolumeFile,
    WipesVolumes,
)
from astore.errors import DefinitionError, LibvirtCode, StorageError, VolumeExistsError, printable
from astore.model import ImageCheck, ImageSnapshot, ReferenceKind, VolumeInfo
from astore.model.records import first_of
from astore.names import check_volume_name
from astore.plugin_calls import checked_record, checked_words
from astore.pools import graph, upload
from astore.pools.backing import no_capacity
from astore.pools.copies import backing_for
from astore.pools.download import download
from astore.pools.job_support import (
    begin_change,
    keep_raw,
    look_again_at,
    looking_again,
    opened_volume,
    reporting,
    require_usable,
    worked,
)
from astore.pools.parts import Member
from astore.volume_io import wiping
from astore.volume_io.blocks import Hole
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
        self.pool: Pool = pool
        self.name: str = name

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
            gone = self.pool.snapshot.get(self.name) is None
            if error.name == printable(self.name) and (gone or error.unreadable):
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

    @overload
    def download(
        self,
        *,
        offset: int = 0,
        length: int | None = None,
        sparse: Literal[False] = False,
        on_progress: Progress | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[bytearray]]: ...

    @overload
    def download(
        self, *, offset: int = 0, length: int | None = None, sparse: bool, on_progress: Progress | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytearray | Hole]]: ...

    def download(
        self,
        *,
        offset: int = 0,
        length: int | None = None,
        sparse: bool = False,
        on_progress: Progress | None = None,
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """Read the volume's bytes: ``async with volume.download() as chunks: async for chunk in chunks: ...``.

        The chunks are bytearrays, which the caller may keep or change. Later chunks reuse the memory of those that are not
        kept.

        :param offset: the first byte. :param length: the number of bytes; None means all.
        :param sparse: yield an :class:`astore.Hole` for a hole, instead of zeros.
        :param on_progress: called with bytes done and in all; must not block.
        """
        return download(self._member, offset, length, sparse, on_progress)

    @contextlib.asynccontextmanager
    async def open(self, *, write: bool = False, force: bool = False) -> AsyncIterator[VolumeFile]:
        """Open it for random access: ``async with volume.open() as file: await file.pread(512, 0)``.

        :param write: allow ``pwrite``, ``truncate`` and ``punch``, and lock it against other writers meanwhile.
        :param force: even if other volumes are backed by this one.
        """
        pool = self.pool.parts
        life = require_usable(pool, "open a volume")
        info = self.info
        if write:
            life, info = await begin_change(pool, self.name, "write", force)
        with pool.claims.claim(self.name, "written") if write else contextlib.nullcontext():
            session = await life.able("open-volume")
            try:
                async with opened_volume(pool, session, info, write=write) as file:
                    yield file
            finally:
                if write:
                    await pool.refresher.look_again(self.name)

    # ------------------------------------------------------------------------------------------------- its life

    async def resize(
        self, capacity: int, *, delta: bool = False, shrink: bool = False, allocate: bool = False, force: bool = False
    ) -> VolumeInfo:
        """Set its capacity, in bytes; libvirt's flags.

        :param delta: add ``capacity`` to the present one (with ``shrink``: subtract). :param shrink: allow a smaller one.
        :param allocate: allocate the space that it gains. :param force: even if other volumes are backed by it.
        :raises DefinitionError: it would become smaller, or an image of 0 bytes. VolumeBusyError, VolumeInUseError,
            CommandError, StorageError.
        """
        pool, name = self._member
        life, info = await begin_change(pool, name, "resize", force)
        target = info.capacity + (-capacity if shrink else capacity) if delta else capacity
        refusal = no_capacity(capacity, target, info, shrink)
        if refusal is not None:
            raise DefinitionError(refusal, element="capacity", libvirt_code=LibvirtCode.INVALID_ARG)
        with pool.claims.claim(name, "resized"):
            session = await life.able("resize-volume")
            async with looking_again(pool, name), backing_for(self._member, target, "resizing") as backing:
                call = cast(ResizesVolumes, session).resize_volume(info, target, allocate=allocate, backing=backing)
                changed = checked_record(await worked(pool, call))
            life.check("resize", session)
            pool.refresher.apply({name: changed})
            return changed

    async def wipe(self, algorithm: str = "zero", *, on_progress: Progress | None = None, force: bool = False) -> None:
        """Overwrite all its data, the image's header included.

        :param algorithm: one of libvirt's (see :data:`astore.volume_io.wiping.ALGORITHMS`); ``trim`` frees its space instead.
        :param on_progress: called with bytes done and in all, over all passes; must not block.
        :raises DefinitionError: there is no such algorithm. VolumeBusyError, VolumeInUseError, TransferError.
        """
        pool, name = self._member
        wiping.check_algorithm(algorithm)
        life, info = await begin_change(pool, name, "wipe", force)
        with pool.claims.claim(name, "wiped"):
            session = await life.able("wipe-volume")
            try:
                with reporting(pool.record, name, "wipe", on_progress) as tell:
                    await worked(pool, cast(WipesVolumes, session).wipe_volume(info, algorithm, progress=tell))
            finally:
                await pool.refresher.look_again(name)
            life.check("wipe", session)
            keep_raw(pool, name)

    async def delete(self, *, force: bool = False) -> None:
        """Remove it; a directory only if it is empty.

        :raises VolumeBusyError: it has a writer. VolumeInUseError: others are backed by it. StorageError: ENOTEMPTY …
        """
        pool, name = self._member
        life, info = await begin_change(pool, name, "delete", force)
        others = graph.dependents(info, pool, pool.others())
        with pool.claims.claim(name, "deleted"):
            session = await life.able("delete-volume")
            async with looking_again(pool, name):
                await worked(pool, cast(DeletesVolumes, session).delete_volume(info))
            life.check("delete", session)
            pool.refresher.apply({name: None})
            await look_again_at(others)

    async def rename(self, name: str, *, force: bool = False) -> Volume:
        """Rename it within its pool; return the volume of that name.

        :raises VolumeExistsError: the name is taken. VolumeInUseError: others are backed by it, by its present name.
        """
        pool, old = self._member
        check_volume_name(name)
        life, info = await begin_change(pool, old, "rename", force)
        if name == old:
            raise VolumeExistsError(f"volume {old!r} of pool {pool.name!r} has this name already", pool=pool.name)
        others = graph.dependents(info, pool, pool.others())
        with pool.claims.claim(old, "renamed"), pool.claims.claim(name, "created"):
            session = await life.able("rename-volume")
            async with looking_again(pool, old, name):
                renamed = checked_record(await worked(pool, cast(RenamesVolumes, session).rename_volume(info, name)))
            life.check("rename", session)
            pool.refresher.apply({old: None, name: renamed})
            await look_again_at(others)
            return Volume(self.pool, renamed.name)

    async def set_format(self, format: str) -> VolumeInfo:
        """Decide between ``raw`` and the format of its header, if it was made raw and now looks like an image.

        :param format: ``raw``: it stays raw, whatever its header says now or later. The header's format: the header, with the
            files that it names, is trusted from then on.
        :raises DefinitionError: its header has another format, or is malformed. UnsupportedOperationError, StorageError.
        """
        from astore.pools import image_jobs

        await image_jobs.set_format(self._member, format)
        return self.info

    # ------------------------------------------------------------------------------------------- what QEMU says of it

    async def check(self) -> ImageCheck:
        """Have qemu-img check the structure of the image. Nothing is changed, and an image in use is skipped.

        :raises CommandError: qemu-img is missing. StorageError: EAGAIN: its header has changed meanwhile.
        """
        from astore.pools import image_jobs

        return await image_jobs.check(self._member, self.refresh)

    async def image_snapshots(self) -> tuple[ImageSnapshot, ...]:
        """Return the snapshots inside a qcow2 image, which QEMU made; also while it is in use.

        :raises CommandError: qemu-img is missing. StorageError: EOPNOTSUPP: it is of another format, or cannot be read.
        """
        from astore.pools import image_jobs

        return await image_jobs.snapshots(self._member, await self.refresh())

    # --------------------------------------------------------------------------------------------- to others' eyes

    async def users(self) -> tuple[str, ...]:
        """Return who else has it open for writing now, one in words each, such as ``client 4123 at 192.0.2.7:0/99``.

        :raises UnsupportedOperationError: the pool's storage does not tell. StorageError: EAGAIN: it is another volume now.
        """
        pool, info = self._member.pool, self.info
        session = cast(TellsUsers, await require_usable(pool, "look into a volume").able("tell-users"))
        return checked_words(await worked(pool, session.volume_users(info)))

    def backing_chain(self) -> tuple[ChainLink, ...]:
        """Return the files that it is made of, itself first, as far as the active pools know them.

        :raises StorageError: ELOOP: the chain loops, or is deeper than libvirt's 200.
        """
        found = []
        for path, format, member, kind, doubt in graph.chain(self._member, self.pool.parts.others()):
            volume = None if member is None else self.pool.handle_of(member)
            found.append(ChainLink(path, format, volume, kind, doubt))
        return tuple(found)

    def disk_xml(self, target: str = "vda", bus: str = "virtio", *, readonly: bool = False) -> str:
        """Return the ``<disk>`` element for a libvirt domain, with every host if the volume is on the network.

        :param target: the device in the guest. :param bus: libvirt's name of the bus.
        :raises DefinitionError: it is a directory. StorageError: EPERM: it needs a file that astore does not read.
            BackendLoadError: it is on the network, and its pool's backend is not loaded: refresh the pool first.
        """
        from astore.pools.disk import disk_xml

        return disk_xml(self._member, target, bus, readonly=readonly)

    def qemu_uri(self) -> str:
        """Return its path or URL, without secrets, as QEMU takes it. :raises: as :func:`astore.pools.disk.qemu_uri`."""
        from astore.pools.disk import qemu_uri

        return qemu_uri(self._member)

    def qemu_blockdev(self, node_name: str | None = None) -> dict[str, Any]:
        """Return the argument of QEMU's ``blockdev-add`` (or, as JSON, of ``-blockdev``), with every host.

        :raises: as :meth:`disk_xml`.
        """
        from astore.pools.disk import qemu_blockdev

        return qemu_blockdev(self._member, node_name)
